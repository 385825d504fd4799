"""Waveforms of whole batches: louder and softer, earlier and later.

A batch of waveforms is float `[B, L]`, or `[B, L, channels]`, with zeros behind each row's length.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from mmpipe.data.transforms.draw import Draw, on_device
from mmpipe.errors import ConfigError, DataError


def gain(decibels: float | tuple[float, float] = 6.0, *, probability: float = 1.0) -> Gain:
    """Make each waveform louder or softer by a random factor.

    Args:
        decibels: up to so much either way, or (lowest, highest); 6 dB is a factor of 2, 10^(dB/20) by definition.
        probability: that a row is changed.

    Returns:
        Transform of float waveforms of any shape `[B, ...]`.

    Raises:
        ConfigError: a range upside down, or no probability.

    >>> gain((-20, -20))(torch.ones(1, 2), draw=Draw())
    tensor([[0.1000, 0.1000]])
    """
    low, high = (-abs(decibels), abs(decibels)) if isinstance(decibels, (int, float)) else decibels
    return Gain(low=float(low), high=float(high), probability=probability)


@dataclass(frozen=True, kw_only=True)
class Gain:
    """What `gain` returns."""

    low: float
    high: float
    probability: float

    random = True
    keeps_rate = True

    def __post_init__(self) -> None:
        if not 0 <= self.probability <= 1:
            raise ConfigError(f'transforms.gain(probability={self.probability}): a probability is from 0 to 1.')
        if not self.low <= self.high:
            raise ConfigError(f'transforms.gain(({self.low}, {self.high})): decibels, the lower one first.')

    def __call__(self, waves: torch.Tensor, *, draw: Draw | None = None) -> torch.Tensor:
        """Transform one batch, float `[B, ...]`."""
        check_floats(waves, 'gain', '[B, L, ...]')
        chance, place = (draw or Draw()).numbers(0, 2, len(waves))
        decibels = np.where(chance < self.probability, self.low + place * (self.high - self.low), 0)
        factors = on_device((10 ** (decibels / 20)).astype(np.float32), waves.device)
        return waves * factors.to(waves.dtype).reshape(-1, *[1] * (waves.ndim - 1))


def shift(seconds: float, rate: int = 16_000, *, around: bool = False) -> Shift:
    """Move each waveform earlier or later by a random time, within its own length.

    Args:
        seconds: up to so much either way.
        rate: of the waveforms, in Hz.
        around: what leaves at one end comes back at the other; else it is lost, and silence follows.

    Returns:
        Transform of waveforms `[B, L]` or `[B, L, channels]`.

    Raises:
        ConfigError: a negative time.

    >>> moved, _ = shift(2, rate=1, around=True)(torch.tensor([[1.0, 2.0, 3.0]]), draw=Draw())
    >>> sorted(moved[0].tolist())
    [1.0, 2.0, 3.0]
    """
    if seconds < 0:
        raise ConfigError(f'transforms.shift({seconds}): up to so many seconds either way, so it is not negative.')
    return Shift(most=round(seconds * rate), around=around)


@dataclass(frozen=True, kw_only=True)
class Shift:
    """What `shift` returns; `most` is in samples."""

    most: int
    around: bool

    random = True
    keeps_rate = True
    takes_lengths = True

    def __call__(
        self, waves: torch.Tensor, *, draw: Draw | None = None, lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Transform one batch.

        Args:
            waves: `[B, L, ...]`.
            draw: random numbers for its samples; torch's global generator when None.
            lengths: int64 `[B]` in samples; None where all rows are L long.

        Returns:
            (the same shape, the same lengths).
        """
        check_floats(waves, 'shift', '[B, L, ...]')
        numbers = (draw or Draw()).numbers(0, 1, len(waves))[0]
        by = on_device(np.floor(numbers * (2 * self.most + 1)).astype(np.int64) - self.most, waves.device)[:, None]
        places = torch.arange(waves.shape[1], device=waves.device)
        ends = places.new_full((len(waves), 1), waves.shape[1]) if lengths is None else lengths[:, None]
        source = places - by
        inside = places < ends
        if self.around:
            source = source.remainder(ends.clamp(min=1))
        else:
            inside = inside & (source >= 0) & (source < ends)
        rest = (1,) * (waves.ndim - 2)
        index = source.clamp(0, waves.shape[1] - 1).reshape(*source.shape, *rest).expand(waves.shape)
        return waves.gather(1, index).where(inside.reshape(*inside.shape, *rest), 0), lengths


def check_floats(values: torch.Tensor, what: str, shape: str, *, dimensions: int | None = None) -> None:
    """Check what an audio transform is given.

    Args:
        values: a batch.
        what: name of the transform, for the message.
        shape: that it takes, for the message.
        dimensions: of that shape; two or more when None.

    Raises:
        DataError: no floats, or another number of dimensions.

    >>> check_floats(torch.zeros(2, 3), 'gain', '[B, L, ...]')
    """
    if not values.is_floating_point() or values.ndim < 2 or dimensions not in (None, values.ndim):
        raise DataError(
            f'transforms.{what} takes float {shape}, but was given {values.dtype} {list(values.shape)}. Give it the '
            f'name of an audio field in transforms=, decoded to floats.'
        )

"""Log-mel spectrograms of whole batches, and blanked stretches in them.

A batch of waveforms is float `[B, L]` with zeros behind each row's length, one of log-mel spectrograms float32
`[B, n_mels, T]`. Each row comes out as it would alone: zeros behind its end are what its spectrogram is padded with
anyway.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from mmpipe.data.transforms.calling import Allocate
from mmpipe.data.transforms.draw import Draw, on_device
from mmpipe.data.transforms.waves import check_floats
from mmpipe.errors import ConfigError

CHUNK_BYTES = 1 << 20  # of waveforms whose spectra are made at once on the CPU: these take several times as much


def log_mel(
    rate: int = 16_000,
    n_mels: int = 64,
    *,
    seconds: float | None = None,
    window_ms: float = 25.0,
    hop_ms: float = 10.0,
    lowest_hz: float = 125.0,
    highest_hz: float = 7500.0,
    offset: float = 0.01,
) -> LogMel:
    """Log-mel spectrograms by torchaudio, as `mmpipe.functions.log_mel` stores them.

    The defaults are the front end of VGGish (Hershey et al. 2017, "CNN architectures for large-scale audio
    classification"; constants as in tensorflow/models, research/audioset/vggish/vggish_params.py): HTK mel bands of the
    magnitude of windows of 25 ms every 10 ms, padded to a power of two for the Fourier transform.

    Args:
        rate: of the waveforms, in Hz.
        n_mels: mel bands.
        seconds: cut or pad with silence to this length, so that batches have one shape; None for the longest row.
        window_ms: length of a window.
        hop_ms: from one window to the next.
        lowest_hz: lower edge of the lowest band.
        highest_hz: upper edge of the highest band, at most half the rate.
        offset: added to magnitudes before the natural logarithm; silence is ln(offset).

    Returns:
        Transform of float `[B, L]` and lengths in samples to float32 `[B, n_mels, T]` and lengths in frames, one frame
        per hop or part of it.

    Raises:
        ConfigError: numbers that give no band or no frame.

    >>> values, lengths = log_mel(n_mels=8)(torch.zeros(2, 1600), lengths=torch.tensor([1600, 330]))
    >>> values.shape, lengths
    (torch.Size([2, 8, 10]), tensor([10,  3]))
    """
    return LogMel(
        rate=rate,
        n_mels=n_mels,
        seconds=seconds,
        window=round(rate * window_ms / 1000),
        hop=round(rate * hop_ms / 1000),
        lowest_hz=lowest_hz,
        highest_hz=highest_hz,
        offset=offset,
    )


@dataclass(frozen=True, kw_only=True)
class LogMel:
    """What `log_mel` returns; `window` and `hop` are in samples."""

    rate: int
    n_mels: int
    seconds: float | None
    window: int
    hop: int
    lowest_hz: float
    highest_hz: float
    offset: float

    takes_lengths = True
    takes_memory = True

    def __post_init__(self) -> None:
        if self.n_mels < 1 or self.hop < 1 or self.window < self.hop or (self.frames is not None and self.frames < 1):
            raise ConfigError(
                f'transforms.log_mel: {self.n_mels} bands of windows of {self.window} samples every {self.hop}, '
                f'{self.seconds} seconds. At least one band, one frame, and windows as long as the hop are needed.'
            )
        if not 0 <= self.lowest_hz < self.highest_hz <= self.rate / 2:
            raise ConfigError(
                f'transforms.log_mel(lowest_hz={self.lowest_hz}, highest_hz={self.highest_hz}): a waveform at '
                f'{self.rate} Hz holds frequencies from 0 to {self.rate / 2:g} Hz.'
            )
        if self.offset <= 0:
            raise ConfigError(f'transforms.log_mel(offset={self.offset}): the logarithm of silence needs more than 0.')

    @property
    def frames(self) -> int | None:
        """Frames of every row, where `seconds` says it."""
        return None if self.seconds is None else round(self.seconds * self.rate / self.hop)

    def __call__(
        self, waves: torch.Tensor, *, lengths: torch.Tensor | None = None, allocate: Allocate | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Transform one batch.

        Args:
            waves: float `[B, L]`, zeros behind each row's length.
            lengths: int64 `[B]` in samples; None where all rows are L long.
            allocate: memory for the result, where that is on the CPU.

        Returns:
            (float32 `[B, n_mels, T]`, lengths in frames or None).

        Raises:
            DataError: not float `[B, L]`.
        """
        check_floats(waves, 'log_mel', '[B, L]', dimensions=2)
        frames = self.frames or math.ceil(waves.shape[1] / self.hop)
        shape = (len(waves), self.n_mels, frames)
        mel = _mel(self.rate, self.n_mels, self.window, self.hop, self.lowest_hz, self.highest_hz, waves.device)
        if waves.device.type == 'cpu':
            done = torch.empty(shape) if allocate is None else torch.from_numpy(allocate(shape, 'float32'))
            step = max(1, CHUNK_BYTES // (4 * max(1, waves.shape[1])))
        else:
            done = torch.empty(shape, device=waves.device)
            step = max(1, len(waves))
        samples = frames * self.hop
        for start in range(0, len(waves), step):
            part = waves[start : start + step, :samples].float()
            part = torch.nn.functional.pad(part, (0, samples - part.shape[1]))
            # A centred transform has one frame more than hops; the last is half padding (Whisper drops it too).
            done[start : start + step] = mel(part)[..., :frames]
            done[start : start + step].add_(self.offset).log_()
        if lengths is not None:
            lengths = ((lengths + self.hop - 1) // self.hop).clamp(max=frames)
        return done, lengths


def spec_augment(
    *,
    bands: int = 27,
    frames: int = 100,
    band_masks: int = 2,
    frame_masks: int = 2,
    share: float = 1.0,
    fill: float | Literal['mean'] = 'mean',
) -> SpecAugment:
    """Blank random bands and stretches of each spectrogram, without its time warping.

    Park et al. 2019, "SpecAugment: a simple data augmentation method for automatic speech recognition"; widths and
    places as torchaudio's `mask_along_axis_iid` draws them. The defaults are the paper's LibriSpeech double policy, for
    80 bands; choose smaller ones for fewer bands or short sounds.

    Args:
        bands: a masked stretch of bands is narrower than this, or than all of them.
        frames: a masked stretch of frames is shorter than this.
        band_masks: how many stretches of bands.
        frame_masks: how many stretches of frames.
        share: a stretch of frames also takes no more than this part of the row's own frames.
        fill: value in their place; 'mean' for the mean of the row's own frames.

    Returns:
        Transform of float `[B, bands, T]`, which leaves alone what is behind a row's length.

    Raises:
        ConfigError: a negative number, or a share beyond 0 to 1.

    >>> values, _ = spec_augment(bands=4, frames=5, fill=0.0)(torch.ones(2, 16, 20), draw=Draw())
    >>> values.shape
    torch.Size([2, 16, 20])
    """
    return SpecAugment(
        bands=bands, frames=frames, band_masks=band_masks, frame_masks=frame_masks, share=share, fill=fill
    )


@dataclass(frozen=True, kw_only=True)
class SpecAugment:
    """What `spec_augment` returns."""

    bands: int
    frames: int
    band_masks: int
    frame_masks: int
    share: float
    fill: float | Literal['mean']

    random = True
    takes_lengths = True

    def __post_init__(self) -> None:
        if min(self.bands, self.frames, self.band_masks, self.frame_masks) < 0 or not 0 <= self.share <= 1:
            raise ConfigError(
                f'transforms.spec_augment(bands={self.bands}, frames={self.frames}, band_masks={self.band_masks}, '
                f'frame_masks={self.frame_masks}, share={self.share}): no negative number, and a share from 0 to 1.'
            )

    def __call__(
        self, values: torch.Tensor, *, draw: Draw | None = None, lengths: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Transform one batch.

        Args:
            values: float `[B, bands, T]`.
            draw: random numbers for its samples; torch's global generator when None.
            lengths: int64 `[B]` in frames; None where all rows are T long.

        Returns:
            (the same shape, the same lengths).

        Raises:
            DataError: not float `[B, bands, T]`.
        """
        check_floats(values, 'spec_augment', '[B, bands, T]', dimensions=3)
        draw, (count, height, width) = draw or Draw(), values.shape
        device = values.device
        rows, columns = torch.arange(height, device=device), torch.arange(width, device=device)
        ends = columns.new_full((count,), width) if lengths is None else lengths
        longest = (ends * self.share).floor().clamp(max=self.frames)
        blank = _stretches(draw, 0, self.band_masks, rows, ends.new_full((count,), height), min(self.bands, height))[
            :, :, None
        ]
        blank = blank | _stretches(draw, 1, self.frame_masks, columns, ends, longest)[:, None]
        known = (columns < ends[:, None])[:, None]
        if self.fill == 'mean':
            total = values.where(known, 0).sum((1, 2), keepdim=True)
            fill = total / (ends.clamp(min=1) * height)[:, None, None]
            return torch.where(blank & known, fill.to(values.dtype), values), lengths
        return values.masked_fill(blank & known, self.fill), lengths


def _stretches(
    draw: Draw, stream: int, count: int, places: torch.Tensor, ends: torch.Tensor, most: torch.Tensor | int
) -> torch.Tensor:
    """bool `[B, n]`, True in any of `count` random stretches that are shorter than `most` and within `ends`."""
    numbers = on_device(draw.numbers(stream, 2 * count, len(ends)).astype(np.float32), ends.device)
    found = torch.zeros(len(ends), len(places), dtype=torch.bool, device=ends.device)
    for number in range(count):
        width = numbers[2 * number] * most
        start = (numbers[2 * number + 1] * (ends - width)).long()
        found |= (places >= start[:, None]) & (places < (start + width.long())[:, None])
    return found


@functools.lru_cache(maxsize=16)
def _mel(
    rate: int, n_mels: int, window: int, hop: int, lowest_hz: float, highest_hz: float, device: torch.device
) -> torch.nn.Module:
    import torchaudio.transforms

    size = 1 << (window - 1).bit_length()
    return torchaudio.transforms.MelSpectrogram(
        rate, size, window, hop, f_min=lowest_hz, f_max=highest_hz, n_mels=n_mels, power=1.0, pad_mode='constant'
    ).to(device)

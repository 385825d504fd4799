"""Random numbers of samples, and the way of small arrays to the device."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from mmpipe.data.order import mix, splitmix64, uniform

_GOLDEN = 0x9E3779B97F4A7C15  # the increment of SplitMix64, as in `splitmix64`


@dataclass(frozen=True)
class Draw:
    """Random numbers for the samples of one batch: functions of (seed, epoch, key) and of who asks.

    They are made on the host, where the keys are, so no transform ever waits for the device to tell it a number.

    Args:
        hashes: uint64 `[B]`, key hashes of the samples; None to draw from torch's global generator instead.
        seed: of the loader.
        epoch: from 0.

    >>> draw = Draw(np.arange(3, dtype=np.uint64), seed=0, epoch=1)
    >>> draw.uniform(0, 3, torch.device('cpu')).shape
    torch.Size([3])
    """

    hashes: np.ndarray | None = None
    seed: int = 0
    epoch: int = 0

    def fork(self, *names: str | int) -> Draw:
        """Other, independent numbers for the same samples.

        Args:
            names: of who draws, such as a field and the place of a transform in its list.

        >>> draw = Draw(np.arange(1, dtype=np.uint64))
        >>> draw.fork('photo', 0) == draw.fork('photo', 0), draw.fork('photo', 0).seed == draw.fork('photo', 1).seed
        (True, False)
        """
        return replace(self, seed=_forked(self.seed, names))

    def numbers(self, stream: int, width: int, count: int) -> np.ndarray:
        """`width` numbers in [0, 1) for each sample, on the host.

        Args:
            stream: which of several independent draws for the same samples.
            width: numbers per sample; the first ones are the same whatever the width is.
            count: samples, B.

        Returns:
            float64 `[width, B]`.

        >>> draw = Draw(np.arange(2, dtype=np.uint64))
        >>> bool((draw.numbers(0, 3, 2)[:2] == draw.numbers(0, 2, 2)).all())
        True
        """
        if self.hashes is None:
            return torch.rand(width, count, dtype=torch.float64).numpy()
        # A tag of its own, as in `order.uniform`; from there on each sample has a SplitMix64 sequence of its own.
        start = splitmix64(self.hashes ^ np.uint64(mix(0x74666D, self.seed, self.epoch, stream)))
        steps = np.arange(width, dtype=np.uint64) * np.uint64(_GOLDEN)
        return (splitmix64(start + steps[:, None]) >> np.uint64(11)) * 2.0**-53

    def uniform(self, stream: int, count: int, device: torch.device) -> torch.Tensor:
        """float32 `[count]` in [0, 1) on the device, for transforms of your own; another `stream` gives other numbers.

        Args:
            stream: which of several independent draws for the same samples.
            count: samples, B.
            device: where to.
        """
        if self.hashes is None:
            return torch.rand(count, device=device)
        return on_device(uniform(self.hashes, self.seed, self.epoch, stream), device)


def on_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A small array of parameters as a tensor on the device, without making the host wait for it.

    >>> on_device(np.array([1.0], dtype=np.float32), torch.device('cpu'))
    tensor([1.])
    """
    tensor = torch.from_numpy(array)
    if device.type == 'cuda':
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@functools.lru_cache(maxsize=1024)
def _forked(seed: int, names: tuple[str | int, ...]) -> int:
    return mix(seed, *(name if isinstance(name, int) else _number(name) for name in names))


def _number(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), 'big')

"""The contract of a decoder."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import numpy as np


@runtime_checkable
class Decoder(Protocol):
    """Decodes one stored value at a time; called by several threads at once, and pickled into worker processes.

    Attributes:
        shape: of each decoded sample; None where the first dimension varies (audio, tokens), which is then padded in
            the batch, with `rest` as the shape behind it.
        rest: shape behind the varying first dimension; () where `shape` is given.
        dtype: numpy dtype name of the result.
        draws: random numbers it wants for each sample.
    """

    shape: tuple[int, ...] | None
    rest: tuple[int, ...]
    dtype: str
    draws: int

    def decode(self, data: bytes, draws: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        """Decode one value.

        Args:
            data: stored bytes.
            draws: float32 `[self.draws]` in [0, 1): functions of (seed, epoch, key) of the sample, so that any batch
                can be made again.
            out: where to write, of `shape` and `dtype` and contiguous; None to return a new array.

        Returns:
            `out`, or a new array where the first dimension varies or `out` is None.

        Raises:
            DataError: the bytes are not what this decodes; the loader adds field and key to the message.
        """
        ...

"""Buffers fitted once on the training rows: mean and standard deviation.

They are part of a model's `state_dict`, so a checkpoint, a continued run and a transferred encoder keep them; a
`fitted` flag beside them keeps anybody from fitting twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from mmpipe.errors import DataError

Chunks = Iterable[np.ndarray]
"""Present values of one field, a few thousand rows at a time: arrays `[n, ...]`."""


def moments(chunks: Chunks) -> tuple[np.ndarray, np.ndarray, int]:
    """Mean and standard deviation over the first dimension, in one pass.

    Chunks are merged by Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
    variances", 1979, in float64; the variance divides by n.

    Args:
        chunks: arrays `[n, ...]`.

    Returns:
        (mean, std, count): float64 arrays of the shape behind the first dimension, and rows seen. (0, 1, 0) without
        rows.

    >>> moments([np.array([1.0, 2.0]), np.array([3.0])])
    (np.float64(2.0), np.float64(0.816496580927726), 3)
    """
    mean: Any = np.float64(0)
    squares: Any = np.float64(0)
    count = 0
    for chunk in chunks:
        if len(chunk) == 0:
            continue
        values = chunk.astype(np.float64)
        chunk_mean = values.mean(axis=0)
        difference = chunk_mean - mean
        total = count + len(values)
        squares = squares + ((values - chunk_mean) ** 2).sum(axis=0) + difference**2 * count * len(values) / total
        mean = mean + difference * len(values) / total
        count = total
    std: Any = np.sqrt(squares / count) if count else np.float64(1)
    return mean, std, count


class Standardize(nn.Module):
    """Subtract a mean and divide by a standard deviation that were fitted on the training rows.

    Until it is fitted it changes nothing. A feature that never varied is divided by 1.

    Args:
        features: size of the last dimension of what it is given; None for plain numbers `[B]`.

    >>> layer = Standardize(2)
    >>> layer.fit_buffers([np.array([[0.0, 5.0], [2.0, 5.0]])])
    >>> layer(torch.tensor([[3.0, 6.0]]))
    tensor([[2., 1.]])
    """

    mean: torch.Tensor
    std: torch.Tensor
    fitted: torch.Tensor

    def __init__(self, features: int | None = None) -> None:
        super().__init__()
        shape = () if features is None else (features,)
        self.register_buffer('mean', torch.zeros(shape))
        self.register_buffer('std', torch.ones(shape))
        self.register_buffer('fitted', torch.tensor(False))

    def fit_buffers(self, chunks: Chunks) -> None:
        """Fit mean and std, unless that was done before.

        Args:
            chunks: arrays `[n, features]` or `[n]`.

        Raises:
            DataError: values that are not finite, or of another size.
        """
        if bool(self.fitted):
            return
        with np.errstate(invalid='ignore'):  # infinite values are reported below
            mean, std, count = moments(chunks)
        if count:
            if np.shape(mean) != tuple(self.mean.shape):
                raise DataError(
                    f'it holds values of shape {list(np.shape(mean))}, not {list(self.mean.shape)}: '
                    f'give the encoder that size'
                )
            if not (np.isfinite(mean).all() and np.isfinite(std).all()):
                raise DataError('it holds NaN or infinite values; store nulls instead')
            self.mean.copy_(torch.as_tensor(mean))
            self.std.copy_(torch.as_tensor(np.where(std > 0, std, 1.0)))
        self.fitted.fill_(True)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """Standardised values, float32, of the same shape."""
        return (values.float() - self.mean) / self.std

    def undo(self, values: torch.Tensor) -> torch.Tensor:
        """The inverse of `forward`, float32: under autocast, bf16 would keep only 3 digits of the original unit."""
        return values.float() * self.std + self.mean

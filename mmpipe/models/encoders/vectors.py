"""Vectors, plain numbers, and a varying number of vectors per row."""

from __future__ import annotations

import torch
from torch import nn

from mmpipe.models.contract import InputSpec
from mmpipe.models.encoders.parts import check_sizes, inside, masked_mean
from mmpipe.models.init import initialise
from mmpipe.models.standardize import Chunks, Standardize


def vector(in_features: int = 1, out_features: int = 128, *, dropout: float = 0.1) -> VectorEncoder:
    """Embeddings, tabular vectors or plain numbers: standardise, one linear layer, GELU, dropout.

    Args:
        in_features: size of the vectors; 1 also takes a scalar field [B].
        out_features: size of the features.
        dropout: probability in [0, 1).

    Returns:
        Encoder of numbers [B, in_features] of any dtype, or [B].

    >>> vector(8, 16)(torch.zeros(2, 8)).shape
    torch.Size([2, 16])
    """
    return VectorEncoder(in_features, out_features, dropout=dropout)


def sequence(in_features: int, out_features: int = 128, *, dropout: float = 0.1) -> SequenceEncoder:
    """A varying number of vectors per row, such as the frames of a clip: each as by `vector`, then their mean.

    Args:
        in_features: size of each vector.
        out_features: size of the features.
        dropout: probability in [0, 1).

    Returns:
        Encoder of a ragged field [B, L, in_features] with its lengths; padding does not count.

    >>> sequence(8, 16)(torch.zeros(2, 5, 8), torch.tensor([5, 1])).shape
    torch.Size([2, 16])
    """
    return SequenceEncoder(in_features, out_features, dropout=dropout)


class VectorEncoder(nn.Module):
    """What `vector` returns."""

    def __init__(self, in_features: int, out_features: int, *, dropout: float) -> None:
        super().__init__()
        check_sizes('encoders.vector', in_features=in_features, out_features=out_features)
        self.in_features = in_features
        self.out_features = out_features
        self.standardize = Standardize(in_features)
        self.project = initialise(nn.Sequential(nn.Linear(in_features, out_features), nn.GELU(), nn.Dropout(dropout)))

    def input_spec(self) -> InputSpec:
        """Numbers of any dtype, as many as `in_features`."""
        return InputSpec(
            encoder=f'encoders.vector({self.in_features})', kind='a vector', shape=(self.in_features,),
            dtypes=('number',), flat=True,
        )  # fmt: skip

    def fit_buffers(self, chunks: Chunks) -> None:
        """Fit mean and deviation per feature."""
        self.standardize.fit_buffers(chunk.reshape(len(chunk), -1) for chunk in chunks)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[B, in_features] or, for one feature, [B] -> [B, out_features]."""
        return self.project(self.standardize(values.reshape(len(values), self.in_features)))


class SequenceEncoder(nn.Module):
    """What `sequence` returns."""

    takes_lengths = True

    def __init__(self, in_features: int, out_features: int, *, dropout: float) -> None:
        super().__init__()
        self.each = VectorEncoder(in_features, out_features, dropout=dropout)
        self.out_features = out_features

    def input_spec(self) -> InputSpec:
        """Any number of vectors."""
        size = self.each.in_features
        return InputSpec(
            encoder=f'encoders.sequence({size})', kind='some vectors', shape=(None, size), dtypes=('number',)
        )

    def fit_buffers(self, chunks: Chunks) -> None:
        """Fit mean and deviation per feature, over all vectors of all rows."""
        self.each.fit_buffers(chunk.reshape(-1, chunk.shape[-1]) for chunk in chunks)

    def forward_features(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[B, L, in_features], int64 [B] -> [B, L, out_features], each vector by itself."""
        batch, longest, _ = values.shape
        return self.each(values.reshape(batch * longest, -1)).reshape(batch, longest, -1)

    def forward(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[B, L, in_features], int64 [B] -> [B, out_features]; zeros for a row of length 0."""
        return masked_mean(self.forward_features(values, lengths), inside(lengths, values.shape[1]))

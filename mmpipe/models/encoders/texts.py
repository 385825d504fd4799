"""Token ids to features: a small transformer."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from mmpipe.errors import ConfigError, ModelError
from mmpipe.models.contract import InputSpec
from mmpipe.models.encoders.parts import check_sizes, inside, masked_mean
from mmpipe.models.init import initialise
from mmpipe.models.standardize import Chunks


def tokens(
    vocabulary_size: int, out_features: int = 128, *, layers: int = 2, heads: int = 4, dropout: float = 0.1
) -> TokensEncoder:
    """Token ids of texts and documents (`mm.decode.tokens`): a transformer encoder from scratch, and the mean.

    Vaswani et al. 2017, "Attention is all you need", with their sine and cosine positions, so that any length will do,
    and norms before the layers (Xiong et al. 2020). Padding takes no part: a row has the same features in every batch.

    Args:
        vocabulary_size: how many ids there are: those of the tokenizer, `tokenizer.get_vocab_size()`.
        out_features: size of the features, and of what goes through the layers.
        layers: transformer layers.
        heads: of attention; they divide `out_features`.
        dropout: probability in [0, 1).

    Returns:
        Encoder of a ragged field of integers [B, L] with its lengths.

    Raises:
        ConfigError: sizes below 1, or heads that do not divide the features.

    >>> tokens(100, 16)(torch.tensor([[5, 7, 0], [9, 1, 2]]), torch.tensor([2, 3])).shape
    torch.Size([2, 16])
    """
    return TokensEncoder(vocabulary_size, out_features, layers=layers, heads=heads, dropout=dropout)


class TokensEncoder(nn.Module):
    """What `tokens` returns."""

    takes_lengths = True

    def __init__(self, vocabulary_size: int, out_features: int, *, layers: int, heads: int, dropout: float) -> None:
        super().__init__()
        check_sizes(
            'encoders.tokens', vocabulary_size=vocabulary_size, out_features=out_features, layers=layers, heads=heads
        )
        if out_features % heads:
            raise ConfigError(
                f'encoders.tokens(out_features={out_features}, heads={heads}): heads divide the features.'
            )
        self.vocabulary_size = vocabulary_size
        self.out_features = out_features
        self.embedding = nn.Embedding(vocabulary_size, out_features)
        layer = nn.TransformerEncoderLayer(
            out_features, heads, 4 * out_features, dropout, activation='gelu', batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, nn.LayerNorm(out_features), enable_nested_tensor=False)
        for block in self.blocks.layers:  # which torch makes as copies of the first
            initialise(block)

    def input_spec(self) -> InputSpec:
        """Any number of ids."""
        return InputSpec(
            encoder=f'encoders.tokens({self.vocabulary_size})', kind='token ids', shape=(None,), dtypes=('integer',)
        )

    def layers(self) -> list[nn.Module]:
        """The embedding, the blocks, the last norm."""
        return [self.embedding, *self.blocks.layers, self.blocks.norm]

    def fit_buffers(self, chunks: Chunks) -> None:
        """Check that no training row holds an id beyond the vocabulary; there is nothing to fit."""
        check_ids(chunks, self.vocabulary_size, f'encoders.tokens({self.vocabulary_size})', 'the tokenizer')

    def forward_features(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Integers [B, L], int64 [B] -> [B, L, out_features], anything behind the end of a row."""
        values = self.embedding(ids.long())
        values = values + positions(ids.shape[1], self.out_features, like=values)
        # A row without tokens looks at its first place, or there would be nothing to take a softmax of.
        padding = ~inside(lengths.clamp(min=1), ids.shape[1])
        return self.blocks(values, src_key_padding_mask=padding)

    def forward(self, ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Integers [B, L], int64 [B] -> [B, out_features]; zeros for a row of length 0."""
        return masked_mean(self.forward_features(ids, lengths), inside(lengths, ids.shape[1]))


def positions(count: int, width: int, *, like: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of positions (Vaswani et al. 2017, section 3.5).

    Args:
        count: of positions.
        width: of each vector.
        like: of this dtype, and on its device.

    Returns:
        `[count, width]`.

    >>> positions(2, 4, like=torch.zeros(1))
    tensor([[0.0000, 0.0000, 1.0000, 1.0000],
            [0.8415, 0.0100, 0.5403, 0.9999]])
    """
    half = (width + 1) // 2
    rates = torch.exp(torch.arange(half, device=like.device) * (-math.log(10_000.0) / half))
    angles = torch.arange(count, device=like.device)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)[:, :width].to(like.dtype)


def check_ids(chunks: Chunks, size: int, encoder: str, has: str) -> None:
    """Refuse numbers that an embedding has no row for: on a GPU they would end the process.

    Args:
        chunks: integers of the training rows.
        size: rows of the embedding.
        encoder: for the message.
        has: what has as many as the encoder should be given.

    Raises:
        ModelError: a number below 0, or from `size` on.

    >>> check_ids([np.array([0, 3])], 3, 'encoders.category(3)', 'the vocabulary')
    Traceback (most recent call last):
    ...
    mmpipe.errors.ModelError: it holds label 3, but encoders.category(3) knows 0..2: give it as many as the
    vocabulary has
    """
    for chunk in chunks:
        for value in (int(np.max(chunk)), int(np.min(chunk))) if len(chunk) else ():
            if not 0 <= value < size:
                raise ModelError(
                    f'it holds label {value}, but {encoder} knows 0..{size - 1}: give it as many as {has} has'
                )

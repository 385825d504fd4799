"""Fusion: features of several modalities as one vector.

The contract: `out_features: int`, and `forward([features [B, F_i], ...]) -> [B, out_features]`. Where a row lacks a
modality, the features are a learned vector of the model's.

A fusion with `takes_mask = True` is called as `forward(features, there)` instead, with `there` bool `[B, modalities]`,
False where a row lacks the modality or modality dropout strikes; it decides by itself what that means. The modalities
are in the order of their fields' names, as `MultitaskModel.inputs` has them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn

from mmpipe.errors import ConfigError
from mmpipe.models.init import initialise

HEADS = 4  # of attention, or what divides the size and them


class ConcatFusion(nn.Module):
    """Join the features, normalise, one linear layer, GELU, dropout: the modalities can interact from here on.

    Args:
        in_features: sizes of the modalities, in order.
        hidden: size of the result.
        dropout: probability in [0, 1).

    >>> ConcatFusion([2, 3], hidden=4)([torch.zeros(5, 2), torch.zeros(5, 3)]).shape
    torch.Size([5, 4])
    """

    def __init__(self, in_features: Sequence[int], *, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.out_features = hidden
        # Each modality is normalised by itself: a backbone's large features would drown the others.
        self.norms = nn.ModuleList(nn.LayerNorm(size) for size in in_features)
        self.layers = initialise(nn.Sequential(nn.Linear(sum(in_features), hidden), nn.GELU(), nn.Dropout(dropout)))

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """[[B, F_i], ...] -> [B, hidden]."""
        return self.layers(torch.cat([norm(value) for norm, value in zip(self.norms, features, strict=True)], dim=1))


class MeanFusion(nn.Module):
    """Project each modality to one size and take the mean: parameters grow with the modalities, not with their product.

    Args:
        in_features: sizes of the modalities, in order.
        hidden: size of the result.
        dropout: probability in [0, 1).

    >>> MeanFusion([2, 3], hidden=4)([torch.zeros(5, 2), torch.zeros(5, 3)]).shape
    torch.Size([5, 4])
    """

    def __init__(self, in_features: Sequence[int], *, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.out_features = hidden
        self.projections = _projections(in_features, hidden, activation='gelu')
        self.activate = nn.Sequential(nn.GELU(), nn.Dropout(dropout))

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """[[B, F_i], ...] -> [B, hidden]."""
        projected = [project(value) for project, value in zip(self.projections, features, strict=True)]
        return self.activate(torch.stack(projected).mean(0))


class AttentionFusion(nn.Module):
    """Modalities attend to each other, and a learned token to all of them; what a row lacks takes no part.

        photo ──► project + embedding ──┐
        title ──► project + embedding ──┼──► transformer ──► first token ──► norm, dropout
        (learned first token) ──────────┘    missing ones masked

    Each modality is one token (as in Nagrani et al. 2021, "Attention bottlenecks for multimodal fusion", without the
    bottleneck); the embedding says which one it is. A row that lacks all of them has the first token alone.

    Args:
        in_features: sizes of the modalities, in order.
        hidden: size of the tokens and of the result.
        dropout: probability in [0, 1).
        layers: of the transformer.
        heads: of its attention, which divide `hidden`; up to 4 when None.

    Raises:
        ConfigError: heads that do not divide `hidden`.

    >>> fusion = AttentionFusion([2, 3], hidden=8)
    >>> fusion([torch.zeros(5, 2), torch.zeros(5, 3)], torch.tensor([[True, False]] * 5)).shape
    torch.Size([5, 8])
    """

    takes_mask = True

    def __init__(
        self,
        in_features: Sequence[int],
        *,
        hidden: int,
        dropout: float = 0.0,
        layers: int = 2,
        heads: int | None = None,
    ) -> None:
        super().__init__()
        heads = math.gcd(hidden, HEADS) if heads is None else heads
        if heads < 1 or hidden % heads or layers < 1:
            raise ConfigError(f'AttentionFusion(hidden={hidden}, heads={heads}, layers={layers}): heads divide hidden.')
        self.out_features = hidden
        self.projections = _projections(in_features, hidden)
        self.embeddings = nn.Parameter(torch.randn(len(in_features), hidden))
        self.first = nn.Parameter(torch.randn(hidden))
        layer = nn.TransformerEncoderLayer(
            hidden, heads, 4 * hidden, dropout, activation='gelu', batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        for block in self.blocks.layers:  # which torch makes as copies of the first
            initialise(block)
        self.last = nn.Sequential(nn.LayerNorm(hidden), nn.Dropout(dropout))

    def forward(self, features: Sequence[torch.Tensor], there: torch.Tensor) -> torch.Tensor:
        """[[B, F_i], ...], bool [B, modalities] -> [B, hidden]."""
        tokens = [self.first.expand(len(there), -1)]
        for position, (project, value) in enumerate(zip(self.projections, features, strict=True)):
            # Whatever stands in the place of a missing modality, not even a NaN comes through, nor its gradient.
            known = value.where(there[:, position, None], 0.0)
            tokens.append(project(known) + self.embeddings[position])
        missing = nn.functional.pad(~there, (1, 0), value=False)
        return self.last(self.blocks(torch.stack(tokens, dim=1), src_key_padding_mask=missing)[:, 0])


def _projections(in_features: Sequence[int], hidden: int, *, activation: str = 'linear') -> nn.ModuleList:
    """Each modality normalised by itself, and as many numbers of each."""
    return nn.ModuleList(
        initialise(nn.Sequential(nn.LayerNorm(size), nn.Linear(size, hidden)), activation=activation)
        for size in in_features
    )


FUSIONS = {'concat': ConcatFusion, 'mean': MeanFusion, 'attention': AttentionFusion}


def make_fusion(name: str, in_features: Sequence[int], *, hidden: int, dropout: float) -> nn.Module:
    """The fusion called `name`.

    Raises:
        ConfigError: no fusion has that name.

    >>> make_fusion('concat', [2], hidden=4, dropout=0.0).out_features
    4
    """
    if name not in FUSIONS:
        raise ConfigError(f'fusion={name!r} is none of {", ".join(map(repr, FUSIONS))}; a module can be passed too.')
    return FUSIONS[name](in_features, hidden=hidden, dropout=dropout)

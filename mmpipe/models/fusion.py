"""Fusion: features of several modalities as one vector.

The contract: `out_features: int`, and `forward([features [B, F_i], ...]) -> [B, out_features]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from mmpipe.errors import ConfigError


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
        self.layers = nn.Sequential(nn.Linear(sum(in_features), hidden), nn.GELU(), nn.Dropout(dropout))

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
        self.projections = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(size), nn.Linear(size, hidden)) for size in in_features
        )
        self.activate = nn.Sequential(nn.GELU(), nn.Dropout(dropout))

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """[[B, F_i], ...] -> [B, hidden]."""
        projected = [project(value) for project, value in zip(self.projections, features, strict=True)]
        return self.activate(torch.stack(projected).mean(0))


FUSIONS = {'concat': ConcatFusion, 'mean': MeanFusion}


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

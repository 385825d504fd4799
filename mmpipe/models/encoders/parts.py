"""What several encoders are built of: convolutions in stages, normalised pixels, and checked sizes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from mmpipe.errors import ConfigError
from mmpipe.models.init import initialise


def stages(channels: int, width: int) -> nn.Sequential:
    """Four stages of a convolution each; all but the first halve both sides, and double the channels.

    Args:
        channels: of the input.
        width: channels of the first stage.

    Returns:
        From `[B, channels, H, W]` to `[B, 8 * width, H / 8, W / 8]`, sides rounded up.

    >>> stages(3, 4)(torch.zeros(2, 3, 16, 20)).shape
    torch.Size([2, 32, 2, 3])
    """
    # GroupNorm, not BatchNorm: small batches, missing modalities and accumulation leave its statistics alone.
    layers: list[nn.Module] = []
    for stage in range(4):
        wide = width * 2**stage
        layers += [
            nn.Conv2d(channels, wide, 3, stride=2 if stage else 1, padding=1, bias=False),
            nn.GroupNorm(groups(wide), wide),
            nn.GELU(),
        ]
        channels = wide
    return initialise(nn.Sequential(*layers))


def groups(width: int) -> int:
    """The most groups up to 8 that divide any width.

    >>> groups(32), groups(12), groups(7)
    (8, 4, 1)
    """
    return math.gcd(8, width)


def add_normalisation(module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    """Give a module the constants that `normalised` uses.

    Args:
        module: any.
        mean: per channel, of values in [0, 1].
        std: as `mean`.

    >>> module = nn.Module()
    >>> add_normalisation(module, (0.5,), (0.5,)); normalised(module, torch.full((1, 1, 1, 1), 255, dtype=torch.uint8))
    tensor([[[[1.]]]])
    """
    # Not persistent: constants, of which a checkpoint need not speak.
    module.register_buffer('pixel_mean', torch.tensor(mean)[:, None, None] * 255, persistent=False)
    module.register_buffer('pixel_std', torch.tensor(std)[:, None, None] * 255, persistent=False)


def normalised(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Images `[B, C, H, W]` as floats: uint8 by the constants of `add_normalisation`, anything else as it is."""
    if images.dtype == torch.uint8:  # no transform normalised it: uint8 can be nothing but pixels
        return (images.float() - module.pixel_mean) / module.pixel_std  # type: ignore[operator]
    return images


def inside(lengths: torch.Tensor, longest: int) -> torch.Tensor:
    """bool `[B, longest]`: True before the length of each row.

    Args:
        lengths: int64 `[B]`.
        longest: of the padded dimension.

    >>> inside(torch.tensor([1, 2]), 2)
    tensor([[ True, False],
            [ True,  True]])
    """
    return torch.arange(longest, device=lengths.device) < lengths[:, None]


def masked_mean(values: torch.Tensor, there: torch.Tensor) -> torch.Tensor:
    """Mean over the second dimension of what is there; zeros where nothing is.

    Args:
        values: `[B, L, F]`.
        there: bool `[B, L]`.

    >>> masked_mean(torch.tensor([[[1.0], [9.0]]]), torch.tensor([[True, False]]))
    tensor([[1.]])
    """
    return values.where(there[:, :, None], 0.0).sum(1) / there.sum(1).clamp(min=1)[:, None]


def check_sizes(what: str, **sizes: Any) -> None:
    """Refuse sizes below 1.

    Raises:
        ConfigError: names the encoder and the argument.

    >>> check_sizes('encoders.vector', in_features=0)
    Traceback (most recent call last):
    ...
    mmpipe.errors.ConfigError: encoders.vector(in_features=0): a size is at least 1.
    """
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f'{what}({name}={size}): a size is at least 1.')

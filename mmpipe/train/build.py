"""A model made where it is trained: its weights are created there, instead of on the host and copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from mmpipe.errors import ConfigError


def built(
    factory: Callable[..., nn.Module] | nn.Module, args: Mapping[str, Any] | None, *, device: torch.device
) -> nn.Module:
    """The model of a factory, whose tensors are made on a device unless it says another one.

    Args:
        factory: makes a model; or a model itself, which stays where it is.
        args: keyword arguments of the factory.
        device: where to make it.

    Returns:
        The model. What the factory made elsewhere, such as weights that it read, is there.

    Raises:
        ConfigError: the factory made something else.

    >>> built(lambda size: nn.Linear(size, 1), {'size': 3}, device=torch.device('meta')).weight.device
    device(type='meta')
    """
    if isinstance(factory, nn.Module):
        return factory
    with device:
        model = factory(**(args or {}))
    if not isinstance(model, nn.Module):
        raise ConfigError(f'The factory returned a {type(model).__name__}, not an nn.Module.')
    return model

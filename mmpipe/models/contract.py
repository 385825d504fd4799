"""What a module must say of itself to be taken apart: its layers, in the order in which values pass through them.

Layer-wise learning rates, staged unfreezing, activation checkpointing and sharding all ask for the same thing. A module
answers by a method `layers()`; of one that has none, its children are taken as they stand.
"""

from __future__ import annotations

from torch import nn

from mmpipe.errors import ModelError


def layers_of(module: nn.Module) -> list[nn.Module]:
    """The layers of a module from its input to its output, none inside another.

    Args:
        module: with a method `layers()`, or any other: then its children, those of sequences and lists one by one.

    Returns:
        Its layers that have parameters; itself where it has no such children.

    Raises:
        ModelError: `layers()` gives something that is not part of the module, or lies inside another.

    >>> [type(layer).__name__ for layer in layers_of(nn.Sequential(nn.Linear(2, 3), nn.GELU(), nn.Linear(3, 1)))]
    ['Linear', 'Linear']
    >>> layers_of(nn.Linear(2, 3))
    [Linear(in_features=2, out_features=3, bias=True)]
    """
    own = getattr(module, 'layers', None)
    found = list(own()) if callable(own) and not isinstance(own, nn.Module) else _expanded(module)
    parts = {id(part) for part in module.modules()}
    inside = {id(part) for layer in found for part in layer.modules() if part is not layer}
    for layer in found:
        if id(layer) not in parts or id(layer) in inside:
            raise ModelError(
                f'{type(module).__name__}.layers() gives a {type(layer).__name__} that is no part of it, or part of '
                f'another layer: give modules of its own, from input to output.'
            )
    return [layer for layer in found if any(True for _ in layer.parameters())] or [module]


def _expanded(module: nn.Module) -> list[nn.Module]:
    """Children in order, with those of sequences and lists in the place of these."""
    found: list[nn.Module] = []
    for child in module.children():
        inner = type(child) in (nn.Sequential, nn.ModuleList)
        found += _expanded(child) if inner and len(list(child.children())) else [child]
    return found

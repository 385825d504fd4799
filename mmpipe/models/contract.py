"""What a module may say of itself: its layers, and what it takes.

Layer-wise learning rates, staged unfreezing, activation checkpointing and sharding all ask for the layers of a module,
in the order in which values pass through them. It answers by a method `layers()`; of one that has none, its children
are taken as they stand.

The trainer asks before the first step what an encoder takes. It answers by a method `input_spec()`, which returns an
`InputSpec`; of one that has none, nothing is checked.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from mmpipe.errors import ModelError

DTYPES = ('uint8', 'float', 'integer', 'number')
"""What `InputSpec.dtypes` may name: bytes, floating point numbers, whole numbers, any of these and booleans."""


@dataclass(frozen=True, kw_only=True)
class InputSpec:
    """What an encoder takes per row, as far as it can be told before it is called.

    Args:
        encoder: how messages call it, such as 'encoders.vector(8)'.
        kind: what the values are, such as 'an image'.
        shape: of one row; None for an axis of any size, such as that of time.
        dtypes: of `DTYPES`, those that it takes.
        flat: an array of any shape that holds as many numbers as `shape` says will do, a plain number too.
        rate: of sound, samples a second in Hz.
        mean: per channel, of values in [0, 1], that the weights were trained with.
        std: per channel, as `mean`.
        size: (height, width) in pixels that the weights were trained with.
        weights: name of the weights that `mean`, `std` and `size` are of; None of an encoder that was not trained.

    Raises:
        ModelError: a dtype that is none of `DTYPES`.

    >>> str(InputSpec(encoder='encoders.image', kind='an image', shape=(3, None, None), dtypes=('uint8', 'float')))
    'an image: uint8 or float [3, *, *]'
    """

    encoder: str
    kind: str
    shape: tuple[int | None, ...]
    dtypes: tuple[str, ...] = ('float',)
    flat: bool = False
    rate: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    size: tuple[int, int] | None = None
    weights: str | None = None

    def __post_init__(self) -> None:
        for name in self.dtypes:
            if name not in DTYPES:
                raise ModelError(f'InputSpec(dtypes=...) of {self.encoder}: {name!r} is none of {", ".join(DTYPES)}.')

    def __str__(self) -> str:
        sizes = ', '.join('*' if size is None else str(size) for size in self.shape)
        rate = '' if self.rate is None else f' at {self.rate} Hz'
        return f'{self.kind}: {" or ".join(self.dtypes)} [{sizes}]{rate}'

    def differs(self, values: Any) -> str | None:
        """What of a batch does not fit.

        Args:
            values: of the field, `[B, ...]`; or a list of B strings or bytes objects.

        Returns:
            'kind' where it is no tensor, 'dtype' or 'shape'; None where it fits.

        >>> spec = InputSpec(encoder='encoders.vector(2)', kind='a vector', shape=(2,), dtypes=('number',), flat=True)
        >>> spec.differs(torch.zeros(5, 3)), spec.differs(torch.zeros(5, 2)), spec.differs(['a', 'b'])
        ('shape', None, 'kind')
        """
        if not isinstance(values, torch.Tensor):
            return 'kind'
        if not any(_is(values.dtype, name) for name in self.dtypes):
            return 'dtype'
        found = values.shape[1:]
        if self.flat and None not in self.shape:
            same = math.prod(found) == math.prod(size or 0 for size in self.shape)
        else:
            same = len(found) == len(self.shape) and all(
                wanted in (None, size) for wanted, size in zip(self.shape, found, strict=True)
            )
        return None if same else 'shape'


def _is(dtype: torch.dtype, name: str) -> bool:
    plain = not dtype.is_complex
    return {
        'uint8': dtype == torch.uint8,
        'float': dtype.is_floating_point,
        'integer': plain and not dtype.is_floating_point and dtype != torch.bool,
        'number': plain,
    }[name]


def input_specs(model: nn.Module) -> dict[str, InputSpec]:
    """What a model says of the fields that it reads.

    Args:
        model: with a method `input_specs()`, such as an `mm.MultitaskModel`; or any other, which says nothing.

    Returns:
        {field: spec}, of the fields of which it says something.

    >>> input_specs(nn.Linear(1, 1))
    {}
    """
    own = getattr(model, 'input_specs', None)
    return dict(own()) if callable(own) else {}


def input_spec(encoder: Any) -> InputSpec | None:
    """What an encoder says that it takes; None where it says nothing.

    Args:
        encoder: any module.

    Raises:
        ModelError: its `input_spec()` returns something else.

    >>> input_spec(nn.Linear(1, 1))
    """
    own = getattr(encoder, 'input_spec', None)
    if not callable(own):
        return None
    found = own()
    if found is not None and not isinstance(found, InputSpec):
        raise ModelError(
            f'{type(encoder).__name__}.input_spec() returned a {type(found).__name__}: return an '
            f'mmpipe.models.contract.InputSpec, or None to have nothing checked.'
        )
    return found


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

"""An encoder in pieces that are called one after another, each on a process of its own.

An encoder says by a method `pipeline_plan(stages)` how to cut it; an `nn.Sequential` is cut between its children.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from mmpipe.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Part of an encoder.

    Args:
        call: from what the piece before returned (of the first piece: from what the encoder is called with) to what the
            next one takes, a tensor whose first axis is that of rows; of the last: features `[B, out_features]`.
            Further arguments of the encoder, such as lengths, are given to each piece.
        uses: modules of the encoder whose weights it needs. Those that no piece names are the first one's.
    """

    call: Callable[..., torch.Tensor]
    uses: tuple[nn.Module, ...] = ()


def spans(layers: int, stages: int) -> list[slice]:
    """Layers in a row for each stage, as evenly as can be; earlier stages have more.

    Raises:
        ConfigError: fewer layers than stages.

    >>> spans(5, 2)
    [slice(0, 3, None), slice(3, 5, None)]
    """
    if layers < stages:
        raise ConfigError(f'{layers} layers cannot be cut into {stages} stages: pass a smaller Parallel(pp=...).')
    ends = [(layers * stage + stages - 1) // stages for stage in range(stages + 1)]
    return [slice(start, end) for start, end in itertools.pairwise(ends)]


def can_be_cut(encoder: nn.Module) -> bool:
    """Whether an encoder says how, or is a sequence.

    >>> can_be_cut(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))), can_be_cut(nn.Linear(2, 2))
    (True, False)
    """
    return callable(getattr(encoder, 'pipeline_plan', None)) or type(encoder) is nn.Sequential


def pieces_of(encoder: nn.Module, stages: int) -> list[Piece]:
    """An encoder in so many pieces.

    Args:
        encoder: that `can_be_cut`.
        stages: how many pieces.

    Returns:
        They, from input to output; what no piece names belongs to the first, so that every weight has one place.

    Raises:
        ConfigError: there is no way to cut it, too few layers, or a plan that names a module twice or one that is not
            there.

    >>> [len(piece.uses) for piece in pieces_of(nn.Sequential(nn.Linear(2, 2), nn.GELU(), nn.Linear(2, 1)), 2)]
    [2, 1]
    """
    kind = type(encoder).__name__
    if not can_be_cut(encoder):
        raise ConfigError(
            f'{kind} does not say how to cut it: give it a method pipeline_plan(stages) that returns '
            f'mmpipe.models.cut.Piece objects, or use an nn.Sequential.'
        )
    plan = getattr(encoder, 'pipeline_plan', None)
    found = list(plan(stages)) if callable(plan) else _of_sequence(encoder, stages)  # type: ignore[arg-type]
    if len(found) != stages or not all(isinstance(piece, Piece) for piece in found):
        raise ConfigError(f'{kind}.pipeline_plan({stages}) must return {stages} mmpipe.models.cut.Piece objects.')
    inside = {id(part) for part in encoder.modules()}
    seen: set[int] = set()
    for piece in found:
        own = {id(part) for module in piece.uses for part in module.modules()}
        if not own <= inside or own & seen:
            raise ConfigError(
                f'{kind}.pipeline_plan({stages}) names a module that is not part of it, or is in two pieces: give each '
                f'module to one.'
            )
        seen |= own
    return found


def _of_sequence(encoder: nn.Sequential, stages: int) -> list[Piece]:
    children = list(encoder)
    parts: Sequence[list[nn.Module]] = [children[span] for span in spans(len(children), stages)]
    return [Piece(call=nn.Sequential(*part), uses=tuple(part)) for part in parts]

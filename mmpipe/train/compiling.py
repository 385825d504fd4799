"""Compiled parts of a model."""

from __future__ import annotations

from torch import nn

from mmpipe.models.multitask import MultitaskModel


def compile_parts(model: nn.Module, *, mode: str | None = None) -> list[str]:
    """Let `torch.compile` make kernels of a model, in place; names of weights stay.

    A multitask model picks the rows that have a modality before it calls an encoder, whose number differs from batch to
    batch. So its parts are compiled, each for any number of rows, and what picks rows is not.

    Args:
        model: any.
        mode: of `torch.compile`, such as 'reduce-overhead'.

    Returns:
        Names of the parts that will be compiled when they are called first; '' for the whole model.

    >>> from mmpipe.models import encoders
    >>> from mmpipe.train.tasks import regression
    >>> compile_parts(MultitaskModel(encoders={'title': encoders.vector(4)}, tasks=[regression('price')]))
    ['encoders.title', 'fusion']
    """
    if not isinstance(model, MultitaskModel):
        model.compile(mode=mode)
        return ['']
    parts = {**{f'encoders.{name}': part for name, part in model.encoders.items()}, 'fusion': model.fusion}
    for part in parts.values():
        part.compile(mode=mode, dynamic=True)
    return list(parts)

"""How transforms are called: what each says it wants, for one field or for a whole batch.

An attribute that is true asks for a keyword argument; a function without any is called with the values alone.

| attribute      | asks for                                                   | and returns            |
|----------------|------------------------------------------------------------|------------------------|
| random         | `draw=`: a `Draw`                                          |                        |
| takes_mask     | `mask=`: bool `[B]` on the device, True where it is there  |                        |
| takes_lengths  | `lengths=`: int64 `[B]` on the device, None if not ragged  | (values, new lengths)  |
| takes_memory   | `allocate=`: memory for a result on the CPU, or None       |                        |

What stands under `'*'` is called with the whole batch and `draw=`, after all the fields, and returns the batch. Its
`fields` names those it needs.

Two more say something of sound, for the check before a training: `rate`, the samples a second that it takes, and
`keeps_rate`, that its result has as many.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mmpipe.data.transforms.draw import Draw
from mmpipe.errors import DataError

Allocate = Callable[[tuple[int, ...], Any], np.ndarray]
"""Gives an array of a shape and dtype, with any content, such as `mmpipe.data.leases.Leases`."""
Steps = Callable[..., Any] | Sequence[Callable[..., Any]]
"""One transform, or several in order."""
WHOLE_BATCH = '*'


def apply_all(
    transforms: Mapping[str, Steps], batch: dict[str, Any], draw: Draw, *, allocate: Allocate | None = None
) -> dict[str, Any]:
    """Run the transforms of a loader over one batch.

    Each field, and each place in a list, draws numbers of its own: adding a transform changes none of the others.

    Args:
        transforms: {field, or '*' for the whole batch: a transform, or several in order}.
        batch: on its device, in the layout of `mmpipe.data.batch`; changed in place.
        draw: of its samples.
        allocate: memory for results on the CPU that is used again when nothing looks at it any more; fresh when None.

    Returns:
        The batch.

    >>> batch = {'price': torch.tensor([1.0, 2.0]), '_mask': {}}
    >>> apply_all({'price': [lambda x: x + 1, lambda x: x * 2]}, batch, Draw())['price']
    tensor([4., 6.])
    """
    for name, chosen in transforms.items():
        if name == WHOLE_BATCH:
            continue
        values, lengths = batch[name], batch.get('_length', {}).get(name)
        mask = batch.get('_mask', {}).get(name)
        for place, step in enumerate(steps_of(chosen)):
            wanted: dict[str, Any] = {}
            if getattr(step, 'random', False):
                wanted['draw'] = draw.fork(name, place)
            if getattr(step, 'takes_mask', False):
                wanted['mask'] = mask
            if getattr(step, 'takes_memory', False):
                wanted['allocate'] = allocate
            if getattr(step, 'takes_lengths', False):
                values, lengths = step(values, lengths=lengths, **wanted)
            else:
                values = step(values, **wanted)
        batch[name] = values
        if lengths is not None:
            batch['_length'][name] = lengths
    for place, step in enumerate(steps_of(transforms.get(WHOLE_BATCH, ()))):
        batch = step(batch, draw=draw.fork(WHOLE_BATCH, place))
    return batch


def apply(transform: Any, values: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Call one transform of a field, with `draw` if it says that it is random.

    >>> apply(lambda x: x + 1, torch.zeros(1), Draw())
    tensor([1.])
    """
    return transform(values, draw=draw) if getattr(transform, 'random', False) else transform(values)


def steps_of(chosen: Steps) -> Sequence[Callable[..., Any]]:
    """One transform or several, as several.

    >>> len(steps_of(abs)), len(steps_of([abs, abs]))
    (1, 2)
    """
    return chosen if isinstance(chosen, Sequence) else [chosen]


def check(transforms: Mapping[str, Steps], fields: Iterable[str]) -> None:
    """Check that transforms are for fields that are loaded.

    Args:
        transforms: as `apply_all` takes them.
        fields: loaded.

    Raises:
        DataError: one names another field, or cannot be called.

    >>> check({'photo': abs}, ['photo'])
    """
    fields = list(fields)
    for name, chosen in transforms.items():
        for step in steps_of(chosen):
            if not callable(step):
                raise DataError(
                    f'transforms= has {step!r} for {name!r}, which cannot be called. Give a function, or several.'
                )
            for each in getattr(step, 'fields', ()) if name == WHOLE_BATCH else (name,):
                if each not in fields:
                    raise DataError(
                        f'transforms= names the field {each!r}, which is not loaded; loaded are {", ".join(fields)}. '
                        f'Correct the name, or add it to fields=.'
                    )


def select(transforms: Mapping[str, Steps], fields: Iterable[str]) -> dict[str, Steps]:
    """Those transforms that run where only some fields are loaded.

    Args:
        transforms: as `apply_all` takes them.
        fields: loaded.

    >>> list(select({'photo': abs, 'price': abs}, ['price']))
    ['price']
    """
    fields = set(fields)
    kept = {name: chosen for name, chosen in transforms.items() if name in fields}
    whole = [
        step for step in steps_of(transforms.get(WHOLE_BATCH, ())) if fields.issuperset(getattr(step, 'fields', ()))
    ]
    return {**kept, **({WHOLE_BATCH: whole} if whole else {})}

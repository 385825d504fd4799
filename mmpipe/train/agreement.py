"""What all processes know of a step before any of them takes it: labelled rows, and whether they stop or save."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import distributed, nn

from mmpipe.data.ranks import world
from mmpipe.train.distributed import processes
from mmpipe.train.tasks import Task


@dataclass(frozen=True)
class Asked:
    """What one process asks for; what all of them do, where any of them does.

    Args:
        stop: Ctrl-C was pressed.
        enough: a callback ends the training.
        save: a checkpoint is due, by time.
    """

    stop: bool = False
    enough: bool = False
    save: bool = False


@dataclass(frozen=True)
class Agreed:
    """The same on all processes.

    Args:
        labels: labelled rows per task in the step, over micro-batches and ranks.
        asked: by any process.
        even: every rank has rows in each micro-batch.
        unused: parameters that no row of the step needs, of those which get a gradient of zero all the same.
    """

    labels: tuple[float, ...]
    asked: Asked
    even: bool = True
    unused: tuple[nn.Parameter, ...] = field(default=(), repr=False)


def agree(
    micro: Sequence[Mapping[str, Any]],
    tasks: Sequence[Task],
    asked: Asked,
    *,
    optional: Sequence[tuple[str, bool, list[nn.Parameter]]] = (),
    device: torch.device,
) -> Agreed:
    """Count the labels of a step and hear what others ask for, in one message; none where there is one process.

    Args:
        micro: the batches of this rank. Who has labels is known without asking the device.
        tasks: what is learnt.
        asked: by this process.
        optional: see `MultitaskModel.optional`.
        device: of the message.

    >>> batch = {'_key': ['a', 'b', 'c'], '_present': {'kind': [0, 2]}}
    >>> from mmpipe.train import classification
    >>> agree([batch, batch], [classification('kind', 3)], Asked(), device=torch.device('cpu')).labels
    (4.0,)
    """
    counts = [float(sum(len(batch['_present'][task.field]) for batch in micro)) for task in tasks]
    there = processes()
    if there == 1:
        return Agreed(tuple(counts), asked)
    empty = any(len(batch['_key']) == 0 for batch in micro)
    users = [sum(_rows(batch, name, present) for batch in micro) for name, present, _ in optional]
    wishes = [float(each) for each in (asked.stop, asked.enough, asked.save, empty)]
    told = torch.tensor([*users, *counts, *wishes], dtype=torch.float32, device=device)
    distributed.all_reduce(told)  # of all processes; those that share a model count the same rows
    used, rest = told.tolist()[: len(users)], told.tolist()[len(users) :]
    *counts, stop, enough, save, empties = rest
    unused = (
        parameter for (*_, parameters), rows in zip(optional, used, strict=True) if not rows for parameter in parameters
    )
    return Agreed(
        tuple(count * world()[1] / there for count in counts),
        Asked(stop > 0, enough > 0, save > 0),
        even=empties == 0,
        unused=tuple(unused),
    )


def _rows(batch: Mapping[str, Any], name: str, present: bool) -> int:
    there = len(batch['_present'][name])
    return there if present else len(batch['_key']) - there

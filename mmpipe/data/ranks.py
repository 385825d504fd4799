"""Which part of the data this process gets, and with whom it shares it.

Every process of `torch.distributed` gets a part of its own, unless a model is spread over some of them: those see the
same rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import distributed


@dataclass(frozen=True)
class Sharing:
    """How processes share the data.

    Args:
        rank: of this process among those that get other rows; from 0.
        size: how many parts there are.
        group: the `ProcessGroup` of one process per part, with this one; None for all processes.
    """

    rank: int
    size: int
    group: Any = None


_sharing: list[Sharing] = []


def world() -> tuple[int, int]:
    """(rank, number of ranks) among those that get other rows; (0, 1) where `torch.distributed` is not initialised.

    >>> world()
    (0, 1)
    """
    if _sharing:
        return _sharing[-1].rank, _sharing[-1].size
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def data_group() -> Any:
    """The process group of the ranks that `world` counts; None for all processes."""
    return _sharing[-1].group if _sharing else None


def is_first() -> bool:
    """Whether this is the one process that writes what is written once.

    >>> is_first()
    True
    """
    return not (distributed.is_available() and distributed.is_initialized()) or distributed.get_rank() == 0


@contextmanager
def sharing(how: Sharing) -> Iterator[None]:
    """Inside, the data are shared like that.

    >>> with sharing(Sharing(1, 4)):
    ...     world()
    (1, 4)
    """
    _sharing.append(how)
    try:
        yield
    finally:
        _sharing.pop()

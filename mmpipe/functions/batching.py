"""Cells that arrive one by one, prepared one by one, computed in batches.

cell ─► prepare (pool) ─┐
cell ─► prepare (pool) ─┼─► 32 ready, or nobody left preparing ─► run (model thread) ─► one result per cell
cell ─► prepare fails ──┼─► that cell's own error
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar

from mmpipe.functions.parallel import in_pool, in_turn

# Stands for the code of this module in fingerprints: raise it when what is computed with its help changes.
__fingerprint__ = 1

T = TypeVar('T')
U = TypeVar('U')

BATCH = 32

# Futures belong to a loop, and Pixeltable makes new ones: what waits is kept per loop and goes with it.
_waiting: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[Hashable, _Batch]] = weakref.WeakKeyDictionary()


async def in_batches(key: Hashable, prepare: Callable[[], T], run: Callable[[list[T]], Iterable[U]]) -> U:
    """One cell of a batched computation.

    Args:
        key: cells with equal keys may share a batch; it must determine `run` and the shape of what `prepare` returns.
        prepare: makes this cell's input; runs on the pool.
        run: inputs to as many results, in order; runs on the model thread, with at most 32 inputs.

    Returns:
        This cell's result.

    Raises:
        Exception: what `prepare` raised, for this cell alone; or what `run` raised, for all cells of its batch.

    >>> async def cells(numbers):
    ...     return await asyncio.gather(
    ...         *(in_batches('example', lambda n=n: n, lambda batch: [(n, len(batch)) for n in batch]) for n in numbers)
    ...     )
    >>> asyncio.run(cells([5, 6, 7]))
    [(5, 3), (6, 3), (7, 3)]
    """
    batches = _waiting.setdefault(asyncio.get_running_loop(), {})
    batch = batches.setdefault(key, _Batch())
    batch.preparing += 1
    try:
        item = await in_pool(prepare)
    except BaseException:
        batch.preparing -= 1
        batch.flush(run)  # this may have been the one that the others waited for
        raise
    batch.preparing -= 1
    future: asyncio.Future[U] = asyncio.get_running_loop().create_future()
    batch.ready.append((item, future))
    batch.flush(run)
    return await future


class _Batch:
    """What waits under one key of one event loop; touched only by that loop's thread."""

    def __init__(self) -> None:
        self.preparing = 0
        self.ready: list[tuple[Any, asyncio.Future[Any]]] = []
        self.running: set[asyncio.Task[None]] = set()  # the loop itself holds tasks only weakly

    def flush(self, run: Callable[[list[Any]], Iterable[Any]]) -> None:
        """Start a batch when it is full, or when nobody is left who could fill it."""
        if self.ready and (len(self.ready) >= BATCH or not self.preparing):
            cells, self.ready = self.ready, []
            task = asyncio.get_running_loop().create_task(self._run(run, cells))
            self.running.add(task)
            task.add_done_callback(self.running.discard)

    async def _run(
        self, run: Callable[[list[Any]], Iterable[Any]], cells: list[tuple[Any, asyncio.Future[Any]]]
    ) -> None:
        try:
            results = await in_turn(run, [item for item, _ in cells])
        except BaseException as error:
            for _, future in cells:
                if not future.done():
                    future.cancel() if isinstance(error, asyncio.CancelledError) else future.set_exception(error)
            if not isinstance(error, Exception):
                raise
            return
        for (_, future), result in zip(cells, results, strict=True):
            if not future.done():  # its cell may have been cancelled meanwhile
                future.set_result(result)

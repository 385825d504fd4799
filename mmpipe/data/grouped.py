"""Small batches, several of which are read at once and handed over one by one.

Reading a batch has a price that does not depend on its size: a few hundred calls of Python, which hold the interpreter
lock while a training step wants it. Of features or table rows that price is more than the reading itself.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from mmpipe.data.batch import BatchTask, Request
from mmpipe.data.threads import Reader

GROUP_BYTES = 1 << 21  # read at once; a batch of that size has paid its price
MOST = 8  # batches


class GroupedReader:
    """A `Reader` that joins the requests of another one: one at first, so that it is there soon, then more at a time.

    Args:
        reader: makes the batches, of fields that `batches_at_once` allows.
        most: batches to join at most.

    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.data.threads import ThreadReader
    >>> reader = GroupedReader(ThreadReader(BatchTask(example_rows(), ['kind']), threads=0, allocate=np.empty), most=2)
    >>> for position in (1, 0, 1): reader.submit(Request(np.array([position])))
    >>> [reader.next()['_key'] for _ in range(3)], reader.pending
    ([['b'], ['a'], ['b']], 0)
    """

    def __init__(self, reader: Reader, *, most: int) -> None:
        self._reader, self._most, self._now = reader, most, 1
        self._waiting: list[Request] = []
        self._given: deque[list[int]] = deque()  # rows of the batches of each joined request
        self._ready: deque[dict[str, Any]] = deque()
        self.made_s = 0.0

    @property
    def pending(self) -> int:
        """Batches submitted and not yet taken."""
        return len(self._waiting) + sum(map(len, self._given)) + len(self._ready)

    def submit(self, request: Request) -> None:
        """Let a batch be made, together with the next ones."""
        self._waiting.append(request)
        if len(self._waiting) >= self._now or request.padded:  # only the last rows of a request can be padding
            self._join()

    def next(self) -> dict[str, Any]:
        """The next batch in the order submitted.

        Raises:
            Exception: what making it, or one of those it was joined with, raised.
        """
        if not self._ready:
            if not self._given:
                self._join()
            rows = self._given.popleft()
            batch = self._reader.next()
            self.made_s = self._reader.made_s / len(rows)
            self._ready.extend(_parts(batch, rows))
        return self._ready.popleft()

    def close(self) -> None:
        """Make nothing more."""
        self._waiting.clear()
        self._given.clear()
        self._ready.clear()
        self._reader.close()

    def _join(self) -> None:
        first, *more = self._waiting
        request = first
        if more:
            repeats = [each.repeats for each in self._waiting if each.repeats is not None]
            request = Request(
                np.concatenate([each.positions for each in self._waiting]),
                first.epoch,
                more[-1].padded,
                np.concatenate(repeats) if repeats else None,
            )
        self._given.append([len(each.positions) for each in self._waiting])
        self._waiting.clear()
        self._now = min(2 * self._now, self._most)
        self._reader.submit(request)


def batches_at_once(task: BatchTask, batch_size: int) -> int:
    """How many batches are worth reading at once: one, unless all their fields are dense and small.

    And one of rows that each may lie in a file of its own, as the first batch would wait for all of these files.

    Args:
        task: what makes them.
        batch_size: rows of one.

    >>> from mmpipe.data.collate import example_rows
    >>> batches_at_once(BatchTask(example_rows(), ['kind']), 2)
    8
    """
    sizes = [task.rows.fields[name].bytes_per_row for name in task.fields]
    if task.decode or task.host or task.rows.scattered or not batch_size or any(size is None for size in sizes):
        return 1
    return int(np.clip(GROUP_BYTES // max(batch_size * sum(size or 0 for size in sizes), 1), 1, MOST))


def _parts(batch: dict[str, Any], rows: list[int]) -> list[dict[str, Any]]:
    if len(rows) == 1:
        return [batch]
    masks = batch.pop('_mask')
    found, start = [], 0
    for count in rows:
        part = slice(start, start + count)
        each = {name: values[part] for name, values in batch.items()}
        found.append({**each, '_mask': {name: mask[part] for name, mask in masks.items()}})
        start += count
    return found

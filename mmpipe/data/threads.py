"""Reading threads: batches are made ahead of the consumer, and handed over in order.

Copies and decoders let go of the interpreter lock, so a few threads fill the cores, and a batch crosses no process.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from mmpipe.data.batch import Allocate, BatchTask, Request


class Reader(Protocol):
    """Makes the batches that were submitted, in that order.

    Attributes:
        made_s: seconds that the newest batch took to make.
    """

    made_s: float

    def submit(self, request: Request) -> None: ...  # noqa: D102

    def next(self) -> dict[str, Any]: ...  # noqa: D102

    @property
    def pending(self) -> int: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


class ThreadReader:
    """A `Reader` of threads; with none of them, batches are made when they are asked for.

    Args:
        task: makes a batch.
        threads: how many; 0 for the thread that asks.
        allocate: gives the memory of batches.
        first: called with each request before its batch is made, such as to wait for what it reads.

    Attributes:
        made_s: seconds that the newest batch took to make.

    >>> import numpy as np
    >>> from mmpipe.data.collate import example_rows
    >>> reader = ThreadReader(BatchTask(example_rows(), ['kind']), threads=1, allocate=np.empty)
    >>> reader.submit(Request(np.array([1]))); reader.next()['_key']; reader.close()
    ['b']
    """

    def __init__(
        self,
        task: BatchTask,
        *,
        threads: int,
        allocate: Allocate,
        first: Callable[[Request], None] | None = None,
    ) -> None:
        self._task, self._allocate, self._first = task, allocate, first
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix='mmpipe-read') if threads else None
        self._given: deque[Future[dict[str, Any]] | Callable[[], dict[str, Any]]] = deque()
        self.made_s = 0.0

    @property
    def pending(self) -> int:
        """Batches submitted and not yet taken."""
        return len(self._given)

    def submit(self, request: Request) -> None:
        """Let a batch be made."""
        if self._threads is None:
            self._given.append(lambda: self._made(request))
        else:
            self._given.append(self._threads.submit(self._made, request))

    def next(self) -> dict[str, Any]:
        """The next batch in the order submitted; waits for it.

        Raises:
            Exception: what the task raised for it.
        """
        found = self._given.popleft()
        return found.result() if isinstance(found, Future) else found()

    def close(self) -> None:
        """Make nothing more; what is being made is left to end by itself."""
        self._given.clear()
        if self._threads is not None:
            self._threads.shutdown(wait=False, cancel_futures=True)

    def _made(self, request: Request) -> dict[str, Any]:
        if self._first is not None:
            self._first(request)
        started = time.perf_counter()
        batch = self._task(request, self._allocate)
        self.made_s = time.perf_counter() - started
        return batch

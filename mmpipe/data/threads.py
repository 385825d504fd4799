"""Reading threads: batches are made ahead of the consumer, and handed over in order.

Copies and decoders let go of the interpreter lock, so a few threads fill the cores, and a batch crosses no process.
A batch is made in pieces, by all threads together, the oldest one first; a consumer that has to wait for it does
pieces too. So as few batches as possible are on their way, whose memory then is still in the processor's cache, and the
first one is there as soon as can be.
"""

from __future__ import annotations

import atexit
import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Protocol

from mmpipe.data.batch import Allocate, BatchTask, Request

AT_EXIT_S = 10.0  # that the end of the program waits for pieces that are being made
PIECES = 2  # of a batch per thread, so that a thread that is late is not waited for with half of the rows


class Reader(Protocol):
    """Makes the batches that were submitted, in that order.

    Attributes:
        made_s: seconds that the newest batch took to make, of all who made it.
    """

    made_s: float

    def submit(self, request: Request) -> None: ...  # noqa: D102

    def next(self) -> dict[str, Any]: ...  # noqa: D102

    @property
    def pending(self) -> int: ...  # noqa: D102

    def close(self) -> None: ...  # noqa: D102


class ThreadReader:
    """A `Reader` of threads, which the thread that asks helps; with none of them, it does all when it asks.

    Args:
        task: makes a batch.
        threads: how many besides the one that asks.
        allocate: gives the memory of batches.
        first: called with each request before something is read for it, such as to wait until that can be.

    Attributes:
        made_s: seconds that the newest batch took to make, of all threads together.

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
        self._task, self._allocate, self._first, self._threads = task, allocate, first, threads
        self._work: SimpleQueue[_Making | None] = SimpleQueue()
        self._given: deque[_Making] = deque()
        self.made_s = 0.0
        for number in range(threads):  # daemons: a consumer that never comes back does not keep the program alive
            name = f'mmpipe-read_{number}'
            thread = threading.Thread(target=_work_on, args=(self._work,), name=name, daemon=True)
            thread.start()
            _running.add(thread)
        self._end = weakref.finalize(self, _end, self._work, threads)
        _readers.add(self)

    @property
    def pending(self) -> int:
        """Batches submitted and not yet taken."""
        return len(self._given)

    def submit(self, request: Request) -> None:
        """Let a batch be made."""
        parts = PIECES * (self._threads + 1) if self._threads else 1
        pieces, finish = self._task.begin(request, self._allocate, parts=parts)
        first = None if self._first is None else (lambda: self._first(request))  # type: ignore[misc]
        making = _Making(pieces, finish, first)
        self._given.append(making)
        for _ in range(min(self._threads, len(pieces))):
            self._work.put(making)

    def next(self) -> dict[str, Any]:
        """The next batch in the order submitted; helps to make it, and waits for what others make of it.

        Raises:
            Exception: what the task raised for it.
        """
        making = self._given.popleft()
        making.help()
        batch = making.wait()
        self.made_s = making.seconds
        return batch

    def close(self) -> None:
        """Make nothing more; what is being made is left to end by itself."""
        for making in self._given:
            making.pieces.clear()
        self._given.clear()
        self._end()


class _Making:
    """One batch on its way.

    Args:
        pieces: to be done, by any thread.
        finish: gives the batch when all are done.
        first: to be called before a piece.
    """

    def __init__(
        self,
        pieces: list[Callable[[], None]],
        finish: Callable[[], dict[str, Any]],
        first: Callable[[], None] | None,
    ) -> None:
        self.pieces = deque(enumerate(pieces))
        self._took: list[float] = []  # by piece
        self._first, self._count = first, len(pieces)
        self._finish: Callable[[], dict[str, Any]] | None = finish
        self._ended = itertools.count(1)  # one call takes one number, whatever other threads do meanwhile
        self._raised: dict[int, Exception] = {}
        self._batch: dict[str, Any] | None = None
        self._ready = threading.Lock()
        self._ready.acquire()

    @property
    def seconds(self) -> float:
        """That its making took, of all threads together."""
        return sum(self._took)

    def help(self) -> None:
        """Do pieces until all are taken."""
        while True:
            try:
                number, piece = self.pieces.popleft()
            except IndexError:
                return
            started = time.perf_counter()
            try:
                if self._first is not None:
                    self._first()
                piece()
            except Exception as error:  # noqa: BLE001  # is raised where the batch is asked for
                self._raised[number] = error
            self._took.append(time.perf_counter() - started)
            if next(self._ended) == self._count:
                self._end()

    def _end(self) -> None:
        started = time.perf_counter()
        try:
            finish, self._finish = self._finish, None  # and with it the memory of the batch
            if not self._raised and finish is not None:
                self._batch = finish()
        except Exception as error:  # noqa: BLE001
            self._raised[self._count] = error
        self._took.append(time.perf_counter() - started)
        self._ready.release()

    def wait(self) -> dict[str, Any]:
        """The batch, when all pieces are done.

        Raises:
            Exception: what the first of the pieces that failed raised.
        """
        self._ready.acquire()
        if self._raised:
            raise self._raised[min(self._raised)]
        batch, self._batch = self._batch, None
        assert batch is not None
        return batch


_readers: weakref.WeakSet[ThreadReader] = weakref.WeakSet()
_running: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


@atexit.register
def _at_exit() -> None:
    """A thread that is in a library's code when the interpreter ends would take the whole process down with it."""
    for reader in list(_readers):
        reader.close()
    deadline = time.monotonic() + AT_EXIT_S
    for thread in list(_running):
        thread.join(max(deadline - time.monotonic(), 0))


def _work_on(work: SimpleQueue[_Making | None]) -> None:
    while (making := work.get()) is not None:
        making.help()
        del making  # its memory is lent again when the consumer is done with it, not when this thread has other work


def _end(work: SimpleQueue[_Making | None], threads: int) -> None:
    for _ in range(threads):
        work.put(None)

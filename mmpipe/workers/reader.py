"""Batches from worker processes, in the order in which they were asked for."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import socket
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NoReturn

import numpy as np

from mmpipe.errors import ConfigError, MmpipeError, WorkerError
from mmpipe.workers import worker as work
from mmpipe.workers.failures import Keys, died, not_loaded, place, raised
from mmpipe.workers.parcel import Parcel, unpack
from mmpipe.workers.slots import PAGE_BYTES, Memory, mapped
from mmpipe.workers.start import how_to_run_the_script, start

JOIN_S = 5.0
CRASH_BYTES = 4000
"""Of what the fault handler wrote, so much is quoted."""


@dataclass(kw_only=True, eq=False)
class _Worker:
    """A worker as its parent sees it.

    Args:
        process: the process.
        connection: to it.
        channel: the same, for descriptors.
        lifeline: ends it when it is closed, also by the death of this process.
        requests: (number, request, slot) of what it was given and has not answered, oldest first.
        made: numbers of slots given out so far.
        free: slots that nobody uses.
        slots: memory behind the numbers, where a result needed any.
        notes: descriptor of the file in which it notes what it works on; None until it has started.
    """

    process: BaseProcess
    connection: Connection
    channel: socket.socket
    lifeline: Connection
    requests: deque[tuple[int, Any, int]] = field(default_factory=deque)
    made: int = 0
    free: list[int] = field(default_factory=list)
    slots: dict[int, Memory] = field(default_factory=dict)
    notes: int | None = None


class ProcessReader:
    """Runs a task for each request in worker processes, and gives the results in the order of the requests.

    Batch number n is made by worker n % processes, so that what a worker sees does not depend on timing. Large arrays
    of a result (over 64 KB) are views over shared memory, which is used again when the last view of that result, or
    tensor over one, has died. They are the caller's for as long as it keeps them: once results over `pool` bytes are
    kept, further ones get memory of their own.

    One thread at a time may use a reader; results may die in any.

    Args:
        task: `task(request, allocate) -> batch`, a callable that can be pickled, made once in each worker. The batch is
            anything that can be pickled, such as a dict of arrays, lists and dicts. `allocate(shape, dtype)` gives
            memory in which the array need not be copied again, and which is the batch's until the task returns;
            `allocate.at(i)` says which sample is worked on, so that errors name it. Random numbers from the generators
            of `random`, numpy and torch are a function of the request.
        processes: how many workers.
        depth: requests that are worked on or wait for `next` at a time, of which each has a slot; more of them wait for
            their turn. All that are submitted when None.
        pool: bytes of results that the caller can keep before further ones are copied out of shared memory.
        keys: tells the keys of a request's rows, for errors; its own `keys` or else `positions` are named when None.
        pin: called with the memory of each new slot, uint8 `[size]`, such as to lock its pages for CUDA; what it
            returns is called before that memory goes.

    Attributes:
        made_s: seconds that the newest result took to make.

    Raises:
        ConfigError: numbers below one, a task that cannot be pickled, or a script that makes a reader while a worker
            imports it.

    >>> from mmpipe.workers.worker import squares
    >>> reader = ProcessReader(squares, processes=2, depth=4)
    >>> for start in (0, 3):
    ...     reader.submit({'positions': range(start, start + 3)})
    >>> reader.next()['square'], reader.next()['square'], reader.pending
    (array([0, 1, 4]), array([ 9, 16, 25]), 0)
    >>> reader.close()
    """

    def __init__(
        self,
        task: work.Task,
        *,
        processes: int,
        depth: int | None = None,
        pool: int = 1 << 30,
        keys: Keys | None = None,
        pin: Callable[[np.ndarray], Callable[[], object]] | None = None,
    ) -> None:
        if processes < 1 or (depth is not None and depth < 1):
            raise ConfigError(f'processes={processes}, depth={depth}: a reader needs at least one of each.')
        self.depth, self.pool, self._keys, self._pin = depth, pool, keys, pin
        self.made_s = 0.0
        first = _first_message(task)
        self._error: MmpipeError | None = None
        self._submitted = self._given = self._delivered = 0
        self._backlog: deque[Any] = deque()
        self._arrived: dict[int, tuple[_Worker, int, Any, work.Reply]] = {}
        self._kept = 0
        # (number of the worker, slot, bytes), filled by whichever thread drops a result.
        self._returned: deque[tuple[int, int, int]] = deque()
        self._workers: list[_Worker] = []
        self._stop = weakref.finalize(self, _stop, os.getpid(), self._workers)
        try:
            for number in range(processes):
                self._workers.append(_started(f'mmpipe-reader-{number}'))
        except BaseException:
            self.close()
            raise
        for worker in self._workers:
            _send(worker, first)

    @property
    def pending(self) -> int:
        """Requests whose results `next` has not given yet."""
        return self._submitted - self._delivered

    @property
    def slots(self) -> int:
        """Slots of shared memory that there are, used or not."""
        return sum(len(worker.slots) for worker in self._workers)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers."""
        return [worker.process.pid or 0 for worker in self._workers]

    def submit(self, request: Any) -> None:
        """Ask for a batch.

        Args:
            request: handed to the task; its `keys` or `positions`, `epoch` and `number`, as attributes or items, are
                named in errors.

        Raises:
            WorkerError: the reader is closed.
        """
        self._check_open()
        self._backlog.append((request, pickle.dumps(request)))
        self._submitted += 1
        self._hand_out()

    def next(self) -> Any:
        """The result of the oldest request that has not been given; waits for it.

        Raises:
            WorkerError: the task raised something for this request, and the reader can go on; or a worker could not
                start or died, at whichever request, and the reader is closed.
            MmpipeError: what the task raised, where that is one of these.
        """
        self._check_open()
        if not self.pending:
            raise WorkerError('no batch was asked for: call submit() before next().')
        number = self._delivered
        while number not in self._arrived:
            self._receive(number)
        worker, slot, request, reply = self._arrived.pop(number)
        self._delivered += 1
        try:
            if reply.failure is not None:
                worker.free.append(slot)
                raise raised(reply.failure, place(request, number, reply.failure.sample, keys=self._keys))
            self.made_s = reply.seconds
            return self._result(worker, slot, reply.parcel)
        finally:
            self._hand_out()

    def close(self) -> None:
        """Stop the workers at once, whatever they do. Results that are kept stay as they are."""
        self._stop()
        if self._error is None:
            self._error = WorkerError('the reader of worker processes is closed: make a new one.')
        self._backlog.clear()
        self._arrived.clear()
        self._workers.clear()

    def _check_open(self) -> None:
        if self._error is not None:
            raise self._error

    def _hand_out(self) -> None:
        """Give waiting requests to their workers, each with a slot to fill."""
        while self._returned:
            number, slot, size = self._returned.popleft()
            self._workers[number].free.append(slot)
            self._kept -= size
        while self._backlog and (self.depth is None or self._given - self._delivered < self.depth):
            request, pickled = self._backlog.popleft()
            worker = self._workers[self._given % len(self._workers)]
            if not worker.free:
                worker.free.append(worker.made)
                worker.made += 1
            slot = worker.free.pop()
            worker.requests.append((self._given, request, slot))
            _send(worker, pickle.dumps((self._given, slot, pickled)))
            self._given += 1

    def _receive(self, wanted: int) -> None:
        """Wait until some worker says something or dies, and take in all that is there.

        Raises:
            WorkerError: one has died, and the result that is wanted is not among what had been said before.
        """
        handles = {worker.connection: worker for worker in self._workers}
        sentinels = {worker.process.sentinel: worker for worker in self._workers}
        dead = None
        for handle in wait([*handles, *sentinels]):
            worker = handles[handle] if isinstance(handle, Connection) else sentinels[handle]  # type: ignore[index]
            try:
                while worker.connection.poll():
                    self._take(worker)
                if not isinstance(handle, Connection):
                    dead = worker
            except (EOFError, OSError):
                dead = worker
            except BaseException:  # such as a Ctrl-C amid a message, whose rest would be taken for the next one
                self.close()
                raise
        if dead is not None and wanted not in self._arrived:
            self._bury(dead)

    def _take(self, worker: _Worker) -> None:
        """Read one reply."""
        reply: work.Reply = pickle.loads(worker.connection.recv_bytes())
        file = None
        if reply.size is not None:
            said, files, _, _ = socket.recv_fds(worker.channel, 1, 1)
            if not said:
                raise EOFError
            file = files[0]
        if reply.number == work.STARTED:
            worker.notes = file
            return
        if reply.number == work.NOT_LOADED:
            assert reply.failure is not None
            raise self._end(not_loaded(reply.failure))
        number, request, slot = worker.requests.popleft()
        assert number == reply.number, f'a worker answered {reply.number} in place of {number}'
        if file is not None:
            memory = worker.slots[slot] = mapped(file)
            if self._pin is not None:
                memory.at_end = self._pin(np.frombuffer(memory, np.uint8))
        self._arrived[number] = worker, slot, request, reply

    def _result(self, worker: _Worker, slot: int, parcel: Parcel | None) -> Any:
        """The batch of a parcel; its slot is free again now, or when the batch is dropped."""
        assert parcel is not None
        if not parcel.places:
            worker.free.append(slot)
            return unpack(parcel, None, copy=False)
        # Views collapse: the base of a view of a view is this array, made anew for each result, so it dies after all
        # of them.
        memory = np.frombuffer(worker.slots[slot], np.uint8)
        if self._kept + len(memory) > self.pool:
            worker.free.append(slot)
            return unpack(parcel, memory, copy=True)
        self._kept += len(memory)
        number = self._workers.index(worker)  # and not the worker, with which a kept result would keep all of its slots
        weakref.finalize(memory, self._returned.append, (number, slot, len(memory))).atexit = False
        return unpack(parcel, memory, copy=False)

    def _bury(self, worker: _Worker) -> NoReturn:
        """Raise the error for a worker that has died, and close the reader."""
        worker.process.join(JOIN_S)
        doing, crash = 'started', ''
        if worker.notes is not None:
            at, sample = np.frombuffer(os.pread(worker.notes, 16, 0), np.int64).tolist()
            crash = os.pread(worker.notes, CRASH_BYTES, PAGE_BYTES).strip(b'\0').decode(errors='replace')
            number, request, _ = worker.requests[0] if worker.requests else (None, None, 0)
            if at == work.NOT_LOADED:
                doing = 'loaded its functions'
            elif number is None:
                doing = 'had nothing to do'
            elif at == number:
                doing = f'made {place(request, number, sample, keys=self._keys)}'
            else:
                doing = f'was between batches, with {place(request, number, keys=self._keys)} next'
        process = worker.process
        raise self._end(died(name=process.name, pid=process.pid, code=process.exitcode, doing=doing, crash=crash))

    def _end(self, error: MmpipeError) -> MmpipeError:
        self._error = error
        self.close()
        return error


def _first_message(task: work.Task) -> bytes:
    """What a worker hears first."""
    if work.imports_script:
        raise ConfigError(
            'a worker process runs this script to find a function of it, and the script would start workers again: '
            "put what it does under `if __name__ == '__main__':`, or the function into a module that it imports."
        )
    if multiprocessing.current_process().daemon:
        raise ConfigError('this is a worker process, which cannot have workers of its own: use num_workers=0 here.')
    try:
        pickled = pickle.dumps(task)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(
            f'what worker processes should run cannot be sent to them: {error}. Functions must be defined at the top '
            f'of a module, not inside another function or as a lambda.'
        ) from error
    return pickle.dumps((dict(os.environ), how_to_run_the_script(), pickled))


def _started(name: str) -> _Worker:
    ours, theirs = multiprocessing.Pipe()
    lifeline, their_lifeline = multiprocessing.Pipe()
    try:
        process = start(work.main, theirs, their_lifeline, name=name)
    except BaseException:
        ours.close()
        lifeline.close()
        raise
    finally:  # so that the worker has the only ones, and its death is heard
        theirs.close()
        their_lifeline.close()
    channel = socket.socket(fileno=os.dup(ours.fileno()))
    return _Worker(process=process, connection=ours, channel=channel, lifeline=lifeline)


def _send(worker: _Worker, message: bytes) -> None:
    with contextlib.suppress(OSError):  # it is dead; the next look at it says so
        worker.connection.send_bytes(message)


def _stop(pid: int, workers: Sequence[_Worker]) -> None:
    """Kill workers, unless this is a fork of the process that started them."""
    if os.getpid() != pid:
        return
    for worker in workers:
        if worker.process.is_alive():
            worker.process.kill()
    for worker in workers:
        worker.process.join(JOIN_S)
        worker.connection.close()
        worker.channel.close()
        worker.lifeline.close()
        if worker.notes is not None:
            os.close(worker.notes)

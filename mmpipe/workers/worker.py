"""What a worker process does: loads the task, then makes one batch per request until its parent is gone."""

from __future__ import annotations

import contextlib
import faulthandler
import fcntl
import io
import multiprocessing.spawn
import os
import pickle
import random
import signal
import socket
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any

import numpy as np

from mmpipe.errors import MmpipeError
from mmpipe.workers.parcel import Parcel, pack
from mmpipe.workers.slots import PAGE_BYTES, Allocator, aligned, anonymous_file, mapped

Task = Callable[[Any, Allocator], Any]
"""`task(request, allocate)` makes the batch of a request."""

STARTED, NOT_LOADED = -1, -2
"""In place of the number of a batch: the file of notes follows; the task could not be loaded."""

NOTES_BYTES = 2 * PAGE_BYTES
"""Size of the file of notes: a page for what is worked on, and one to begin with for the fault handler."""

imports_script = False
"""True while this process runs the user's script to find a function of it."""


@dataclass(frozen=True, kw_only=True)
class Reply:
    """What a worker says about one request; the descriptor of a new file follows where `size` is given.

    Args:
        number: of the batch, or one of the numbers above.
        parcel: the batch; None where there is none.
        size: bytes of the slot's new file; None where it keeps the one it has.
        failure: what the task raised.
        seconds: that the batch took to make.
    """

    number: int
    parcel: Parcel | None = None
    size: int | None = None
    failure: Failure | None = None
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Failure:
    """An exception, in a form that any process can read.

    Args:
        kind: its class.
        text: its message.
        trace: its traceback.
        pickled: itself, where mmpipe raised it on purpose; else None.
        sample: number in the batch of the sample that was worked on; -1 where the task did not say.
    """

    kind: str
    text: str
    trace: str
    pickled: bytes | None
    sample: int


def main(connection: Connection, lifeline: Connection) -> None:
    """Serve the parent at the other end of a connection; returns when the task cannot be loaded.

    The first message is (environment, how to import the script, pickle of the task), each further one (number, slot,
    pickle of the request). Over the lifeline nothing is ever sent: the system kills this process when its other end is
    gone, whatever it does, also in C code that keeps Python's lock.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the parent decides
    signal.signal(signal.SIGIO, signal.SIG_DFL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    import mmpipe.workers.preload  # noqa: F401  done already where there is a fork server

    messages: SimpleQueue[bytes] = SimpleQueue()
    threading.Thread(target=_listen, args=(connection, messages), daemon=True).start()
    with socket.socket(fileno=os.dup(connection.fileno())) as channel:
        _serve(connection, channel, messages)


def squares(request: dict[str, Any], allocate: Allocator) -> dict[str, Any]:
    """A task for the examples in this package.

    >>> squares({'positions': range(3)}, np.empty)
    {'square': array([0, 1, 4])}
    """
    rows = np.asarray(request['positions'])
    square = allocate(rows.shape, rows.dtype)
    np.multiply(rows, rows, out=square)
    return {'square': square}


def _listen(connection: Connection, messages: SimpleQueue[bytes]) -> None:
    """Take in messages at once, so that the parent never waits to send one; end with the parent."""
    with contextlib.suppress(EOFError, OSError):
        while True:
            messages.put(connection.recv_bytes())
    os._exit(0)


def _serve(connection: Connection, channel: socket.socket, messages: SimpleQueue[bytes]) -> None:
    def say(reply: Reply, file: int | None = None) -> None:
        connection.send_bytes(pickle.dumps(reply))
        if file is not None:
            socket.send_fds(channel, [b'f'], [file])

    file = anonymous_file(NOTES_BYTES)
    notes = np.frombuffer(mapped(os.dup(file)), np.int64, 2)  # number of the batch, number of the sample in it
    notes[:] = NOT_LOADED, -1
    os.lseek(file, PAGE_BYTES, os.SEEK_SET)
    faulthandler.enable(file)  # after a crash the parent reads there which line it was in
    say(Reply(number=STARTED, size=NOTES_BYTES), file)

    load: Callable[[bytes], Any] = pickle.loads
    try:
        environment, script, pickled = pickle.loads(messages.get())
        os.environ.clear()
        os.environ.update(environment)
        os.environ.setdefault('OMP_NUM_THREADS', '1')  # for what is imported from here on: the cores have processes

        def load(data: bytes) -> Any:
            return _Unpickler(data, script).load()

        task: Task = load(pickled)
    except BaseException as error:  # noqa: BLE001  a script can raise anything while it is imported
        say(Reply(number=NOT_LOADED, failure=_failure(error, -1)))
        return

    notes[:] = -1
    slots: dict[int, np.ndarray] = {}
    largest = 0
    while True:
        number, slot, pickled = pickle.loads(messages.get())
        notes[:] = number, -1
        _seed(pickled)
        started = time.perf_counter()
        allocate = Allocator(slots.get(slot, np.empty(0, np.uint8)), notes)
        new_file: int | None = None

        def grow(size: int, slot: int = slot) -> tuple[np.ndarray, int]:
            nonlocal largest, new_file
            if size > largest:
                largest = aligned(size + size // 4 if largest else size, PAGE_BYTES)
            file = anonymous_file(largest)
            slots[slot] = np.frombuffer(mapped(os.dup(file)), np.uint8)
            new_file = file
            return slots[slot], largest

        try:
            parcel = pack(task(load(pickled), allocate), allocate, grow)
            seconds = time.perf_counter() - started
            reply = Reply(number=number, parcel=parcel, size=parcel.grown, seconds=seconds)
        except BaseException as error:  # noqa: BLE001  sys.exit in a function is an error of it, too
            reply = Reply(number=number, failure=_failure(error, int(notes[1])))
        notes[:] = -1
        say(reply, new_file if reply.size else None)
        if new_file is not None:
            os.close(new_file)


def _seed(request: bytes) -> None:
    """Functions that draw from global generators draw the same for a request in whichever worker, not all the same."""
    seed = zlib.crc32(request)
    random.seed(seed)
    np.random.seed(seed)
    if 'torch' in sys.modules:
        sys.modules['torch'].manual_seed(seed)


def _failure(error: BaseException, sample: int) -> Failure:
    pickled = None
    if isinstance(error, MmpipeError):
        with contextlib.suppress(Exception):
            pickled = pickle.dumps(error)
            pickle.loads(pickled)
    trace = ''.join(traceback.format_exception(error))
    return Failure(kind=type(error).__name__, text=str(error), trace=trace, pickled=pickled, sample=sample)


class _Unpickler(pickle.Unpickler):
    """Runs the user's script only for functions that are defined in it: it may import torch, and train."""

    _imported = False

    def __init__(self, data: bytes, script: dict[str, Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._script = script

    def find_class(self, module: str, name: str) -> Any:
        global imports_script
        if module == '__main__' and not _Unpickler._imported:
            imports_script = True
            try:
                multiprocessing.spawn.prepare(self._script)
            finally:
                imports_script = False
            _Unpickler._imported = True
        return super().find_class(module, name)

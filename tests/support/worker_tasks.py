"""Tasks for worker processes, in a module that imports little, as users' should be."""

from __future__ import annotations

import ctypes
import os
import random
import re
import signal
import sys
import time

import numpy as np

from mmpipe.errors import DataError
from mmpipe.workers import ProcessReader


def mixed(request, allocate):
    """All kinds of things that a batch can hold, as a function of the positions."""
    rows = np.asarray(request['positions'], dtype=np.int64)
    image = allocate((len(rows), 3, 40, 50), 'uint8')
    image[:] = (rows[:, None, None, None] * 7 + np.arange(50)) % 251
    scratch = allocate((1000,), 'float64')
    scratch[:] = 5
    own = np.outer(rows, np.arange(4000)).astype(np.float32)
    label = allocate(len(rows), 'int64')
    label[:] = rows % 10
    return {
        'image': image,
        'half': image[:, 1:2],
        'own': own,
        'swapped': own.reshape(len(rows), 40, 100).transpose(0, 2, 1),
        'reversed': own[::-1],
        'label': label,
        'title': [f'row {row}' * (row % 3) for row in rows.tolist()],
        'bytes': [bytes([row % 256]) * 10 for row in rows.tolist()],
        'empty': allocate((0, 5), 'float32'),
        'words': np.array([f'w{row}' for row in rows.tolist()]),
        'objects': np.array([None, 'a', *rows.tolist()], dtype=object),
        '_mask': {'image': rows % 2 == 0, 'deep': [{'x': np.full(30_000, rows.sum())}]},
        '_key': request.get('keys'),
    }


def square(request, allocate):
    """One array of 80 KB per row, from `allocate`."""
    rows = np.asarray(request['positions'], dtype=np.int64)
    out = allocate((len(rows), 10_000), 'int64')
    out[:] = rows[:, None] ** 2
    return {'x': out, 'pid': os.getpid()}


def slow(request, allocate):
    """The same after some seconds, which the request names."""
    for i in range(len(request['positions'])):
        allocate.at(i)
        time.sleep(request['sleep'])
    return square(request, allocate)


def endless(request, allocate):
    """Stays in C code and keeps the interpreter's lock."""
    re.match('(a+)+$', 'a' * 60 + 'b')


def environment(request, allocate):
    """What the worker finds in its environment."""
    return {'environment': dict(os.environ)}


def long_text(request, allocate):
    """A megabyte that is no array."""
    return {'text': 'x' * 1_000_000, 'sum': sum(request['positions'])}


def failing(request, allocate):
    """Does at row 13 what the request says."""
    for i, row in enumerate(request['positions']):
        allocate.at(i)
        if row == 13:
            HOW[request['how']]()
    return square(request, allocate)


def draws(request, allocate):
    """Numbers of the global generators, and who drew them."""
    return {'numbers': (random.random(), np.random.rand(), np.random.rand()), 'pid': os.getpid()}


def nested(request, allocate):
    """Starts workers in a worker."""
    ProcessReader(square, processes=1)


def gives_a_lambda(request, allocate):
    """A result that cannot be pickled."""
    return lambda: None


class Request:
    """A request with attributes."""

    positions, epoch, number = np.arange(10, 16), 5, 77


def raises(request, allocate):
    """An error that says little."""
    raise KeyError(0)


class WithModules:
    """Another task, and the names of what the process that runs it has imported."""

    def __init__(self, task):
        self.task = task

    def __call__(self, request, allocate):
        return {**self.task(request, allocate), 'modules': sorted(sys.modules)}


class Unreadable(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__('unreadable')
        self.held = lambda: None


class Unloadable:
    """A task that cannot be loaded in a worker."""

    def __reduce__(self):
        return _refuse, (os.getpid(),)


def _refuse(pid):
    if os.getpid() != pid:
        raise OSError('no such model file')
    return Unloadable()


def raise_value():
    raise ValueError('thirteen is unlucky')


def raise_data():
    raise DataError("field 'photo' of row 'k13' is not a JPEG.")


def raise_unreadable():
    raise Unreadable


def crash_with_segfault():
    ctypes.string_at(0)


HOW = {
    'value': raise_value,
    'data': raise_data,
    'unreadable': raise_unreadable,
    'exit': lambda: sys.exit(3),
    'memory': lambda: np.empty(1 << 60, np.uint8),
    'segfault': crash_with_segfault,
    'os_exit': lambda: os._exit(3),
    'abort': os.abort,
    'kill': lambda: os.kill(os.getpid(), signal.SIGKILL),
}

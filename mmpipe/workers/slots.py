"""Shared memory without a name: a file that only open descriptors hold, so that nothing outlives a killed process."""

from __future__ import annotations

import mmap
import os
import tempfile
from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np

ALIGN_BYTES = 64
PAGE_BYTES = mmap.PAGESIZE


def anonymous_file(size: int) -> int:
    """A file of `size` zero bytes that is on no disk where the system can do that, and has no name anywhere.

    Its pages take memory from when they are first touched. `/dev/shm`, which containers keep small, is not used.

    Args:
        size: bytes.

    Returns:
        The descriptor.

    >>> file = anonymous_file(4096)
    >>> os.fstat(file).st_size, os.fstat(file).st_nlink
    (4096, 0)
    >>> os.close(file)
    """
    if hasattr(os, 'memfd_create'):
        file = os.memfd_create('mmpipe')
    else:
        with tempfile.TemporaryFile(buffering=0) as held:  # unlinked as soon as it is open
            file = os.dup(held.fileno())
    os.ftruncate(file, size)
    return file


class Memory(mmap.mmap):
    """Mapped bytes of a file, which stay mapped as long as an array looks at them.

    Attributes:
        at_end: called right before they are unmapped.

    >>> memory = mapped(anonymous_file(PAGE_BYTES))
    >>> memory.at_end = lambda: print('unmapped')
    >>> array = np.frombuffer(memory, np.uint8)[10:]
    >>> del memory
    >>> del array
    unmapped
    """

    at_end: Callable[[], object] | None = None

    def __del__(self) -> None:
        if self.at_end is not None:
            self.at_end()


def mapped(file: int) -> Memory:
    """All bytes of a file, shared with whoever maps it too; the descriptor is closed.

    >>> file = anonymous_file(PAGE_BYTES)
    >>> other = os.dup(file)
    >>> mapped(file)[:2] = b'ab'
    >>> mapped(other)[:2]
    b'ab'
    """
    try:
        return Memory(file, 0)
    finally:
        os.close(file)


def aligned(offset: int, to: int = ALIGN_BYTES) -> int:
    """The next multiple of `to`.

    >>> aligned(65), aligned(64)
    (128, 64)
    """
    return -(-offset // to) * to


class Allocator:
    """Gives out memory of a slot while one batch is made. What it gave is the batch's until the task returns.

    Args:
        memory: bytes of the slot, uint8 `[size]`.
        notes: where `at` writes, int64 `[>= 2]`.

    Attributes:
        used: bytes of the slot given out so far.

    >>> allocate = Allocator(np.zeros(64, np.uint8), np.zeros(2, np.int64))
    >>> allocate((2, 3), 'float32').shape, allocate.used
    ((2, 3), 24)
    >>> allocate(100, 'uint8').base is None, allocate.used  # more than the slot has left: private memory
    (True, 24)
    """

    def __init__(self, memory: np.ndarray, notes: np.ndarray) -> None:
        self.memory = memory
        self.used = 0
        self._notes = notes

    def __call__(self, shape: int | tuple[int, ...], dtype: Any = 'float32') -> np.ndarray:
        """A C-contiguous array that holds anything, as `np.empty` does."""
        dtype = np.dtype(dtype)
        start = aligned(self.used)
        size = prod((shape,) if isinstance(shape, int) else shape) * dtype.itemsize
        if dtype.hasobject or size == 0 or start + size > len(self.memory):
            return np.empty(shape, dtype)
        self.used = start + size
        return np.ndarray(shape, dtype, buffer=self.memory, offset=start)

    def at(self, sample: int) -> None:
        """Note that the task has come to this sample of its batch, so that an error can name it."""
        self._notes[1] = sample

"""Buffers that come back: memory for batches, touched once and lent again when nothing looks at it any more.

Fresh memory costs a page fault for every 4 KB that is written first, several times what copying the bytes does. So a
batch is written into a slot of a pool. The arrays and tensors over a slot keep its lease alive, however they were
sliced or reshaped; when the last of them dies, the slot returns. A caller who keeps batches makes the pool grow, to a
limit; beyond it the memory is ordinary, and as slow as everybody's.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from contextlib import suppress
from typing import Any

import numpy as np

SMALL_BYTES = 4096  # below it, memory that was freed is there again without a fault
STEPS = 4  # sizes of slots per power of two


class Lease:
    """One loan of a slot; numpy and torch keep it alive through the arrays made of it."""

    def __init__(self, pool: Leases, slot: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._pool, self._slot = pool, slot
        # An array over an object of another class keeps that object, and not what lies behind it: so views of views do.
        self.__array_interface__ = {
            'data': (slot.ctypes.data, False),
            'shape': shape,
            'typestr': dtype.str,
            'version': 3,
        }

    def __del__(self) -> None:
        self._pool._back(self._slot)


class Leases:
    """A pool of buffers, for several threads.

    Args:
        limit_bytes: what the pool holds at most; a quarter of the machine's memory when None.
        pinned: page-locked memory, from which CUDA copies while the host goes on. Locking takes long, and is done once
            per slot.

    Attributes:
        held_bytes: what it holds now, lent or not.
        allocations: slots made so far.
        beyond: arrays that were given ordinary memory, since the limit was reached.

    >>> pool = Leases(limit_bytes=1 << 20)
    >>> array = pool((4, 1024), 'float32')
    >>> array[:] = 1; row = array[2]; del array
    >>> pool((4, 1024), 'float32').ctypes.data == row.ctypes.data - 2 * 4096     # the row still looks at the slot
    False
    >>> address = row.ctypes.data - 2 * 4096; del row
    >>> pool((4, 1024), 'float32').ctypes.data == address, pool.allocations
    (True, 2)
    """

    def __init__(self, *, limit_bytes: int | None = None, pinned: bool = False) -> None:
        self.limit_bytes = memory_bytes() // 4 if limit_bytes is None else limit_bytes
        self.pinned = pinned
        self.held_bytes = self.allocations = self.beyond = 0
        self._free: dict[int, deque[np.ndarray]] = {}
        self._lock = threading.Lock()  # for making slots; lending them again takes none

    def __call__(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """An array whose content is anything.

        Args:
            shape: of the array.
            dtype: a numpy dtype or its name.
        """
        kind = np.dtype(dtype)
        size = kind.itemsize
        for side in shape:
            size *= side
        if size < SMALL_BYTES:
            return np.empty(shape, dtype=kind)
        slot = self._slot(slot_bytes(size))
        if slot is None:
            self.beyond += 1
            return np.empty(shape, dtype=kind)
        return np.asarray(Lease(self, slot, shape, kind))

    def _slot(self, size: int) -> np.ndarray | None:
        free = self._free.get(size)
        if free is None:
            free = self._free.setdefault(size, deque())
        try:
            return free.pop()  # the newest is warmest
        except IndexError:
            pass
        with self._lock:
            if self.held_bytes + size > self.limit_bytes:
                self._drop_free(size)
            if self.held_bytes + size > self.limit_bytes:
                return None
            self.held_bytes += size
            self.allocations += 1
        return self._made(size)

    def _drop_free(self, wanted: int) -> None:
        """Slots of other sizes, which nobody has asked for as it seems, give way."""
        for size, free in list(self._free.items()):
            with suppress(IndexError):  # another thread may take the last one
                while size != wanted and self.held_bytes + wanted > self.limit_bytes:
                    free.pop()
                    self.held_bytes -= size

    def _made(self, size: int) -> np.ndarray:
        if self.pinned:
            import torch

            return torch.empty(size, dtype=torch.uint8, pin_memory=True).numpy()
        slot = np.empty(size, dtype=np.uint8)
        slot[::SMALL_BYTES] = 0  # touched here, by the thread that waits for it anyway
        return slot

    def _back(self, slot: np.ndarray) -> None:
        self._free[len(slot)].append(slot)


def slot_bytes(size: int) -> int:
    """Size of the slot for so many bytes: a power of two, or one of three steps between two of them.

    >>> slot_bytes(5000), slot_bytes(5121), slot_bytes(8192)
    (5120, 6144, 8192)
    """
    step = max(1, (1 << (size - 1).bit_length()) // (2 * STEPS))
    return -(-size // step) * step


def memory_bytes() -> int:
    """Memory of this machine, or of the container this process is in.

    >>> memory_bytes() > 1 << 28
    True
    """
    found = os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES')
    try:
        with open('/sys/fs/cgroup/memory.max') as file:
            return min(found, int(file.read()))
    except (OSError, ValueError):
        return found

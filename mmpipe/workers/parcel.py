"""A batch as a pickle without its large arrays, and the places in a slot where those lie.

Pickle's out-of-band buffers do it, so any nesting of dicts, lists and objects that hold arrays travels.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmpipe.workers.slots import Allocator, aligned

IN_BAND_BYTES = 64 * 1024
"""Arrays up to this size travel inside the pickle: a copy of them costs less than a slot that waits for its return."""


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A packed batch.

    Args:
        pickle: all but the large arrays.
        places: (offset, bytes) of each large array in the slot.
        grown: what `grow` said of the larger memory it had to make; None where the slot's own was enough.
    """

    pickle: bytes
    places: list[tuple[int, int]]
    grown: Any = None


def pack(batch: Any, allocate: Allocator, grow: Callable[[int], tuple[np.ndarray, Any]]) -> Parcel:
    """Pack a batch, moving its large arrays into the slot unless `allocate` made them there.

    Args:
        batch: anything that can be pickled.
        allocate: what the batch was made with.
        grow: makes larger memory for the slot: bytes to (uint8 `[>= bytes]`, what the parcel then has as `grown`).

    >>> slot = np.zeros(1 << 20, np.uint8)
    >>> allocate = Allocator(slot, np.zeros(2, np.int64))
    >>> photo = allocate((300, 300), 'uint8')
    >>> pack({'photo': photo, 'red': photo[::3, ::2], 'large': photo.T.copy()}, allocate, grow=None).places
    [(0, 90000), (90048, 90000)]
    """
    buffers: list[np.ndarray] = []

    def keep(buffer: pickle.PickleBuffer) -> bool:
        raw = buffer.raw()
        if raw.nbytes <= IN_BAND_BYTES:
            return True
        buffers.append(np.frombuffer(raw, np.uint8))
        return False

    stream = io.BytesIO()
    _Pickler(stream, protocol=5, buffer_callback=keep).dump(batch)
    places, size = [], allocate.used
    for buffer in buffers:
        start = _offset_in(allocate.memory, buffer)
        if start is None:
            start = aligned(size)
            size = start + len(buffer)
        places.append((start, len(buffer)))
    memory, grown = (allocate.memory, None) if size <= len(allocate.memory) or not places else grow(size)
    for (start, count), buffer in zip(places, buffers, strict=True):
        if memory[start : start + count].ctypes.data != buffer.ctypes.data:
            memory[start : start + count] = buffer
    return Parcel(pickle=stream.getvalue(), places=places, grown=grown)


def unpack(parcel: Parcel, memory: np.ndarray | None, *, copy: bool) -> Any:
    """The batch again.

    Args:
        parcel: what `pack` gave.
        memory: bytes of the slot; None where the parcel has no places.
        copy: the arrays get memory of their own; else they are views over `memory`.

    >>> slot = np.zeros(1 << 20, np.uint8)
    >>> parcel = pack([np.ones(100_000, np.uint8)], Allocator(slot, np.zeros(2, np.int64)), grow=None)
    >>> batch = unpack(parcel, slot, copy=False)
    >>> slot[:] = 7
    >>> int(batch[0].max())
    7
    """
    views = [memory[start : start + size] for start, size in parcel.places] if memory is not None else []
    return pickle.loads(parcel.pickle, buffers=[view.copy() for view in views] if copy else views)


class _Pickler(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        """Large arrays with gaps, such as images whose axes were swapped, get a copy that can leave the pickle."""
        if type(value) is np.ndarray and value.nbytes > IN_BAND_BYTES and not value.flags.forc:
            return np.ascontiguousarray(value).__reduce_ex__(5)
        return NotImplemented


def _offset_in(memory: np.ndarray, buffer: np.ndarray) -> int | None:
    """Where a buffer lies in a slot; None where it does not."""
    offset = buffer.ctypes.data - memory.ctypes.data
    return offset if offset >= 0 and offset + len(buffer) <= len(memory) else None

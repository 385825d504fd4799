"""Rows that lie anywhere in memory, copied into one array by one call that holds no interpreter lock.

numpy takes the lock again for every row that is copied from an array of its own, and threads that copy rows then spend
their time waiting for each other: two threads copied 143,000 rows of 150 KB a second like that, and 175,000 with one
call (`benchmarks/loaders.py`). Neither numpy nor torch copies from many places into memory that is given. FFmpeg's
`av_samples_copy` does, one plane of a sound at a time; PyAV brings it along, for decoding. Where it is not found, rows
are copied one by one.
"""

from __future__ import annotations

import ctypes
import importlib.util
import logging
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

_log = logging.getLogger(__name__)

PLANES_OF_BYTES = 5  # AV_SAMPLE_FMT_U8P, libavutil/samplefmt.h: a plane per channel, a byte per sample
LARGEST = 2**31 - 1  # bytes of a row, rows of a call: a C int


def copy_rows(addresses: np.ndarray, out: np.ndarray) -> None:
    """Copy rows to `out`, in order.

    Args:
        addresses: uint64 `[n]` of the rows' first bytes; the arrays they lie in must outlive the call.
        out: `[n, ...]`, contiguous; a row has the bytes of one of `out`.

    >>> source = np.arange(6).reshape(3, 2)
    >>> out = np.empty((2, 2), dtype=source.dtype)
    >>> copy_rows(np.array([source[2].ctypes.data, source[0].ctypes.data], dtype=np.uint64), out)
    >>> out
    array([[4, 5],
           [0, 1]])
    """
    if not len(out):
        return
    size = out.nbytes // len(out)
    copy = _planes() if max(size, len(out)) <= LARGEST else None
    if copy is None:
        to = out.ctypes.data
        for i, address in enumerate(addresses.tolist()):
            ctypes.memmove(to + i * size, address, size)
        return
    targets = np.uint64(out.ctypes.data) + np.uint64(size) * np.arange(len(out), dtype=np.uint64)
    sources = np.ascontiguousarray(addresses, dtype=np.uint64)
    copy(targets.ctypes.data, sources.ctypes.data, 0, 0, size, len(out), PLANES_OF_BYTES)


@cache
def _planes() -> Callable[..., Any] | None:
    """`av_samples_copy` of the libavutil that PyAV brings; None where that is not found, or does something else."""
    found = importlib.util.find_spec('av')
    places = [Path(place) for place in found.submodule_search_locations or ()] if found else []
    for file in sorted(file for place in places for file in (place.parent / 'av.libs').glob('libavutil*')):
        try:
            copy = ctypes.CDLL(str(file)).av_samples_copy
        except (OSError, AttributeError) as error:
            _log.debug('%s: %s', file, error)
            continue
        pointer, number = ctypes.c_void_p, ctypes.c_int
        copy.argtypes, copy.restype = [pointer, pointer, number, number, number, number, number], number
        if _works(copy):
            return copy
    return None


def _works(copy: Callable[..., Any]) -> bool:
    source, out = np.arange(12, dtype=np.uint8).reshape(4, 3), np.zeros((2, 3), np.uint8)
    sources = np.array([source[3].ctypes.data, source[1].ctypes.data], dtype=np.uint64)
    targets = np.array([row.ctypes.data for row in out], dtype=np.uint64)
    copy(targets.ctypes.data, sources.ctypes.data, 0, 0, 3, 2, PLANES_OF_BYTES)
    return bool((out == source[[3, 1]]).all())

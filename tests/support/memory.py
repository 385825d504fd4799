"""How much memory a piece of code took, counted by the allocators of Python, numpy and Arrow."""

from __future__ import annotations

import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import pyarrow as pa


@contextmanager
def peak_memory() -> Iterator[SimpleNamespace]:
    """Its `bytes` are the most that were allocated at a time, once the block has ended."""
    pool, before, seen = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool(), SimpleNamespace()
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        yield seen
        seen.bytes = tracemalloc.get_traced_memory()[1] + pool.max_memory()
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)

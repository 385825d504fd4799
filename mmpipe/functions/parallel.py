"""Work off Pixeltable's event loop: it runs every UDF of a process on one thread, so a plain `def` uses one core.

    event loop ── one task per cell ──► in_pool: decode, resize, spectra      one thread per core
                                    └─► in_turn: model inference              one thread; torch uses the cores itself

One task per cell and not per batch, because Pixeltable takes one outcome per call: of a batched UDF, one unreadable
image would take 31 good neighbours with it. What has to run batched is collected again by mmpipe.functions.batching.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from mmpipe.cores import cores

# Stands for the code of this module in fingerprints: raise it when what is computed with its help changes.
__fingerprint__ = 1

U = TypeVar('U')


async def in_pool(function: Callable[..., U], *args: object) -> U:
    """Run `function(*args)` on the pool, beside others.

    >>> asyncio.run(in_pool(abs, -2))
    2
    """
    return await asyncio.get_running_loop().run_in_executor(_pool(), function, *args)


async def in_turn(function: Callable[..., U], *args: object) -> U:
    """Run `function(*args)` off the event loop, never two at once: for models, which use all cores by themselves.

    >>> asyncio.run(in_turn(max, 1, 2))
    2
    """
    return await asyncio.get_running_loop().run_in_executor(_model_thread(), function, *args)


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(cores(), thread_name_prefix='mmpipe-media')


@functools.cache
def _model_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(1, thread_name_prefix='mmpipe-model')

"""Memory that is lent: never while anything looks at it, and always again."""

from __future__ import annotations

import gc
import threading

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpipe.data.leases import SMALL_BYTES, Leases, slot_bytes


@given(st.integers(1, 1 << 40))
def test_a_slot_is_never_smaller_than_asked_for_and_at_most_a_quarter_larger(size):
    assert size <= slot_bytes(size) <= max(size * 1.25 + 1, size + 8)
    assert slot_bytes(slot_bytes(size)) == slot_bytes(size)


views = [
    lambda tensor: tensor,
    lambda tensor: tensor[1],
    lambda tensor: tensor.reshape(-1)[5:],
    lambda tensor: tensor.numpy()[0],
    lambda tensor: {'in': [tensor.view(torch.int8)]},
    lambda tensor: torch.from_numpy(tensor.numpy()[::2]),
    lambda tensor: memoryview(tensor.numpy()),
]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(views) - 1), st.booleans()), min_size=1, max_size=40))
def test_whatever_looks_at_a_batch_keeps_its_content(steps):
    pool, kept = Leases(limit_bytes=16 * SMALL_BYTES), []
    for number, (which, drop) in enumerate(steps):
        array = pool((4, SMALL_BYTES // 4), 'uint8')
        array[:] = number
        kept.append((number, views[which](torch.from_numpy(array))))
        del array
        if drop:
            kept.pop(number % len(kept))
        for value, view in kept:
            inner = view['in'][0] if isinstance(view, dict) else view
            assert (np.asarray(inner).reshape(-1).view(np.uint8) == value).all()
    assert pool.held_bytes <= pool.limit_bytes
    assert pool.allocations <= 16


def test_a_caller_who_lets_go_gets_the_same_memory_and_one_who_keeps_makes_the_pool_grow_to_its_limit():
    pool = Leases(limit_bytes=4 * 65536)
    for _ in range(100):
        pool((65536,), 'uint8')
    assert pool.allocations == 1
    kept = [pool((65536,), 'uint8') for _ in range(6)]
    assert (pool.allocations, pool.beyond, pool.held_bytes) == (4, 2, 4 * 65536)
    del kept
    gc.collect()
    pool((2 * 65536,), 'uint8')  # another size takes the place of free ones
    assert pool.held_bytes <= pool.limit_bytes
    assert pool.beyond == 2


def test_threads_never_share_a_slot():
    pool, wrong = Leases(limit_bytes=1 << 22), []

    def work(mark: int) -> None:
        kept = []
        for turn in range(300):
            array = pool((SMALL_BYTES * 2,), 'uint8')
            array[:] = mark
            kept.append(array)
            if turn % 3:
                kept.pop(0)
            wrong.extend(each[0] for each in kept if (each != mark).any())

    threads = [threading.Thread(target=work, args=(mark,)) for mark in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_pool_outlives_its_owner_as_long_as_a_batch_does():
    array = Leases()((SMALL_BYTES,), 'uint8')
    array[:] = 7
    gc.collect()
    assert (array == 7).all()

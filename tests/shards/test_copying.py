"""Rows copied from anywhere by one call: what indexing gives, with and without the library that copies."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shop_snapshot import FIELDS, shop_block

from mmpipe.shards import copying, write_snapshot
from mmpipe.shards.copying import copy_rows


def addresses_of(arrays, places):
    return np.array([arrays[a].ctypes.data + row * arrays[a][0].nbytes for a, row in places], dtype=np.uint64)


@pytest.fixture(params=[True, False], ids=['one call', 'row by row'])
def way(request, monkeypatch):
    if request.param:
        assert copying._planes() is not None  # PyAV is here, so its library is found
    else:
        monkeypatch.setattr(copying, '_planes', lambda: None)


@settings(max_examples=60)
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=5), width=st.integers(1, 700),
    dtype=st.sampled_from(['uint8', 'float32', 'int64']), seed=st.integers(0, 999), count=st.integers(0, 40),
)  # fmt: skip
def test_rows_of_many_arrays_come_in_the_order_asked_for(lengths, width, dtype, seed, count):
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(0, 255, (length, width)).astype(dtype) for length in lengths]
    places = [(a, int(rng.integers(lengths[a]))) for a in rng.integers(0, len(lengths), count)]
    expected = [arrays[a][row] for a, row in places]
    for planes in (copying._planes, lambda: None):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(copying, '_planes', planes)
            around = np.full((count + 2, width), 7, dtype=dtype)
            copy_rows(addresses_of(arrays, places), around[1:-1])
        assert np.array_equal(around[1:-1], np.array(expected, dtype=dtype).reshape(count, width))
        assert (around[[0, -1]] == 7).all()  # not a byte beside it


def test_other_threads_run_while_rows_are_copied():
    """The call holds no interpreter lock: a thread that only counts goes on counting."""
    source = np.ones((4, 64 << 20), dtype=np.uint8)
    out = np.empty((4, 64 << 20), dtype=np.uint8)
    out[:] = 0
    counted, stop, started = 0, threading.Event(), threading.Event()

    def count():
        nonlocal counted
        started.set()
        while not stop.is_set():
            counted += 1
            time.sleep(0)

    thread = threading.Thread(target=count)
    thread.start()
    started.wait()
    before = counted
    copy_rows(addresses_of([source], [(0, row) for row in range(4)]), out)
    after = counted
    stop.set()
    thread.join()
    assert after - before > 10
    assert (out == source).all()


@pytest.mark.usefixtures('way')
def test_a_snapshot_reads_the_same_either_way(tmp_path):
    rows = write_snapshot(tmp_path, FIELDS, shop_block(60)).rows()
    assert not rows.read('photo')[1].all()
    at = np.random.default_rng(0).permutation(len(rows))
    values, valid = rows.read('photo', at)
    out = np.empty_like(values)
    assert np.array_equal(rows.fill('photo', at, out), valid)
    for i, position in enumerate(at.tolist()):
        one, there = rows.read('photo', [position])
        assert there[0] == valid[i]
        assert np.array_equal(values[i], one[0])
    turned = np.empty((values.shape[1], len(at), *values.shape[2:]), dtype=values.dtype).swapaxes(0, 1)
    assert not turned.flags.c_contiguous
    rows.fill('photo', at, turned)
    assert np.array_equal(turned, values)

"""Shared memory without a name."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmpipe.workers.slots import Allocator, anonymous_file, mapped


@pytest.mark.parametrize('memfd', [True, False])
def test_memory_is_shared_and_has_no_name(memfd, monkeypatch, tmp_path):
    if not memfd:
        monkeypatch.delattr(os, 'memfd_create')
        monkeypatch.setattr('tempfile.tempdir', str(tmp_path))
    file = anonymous_file(10_000)
    assert os.fstat(file).st_nlink == 0
    assert os.listdir(tmp_path) == []
    one, other = mapped(os.dup(file)), mapped(file)
    one[9_999] = 7
    assert other[9_999] == 7
    with pytest.raises(OSError, match='Bad file descriptor'):
        os.fstat(file)


@given(
    size=st.integers(0, 5000),
    wanted=st.lists(st.tuples(st.tuples(st.integers(0, 9), st.integers(0, 30)), st.sampled_from('bifdO')), max_size=20),
)
def test_what_is_given_out_is_aligned_and_never_overlaps(size, wanted):
    memory = np.zeros(size, np.uint8)
    allocate = Allocator(memory, np.zeros(2, np.int64))
    arrays = [allocate(shape, kind) for shape, kind in wanted]
    for number, array in enumerate(arrays):
        array[...] = number
        if np.shares_memory(array, memory):
            assert (array.ctypes.data - memory.ctypes.data) % 64 == 0
    for number, (array, (shape, kind)) in enumerate(zip(arrays, wanted, strict=True)):
        assert array.shape == shape
        assert array.dtype == kind
        assert array.flags.c_contiguous
        assert np.all(array == number)
    if size >= sum(array.nbytes + 64 for array in arrays):
        assert all(np.shares_memory(array, memory) for array in arrays if array.size and array.dtype != object)

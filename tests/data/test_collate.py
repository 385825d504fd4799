"""Padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmpipe.data.batch import pad
from mmpipe.errors import DataError


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8), st.sampled_from([(), (2,), (2, 3)]))
def test_padding_keeps_every_value_and_adds_only_zeros(lengths, shape):
    arrays = [np.random.default_rng(0).normal(size=(n, *shape)).astype(np.float32) + 10 for n in lengths]
    values, found = pad(arrays)
    assert found.tolist() == lengths
    assert values.shape == (len(lengths), max([*lengths, 1]), *shape)
    for row, array in zip(values, arrays, strict=True):
        assert (row[: len(array)] == array).all()
        assert (row[len(array) :] == 0).all()


def test_ragged_values_of_different_inner_shapes_are_named():
    with pytest.raises(DataError, match=r'\(2,\).*\(3,\)'):
        pad([np.zeros((1, 2)), np.zeros((1, 3))])

"""Fitted buffers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mmpipe.data.seen import present_chunks
from mmpipe.errors import DataError
from mmpipe.models.standardize import Standardize, moments


@given(st.lists(st.integers(0, 6), max_size=6), st.integers(0, 2**32 - 1), st.sampled_from([0.0, 1e4]))
def test_moments_of_chunks_equal_those_of_the_whole(sizes, seed, offset):
    draw = np.random.default_rng(seed)
    chunks = [draw.normal(size=(size, 3)) + offset for size in sizes]
    mean, std, count = moments(chunks)
    assert count == sum(sizes)
    if count:
        whole = np.concatenate(chunks)
        np.testing.assert_allclose(mean, whole.mean(0), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(std, whole.std(0), rtol=1e-6, atol=1e-9)


def test_fitting_happens_once_and_survives_in_the_state_dict():
    layer = Standardize(2)
    layer.fit_buffers([np.array([[1.0, 2.0], [3.0, 2.0]])])
    layer.fit_buffers([np.array([[100.0, 100.0]])])
    other = Standardize(2)
    other.load_state_dict(layer.state_dict())
    other.fit_buffers([np.array([[100.0, 100.0]])])
    assert torch.equal(other.mean, torch.tensor([2.0, 2.0]))
    values = torch.tensor([[5.0, 1.0]])
    torch.testing.assert_close(other.undo(other(values)), values)


@pytest.mark.parametrize('bad', [np.array([[np.nan]]), np.array([[np.inf]]), np.ones((2, 3))])
def test_values_that_cannot_be_fitted_on_are_refused(bad):
    with pytest.raises(DataError):
        Standardize(1).fit_buffers([bad])


def test_missing_values_are_not_fitted_on(shop):
    rows = shop.split('train')
    values, valid = rows.read('price')
    found = np.concatenate(list(present_chunks(rows, 'price', size=7)))
    assert (found == values[valid]).all()
    frames = list(present_chunks(rows, 'frames', size=7))
    assert sum(map(len, frames)) == sum(len(value) for value in rows.read('frames')[0])

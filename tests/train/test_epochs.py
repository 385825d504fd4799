"""Steps counted over epochs are those that a loop over the loader takes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shop_snapshot import write_shop

from mmpipe.data import DataLoader
from mmpipe.train.epochs import Epochs


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    return write_shop(tmp_path_factory.mktemp('shop'), 23).rows()


@settings(deadline=None, max_examples=40)
@given(
    batch_size=st.integers(1, 30),
    epochs=st.integers(1, 4),
    accumulate=st.integers(1, 4),
    max_steps=st.none() | st.integers(1, 60),
    drop_last=st.booleans(),
)
def test_every_step_has_the_epoch_and_the_rows_that_it_is_taken_with(
    rows, batch_size, epochs, accumulate, max_steps, drop_last
):
    loader = DataLoader(rows, batch_size=batch_size, shuffle=True, drop_last=drop_last, device='cpu', num_workers=0)
    taken: list[tuple[int, list[str]]] = []
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        batches = iter(loader)
        while micro := list(itertools.islice(batches, accumulate)):
            taken.append((epoch, [key for batch in micro for key in batch['_key']]))
    found = Epochs(loader, epochs=epochs, accumulate=accumulate, max_steps=max_steps)
    assert found.total == min(len(taken), max_steps or len(taken))
    assert [(found.of(step), found.keys(step)) for step in range(len(taken))] == taken
    for epoch in range(epochs):
        assert found.end(epoch) == sum(of <= epoch for of, _ in taken)
    if max_steps is None:
        assert found.samples() == sum(len(keys) for _, keys in taken)

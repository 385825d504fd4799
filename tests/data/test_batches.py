"""Steps of an epoch: the same global batches whatever the world, and nothing lost or repeated when it changes."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmpipe.data import batches as module
from mmpipe.data.batches import EpochBatches
from mmpipe.data.sampling import Shuffle
from mmpipe.errors import ConfigError


def made(rows, **options):
    return EpochBatches(rows, **{'sampling': Shuffle(), 'seed': 3, **options})


def global_steps(batches, world_size, epoch=0, start=0):
    """[(rows of all ranks in order, how many of them are fillers, consumed)] of each step."""
    ranks = []
    for rank in range(world_size):
        with mock.patch.object(module, 'world', lambda rank=rank: (rank, world_size)):
            ranks.append(list(batches.steps(epoch, start)))
            length = len(batches)
    assert {len(steps) for steps in ranks} == {length if not start else len(ranks[0])}
    found = []
    for parts in zip(*ranks, strict=True):
        assert len({part.consumed for part in parts}) == 1
        sizes = [len(part.positions) for part in parts]
        assert max(sizes) - min(sizes) <= 1
        rows = [position for part in parts for position in part.positions.tolist()]
        found.append((rows, sum(part.padded for part in parts), parts[0].consumed))
    return found


@pytest.mark.parametrize('options', [{}, {'drop_last': True}, {'pad_last': True}])
def test_global_batches_are_the_same_for_any_number_of_ranks(shop, options):
    rows = shop.split('train')
    for epoch in range(3):
        batches = made(rows, global_batch_size=20, **options)
        alone = global_steps(batches, 1, epoch)
        for world_size in (2, 3, 4, 6, 8, 20, 25):
            assert global_steps(batches, world_size, epoch) == alone
        rows_of = [position for step, _, _ in alone for position in step]
        order = batches.sequence(epoch).tolist()
        if options.get('drop_last'):
            assert rows_of == order[: len(rows) // 20 * 20]
            assert batches.dropped == len(rows) % 20 > 0
        elif options.get('pad_last'):
            assert rows_of == [*order, *order[: batches.padded]]
            assert sum(fillers for _, fillers, _ in alone) == batches.padded == -len(rows) % 20 > 0
        else:
            assert rows_of == order


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_another_world_goes_on_where_one_stopped(shop, data):
    rows = shop.split('train').take(np.arange(data.draw(st.integers(1, 50))))
    first, second = (made(rows, global_batch_size=data.draw(st.integers(1, 20))) for _ in range(2))
    steps = global_steps(first, data.draw(st.integers(1, 8)))
    stop = data.draw(st.integers(0, len(steps)))
    consumed = steps[stop - 1][2] if stop else 0
    before = [position for step, _, _ in steps[:stop] for position in step]
    after = [p for step, _, _ in global_steps(second, data.draw(st.integers(1, 8)), start=consumed) for p in step]
    assert before + after == first.sequence(0).tolist()


def test_fillers_are_the_last_rows_of_the_ranks_that_have_them(shop):
    rows = shop.split('train').take(range(10))
    batches, found = made(rows, global_batch_size=8, pad_last=True), []
    for rank in range(4):
        with mock.patch.object(module, 'world', lambda rank=rank: (rank, 4)):
            found.append([step.padded for step in batches.steps(0)])
    assert found == [[0, 0], [0, 2], [0, 2], [0, 2]]


def test_what_excludes_each_other_is_refused(shop):
    for options in (
        {},
        {'batch_size': 1, 'global_batch_size': 1},
        {'batch_size': 1, 'drop_last': True, 'pad_last': True},
    ):
        with pytest.raises(ConfigError):
            made(shop.rows(), **options)

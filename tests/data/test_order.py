"""The order of an epoch as a pure function."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpipe.data.order import epoch_order, mix, pass_order, rank_slice, splitmix64, uniform

HASHES = st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=60).map(lambda x: np.array(x, dtype=np.uint64))
SEED = st.integers(-(2**70), 2**70)
EPOCH = st.integers(0, 10**6)


@given(HASHES, SEED, EPOCH)
def test_every_row_comes_once(hashes, seed, epoch):
    assert sorted(epoch_order(hashes, seed, epoch)) == list(range(len(hashes)))


@given(HASHES, SEED, EPOCH, st.randoms())
def test_the_order_of_the_keys_does_not_depend_on_where_they_are_stored(hashes, seed, epoch, random):
    moved = np.array(random.sample(list(hashes), len(hashes)), dtype=np.uint64)
    assert (hashes[epoch_order(hashes, seed, epoch)] == moved[epoch_order(moved, seed, epoch)]).all()


@given(HASHES, HASHES, SEED, EPOCH)
def test_appended_rows_do_not_reorder_old_ones(hashes, more, seed, epoch):
    order = epoch_order(np.concatenate([hashes, more]), seed, epoch)
    assert (order[order < len(hashes)] == epoch_order(hashes, seed, epoch)).all()


@given(st.lists(st.integers(0, 5), max_size=30), SEED)
def test_equal_hashes_keep_the_order_they_are_stored_in(values, seed):
    hashes = np.array(values, dtype=np.uint64)
    order = epoch_order(hashes, seed, 0)
    for value in set(values):
        positions = [int(i) for i in order if values[i] == value]
        assert positions == sorted(positions)


@given(st.lists(st.integers(0, 2**64 - 1), unique=True, min_size=1, max_size=7), SEED, st.data())
def test_any_stretch_of_passes_is_what_single_epochs_give(hashes, seed, data):
    hashes = np.array(hashes, dtype=np.uint64)
    start, count = data.draw(st.integers(0, 10**4)), data.draw(st.integers(0, 30))
    plain = [epoch_order(hashes, seed, k // len(hashes))[k % len(hashes)] for k in range(start, start + count)]
    assert pass_order(hashes, seed, start, count).tolist() == plain


@given(st.integers(0, 200), st.integers(1, 17))
def test_ranks_share_a_batch_without_gap_or_overlap(count, world_size):
    parts = [list(range(count))[rank_slice(count, rank, world_size)] for rank in range(world_size)]
    assert [row for part in parts for row in part] == list(range(count))
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@settings(max_examples=20)
@given(SEED, EPOCH)
def test_epochs_and_seeds_differ_and_positions_are_spread_evenly(seed, epoch):
    hashes = splitmix64(np.arange(2000, dtype=np.uint64))
    order = epoch_order(hashes, seed, epoch)
    assert (order != epoch_order(hashes, seed, epoch + 1)).mean() > 0.9
    assert (order != epoch_order(hashes, seed + 1, epoch)).mean() > 0.9
    # The mean position of half of the rows: standard deviation 2000 / sqrt(12 * 1000) / sqrt(2) = 13.
    assert abs(np.flatnonzero(order < 1000).mean() - 1000) < 13 * 6


@given(HASHES, SEED, EPOCH, st.integers(0, 3))
def test_draws_are_in_the_unit_interval_and_a_function_of_the_key(hashes, seed, epoch, stream):
    values = uniform(hashes, seed, epoch, stream)
    assert values.dtype == np.float32
    assert ((values >= 0) & (values < 1)).all()
    assert (values[::-1] == uniform(hashes[::-1], seed, epoch, stream)).all()


def test_draws_of_different_streams_are_uncorrelated_and_do_not_follow_the_order():
    hashes = splitmix64(np.arange(20000, dtype=np.uint64))
    a, b = (uniform(hashes, 0, 0, stream) for stream in (0, 1))
    places = np.argsort(epoch_order(hashes, 0, 0))
    limit = 6 / np.sqrt(20000)
    assert abs(np.corrcoef(a, b)[0, 1]) < limit
    assert abs(np.corrcoef(a, places)[0, 1]) < limit


def test_splitmix64_gives_the_published_sequence():
    # https://prng.di.unimi.it/splitmix64.c from state 0: each call adds the golden ratio, then mixes.
    states = np.arange(3, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    assert [hex(value) for value in splitmix64(states)] == [
        '0xe220a8397b1dcdaf',
        '0x6e789e6aa1b965f4',
        '0x6c45d188009454f',
    ]


def test_mix_takes_any_integers():
    assert len({mix(a, b) for a in range(-3, 3) for b in range(6)}) == 36
    assert mix(2**64 + 5) == mix(5)


@given(st.lists(st.integers(-(2**70), 2**70), max_size=5))
def test_mixed_numbers_are_those_that_splitmix64_gives_one_after_the_other(numbers):
    state = np.zeros(1, dtype=np.uint64)
    for number in numbers:
        state = splitmix64(state ^ np.uint64(number % 2**64))
    assert mix(*numbers) == int(state[0])

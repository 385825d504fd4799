"""What an epoch visits: whole, by blocks, by weights."""

from __future__ import annotations

import json
import math
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selection import Selection, visited

from mmpipe.data import sampling as samplings
from mmpipe.data.sampling import (
    Balanced,
    BlockShuffle,
    Buckets,
    Sequential,
    Shuffle,
    Since,
    Weighted,
    mixing,
    sequence_digest,
)
from mmpipe.errors import ConfigError, DataError
from mmpipe.shards import Block, Field, commit, compact, open_snapshot, write_block

SEED, EPOCH = st.integers(-(2**70), 2**70), st.integers(0, 10**6)
KEYS = st.lists(st.text('abc', max_size=5), unique=True, min_size=1, max_size=40)
WEIGHT = st.one_of(st.integers(0, 5), st.floats(0, 1e6, allow_subnormal=False), st.sampled_from([1e-300, 1e300]))


@st.composite
def selections(draw):
    """Rows with a weight, a kind and a length."""
    keys = draw(KEYS)

    def column(values):
        return draw(st.lists(values, min_size=len(keys), max_size=len(keys)))

    weights = column(st.integers(0, 9).map(float))
    return Selection(
        keys,
        blocks=column(st.integers(0, 6)),
        weight=[weights[0] + 1, *weights[1:]],
        kind=['cat', *column(st.sampled_from(['cat', 'dog', 'eel', None]))[1:]],
        seconds=column(st.one_of(st.none(), st.integers(1, 300).map(float))),
    )


def every_sampling(rows):
    """One of each kind that does not depend on where rows are stored."""
    new = np.sort(rows.hashes[[key < 'b' for key in rows.keys]])
    return [
        Shuffle(), Weighted('weight'), Weighted('weight', samples=17), Balanced('kind'), Balanced('kind', samples=50),
        Balanced('kind', missing='drop', power=0.5), Since(new, before='x', replay=0.3),
        Buckets('seconds', budget=400.0), Buckets('seconds', global_budget=900.0, max_rows=3, together=2),
    ]  # fmt: skip


@settings(max_examples=40)
@given(selections(), SEED, EPOCH, st.randoms())
def test_an_epoch_is_a_function_of_seed_epoch_and_keys_wherever_rows_are_stored(rows, seed, epoch, random):
    moved = rows.take(random.sample(range(len(rows)), len(rows)))
    for one, other in zip(every_sampling(rows), every_sampling(moved), strict=True):
        keys = visited(one, rows, seed=seed, epoch=epoch)
        assert keys == visited(one, rows, seed=seed, epoch=epoch)
        assert keys == visited(other, moved, seed=seed, epoch=epoch)
        assert one.identity() == other.identity() == json.loads(json.dumps(one.identity()))


@given(selections(), SEED, EPOCH)
def test_samplings_that_visit_everything_visit_each_row_once(rows, seed, epoch):
    for each in (Shuffle(), Sequential(), BlockShuffle(window=2), Buckets('seconds', budget=300.0)):
        assert sorted(visited(each, rows, seed=seed, epoch=epoch)) == sorted(rows.keys)


def test_no_two_kinds_of_sampling_have_one_identity():
    rows = Selection(['a', 'b'], weight=[1.0, 2.0], kind=['cat', 'dog'], seconds=[1.0, 2.0])
    found = [Sequential(), BlockShuffle(window=2), BlockShuffle(window=3), Weighted([1, 2]), *every_sampling(rows)]
    assert len({json.dumps(each.identity()) for each in found}) == len(found)
    assert Weighted([2, 1]).identity() == Weighted([1, 2]).identity() != Weighted([1, 3]).identity()


# --- weights


@given(st.lists(WEIGHT, min_size=1, max_size=40).filter(any), st.integers(1, 200), SEED, EPOCH)
def test_a_row_comes_its_share_rounded_up_or_down(weights, samples, seed, epoch):
    rows = Selection(map(str, range(len(weights))))
    counts = Counter(Weighted(weights, samples=samples).sequence(rows, seed=seed, epoch=epoch).tolist())
    assert sum(counts.values()) == samples
    whole = sum(map(Fraction, weights))
    for i, weight in enumerate(weights):
        share = Fraction(weight) * samples / whole  # exact
        slack = Fraction(1, 10**11) * max(1, share)  # what is a whole number but for rounding may count as one
        assert math.floor(share - slack) <= counts[i] <= math.ceil(share + slack)
        if abs(share - round(share)) < slack / 1000:
            assert counts[i] == round(share)


@settings(max_examples=10)
@given(st.lists(st.floats(0.1, 9), min_size=2, max_size=8), SEED)
def test_over_many_epochs_a_row_comes_its_share_on_average(weights, seed):
    rows, epochs = Selection(map(str, range(len(weights)))), 400
    counts = np.zeros(len(weights))
    for epoch in range(epochs):
        found = Weighted(weights, samples=3).sequence(rows, seed=seed, epoch=epoch)
        counts += np.bincount(found, minlength=len(weights))
    share = 3 * np.array(weights) / sum(weights)
    assert (np.abs(counts / epochs - share) < 6 * 0.5 / np.sqrt(epochs)).all()  # a rounding varies by 1/2 at most


@given(KEYS, SEED, EPOCH)
def test_equal_weights_are_a_shuffle(keys, seed, epoch):
    rows = Selection(keys)
    assert visited(Weighted([0.3] * len(keys)), rows, seed=seed, epoch=epoch) == visited(
        Shuffle(), rows, seed=seed, epoch=epoch
    )


def test_copies_of_a_row_are_spread_over_the_epoch():
    rows = Selection(map(str, range(100)))
    places = np.flatnonzero(Weighted([100.0] + [1.0] * 99, samples=1990).sequence(rows, seed=0, epoch=0) == 0)
    assert len(places) == 1000
    assert np.isin(np.diff(places), [1, 2, 3]).mean() < 0.95  # not alternating
    halves = (places < 995).sum()
    assert abs(halves - 500) < 6 * np.sqrt(1000 / 4)


@pytest.mark.parametrize(
    ('weights', 'message'),
    [
        ([1, -1, float('nan')], r"2 rows.*'b', 'c'"),
        ([1, float('inf'), 1], r"1 rows.*'b'"),
        ([0, 0, 0], 'All weights are 0'),
        ([1, 2], r'shape \[2\] for 3 rows'),
        ('colour', "'colour' names no number field.*weight"),
        ('kind', "'kind' names no number field"),
        ('weight', r"1 rows.*missing.*'c'"),
    ],
)
def test_weights_that_are_none_are_told_with_their_rows(weights, message):
    rows = Selection(['a', 'b', 'c'], weight=[1.0, 2.0, None], kind=['cat', 'dog', 'cat'])
    with pytest.raises(DataError, match=message):
        Weighted(weights).sequence(rows, seed=0, epoch=0)


# --- classes


@given(selections(), st.integers(1, 200), SEED, EPOCH)
def test_classes_come_equally_often_and_rows_without_one_as_often_as_before(rows, samples, seed, epoch):
    counts = Counter(visited(Balanced('kind', samples=samples), rows, seed=seed, epoch=epoch))
    kinds = dict(zip(rows.keys, rows.columns['kind'], strict=True))
    stored = Counter(kinds.values())
    labelled = len(rows) - stored[None]
    classes = len(set(stored) - {None})
    for key, kind in kinds.items():
        share = Fraction(samples, len(rows))
        if kind is not None:
            share *= Fraction(labelled, classes * stored[kind])
        assert math.floor(share) <= counts[key] <= math.ceil(share)
    dropped = Counter(visited(Balanced('kind', samples=samples, missing='drop'), rows, seed=seed, epoch=epoch))
    assert all(kinds[key] is not None for key in dropped)
    for key, kind in kinds.items():
        if kind is not None:
            share = Fraction(samples, classes * stored[kind])
            assert math.floor(share) <= dropped[key] <= math.ceil(share)


def test_classes_can_be_balanced_in_part():
    rows = Selection(map(str, range(100)), kind=['cat'] * 81 + ['dog'] * 16 + ['eel'] * 1 + [None] * 2)
    weights = Balanced('kind', power=0.5, missing='drop').weights(rows)
    sums = [weights[:81].sum(), weights[81:97].sum(), weights[97]]
    assert np.allclose(np.array(sums) / sums[2], [9, 4, 1])
    assert np.allclose(Balanced('kind', power=1.0).weights(rows), 1)


def test_fields_that_are_no_classes_are_refused():
    rows = Selection(['a'], weight=[1.5], kind=[None], number=[None])
    for field, message in (('weight', r'kind scalar \(float64\)'), ('colour', 'no such field'), ('number', 'No row')):
        with pytest.raises(DataError, match=message):
            Balanced(field).sequence(rows, seed=0, epoch=0)


# --- blocks


@given(selections(), st.integers(1, 4), SEED, EPOCH)
def test_at_most_a_window_of_blocks_is_open_at_a_time(rows, window, seed, epoch):
    blocks = rows.places[:, 0]
    order = blocks[BlockShuffle(window=window).sequence(rows, seed=seed, epoch=epoch)]
    seen: list[set] = [set()]
    for block in order:
        if block not in seen[-1] and len(seen[-1]) == window:
            seen.append(set())
        seen[-1].add(block)
    assert sum(map(len, seen)) == len(set(blocks))  # no block is opened again


def test_blocks_and_their_rows_come_in_another_order_each_epoch():
    rows = Selection(map(str, range(600)), blocks=np.repeat(np.arange(30), 20))
    orders = [BlockShuffle(window=3).sequence(rows, seed=0, epoch=epoch) for epoch in range(3)]
    firsts = {tuple(sorted(set((order[:60] // 20).tolist()))) for order in orders}
    assert len(firsts) == 3
    assert not np.array_equal(np.argsort(orders[0])[:20].argsort(), np.argsort(orders[1])[:20].argsort())


def test_compaction_changes_the_order_by_blocks_and_no_other(tmp_path):
    field = Field(name='weight', kind='scalar', dtype='float32')
    blocks = [Block(keys=[f'{i}-{j}' for j in range(20)], columns={'weight': np.arange(20).tolist()}) for i in range(8)]
    shards = [write_block(tmp_path, [field], block, index=i) for i, block in enumerate(blocks)]
    commit(tmp_path, [field], shards, dropped=np.array([[2, 5]]), splits={'': 159})
    before = open_snapshot(tmp_path).rows()
    after = compact(tmp_path).rows()
    assert len(set(before.places[:, 0])) > len(set(after.places[:, 0]))
    for each in (Shuffle(), Sequential(), Weighted('weight'), Buckets('weight', budget=90.0)):
        one, other = (each.sequence(rows, seed=0, epoch=1) for rows in (before, after))
        assert sequence_digest(before, one) == sequence_digest(after, other)
    one, other = (BlockShuffle(window=2).sequence(rows, seed=0, epoch=1) for rows in (before, after))
    assert sequence_digest(before, one) != sequence_digest(after, other)


@settings(max_examples=30)
@given(st.lists(st.integers(0, 3), min_size=4, max_size=30), st.integers(2, 4), st.randoms())
def test_mixing_counts_pairs(groups, batch_size, random):
    groups = np.array(groups)
    sequence = np.array(random.sample(range(len(groups)), len(groups)))
    found = mixing(groups, sequence, batch_size=batch_size)
    pairs = [
        groups[sequence[i]] == groups[sequence[j]]
        for start in range(0, len(groups) - batch_size + 1, batch_size)
        for i in range(start, start + batch_size)
        for j in range(i)
        if j >= start
    ]
    assert found.same == pytest.approx(np.mean(pairs))
    everywhere = [groups[i] == groups[j] for i in range(len(groups)) for j in range(i)]
    assert found.same_if_shuffled == pytest.approx(np.mean(everywhere))


def test_mixing_tells_a_full_shuffle_from_a_window_and_a_window_from_no_shuffle():
    rows = Selection(map(str, range(4000)), blocks=np.repeat(np.arange(100), 40))
    quality = {}
    for each in (Sequential(), *(BlockShuffle(window=window) for window in (1, 2, 8, 100)), Shuffle()):
        sequence = each.sequence(rows, seed=0, epoch=0)
        quality[str(each)] = mixing(rows.places[:, 0], sequence, batch_size=40).quality
    values = list(quality.values())
    assert values[:2] == pytest.approx([0, 0])
    assert values[2:4] == pytest.approx([1 / 2, 7 / 8], abs=0.03)  # all pairs but those of one block out of W
    assert values[4:] == pytest.approx([1, 1], abs=0.01)


def test_options_that_cannot_be_are_refused():
    for make in (
        lambda: BlockShuffle(window=0),
        lambda: Weighted('x', samples=0),
        lambda: Balanced('x', samples=0),
        lambda: Balanced('x', missing='skip'),
        lambda: Balanced('x', power=math.nan),
        lambda: mixing(np.zeros(3), np.arange(3), batch_size=1),
        lambda: mixing(np.zeros(3), np.arange(3), batch_size=4),
    ):
        with pytest.raises(ConfigError):
            make()
    assert set(samplings.__all__) <= set(dir(samplings))

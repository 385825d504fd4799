"""Batches of rows of similar length, within a budget."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from selection import Selection, visited

from mmpipe.data.many import ManyRows
from mmpipe.data.sampling import Buckets, Shuffle, Weighted, mixture, padding_share
from mmpipe.data.sampling.buckets import rank_cuts
from mmpipe.data.sampling.lengths import lengths_of
from mmpipe.errors import ConfigError, DataError
from mmpipe.shards import Block, Field, write_snapshot

SEED, EPOCH = st.integers(-(2**70), 2**70), st.integers(0, 10**6)
TOKENS = st.lists(st.integers(1, 50).map(float), min_size=1, max_size=60)
SECONDS = st.lists(st.floats(0.01, 50), min_size=1, max_size=60)
LENGTHS = st.one_of(TOKENS, SECONDS)


def rows_of(count):
    return Selection(f'{i:03d}' for i in range(count))


def speech(count=20_000, seed=0):
    """Durations such as those of read speech, 1 to 35 seconds."""
    return np.clip(np.random.default_rng(seed).lognormal(2.2, 0.6, count), 1, 35)


def parts_of(cuts):
    """(start, stop) of the rows of each rank and step, those without rows left out."""
    return [(a, b) for step in cuts.tolist() for a, b in itertools.pairwise(step) if b > a]


@given(LENGTHS, st.floats(50, 400), st.none() | st.integers(1, 9), st.floats(1.01, 3), st.integers(1, 4), SEED, EPOCH)
def test_no_batch_is_over_its_budget_and_every_row_comes_once(lengths, budget, most, ratio, together, seed, epoch):
    rows, lengths = rows_of(len(lengths)), np.array(lengths)
    buckets = Buckets(lengths, budget=budget, max_rows=most, ratio=ratio, together=together)
    sequence = buckets.sequence(rows, seed=seed, epoch=epoch)
    assert sorted(sequence) == list(range(len(lengths)))
    cuts = buckets.cuts(rows, seed=seed, epoch=epoch)
    assert cuts[0, 0] == 0
    assert cuts[-1, -1] == len(lengths)
    assert (cuts[1:, 0] == cuts[:-1, -1]).all()
    for a, b in parts_of(cuts):
        assert (b - a) * lengths[sequence[a:b]].max() <= budget
        assert b - a <= (most or len(lengths))


@given(st.floats(0.01, 9), st.integers(1, 40))
def test_a_budget_that_is_missed_by_a_rounding_is_missed(length, count):
    budget = float(np.nextafter(count * length, 0))
    sizes = np.diff(Buckets([length] * 60, budget=budget).cuts(rows_of(60), seed=0, epoch=0)).ravel()
    assert sorted(sizes)[1:] == [max(count - 1, 1)] * (len(sizes) - 1)  # and what is left


def test_short_rows_are_not_held_to_the_number_that_fits_of_long_ones():
    buckets = Buckets([1.0] * 50 + [60.0, 200.0], budget=100.0)
    assert sorted(np.diff(buckets.cuts(rows_of(52), seed=0, epoch=0)).ravel()) == [1, 1, 50]


@given(LENGTHS, st.floats(50, 400), st.integers(1, 9), SEED, st.data())
def test_what_is_left_comes_once_under_any_world_and_smaller_budget(lengths, budget, world, seed, data):
    rows, lengths = rows_of(len(lengths)), np.array(lengths)
    start = data.draw(st.integers(0, len(lengths)))
    cut = data.draw(st.none() | st.floats(50, budget))
    first, second = Buckets(lengths, budget=budget), Buckets(lengths, budget=budget, cut=cut)
    assert first.identity() == second.identity()
    sequence = first.sequence(rows, seed=seed, epoch=1)
    assert (sequence == second.sequence(rows, seed=seed, epoch=1)).all()
    cuts = second.cuts(rows, seed=seed, epoch=1, start=start, world_size=world)
    assert cuts.shape[1] == world + 1
    assert (cuts[:, -1] > cuts[:, 0]).all()  # no step for nothing
    parts = parts_of(cuts)
    assert [i for a, b in parts for i in range(a, b)] == list(range(start, len(lengths)))
    for a, b in parts:
        assert (b - a) * lengths[sequence[a:b]].max() <= (cut or budget)


@example([1.0] * 8 + [6.0], 3, 50.0, 0)
@given(LENGTHS, st.integers(1, 6), st.floats(50, 400), SEED)
def test_no_rank_is_idle_in_a_step_that_has_rows_for_all(lengths, world, budget, seed):
    rows = rows_of(len(lengths))
    for buckets in (Buckets(lengths, budget=budget), Buckets(lengths, global_budget=budget)):
        cuts = buckets.cuts(rows, seed=seed, epoch=0, world_size=world)
        sizes = np.diff(cuts, axis=1)
        whole = cuts[:, -1] - cuts[:, 0]
        assert (sizes[whole >= world] > 0).all()
        assert (sizes[:-1] > 0).all() or buckets.budget is None


@given(LENGTHS, st.floats(50, 400), st.integers(1, 9), SEED, EPOCH)
def test_a_global_budget_gives_the_same_steps_in_any_world(lengths, budget, world, seed, epoch):
    rows, lengths = rows_of(len(lengths)), np.array(lengths)
    buckets = Buckets(lengths, global_budget=budget)
    sequence = buckets.sequence(rows, seed=seed, epoch=epoch)
    cuts = buckets.cuts(rows, seed=seed, epoch=epoch, world_size=world)
    alone = buckets.cuts(rows, seed=seed, epoch=epoch)
    assert (cuts[:, [0, -1]] == alone).all()
    for step in cuts:
        inside = lengths[sequence[step[0] : step[-1]]]
        assert len(inside) * inside.max() <= budget


@given(st.lists(st.floats(0.1, 9), min_size=1, max_size=40), st.integers(1, 6), st.data())
def test_ranks_share_a_step_by_length(lengths, world, data):
    ends = sorted({0, len(lengths), *data.draw(st.lists(st.integers(0, len(lengths)), max_size=4))})
    cuts = rank_cuts(np.array(lengths), np.array(ends), world)
    assert cuts[:, 0].tolist() == ends[:-1]
    assert cuts[:, -1].tolist() == ends[1:]
    for step in cuts.tolist():
        inside = lengths[step[0] : step[-1]]
        sums = [sum(lengths[a:b]) for a, b in itertools.pairwise(step)]
        if len(inside) >= world:
            assert all(b > a for a, b in itertools.pairwise(step))
        # Each cut is the nearest one to its share, so a part is off by one row at most: half a row at either end.
        if len(inside) >= world and max(inside) * world <= sum(inside) / 2:
            assert max(abs(each - sum(inside) / world) for each in sums) <= max(inside) + 1e-9
        else:
            assert max(sums) <= sum(inside) / world + world * max(inside) + 1e-9


@given(LENGTHS, st.floats(50, 400), st.integers(1, 5), st.integers(1, 4), SEED)
def test_every_epoch_has_the_same_number_of_steps(lengths, budget, world, together, seed):
    rows = rows_of(len(lengths))
    for buckets in (
        Buckets(lengths, budget=budget, together=together),
        Buckets(lengths, global_budget=budget, together=together),
    ):
        found = {len(buckets.cuts(rows, seed=seed, epoch=epoch, world_size=world)) for epoch in range(4)}
        assert len(found) == 1


@given(LENGTHS, st.floats(60, 400), SEED, EPOCH, st.integers(1, 3))
def test_what_another_sampling_visits_is_bucketed(lengths, budget, seed, epoch, world):
    half = len(lengths) // 2 + 1
    mixed = mixture({'a': rows_of(half), 'b': rows_of(len(lengths))}, weights={'a': 2, 'b': 1}, samples=50)
    lengths = np.array((lengths * 2)[: len(mixed.rows)])
    for inner in (mixed.sampling, Weighted(lengths, samples=70)):
        buckets = Buckets(lengths, budget=budget, of=inner)
        sequence = buckets.sequence(mixed.rows, seed=seed, epoch=epoch)
        assert sorted(sequence) == sorted(inner.sequence(mixed.rows, seed=seed, epoch=epoch))
        assert len(sequence) == buckets.length(mixed.rows)
        parts = parts_of(buckets.cuts(mixed.rows, seed=seed, epoch=epoch, start=5, world_size=world))
        assert [i for a, b in parts for i in range(a, b)] == list(range(5, len(sequence)))
        assert all((b - a) * lengths[sequence[a:b]].max() <= budget for a, b in parts)
        assert buckets.identity() != Buckets(lengths, budget=budget).identity()


def test_padding_is_far_below_that_of_a_shuffle_and_batches_fill_their_budget():
    lengths, budget = speech(), 320.0
    rows = rows_of(len(lengths))
    share = {}
    for ratio in (1.05, 1.1, 1.5):
        buckets = Buckets(lengths, budget=budget, ratio=ratio)
        sequence, cuts = (f(rows, seed=0, epoch=0) for f in (buckets.sequence, buckets.cuts))
        share[ratio] = padding_share(lengths, sequence, cuts)
        assert len(cuts) < 1.1 * ratio * lengths.sum() / budget
    mean_rows = len(lengths) // len(cuts)
    shuffled = padding_share(lengths, Shuffle().sequence(rows, seed=0, epoch=0), np.arange(0, 20_001, mean_rows))
    assert share[1.05] < 0.04 < share[1.1] < 0.06 < share[1.5] < 0.25
    assert shuffled > 0.5


def test_padding_is_what_padding_adds():
    lengths, sequence = np.array([5, 1, 2, 9]), np.array([3, 0, 1, 2])
    batches = [lengths[sequence[:1]], lengths[sequence[1:4]]]
    padded = sum(len(each) * each.max() for each in batches)
    assert padding_share(lengths, sequence, np.array([[0, 1], [1, 4]])) == 1 - lengths.sum() / padded


def test_rows_meet_others_in_another_epoch_and_batches_come_in_another_order():
    lengths = speech(4000)
    rows = rows_of(4000)
    again = {}
    for ratio in (1.1, 1.5):
        buckets = Buckets(lengths, budget=200.0, ratio=ratio)
        met, firsts = [], []
        for epoch in range(2):
            sequence = buckets.sequence(rows, seed=0, epoch=epoch)
            cuts = buckets.cuts(rows, seed=0, epoch=epoch).tolist()
            met.append({tuple(sorted(pair)) for a, b in cuts for pair in itertools.combinations(sequence[a:b], 2)})
            firsts.append([lengths[sequence[a]] for a, _ in cuts[:50]])
        again[ratio] = len(met[0] & met[1]) / len(met[0])
        assert np.std(firsts[0]) > 2  # long and short batches are mixed
        assert firsts[0] != firsts[1]
    assert again[1.5] < 0.1 < again[1.1] < 0.3  # of 4,000 rows; the more there are, the fewer


def test_batches_that_stay_together_are_of_similar_length():
    lengths = speech(4000)
    rows = rows_of(4000)

    def spread(together):
        buckets = Buckets(lengths, budget=100.0, together=together)
        sequence = buckets.sequence(rows, seed=0, epoch=0)
        cuts = buckets.cuts(rows, seed=0, epoch=0, world_size=4)
        longest = np.array(
            [[lengths[sequence[a:b]].max() for a, b in itertools.pairwise(s)] for s in cuts[:-1].tolist()]
        )
        return (longest.max(axis=1) / longest.min(axis=1)).mean()

    assert spread(4) < 1.05
    assert spread(1) > 1.5


def test_rows_longer_than_the_budget_come_alone_and_are_told_or_refused():
    lengths = np.array([3.0, 99.0, 4.0, 50.0, 3.0])
    rows = rows_of(5)
    buckets = Buckets(lengths, budget=20.0)
    with pytest.warns(UserWarning, match=r"2 of 5 rows are longer than the budget of 20 .*'001', '003'"):
        sequence = buckets.sequence(rows, seed=0, epoch=0)
    cuts = buckets.cuts(rows, seed=0, epoch=0)
    assert {tuple(sequence[a:b]) for a, b in cuts.tolist() if b - a == 1} >= {(1,), (3,)}
    assert buckets.too_long(rows).tolist() == [1, 3]
    with pytest.raises(DataError, match=r"'001', '003' \(the longest has 99\).*Raise the budget"):
        Buckets(lengths, budget=20.0, over='refuse').sequence(rows, seed=0, epoch=0)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        Buckets(lengths, budget=99.0, over='refuse').sequence(rows, seed=0, epoch=0)


@settings(max_examples=20)
@given(st.integers(1, 30), EPOCH)
def test_rows_without_any_length_still_come(count, epoch):
    rows = Selection(map(str, range(count)), seconds=[None] * count)
    for buckets in (Buckets('seconds', budget=5.0), Buckets([0] * count, budget=0.5)):
        assert sorted(visited(buckets, rows, epoch=epoch)) == sorted(rows.keys)
        assert (np.diff(buckets.cuts(rows, seed=0, epoch=epoch)) <= 5).all()


def test_lengths_are_read_from_offsets_patches_and_masked_rows_included(tmp_path):
    """Compared with the lengths of the values."""
    fields = [
        Field(name='speech', kind='ragged', dtype='float32'),
        Field(name='frames', kind='ragged', dtype='float32', shape=(2, 3)),
        Field(name='note', kind='string'),
        Field(name='raw', kind='binary'),
    ]

    def block(first, count, seed):
        rng = np.random.default_rng(seed)
        columns = {
            'speech': [np.zeros(n, np.float32) for n in rng.integers(0, 9, count)],
            'frames': [np.zeros((n, 2, 3), np.float32) for n in rng.integers(0, 9, count)],
            'note': ['ä' * n for n in rng.integers(0, 9, count)],
            'raw': [bytes(n) for n in rng.integers(0, 9, count)],
        }
        for values in columns.values():
            values[2] = None
        return Block(keys=[f'{i:03d}' for i in range(first, first + count)], columns=columns)

    write_snapshot(tmp_path, fields, block(0, 40, 0))
    rows = write_snapshot(tmp_path, fields, block(0, 70, 1)).rows().take(np.random.default_rng(2).permutation(60))
    many = ManyRows({'b': rows, 'a': write_snapshot(tmp_path / 'other', fields[:1], block(0, 9, 3)).rows()})
    for field in fields:
        for each in (rows, many.take(np.arange(len(many))[::-1])):
            values, _ = each.read(field.name)
            plain = [len(value.encode() if isinstance(value, str) else value) for value in values]
            assert lengths_of(each, field.name).tolist() == plain
            assert sum(plain) > 0


@pytest.mark.parametrize(
    ('lengths', 'message'),
    [([1.0, -1.0], r"-1.0 of '001'"), ([1.0, np.nan], r"nan of '001'"), ([1.0], 'one number per row'),
     ('colour', "'colour' names no number field")],
)  # fmt: skip
def test_lengths_that_are_none_are_told(lengths, message):
    with pytest.raises(DataError, match=message):
        Buckets(lengths, budget=9.0).sequence(rows_of(2), seed=0, epoch=0)


@pytest.mark.parametrize(
    'options',
    [{}, {'budget': 1.0, 'global_budget': 1.0}, {'budget': 0.0}, {'budget': np.nan}, {'budget': 5.0, 'cut': 6.0},
     {'budget': 5.0, 'ratio': 1.0}, {'budget': 5.0, 'together': 0}, {'budget': 5.0, 'max_rows': 0},
     {'budget': 5.0, 'over': 'drop'}],
)  # fmt: skip
def test_options_that_cannot_be_are_refused(options):
    with pytest.raises(ConfigError):
        Buckets([1.0], **options)

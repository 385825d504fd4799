"""Intervals hold the truth as often as they say, and are those of scipy."""

from __future__ import annotations

import numpy as np
import pytest

import mmpipe as mm
from mmpipe.evaluation import bootstrap
from mmpipe.evaluation.bootstrap import generator, intervals, numbered, resamples
from mmpipe.evaluation.weighted import weighted
from mmpipe.train import metrics


def mean_of(values):
    return lambda counts: {'mean': counts @ values / counts.sum(axis=1)}


def coverage(make, truth, groups, *, times=300, resampled=300):
    held = 0
    for i in range(times):
        low, high = intervals(mean_of(make(i)), groups, times=resampled, draw=generator(i, 'x'))['mean']
        held += low <= truth <= high
    return held / times


def test_nineteen_of_twenty_intervals_hold_the_truth():
    """Of 300 the share has a standard deviation of 1.3 %."""
    right = coverage(lambda i: np.random.default_rng(i).random(150) < 0.8, 0.8, np.arange(150))
    assert right == pytest.approx(0.95, abs=0.035)
    skewed = coverage(lambda i: np.random.default_rng(i).exponential(size=200), 1.0, np.arange(200))
    assert skewed == pytest.approx(0.95, abs=0.035)


def test_few_rows_have_intervals_about_as_much_too_narrow_as_the_docstring_says():
    found = coverage(lambda i: np.random.default_rng(i).normal(size=10), 0.0, np.arange(10))
    assert found == pytest.approx(0.90, abs=0.04)


def test_a_metric_that_comes_out_too_high_of_few_rows_has_its_interval_moved_down(labelled):
    """Mean average precision of rare labels, against that of very many rows."""
    rates = np.array([0.3, 0.2, 0.2, 0.1, 0.1, 0.08, 0.06, 0.05, 0.04, 0.03, 0.02, 0.02])
    task = mm.multilabel('tags', len(rates))

    def drawn(count, seed):
        draw = np.random.default_rng(seed)
        target = draw.random((count, len(rates))) < rates
        return draw.normal(size=target.shape) + target, target

    truth = metrics.mean_average_precision(*drawn(50_000, 0))
    held = between = 0
    for seed in range(1, 61):
        found = labelled(task, *drawn(75, seed))
        measure = weighted(found)
        low, high = intervals(measure, np.arange(75), times=200, draw=generator(seed))['map']
        held += low <= truth <= high
        assert low <= metrics.mean_average_precision(found.output, found.target) <= high
        values = np.concatenate([measure(c)['map'] for c in resamples(generator(seed), np.arange(75), 200)])
        between += np.quantile(values, 0.025) <= truth <= np.quantile(values, 0.975)
    assert held / 60 == pytest.approx(0.8, abs=0.12)
    assert between / 60 < 0.3


def test_rows_that_come_in_groups_need_groups_to_be_resampled():
    groups = np.repeat(np.arange(40), 10)

    def alike(i):
        draw = np.random.default_rng(i)
        return draw.normal(size=40)[groups] + 0.3 * draw.normal(size=400)

    assert coverage(alike, 0.0, groups) == pytest.approx(0.95, abs=0.04)
    assert coverage(alike, 0.0, np.arange(400), times=60) < 0.7


def test_intervals_are_those_of_scipy_up_to_the_draws():
    stats = pytest.importorskip('scipy.stats')
    values = np.random.default_rng(0).gamma(2, size=300)
    low, high = intervals(mean_of(values), np.arange(300), times=8000, draw=generator(0))['mean']
    theirs = stats.bootstrap((values,), np.mean, n_resamples=8000, method='percentile', rng=1).confidence_interval
    width = theirs.high - theirs.low
    assert low == pytest.approx(theirs.low, abs=0.03 * width)
    assert high == pytest.approx(theirs.high, abs=0.03 * width)


def test_the_seed_decides_and_memory_does_not(monkeypatch):
    values = np.random.default_rng(0).normal(size=50)
    found = intervals(mean_of(values), np.arange(50), times=100, draw=generator(3))
    again = intervals(mean_of(values), np.arange(50), times=100, draw=generator(3))
    assert found['mean'] == pytest.approx(again['mean'], rel=1e-12)  # sums of other shapes round otherwise
    assert found != intervals(mean_of(values), np.arange(50), times=100, draw=generator(4))
    monkeypatch.setattr(bootstrap, 'AT_ONCE', 120)
    assert len(list(resamples(generator(3), np.arange(50), 100))) == 50
    again = intervals(mean_of(values), np.arange(50), times=100, draw=generator(3))
    assert found['mean'] == pytest.approx(again['mean'], rel=1e-12)  # sums of other shapes round otherwise


def test_a_resample_draws_as_many_groups_as_there_are_and_each_whole():
    groups = numbered(np.array(['a', 'b', 'a', 'c'], dtype=object))
    for counts in resamples(generator(0), groups, 200):
        assert (counts[:, 0] == counts[:, 2]).all()
        assert (counts[:, [0, 1, 3]].sum(axis=1) == 3).all()


@pytest.mark.parametrize('rows', [0, 1])
def test_there_is_no_interval_of_one_row_nor_without_resamples(rows):
    assert intervals(mean_of(np.zeros(rows)), np.arange(rows), times=100, draw=generator(0)) == {}
    assert intervals(mean_of(np.arange(9.0)), np.arange(9), times=0, draw=generator(0)) == {}
    assert intervals(mean_of(np.arange(9.0)), np.zeros(9, dtype=np.int64), times=100, draw=generator(0)) == {}


def test_what_is_the_same_in_every_resample_or_often_undefined_has_none():
    ones = np.ones(20)
    assert intervals(mean_of(ones), np.arange(20), times=100, draw=generator(0)) == {'mean': None}

    def sometimes(counts):
        return {'x': np.where(counts[:, 0] > 0, counts[:, 1], np.nan)}

    assert intervals(sometimes, np.arange(20), times=200, draw=generator(0)) == {'x': None}

"""Metrics by counts of rows are the metrics of the rows repeated so often."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mmpipe as mm
from mmpipe.evaluation.weighted import weighted
from mmpipe.train.tasks import Regression

CASES = st.tuples(st.integers(1, 25), st.integers(1, 4), st.integers(0, 2**31), st.booleans())


def assert_equal_to_repeating(found, counts):
    measured = weighted(found)(counts.astype(np.float64))
    for i, row in enumerate(counts):
        which = np.repeat(np.arange(len(row)), row)
        expected = {
            'loss': found.loss[which].mean(dtype=np.float64),
            **found.task.metrics(found.output[which], found.target[which]),
        }
        assert measured.keys() == expected.keys()
        for name, value in expected.items():
            wanted = np.nan if value is None else value
            assert measured[name][i] == pytest.approx(wanted, rel=1e-9, abs=1e-9, nan_ok=True), name


def drawn_counts(draw, count):
    counts = draw.integers(0, 3, (5, count))
    counts[:, 0] += counts.sum(axis=1) == 0
    counts[0] = 1
    return counts


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_classification(labelled, case):
    count, classes, seed, ties = case
    draw = np.random.default_rng(seed)
    output = draw.normal(size=(count, classes))
    found = labelled(
        mm.classification('kind', classes), output.round() if ties else output, draw.integers(0, classes, count)
    )
    assert_equal_to_repeating(found, drawn_counts(draw, count))


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_multilabel(labelled, case):
    count, classes, seed, ties = case
    draw = np.random.default_rng(seed)
    output = draw.normal(size=(count, classes))
    found = labelled(
        mm.multilabel('tags', classes), output.round() if ties else output, draw.random((count, classes)) < 0.4
    )
    assert_equal_to_repeating(found, drawn_counts(draw, count))


@settings(max_examples=60, deadline=None)
@given(CASES)
def test_regression(labelled, case):
    count, _, seed, ties = case
    draw = np.random.default_rng(seed)
    target = draw.normal(1000, 3, size=count)
    found = labelled(
        mm.regression('price'), draw.normal(1000, 3, size=count), target.round() if ties else target.astype(np.float32)
    )
    assert_equal_to_repeating(found, drawn_counts(draw, count))


class Half(Regression):
    """A task of another kind of metric."""

    def metrics(self, output, target):
        return {'share_near': float((abs(output - target) < 1).mean()) if len(target) else None}


def test_a_task_of_the_users_and_metrics_of_the_users_are_computed_on_repeated_rows(labelled):
    class Bias:
        def reset(self):
            self.sums = [0.0, 0]

        def update(self, predicted, target):
            self.sums[0] += float((predicted - target).sum())
            self.sums[1] += len(target)

        def compute(self):
            return self.sums[0] / self.sums[1]

    found = labelled(mm.regression('price'), [1.0, 2.0, 5.0], np.float32([0.0, 2.0, 2.0]))
    assert weighted(found, {'bias': Bias()})(np.array([[1.0, 1, 1], [3, 0, 0]]))['bias'] == pytest.approx([4 / 3, 1])
    assert_equal_to_repeating(
        labelled(Half(field='price', name='price'), [1.0, 2.0], np.float32([0.0, 2.0])), np.array([[1, 1], [0, 2]])
    )

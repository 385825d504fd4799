"""Metrics equal scikit-learn's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpipe.train import metrics

sklearn = pytest.importorskip('sklearn.metrics')
CLASSES = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(CLASSES)
def test_accuracy_and_macro_f1(pairs):
    predicted, target = np.array(pairs).T
    assert metrics.accuracy(predicted, target) == pytest.approx(sklearn.accuracy_score(target, predicted))
    expected = sklearn.f1_score(target, predicted, average='macro', zero_division=0)
    assert metrics.macro_f1(predicted, target) == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(2, 4), st.integers(0, 2**31), st.booleans())
def test_multilabel_metrics(count, classes, seed, ties):
    draw = np.random.default_rng(seed)
    scores = draw.normal(size=(count, classes))
    scores = scores.round() if ties else scores
    target = draw.random((count, classes)) < 0.4
    expected = sklearn.f1_score(target, scores > 0, average='micro', zero_division=0)
    assert metrics.micro_f1(scores > 0, target) == pytest.approx(expected)
    occurring = [c for c in range(classes) if target[:, c].any()]
    found = metrics.mean_average_precision(scores, target)
    if occurring:
        assert found == pytest.approx(
            np.mean([sklearn.average_precision_score(target[:, c], scores[:, c]) for c in occurring])
        )
    else:
        assert found is None


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 20), st.integers(0, 2**31))
def test_regression_metrics(count, seed):
    predicted, target = np.random.default_rng(seed).normal(size=(2, count))
    assert metrics.mae(predicted, target) == pytest.approx(sklearn.mean_absolute_error(target, predicted))
    assert metrics.rmse(predicted, target) == pytest.approx(math.sqrt(sklearn.mean_squared_error(target, predicted)))
    assert metrics.r2(predicted, target) == pytest.approx(sklearn.r2_score(target, predicted))


def test_what_is_not_defined_is_none_or_zero():
    assert metrics.r2(np.array([1.0]), np.array([2.0])) is None
    assert metrics.micro_f1(np.zeros((2, 3), dtype=bool), np.zeros((2, 3), dtype=bool)) == 0

"""Confusion and counts equal scikit-learn's; the worst rows are those with the highest loss."""

from __future__ import annotations

import numpy as np
import pytest

import mmpipe as mm
from mmpipe.evaluation.mistakes import mistakes, worst_rows

WORDS = ['cat', 'dog', 'emu', 'fox', 'gnu']


def test_a_confusion_matrix_is_that_of_scikit_learn_over_the_classes_that_occur(labelled):
    metrics = pytest.importorskip('sklearn.metrics')
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(100, 5))
    logits[:, 3] = -10  # never predicted, and no row has it
    target = draw.choice([0, 1, 2], 100)  # nor 4, which is predicted
    found = mistakes(labelled(mm.classification('kind', 5), logits, target), WORDS)
    assert found.classes == ('cat', 'dog', 'emu', 'gnu')
    assert found.unseen == ('fox', 'gnu')
    expected = metrics.confusion_matrix(target, logits.argmax(axis=1), labels=[0, 1, 2, 4])
    assert np.array(found.counts).tolist() == expected.tolist()
    pairs = found.pairs()
    assert sum(count for count, _, _ in pairs) == (logits.argmax(axis=1) != target).sum()
    assert [count for count, _, _ in pairs] == sorted((count for count, _, _ in pairs), reverse=True)


def test_counts_per_label_are_those_of_scikit_learn(labelled):
    metrics = pytest.importorskip('sklearn.metrics')
    draw = np.random.default_rng(0)
    logits, target = draw.normal(size=(80, 3)), draw.random((80, 3)) < 0.3
    found = mistakes(labelled(mm.multilabel('tags', 3), logits, target), WORDS[:3])
    for each, ((tn, fp), (fn, tp)) in zip(
        found, metrics.multilabel_confusion_matrix(target, logits > 0).tolist(), strict=True
    ):
        assert (each.tn, each.fp, each.fn, each.tp) == (tn, fp, fn, tp)


def test_residuals_are_predicted_less_true(labelled):
    found = mistakes(labelled(mm.regression('price'), [3.0, 1.0, 2.0], np.float32([1, 1, 3])), [])
    assert found.mean == pytest.approx(1 / 3)
    assert dict(found.quantiles)[0.0] == -1
    assert dict(found.quantiles)[0.5] == 0
    assert dict(found.quantiles)[1.0] == 2


def test_the_worst_rows_come_once_each_with_what_was_said(labelled):
    keys = np.array(['a', 'b', 'c'], dtype=object)
    found = labelled(mm.classification('kind', 2), [[0, 2], [5, 0], [0, 0], [0, 2]], [0, 0, 1, 0])
    found = found.take(np.array([0, 1, 2, 0]))  # a sampler drew the first row twice
    a, c = worst_rows(found, keys, WORDS, 2)
    assert (a.key, a.truth, a.predicted) == ('a', 'cat', 'dog')
    assert a.probability == pytest.approx(1 / (1 + np.exp(-2)))
    assert a.loss == pytest.approx(np.log(1 + np.exp(2)))
    assert (c.key, c.probability) == ('c', 0.5)
    assert [row.key for row in worst_rows(found, keys, WORDS, 9)] == ['a', 'c', 'b']
    assert worst_rows(found, keys, WORDS, 0) == ()


def test_several_labels_name_all_that_are_there_and_all_that_are_said(labelled):
    found = labelled(mm.multilabel('tags', 3), [[1, -1, 2], [-1, -1, -1]], [[1, 1, 0], [0, 0, 0]])
    first, second = worst_rows(found, np.array(['a', 'b'], dtype=object), WORDS, 2)
    assert (first.truth, first.predicted, len(first.probability)) == (['cat', 'dog'], ['cat', 'emu'], 2)
    assert (second.truth, second.predicted, second.probability) == ([], [], [])

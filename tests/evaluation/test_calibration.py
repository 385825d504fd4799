"""Calibration errors equal those of torchmetrics and of a definition written out."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

import mmpipe as mm
from mmpipe.evaluation.calibration import calibration, error_by_mass, probabilities


@pytest.fixture
def classes(labelled):
    draw = np.random.default_rng(0)
    logits = 2 * draw.normal(size=(500, 4))
    return labelled(mm.classification('kind', 4), logits, draw.integers(0, 4, 500))


@pytest.fixture
def labels(labelled):
    draw = np.random.default_rng(1)
    logits = 2 * draw.normal(size=(300, 3))
    return labelled(mm.multilabel('tags', 3), logits, draw.random((300, 3)) < 0.4)


def by_hand(said, right, bounds):
    error = 0.0
    for low, high in pairwise(bounds):
        inside = (said > low) & (said <= high)
        if inside.any():
            error += inside.mean() * abs(said[inside].mean() - right[inside].mean())
    return error


def test_expected_calibration_error_as_written_in_the_paper(classes, labels):
    shares = probabilities(classes)
    right = shares.argmax(axis=1) == classes.target
    found = calibration(classes)
    assert found.ece == pytest.approx(by_hand(shares.max(axis=1), right, np.linspace(0, 1, 16)))
    assert sum(each.n for each in found.bins) == 500
    found = calibration(labels)
    assert found.ece == pytest.approx(
        by_hand(probabilities(labels).ravel(), labels.target.ravel(), np.linspace(0, 1, 16))
    )


@pytest.mark.slow  # some seconds to import torchmetrics
def test_it_is_that_of_torchmetrics(classes):
    theirs = pytest.importorskip('torchmetrics.classification').MulticlassCalibrationError(4, n_bins=15, norm='l1')
    theirs.update(torch.tensor(classes.output), torch.tensor(classes.target))
    assert calibration(classes).ece == pytest.approx(float(theirs.compute()), abs=1e-5)


def test_brier_scores_are_those_of_scikit_learn(classes, labels):
    metrics = pytest.importorskip('sklearn.metrics')
    expected = metrics.brier_score_loss(
        classes.target, probabilities(classes), labels=list(range(4)), scale_by_half=False
    )
    assert calibration(classes).brier == pytest.approx(expected)
    shares = probabilities(labels)
    each = [metrics.brier_score_loss(labels.target[:, c], shares[:, c]) for c in range(3)]
    assert calibration(labels).brier == pytest.approx(np.mean(each))


def test_bins_of_equal_mass_hold_as_many_rows_each():
    said = np.random.default_rng(0).random(150) ** 3
    right = np.random.default_rng(1).random(150) < 0.5
    order = np.argsort(said)
    expected = np.mean([abs(said[part].mean() - right[part].mean()) for part in np.split(order, 15)])
    assert error_by_mass(said, right) == pytest.approx(expected)
    assert error_by_mass(said[:1], right[:1]) == pytest.approx(abs(said[0] - right[0]))


def test_outcomes_drawn_by_the_probabilities_are_calibrated_and_sharpened_logits_are_not(labelled):
    draw = np.random.default_rng(0)
    logits = draw.normal(size=(20_000, 3))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    target = (draw.random((20_000, 1)) > shares.cumsum(axis=1)).sum(axis=1).clip(max=2)
    task = mm.classification('kind', 3)
    assert calibration(labelled(task, logits, target)).ece < 0.015
    assert calibration(labelled(task, 4 * logits, target)).ece > 0.2


def test_one_row_is_enough(labelled):
    found = calibration(labelled(mm.classification('kind', 1), [[0.0]], [0]))
    assert (found.ece, found.ece_mass, found.brier) == (0, 0, 0)

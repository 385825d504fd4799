"""A temperature is the one of the highest likelihood."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mmpipe as mm
from mmpipe.evaluation.temperature import best_temperature
from mmpipe.train import losses


def drawn(classes, *, rows=4000, scale=1.0, seed=0):
    draw = np.random.default_rng(seed)
    logits = draw.normal(size=(rows, classes))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    target = (draw.random((rows, 1)) > shares.cumsum(axis=1)).sum(axis=1).clip(max=classes - 1)
    return scale * logits, target


def test_logits_that_were_multiplied_are_divided_again(labelled):
    for scale in (0.25, 3.0):
        found = labelled(mm.classification('kind', 3), *drawn(3, scale=scale))
        assert best_temperature(found) == pytest.approx(scale, rel=0.08)


def test_no_other_temperature_has_a_lower_loss(labelled):
    logits, _ = drawn(3, rows=200)
    target = np.random.default_rng(1).random((200, 3)) < 1 / (1 + np.exp(-0.6 * logits))
    for task, right, loss in (
        (mm.classification('kind', 3), drawn(3, rows=200)[1], losses.cross_entropy),
        (mm.multilabel('tags', 3), target, losses.binary_cross_entropy),
    ):
        best = best_temperature(labelled(task, logits, right))
        everywhere = torch.ones(200, dtype=torch.bool)

        def at(heat, loss=loss, right=right, everywhere=everywhere):
            return float(loss(torch.tensor(logits / heat), torch.tensor(right), everywhere)[0])

        assert all(at(best) <= at(best * factor) + 1e-3 for factor in (0.5, 0.9, 1.1, 2.0))


def test_logits_that_are_always_right_are_as_cold_as_it_gets_and_equal_ones_stay(labelled):
    task = mm.classification('kind', 2)
    assert best_temperature(labelled(task, [[1, 0], [0, 1]], [0, 1])) == 0.01
    assert best_temperature(labelled(task, [[1, 0], [0, 1]], [1, 0])) == 100.0
    assert best_temperature(labelled(task, [[0, 0], [2, 2]], [1, 0])) == 1.0


def test_calibrate_leaves_predictions_as_they_are_and_lowers_the_loss(run, val):
    heat = mm.calibrate(run, val)
    assert sorted(heat) == ['kind', 'tags']
    before, after = mm.report(run, val, bootstrap=0), mm.report(run, val, bootstrap=0, temperature=heat)
    for task in heat:
        assert after[task].metrics['loss'].value <= before[task].metrics['loss'].value + 1e-6
        assert after[task].mistakes == before[task].mistakes
        same = [name for name in before[task].metrics if name != 'loss']
        assert [after[task].metrics[n].value for n in same] == pytest.approx(
            [before[task].metrics[n].value for n in same]
        )
    assert after['price'] == before['price']

"""Masked losses: a row without a label is as if it were not there."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from mmpipe.train import classification, multilabel, regression

TASKS = [classification('a', 3), multilabel('a', 3), regression('a')]


def example(task, masks, seed):
    draw = torch.Generator().manual_seed(seed)
    count = len(masks)
    shape = (count,) if task.kind == 'regression' else (count, 3)
    output = torch.randn(shape, generator=draw, dtype=torch.float64).float().requires_grad_()
    target = {
        'classification': torch.randint(0, 3, (count,), generator=draw),
        'multilabel': torch.randint(0, 2, (count, 3), generator=draw).to(torch.uint8),
        'regression': torch.randn(count, generator=draw),
    }[task.kind]
    return output, target, torch.tensor(masks, dtype=torch.bool)


@settings(deadline=None)
@given(st.sampled_from(TASKS), st.lists(st.booleans(), min_size=1, max_size=12), st.integers(0, 2**31))
def test_the_sum_is_that_of_the_labelled_rows_alone(task, masks, seed):
    output, target, mask = example(task, masks, seed)
    total, count = task.loss(output, target, mask)
    assert count == sum(masks)
    if any(masks):
        alone, _ = task.loss(output[mask], target[mask], mask[mask])
        torch.testing.assert_close(total, alone)
    (gradient,) = torch.autograd.grad(total, output)
    assert (gradient[~mask] == 0).all()
    assert total.isfinite()


@settings(deadline=None)
@given(
    st.sampled_from(TASKS), st.lists(st.booleans(), min_size=2, max_size=12), st.integers(1, 5), st.integers(0, 2**31)
)
def test_sums_over_parts_are_the_sum_over_the_whole(task, masks, parts, seed):
    output, target, mask = example(task, masks, seed)
    whole, _ = task.loss(output, target, mask)
    pieces = [
        task.loss(output[i], target[i], mask[i])[0]
        for i in map(torch.from_numpy, np.array_split(np.arange(len(masks)), parts))
    ]
    torch.testing.assert_close(whole, sum(pieces))


def test_losses_of_labelled_rows_are_those_of_torch():
    for task in TASKS:
        output, target, mask = example(task, [True] * 8, 0)
        expected = {
            'classification': lambda o, t: F.cross_entropy(o, t),
            'multilabel': lambda o, t: F.binary_cross_entropy_with_logits(o, t.float()),
            'regression': lambda o, t: F.mse_loss(o, t) / 4,
        }[task.kind](output, target)
        total, count = task.loss(output, target, mask, std=2.0)
        torch.testing.assert_close(total / count, expected)


def test_rubbish_in_the_place_of_a_missing_label_gives_neither_nan_nor_gradient():
    mask = torch.tensor([True, False])
    for task, target in (
        (TASKS[0], torch.tensor([1, 10**9])),
        (TASKS[1], torch.tensor([[0.0, 1, 0], [float('nan')] * 3])),
        (TASKS[2], torch.tensor([0.5, float('nan')])),
    ):
        output = torch.zeros(2 if task.kind == 'regression' else (2, 3), requires_grad=True)
        total, _ = task.loss(output, target, mask)
        (gradient,) = torch.autograd.grad(total, output)
        assert total.isfinite()
        assert (gradient[1] == 0).all()

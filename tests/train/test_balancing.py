"""How losses of several tasks become one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmpipe.errors import ConfigError
from mmpipe.train import Balancing, Uncertainty, classification, regression
from mmpipe.train.balancing import make_balancing, name_of

TASKS = [classification('kind', 3), regression('price'), classification('values', 2)]
LOSS = st.floats(0.01, 10)


@given(losses=st.tuples(LOSS, LOSS, LOSS), logs=st.tuples(*[st.floats(-2, 2)] * 3), parts=st.integers(1, 5))
def test_uncertainty_is_the_likelihood_of_its_paper_however_the_step_is_cut(losses, logs, parts):
    """Kendall et al. 2018: negative log-likelihoods of a Gaussian (its constant left out) and of a scaled softmax."""
    balancing = make_balancing('uncertainty', TASKS)
    for parameter, value in zip(balancing.parameters(), logs, strict=True):
        parameter.data.fill_(value)
    variances = [torch.tensor(value, dtype=torch.float64).exp() for value in logs]
    expected = sum(
        loss / variance * (0.5 if task.kind == 'regression' else 1.0) + variance.sqrt().log()
        for task, loss, variance in zip(TASKS, losses, variances, strict=True)
    )
    part = {task.name: torch.tensor(loss / parts) for task, loss in zip(TASKS, losses, strict=True)}
    total = sum(balancing.total(part, share=1 / parts).detach() for _ in range(parts))
    assert float(total) == pytest.approx(float(expected), rel=1e-4, abs=1e-4)


def test_its_optimum_is_where_each_variance_is_twice_the_loss_over_its_factor():
    """Setting the derivative of c exp(-s) L + s / 2 to zero gives exp(s) = 2 c L."""
    balancing = make_balancing('uncertainty', TASKS[:2])
    optimizer = torch.optim.Adam(balancing.parameters(), lr=0.05)
    losses = {'kind': torch.tensor(0.3), 'price': torch.tensor(2.0)}
    for _ in range(600):
        optimizer.zero_grad()
        balancing.total(losses, share=1.0).backward()
        optimizer.step()
    found = [float(parameter.detach().exp()) for parameter in balancing.parameters()]
    assert found == pytest.approx([0.6, 2.0], rel=0.02)


def test_a_task_without_a_label_in_the_step_moves_nothing_of_its_own():
    balancing = make_balancing('uncertainty', TASKS)
    balancing.total({'kind': torch.tensor(1.0)}, share=1.0).backward()
    assert [parameter.grad is not None for parameter in balancing.parameters()] == [True, False, False]


def test_the_loss_scale_of_fp16_multiplies_gradients_and_not_what_is_told():
    weight = nn.Parameter(torch.tensor(2.0))
    told = Balancing().backward({'a': weight * 3}, share=1.0, parameters=[weight], scale=lambda loss: loss * 8)
    assert float(told) == 6.0
    assert float(weight.grad) == 24.0


def test_one_that_is_given_is_not_changed_and_is_named_in_the_record():
    mine = Uncertainty()
    made = make_balancing(mine, TASKS)
    assert made is not mine
    assert not list(mine.parameters())
    assert name_of(mine) == 'mmpipe.train.balancing.Uncertainty()'
    with pytest.raises(ConfigError, match="'equal' is none of 'fixed', 'uncertainty'"):
        make_balancing('equal', TASKS)

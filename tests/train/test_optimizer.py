"""Which parameters are trained and decayed, and how fast."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mmpipe.errors import TrainError
from mmpipe.train.optimizer import learning_rate, make_optimizer


def test_only_matrices_are_decayed_and_frozen_parameters_left_out():
    model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    matrices, vectors = make_optimizer(model, lr=0.1, weight_decay=0.5).param_groups
    assert [p.shape for p in matrices['params']] == [(1, 3)]
    assert matrices['weight_decay'] == 0.5
    assert len(vectors['params']) == 3
    assert vectors['weight_decay'] == 0
    with pytest.raises(TrainError, match='no parameter'):
        make_optimizer(nn.ReLU(), lr=0.1, weight_decay=0)


@given(st.integers(0, 50), st.integers(1, 200), st.sampled_from(['constant', 'cosine']))
def test_the_rate_rises_to_its_peak_and_then_only_falls(warmup, total, schedule):
    rates = [learning_rate(step, peak=2.0, schedule=schedule, warmup=warmup, total=total) for step in range(total)]
    assert all(0 <= rate <= 2 for rate in rates)
    assert rates[:warmup] == sorted(rates[:warmup])
    assert rates[warmup:] == sorted(rates[warmup:], reverse=True)

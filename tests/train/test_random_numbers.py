"""Whatever a model, a loss or a transform draws from, a step's draws are a function of its number."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shop_snapshot import write_shop
from torch import nn

from mmpipe.data import DataLoader
from mmpipe.models import BareModel
from mmpipe.runs import open_run
from mmpipe.train import Trainer, classification
from mmpipe.train.random_numbers import borrowed_generators, seed_generators

CPU = torch.device('cpu')


def draws() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@given(seed=st.integers(0, 2**40), step=st.integers(0, 2**40))
def test_all_three_draw_by_seed_and_step_and_come_back_as_they_were(seed, step):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draws(), draws()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert draws() == expected[0]
    with borrowed_generators(CPU):
        seed_generators(CPU, seed, step)
        first = draws()
        seed_generators(CPU, seed, step + 1)
        assert all(a != b for a, b in zip(first, draws(), strict=True))
        seed_generators(CPU, seed, step)
        assert draws() == first
    assert draws() == expected[1]


class Noisy(nn.Module):
    """Draws from everything, as modules of users do."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.linear(values * (1 + sum(draws())))


class Stop(Exception):
    pass


def test_a_model_that_draws_from_numpy_and_python_goes_on_bit_for_bit(tmp_path):
    rows = write_shop(tmp_path / 'shop', 40, holes=0.0).rows()

    def build():
        return BareModel(Noisy(), inputs='title', tasks=[classification('kind', 3)])

    def fit(runs, stop_at=None):
        def stop(stage, done, total, unit):
            if done == stop_at:
                raise Stop

        trainer = Trainer(epochs=2, runs=runs, log_every=1, checkpoint_every=1, progress=stop)
        return trainer.fit(build, DataLoader(rows, batch_size=8, device='cpu'), name='noisy', resume='auto')

    with pytest.raises(Stop):
        fit(tmp_path / 'stopped', 32)
    random.seed(7), np.random.seed(7)  # another process has other states
    stopped, whole = fit(tmp_path / 'stopped'), fit(tmp_path / 'whole')
    assert open_run(stopped).history() == whole.history()
    assert len({line['loss'] for line in whole.history() if 'loss' in line}) == 10

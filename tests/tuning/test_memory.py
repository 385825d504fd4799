"""The peak of a trial: what it really took, and not what an earlier trial of the process did."""

from __future__ import annotations

import numpy as np
import pytest
import tuned_shop
from shop_snapshot import write_shop

import mmpipe as mm
from mmpipe.tuning import Choice
from mmpipe.tuning.goals import direction
from mmpipe.tuning.memory import begin_peak, peak_bytes

optuna = pytest.importorskip('optuna')
optuna.logging.set_verbosity(optuna.logging.WARNING)
MB = 1_000_000


def resident():
    with open('/proc/self/statm') as file:
        return int(file.read().split()[1]) * 4096


def test_the_peak_is_seen_after_it_is_over_and_forgotten_by_the_next():
    begin_peak()
    before = resident()
    block = np.ones(200 * MB, np.uint8)
    assert len(block) == 200 * MB
    del block
    assert abs(peak_bytes() - before - 200 * MB) < 10 * MB
    begin_peak()
    assert abs(peak_bytes() - resident()) < 10 * MB


def test_a_search_for_less_memory_finds_the_setting_that_takes_less(tmp_path):
    shop = str(write_shop(tmp_path / 'shop', 64, holes=0.0).root)

    def fit(trainer, *, ballast):
        np.ones(ballast * MB, np.uint8)
        return tuned_shop.fit(shop, trainer)

    sampler = optuna.samplers.GridSampler({'ballast': [300, 1, 150]}, seed=0)
    study = mm.tune(
        fit, space={'ballast': Choice(300, 1, 150)}, metric=['memory', 'kind.loss'], trials=3, sampler=sampler,
        runs=tmp_path / 'runs',
    )  # fmt: skip
    assert direction('memory') == 'minimize'
    took = {trial.params['ballast']: trial.values[0] for trial in study.trials}
    assert [trial.values[0] for trial in study.trials] == [trial.user_attrs['memory'] for trial in study.trials]
    assert 100 * MB < took[300] - took[150] < 200 * MB
    assert 80 * MB < took[150] - took[1] < 200 * MB

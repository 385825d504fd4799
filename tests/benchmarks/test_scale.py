"""The benchmarks of federations and of tuning run, and what they call right would be called wrong if it were."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import mmpipe.federated  # noqa: F401  before Flower, so that its telemetry is off

pytest.importorskip('flwr')
pytest.importorskip('optuna')
BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'
if str(BENCHMARKS) not in sys.path:
    sys.path.insert(0, str(BENCHMARKS))

import federated_kills  # noqa: E402
from tuning_search import Trace, compared  # noqa: E402

from mmpipe.runs import create_run, update_run  # noqa: E402
from mmpipe.train.checkpoint import save_checkpoint  # noqa: E402


def quick(name: str) -> dict[str, float]:
    command = [sys.executable, str(BENCHMARKS / f'{name}.py'), '--quick', '--json']
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return {name: figure['median'] for name, figure in json.loads(done.stdout)['figures'].items()}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_federation_is_measured() -> None:
    found = quick('scale_federated')
    assert found['federated_kills_ok'] == 1
    assert 0 < found['federated_own_s'] < found['federated_round_s']


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_in_two_processes_is_measured() -> None:
    assert {'tune_scaling', 'tune_trials_per_hour_1', 'tune_trials_per_hour_2'} == set(quick('scale_tuning'))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_all_that_lies_past_one_process_is_collected() -> None:
    pytest.importorskip('ray')
    found = quick('scale')
    kills = found['rank_kills_ok'] + found['ray_kills_ok'] + found['federated_kills_ok']
    assert found['random_kills_ok'] == kills > 0
    assert found['parity_max_rel_fp32'] <= 1e-5
    assert found['parity_same_keys'] == 2
    assert {'dp_input_overhead', 'tune_scaling', 'manifest_open_s', 'manifest_rss_mb'} <= found.keys()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_samplers_are_measured() -> None:
    found = quick('tuning_search')
    for problem in ('digits', 'diabetes'):
        assert f'{problem}_goal' in found
        for sampler in ('random', 'tpe', 'gp'):
            assert 1 <= found[f'{problem}_{sampler}_trials'] <= 12
            assert found[f'{problem}_{sampler}_search_s'] > 0


def test_the_goal_is_the_best_of_random_searchs_median_seed_and_who_misses_it_counts_with_all_trials() -> None:
    traces = {
        'random': [Trace([0.1, 0.5], [1, 2], 1.5), Trace([0.7, 0.2], [1, 2], 1.5), Trace([0.9, 0.6], [1, 2], 1.5)],
        'tpe': [Trace([0.7, 0.1], [1, 3], 1.0), Trace([0.1, 0.8], [1, 3], 1.0), Trace([0.1, 0.6], [1, 3], 1.0)],
    }
    figures = compared('digits', traces)
    assert figures['digits_goal'].values == (0.7,)
    assert figures['digits_random_trials'].values == (2, 1, 1)
    assert figures['digits_random_missed'].values == (1, 0, 0)
    assert figures['digits_tpe_trials'].values == (1, 2, 2)
    assert figures['digits_tpe_s'].values == (1, 3, 3)
    assert figures['digits_tpe_best'].values == (0.7, 0.8, 0.6)
    assert figures['digits_tpe_search_s'].values == (2, 2, 2)
    assert figures['digits_tpe_trials_of_random'].values == (2,)
    assert figures['digits_tpe_s_of_random'].values == (3,)


def test_of_an_error_less_is_better() -> None:
    traces = {name: [Trace([60, 50], [1, 2], 1.5), Trace([55, 56], [1, 2], 1.5)] for name in ('random', 'gp')}
    figures = compared('diabetes', traces)
    assert figures['diabetes_goal'].values == (52.5,)
    assert figures['diabetes_gp_trials'].values == (2, 2)
    assert figures['diabetes_gp_missed'].values == (0, 1)


def written_down(folder: Path, *, answers: list[float], trained: list[float], came_to: float) -> Path:
    """A round of one number, which clients of equal weight answered and trained."""
    rounds = folder / 'rounds'
    rounds.mkdir()
    federated_kills.write(rounds / '1-begin.npz', {'weight': np.zeros((1, 1), np.float32)})
    for number, answer in enumerate(answers):
        arrays = {'weight': np.full((1, 1), answer, np.float32), 'num-examples': np.float64(1)}
        federated_kills.write(rounds / f'1-reply-{number}.npz', arrays)
    federated_kills.write(rounds / '1-end.npz', {'weight': np.full((1, 1), came_to, np.float32)})
    for value in trained:
        model = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.constant_(model.weight, value)
        run = create_run('client', {'snapshot': {'id': None}}, runs=folder / 'runs')
        save_checkpoint(run, model, torch.optim.SGD(model.parameters()), {'step': 1})
        update_run(run, federated={'round': 1})
    return folder


@pytest.mark.parametrize(
    ('answers', 'trained', 'came_to', 'right'),
    [
        ([1, 3], [1, 2, 3], 2, True),
        ([1, 3], [1, 2, 3], 2.1, False),  # not their mean
        ([1, 3], [1, 2], 2, False),  # one that nobody trained
        ([], [1], 0, False),  # nobody answered
    ],
)
def test_a_round_is_right_if_it_is_the_mean_of_answers_that_clients_trained(
    tmp_path: Path, answers: list[float], trained: list[float], came_to: float, right: bool
) -> None:
    folder = written_down(tmp_path, answers=answers, trained=trained, came_to=came_to)
    assert federated_kills.is_right(folder, 1) is right


def test_a_round_that_took_more_than_a_minute_is_not_right(tmp_path: Path) -> None:
    folder = written_down(tmp_path, answers=[1], trained=[1], came_to=1)
    assert federated_kills.is_right(folder, 1)
    began = (folder / 'rounds' / '1-begin.npz').stat().st_mtime
    os.utime(folder / 'rounds' / '1-begin.npz', (began - 61, began - 61))
    assert not federated_kills.is_right(folder, 1)

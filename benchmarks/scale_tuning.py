"""What several processes and Bayesian samplers bring to a search for settings.

`tune_scaling`               trials per hour of two processes over those of one, each trial on one core, taking turns
`tune_trials_per_hour_<n>`   both, with the start of the processes; medians of the rounds

On scikit-learn's digits (1,797 real images), settings of a small network, five seeds of each sampler: Optuna's random
sampler, TPE and GP draw as many trials each, no trial is pruned. The goal is one accuracy for all: what
random search had come to after half of its trials in the median seed. A search that never reaches it, of whichever
sampler, counts with all its trials.

`tune_bayesian_goal`               the accuracy to reach
`tune_bayesian_trials_<sampler>`   trials until the goal, median of the seeds
`tune_bayesian_seconds_<sampler>`  seconds until then, with what the sampler itself took
`tune_bayesian_best_<sampler>`     best accuracy of the validation rows after all trials, mean of the seeds
`tune_bayesian_missed_<sampler>`   seeds in which the goal was not reached
`tune_bayesian_trials_<tpe|gp>_of_random`  ratio of the medians of trials; below 1 is better than random
"""

from __future__ import annotations

import functools
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'examples'))

Figures = dict[str, tuple[float, str]]
SAMPLERS = ('random', 'tpe', 'gp')
SEEDS, TRIALS, ROUNDS = 5, 30, 3
SCALING_TRIALS, SCALING_EPOCHS = 16, 150  # long enough that the start of the processes, which counts, is a small part


def figures(*, quick: bool) -> Figures:
    """All figures of tuning.

    Args:
        quick: little of everything, to see it run.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter('ignore')  # GPSampler is called experimental
        return {**scaling(Path(folder), quick=quick), **bayesian(Path(folder), quick=quick)}


def scaling(folder: Path, *, quick: bool) -> Figures:
    """Trials per hour of one and of two processes, in turns; one process has one core, and so has each of two."""
    cores = sorted(os.sched_getaffinity(0))
    rounds = 1 if quick else ROUNDS
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(rounds):
        for processes in (1, 2) if turn % 2 == 0 else (2, 1):
            rates[processes].append(_rate(folder / f'scaling{turn}', processes, cores, quick=quick))
    ratios = [two / one for one, two in zip(rates[1], rates[2], strict=True)]
    return {
        'tune_scaling': (statistics.median(ratios), 'ratio'),
        **{f'tune_trials_per_hour_{n}': (statistics.median(values), 'trials/h') for n, values in rates.items()},
    }


def _rate(folder: Path, processes: int, cores: list[int], *, quick: bool) -> float:
    import optuna
    import torch

    import mmpipe as mm

    digits = example()
    trials = 4 if quick else SCALING_TRIALS
    snapshot = digits.write(folder / f'digits{processes}')
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, set(cores[:processes]))
    began = time.perf_counter()
    try:
        study = mm.tune(
            functools.partial(digits.fit, snapshot),
            space={name: digits.SPACE[name] for name in ('lr', 'weight_decay')},  # which leave a trial as long as it is
            metric='digit.accuracy',
            trainer=mm.Trainer(epochs=4 if quick else SCALING_EPOCHS, device='cpu', checkpoint_seconds=None),
            trials=trials,
            processes=processes,
            sampler=optuna.samplers.RandomSampler(seed=0),  # the same trials for both
            pruner=optuna.pruners.NopPruner(),
            runs=folder / f'runs{processes}',
        )
    finally:
        os.sched_setaffinity(0, set(cores))
        torch.set_num_threads(threads)
    assert [trial.state.name for trial in study.trials] == ['COMPLETE'] * trials
    return trials / (time.perf_counter() - began) * 3600


def bayesian(folder: Path, *, quick: bool) -> Figures:
    """Each sampler over the seeds, taking turns within a seed."""
    trials, seeds = (8, 2) if quick else (TRIALS, SEEDS)
    traces: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in SAMPLERS}
    for seed in range(seeds):
        for name in SAMPLERS[seed % 3 :] + SAMPLERS[: seed % 3]:
            traces[name].append(_trace(folder / f'{name}{seed}', name, seed=seed, trials=trials, quick=quick))
    goal = statistics.median_low(max(value for value, _ in trace[: trials // 2]) for trace in traces['random'])
    found: dict[str, list[dict[str, float]]] = {name: [] for name in SAMPLERS}
    for name in SAMPLERS:
        for trace in traces[name]:
            reached = next((i for i, (value, _) in enumerate(trace) if value >= goal), None)
            last = trials - 1 if reached is None else reached
            found[name].append(
                {
                    'trials': last + 1,
                    'seconds': trace[last][1],
                    'best': max(value for value, _ in trace),
                    'missed': float(reached is None),
                }
            )
    result: Figures = {'tune_bayesian_goal': (goal, 'accuracy')}
    for name, rows in found.items():
        result[f'tune_bayesian_trials_{name}'] = (statistics.median(row['trials'] for row in rows), 'trials')
        result[f'tune_bayesian_seconds_{name}'] = (statistics.median(row['seconds'] for row in rows), 's')
        result[f'tune_bayesian_best_{name}'] = (statistics.mean(row['best'] for row in rows), 'accuracy')
        result[f'tune_bayesian_missed_{name}'] = (sum(row['missed'] for row in rows), f'of {seeds} seeds')
    for name in SAMPLERS[1:]:
        of_random = result[f'tune_bayesian_trials_{name}'][0] / result['tune_bayesian_trials_random'][0]
        result[f'tune_bayesian_trials_{name}_of_random'] = (of_random, 'ratio')
    return result


def _trace(folder: Path, name: str, *, seed: int, trials: int, quick: bool) -> list[tuple[float, float]]:
    """(accuracy, seconds since the begin) of each trial."""
    import optuna

    import mmpipe as mm

    makes: dict[str, Callable[..., Any]] = {
        'random': optuna.samplers.RandomSampler,
        'tpe': optuna.samplers.TPESampler,
        'gp': optuna.samplers.GPSampler,
    }
    digits = example()
    snapshot = digits.write(folder / 'digits')
    ended: list[float] = []
    began = time.perf_counter()
    study = mm.tune(
        functools.partial(digits.fit, snapshot),
        space=digits.SPACE,
        metric='digit.accuracy',
        trainer=mm.Trainer(
            epochs=2 if quick else 6, evaluate_every=2 if quick else 6, device='cpu', checkpoint_seconds=None, seed=seed
        ),
        trials=trials,
        sampler=makes[name](seed=seed),
        pruner=optuna.pruners.NopPruner(),
        runs=folder / 'runs',
        progress=lambda *_: ended.append(time.perf_counter() - began),
    )
    return [(float(trial.value or 0), seconds) for trial, seconds in zip(study.trials, ended, strict=True)]


@functools.cache
def example() -> Any:
    """examples/08_tuning.py, whose name no import statement can hold, under one that processes can import."""
    import importlib

    return importlib.import_module('08_tuning')


def main() -> None:
    import argparse
    import json

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='little of everything')
    print(json.dumps(figures(quick=parser.parse_args().quick), indent=1))


if __name__ == '__main__':
    main()

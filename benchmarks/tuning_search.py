"""What Bayesian samplers bring to a search for settings, beside random search, on real data.

Two sets of scikit-learn's: `digits` (1,797 images of 8 x 8, accuracy of ten classes) and `diabetes` (442 patients,
error of a regression); rows of a training split, and others that a trial is scored by. Six settings of a small network
and its training are searched: learning rate, weight decay, schedule, width, dropout, batch size. Optuna's random
sampler, TPE and GP draw 40 trials each, from five seeds, which give the initial weights and the order, too. No trial is
pruned. Samplers take turns within a seed.

The goal is the score that random search comes to in its median seed, after all of its trials, so it reaches that itself
in about half of the seeds. A seed in which a sampler never does counts with all trials and all of its time, which is
then too little, and is counted by `_missed`. Values of a figure are those of the seeds.

`<set>_goal`                         the score to reach: one value
`<set>_<sampler>_trials`             trials until it was reached
`<set>_<sampler>_s`                  seconds until then, those that the sampler itself took included
`<set>_<sampler>_best`               best score of all trials
`<set>_<sampler>_missed`             1 where the goal was not reached, else 0
`<set>_<sampler>_search_s`           seconds of all trials that were not training or scoring: sampler, and its journal
`<set>_<tpe|gp>_trials_of_random`    median of trials over that of random search; below 1 is better
`<set>_<tpe|gp>_s_of_random`         the same of seconds

On one core, all of it takes some 12 minutes.
"""

from __future__ import annotations

import logging
import os
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from harness import Bench, Figure

import mmpipe as mm
from mmpipe.runs import Run
from mmpipe.shards import Block, Field, Snapshot, write_snapshot
from mmpipe.tuning import Choice, Float, Int

SAMPLERS: dict[str, Callable[..., Any]] = {
    'random': optuna.samplers.RandomSampler,
    'tpe': optuna.samplers.TPESampler,
    'gp': optuna.samplers.GPSampler,
}
SPACE = {
    'lr': Float(1e-4, 3e-1, log=True),  # fields of the trainer
    'weight_decay': Float(1e-3, 1.0, log=True),
    'schedule': Choice('constant', 'cosine'),
    'width': Int(8, 256, log=True),  # arguments of `fit`
    'dropout': Float(0.0, 0.6),
    'batch': Choice(32, 64, 128),
}
SEEDS, TRIALS = 5, 40


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Rows, and what is wanted of them.

    Attributes:
        load: scikit-learn's function.
        train: so many rows to train on; the others are what a trial is scored by.
        classes: of the target; none where it is a number.
        metric: 'target.<metric>', as `mm.tune` takes it.
        unit: of the figures.
        higher: whether more of it is better.
        epochs: of a trial.
    """

    load: str
    train: int
    classes: tuple[str, ...]
    metric: str
    unit: str
    higher: bool
    epochs: int


PROBLEMS = {
    'digits': Problem(
        load='load_digits', train=600, classes=tuple('0123456789'), metric='target.accuracy', unit='accuracy',
        higher=True, epochs=6,
    ),
    'diabetes': Problem(
        load='load_diabetes', train=250, classes=(), metric='target.rmse', unit='points', higher=False, epochs=12,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Trace:
    """One search.

    Attributes:
        scores: of each trial; the least a score can be where it came to none.
        at: seconds since the search began, when each ended.
        trained_s: seconds that went into training and scoring.
    """

    scores: Sequence[float]
    at: Sequence[float]
    trained_s: float

    def reached(self, goal: float, *, higher: bool) -> int | None:
        """The number of the first trial, from 0 on, that is as good as a goal."""
        return next((i for i, score in enumerate(self.scores) if (score >= goal if higher else score <= goal)), None)

    def best(self, *, higher: bool) -> float:
        return max(self.scores) if higher else min(self.scores)


def written(problem: Problem, root: Path) -> Snapshot:
    """The rows as a snapshot, in an order drawn once."""
    import sklearn.datasets

    found = getattr(sklearn.datasets, problem.load)()
    order = np.random.default_rng(0).permutation(len(found.target))
    values = found.data[order].astype(np.float32)
    values = (values - values.mean()) / values.std()
    if problem.classes:
        target = Field(name='target', kind='label', vocabulary=problem.classes)
        targets: list[Any] = [str(each) for each in found.target[order]]
    else:
        target = Field(name='target', kind='scalar', dtype='float32')
        targets = [float(each) for each in found.target[order]]
    fields = [Field(name='values', kind='tensor', dtype='float32', shape=(values.shape[1],)), target]
    splits = ['train' if i < problem.train else 'val' for i in range(len(order))]
    block = Block(keys=[f'{i:04d}' for i in order], columns={'values': list(values), 'target': targets}, splits=splits)
    return write_snapshot(root, fields, block)


def build_model(size: int, width: int, dropout: float, classes: Sequence[str]) -> mm.MultitaskModel:
    """A small network."""
    task = mm.classification('target', list(classes)) if classes else mm.regression('target')
    encoder = mm.encoders.vector(size, width, dropout=dropout)
    return mm.MultitaskModel(encoders={'values': encoder}, tasks=[task], hidden=width, dropout=dropout)


def fit(snapshot: Snapshot, problem: Problem, trainer: mm.Trainer, *, width: int, dropout: float, batch: int) -> Run:
    """One trial."""
    size = snapshot.fields['values'].shape[0]
    args = {'size': size, 'width': width, 'dropout': dropout, 'classes': list(problem.classes)}
    train = mm.DataLoader(snapshot.split('train'), batch_size=batch, shuffle=True, seed=trainer.seed, device='cpu')
    val = mm.DataLoader(snapshot.split('val'), batch_size=512, device='cpu')
    return trainer.fit(build_model, train, val, args=args)


def searched(problem: Problem, snapshot: Snapshot, folder: Path, sampler: str, *, seed: int, trials: int) -> Trace:
    """One search of one sampler from one seed."""
    ended: list[float] = []
    spent = [0.0]

    def timed(trainer: mm.Trainer, *, width: int, dropout: float, batch: int) -> Run:
        began = time.perf_counter()
        try:
            return fit(snapshot, problem, trainer, width=width, dropout=dropout, batch=batch)
        finally:
            spent[0] += time.perf_counter() - began

    began = time.perf_counter()
    study = mm.tune(
        timed,
        space=SPACE,
        metric=problem.metric,
        trainer=mm.Trainer(
            epochs=problem.epochs, evaluate_every=problem.epochs, device='cpu', checkpoint_seconds=None, seed=seed
        ),
        trials=trials,
        sampler=SAMPLERS[sampler](seed=seed),
        pruner=optuna.pruners.NopPruner(),
        runs=folder,
        progress=lambda *_: ended.append(time.perf_counter() - began),
    )
    # A trial whose weights overflow is a failed one: a bad draw, and no reason to leave its sampler's others out.
    worst = -np.inf if problem.higher else np.inf
    scores = [worst if trial.value is None else trial.value for trial in study.trials]
    return Trace(scores, ended, spent[0])


def compared(name: str, traces: dict[str, list[Trace]]) -> dict[str, Figure]:
    """The figures of one set, from the traces of each sampler by seed."""
    problem = PROBLEMS[name]
    goal = statistics.median(trace.best(higher=problem.higher) for trace in traces['random'])
    figures = {f'{name}_goal': Figure(problem.unit, (goal,))}
    for sampler, those in traces.items():
        reached = [trace.reached(goal, higher=problem.higher) for trace in those]
        last = [len(t.scores) - 1 if i is None else i for i, t in zip(reached, those, strict=True)]
        at = f'{name}_{sampler}'
        figures |= {
            f'{at}_trials': Figure('trials', tuple(float(i + 1) for i in last)),
            f'{at}_s': Figure('s', tuple(trace.at[i] for i, trace in zip(last, those, strict=True))),
            f'{at}_best': Figure(problem.unit, tuple(trace.best(higher=problem.higher) for trace in those)),
            f'{at}_missed': Figure('of 1', tuple(float(i is None) for i in reached)),
            f'{at}_search_s': Figure('s', tuple(trace.at[-1] - trace.trained_s for trace in those)),
        }
    for sampler in traces.keys() - {'random'}:
        for what in ('trials', 's'):
            ratio = figures[f'{name}_{sampler}_{what}'].median / figures[f'{name}_random_{what}'].median
            figures[f'{name}_{sampler}_{what}_of_random'] = Figure('ratio', (ratio,))
    return figures


def main() -> None:
    """The command."""
    bench = Bench.from_arguments('tuning_search', __doc__)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.simplefilter('ignore')  # GPSampler is called experimental
    logging.getLogger('mmpipe').setLevel(logging.ERROR)  # failed trials are counted
    seeds, trials = (1, 12) if bench.quick else (bench.repeats or SEEDS, TRIALS)
    bench.notes = {
        'seeds': seeds,
        'trials': trials,
        'space': {name: repr(each) for name, each in SPACE.items()},
        'versions': {name: metadata.version(name) for name in ('optuna', 'scikit-learn')},
    }
    with tempfile.TemporaryDirectory() as folder, bench.recording():
        for name, problem in PROBLEMS.items():
            snapshot = written(problem, Path(folder) / name)
            traces: dict[str, list[Trace]] = {sampler: [] for sampler in SAMPLERS}
            searched(problem, snapshot, Path(folder) / f'warm-{name}', 'gp', seed=0, trials=2)  # imports
            for seed in range(seeds):
                turn = seed % len(SAMPLERS)
                for sampler in [*SAMPLERS][turn:] + [*SAMPLERS][:turn]:
                    print(f'{name}: {sampler}, seed {seed + 1} of {seeds}', file=sys.stderr, flush=True)
                    runs = Path(folder) / f'{name}-{sampler}-{seed}'
                    traces[sampler].append(searched(problem, snapshot, runs, sampler, seed=seed, trials=trials))
            bench.figures |= compared(name, traces)


if __name__ == '__main__':
    main()

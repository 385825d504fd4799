"""What two processes bring to a search for settings: trials per hour, each trial on one core.

`tune_scaling`               trials per hour of two processes over those of one
`tune_trials_per_hour_<n>`   both, with the start of the processes
`tune_start_s`               from the call to the first trial, with two processes

The network is that of `examples/08_tuning.py`; an epoch passes over the digits ten times, some 0.15 s, since a process
that trains tells the one with the study about each epoch and waits for its answer. Both searches draw the same trials;
they take turns, and which comes first changes. What samplers bring is measured by `tuning_search.py`. The whole takes
some 25 minutes on two cores.
"""

from __future__ import annotations

import datetime
import functools
import importlib
import itertools
import os
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch
from harness import ROOT, Bench
from sklearn.datasets import load_digits

import mmpipe as mm
from mmpipe.shards import Block, Field, write_snapshot

sys.path.insert(0, str(ROOT / 'examples'))

Figures = dict[str, tuple[float, str]]
TRIALS, EPOCHS, TIMES = 24, 60, 10  # long enough that the start of the processes, which counts, is a small part


def scaling(folder: Path, turn: int, *, quick: bool) -> Figures:
    """Trials per hour of one and of two processes; one has one core, and so has each of two."""
    cores = sorted(os.sched_getaffinity(0))
    order = (1, 2) if turn % 2 == 0 else (2, 1)
    found = {processes: search(folder / f'turn{turn}', processes, cores, quick=quick) for processes in order}
    rates = {processes: rate for processes, (rate, _) in found.items()}
    return {
        'tune_scaling': (rates[2] / rates[1], 'ratio'),
        **{f'tune_trials_per_hour_{processes}': (rates[processes], 'trials/h') for processes in (1, 2)},
        'tune_start_s': (found[2][1], 's'),
    }


def written(root: Path) -> mm.Snapshot:
    """scikit-learn's digits, those to train on several times."""
    digits = load_digits()
    fields = [
        Field(name='image', kind='tensor', dtype='float32', shape=(64,)),
        Field(name='digit', kind='label', vocabulary=tuple('0123456789')),
    ]
    splits = ['train' if number < 600 else 'val' for number in range(1000)]
    rows = [number for number, split in enumerate(splits) for _ in range(TIMES if split == 'train' else 1)]
    columns = {
        'image': [(digits.data[row] / 16).astype(np.float32) for row in rows],
        'digit': [str(digits.target[row]) for row in rows],
    }
    keys = [f'{number:05}' for number in range(len(rows))]
    return write_snapshot(root, fields, Block(keys=keys, columns=columns, splits=[splits[row] for row in rows]))


def search(folder: Path, processes: int, cores: list[int], *, quick: bool) -> tuple[float, float]:
    """Trials per hour of a search on as many cores as processes, and seconds until the first one began."""
    digits = example()
    trials = 4 if quick else TRIALS
    snapshot = written(folder / f'digits{processes}')
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    os.sched_setaffinity(0, set(cores[:processes]))
    called, began = datetime.datetime.now(), time.perf_counter()  # as Optuna does, in local time
    try:
        study = mm.tune(
            functools.partial(digits.fit, snapshot),
            space={name: digits.SPACE[name] for name in ('lr', 'weight_decay')},  # which leave a trial as long as it is
            metric='digit.accuracy',
            trainer=mm.Trainer(epochs=4 if quick else EPOCHS, device='cpu', checkpoint_seconds=None),
            trials=trials,
            processes=processes,
            sampler=optuna.samplers.RandomSampler(seed=0),  # the same trials for both
            pruner=optuna.pruners.NopPruner(),
            runs=folder / f'runs{processes}',
        )
        took = time.perf_counter() - began
    finally:
        os.sched_setaffinity(0, set(cores))
        torch.set_num_threads(threads)
    assert [trial.state.name for trial in study.trials] == ['COMPLETE'] * trials
    first = min(trial.datetime_start for trial in study.trials)
    return trials / took * 3600, (first - called).total_seconds()


@functools.cache
def example() -> Any:
    """examples/08_tuning.py, whose name no import statement can hold, under one that processes can import."""
    return importlib.import_module('08_tuning')


def main() -> None:
    """The command."""
    bench = Bench.from_arguments('scale_tuning', __doc__)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if len(os.sched_getaffinity(0)) < 2:
        raise SystemExit('two processes want two cores, and this one may use one: start it without taskset')
    bench.notes = {
        'trials': TRIALS, 'epochs': EPOCHS, 'versions': {'optuna': metadata.version('optuna')},
    }  # fmt: skip
    turn = itertools.count()
    with tempfile.TemporaryDirectory() as folder, bench.recording():
        variants = {'scaling': lambda: scaling(Path(folder), next(turn), quick=bench.quick)}
        bench.compare(variants, repeats=5, warmup=False)


if __name__ == '__main__':
    main()

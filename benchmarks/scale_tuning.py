"""What two processes bring to a search for settings: trials per hour, each trial on one core.

`tune_scaling`               trials per hour of two processes over those of one
`tune_trials_per_hour_<n>`   both, with the start of the processes
`tune_start_s`               from the call to the first trial, with two processes

The network and the digits are those of `examples/08_tuning.py`, trained for longer. Both searches draw the same trials;
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

import optuna
import torch
from harness import ROOT, Bench

import mmpipe as mm

sys.path.insert(0, str(ROOT / 'examples'))

Figures = dict[str, tuple[float, str]]
TRIALS, EPOCHS = 16, 600  # long enough that the start of the processes, which counts, is a small part


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


def search(folder: Path, processes: int, cores: list[int], *, quick: bool) -> tuple[float, float]:
    """Trials per hour of a search on as many cores as processes, and seconds until the first one began."""
    digits = example()
    trials = 4 if quick else TRIALS
    snapshot = digits.write(folder / f'digits{processes}')
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

"""What the processes of a search train: a function of a module, which they can import."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import torch
from torch import nn

import mmpipe as mm
from mmpipe.models import BareModel
from mmpipe.train import Callback, Trainer


def build(hidden):
    layers = nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, 3))
    return BareModel(layers, inputs='title', tasks=[mm.classification('kind', 3)])


def fit(root, trainer, *, hidden=4):
    """Train, and note in the trial's folder which process did, with what."""
    note = {
        'pid': os.getpid(), 'threads': torch.get_num_threads(), 'cores': sorted(os.sched_getaffinity(0)),
        'parent': os.getppid(), 'trial': int(Path(trainer.runs).name),
    }  # fmt: skip
    Path(trainer.runs).parent.mkdir(parents=True, exist_ok=True)
    with open(Path(trainer.runs).parent / 'processes.jsonl', 'a') as file:
        file.write(json.dumps(note) + '\n')
    snapshot = mm.open_snapshot(root)
    train, val = (mm.DataLoader(snapshot.split(name), batch_size=16, device='cpu') for name in ('train', 'val'))
    return trainer.fit(build, train, val, args={'hidden': hidden}, resume='auto')


def processes(folder):
    """The notes of all that trained in a study's folder."""
    return [json.loads(line) for line in (Path(folder) / 'trials' / 'processes.jsonl').read_text().splitlines()]


class Kill(Callback):
    """Kills its process at a step of one trial, as often as it is asked to.

    Args:
        trial: number.
        step: of its run.
        times: over all processes.
    """

    def __init__(self, trial, step, times):
        self.trial, self.step, self.times = trial, step, times

    def on_losses(self, run, step, losses):
        parts = run.path.parts
        folder = Path(*parts[: parts.index('trials') + 2])
        killed = folder / 'killed'
        done = len(killed.read_text()) if killed.exists() else 0
        if folder.name == f'{self.trial:04d}' and step == self.step and done < self.times:
            killed.write_text('x' * (done + 1))
            os.kill(os.getpid(), signal.SIGKILL)


class Stay(Callback):
    """Says, in a folder, that a trial trains."""

    def __init__(self, folder):
        self.folder = folder

    def on_losses(self, run, step, losses):
        (Path(self.folder) / f'trains-{os.getpid()}').touch()


def trainer(**settings):
    return Trainer(**{'epochs': 2, 'log_every': 1, 'checkpoint_every': 2, **settings})

"""Trainings and saves that are killed at random, and what is left of them.

The parent imports everything once and forks; a child is ready at once, and is killed by SIGKILL. It must have no thread
when it forks, so this runs as a program of its own:

    python benchmarks/training_kills.py steps COUNT SEED FOLDER     a training that goes on, bit for bit
    python benchmarks/training_kills.py saves COUNT SEED FOLDER     saves that leave the old checkpoint or the new one

and prints a JSON object.
"""

from __future__ import annotations

import functools
import json
import os
import random
import select
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from training_noise import noisy

import mmpipe as mm
from mmpipe.runs import Run, create_run, open_run
from mmpipe.shards import Block, Field, write_snapshot
from mmpipe.train.checkpoint import load_checkpoint, save_checkpoint, save_in_pieces
from mmpipe.train.writing import Writing

ROWS, BATCH, ACCUMULATE = 60, 6, 2
STEPS_PER_EPOCH = ROWS // BATCH // ACCUMULATE
WORKERS = 2
PATIENCE_S = 60.0


def made_rows(folder: Path) -> Any:
    """Images with a class and a price, each missing here and there."""
    rng = np.random.default_rng(0)
    fields = [
        Field(name='photo', kind='tensor', dtype='uint8', shape=(3, 16, 16)),
        Field(name='kind', kind='label', vocabulary=('cup', 'hat', 'map')),
        Field(name='price', kind='scalar', dtype='float32'),
    ]
    kinds = rng.integers(3, size=ROWS)
    photos = (
        rng.integers(0, 100, size=(ROWS, 3, 16, 16), dtype=np.uint8)
        + (50 * kinds).astype(np.uint8)[:, None, None, None]
    )
    columns: dict[str, list[Any]] = {
        'photo': [photo if rng.random() > 0.1 else None for photo in photos],
        'kind': [('cup', 'hat', 'map')[kind] if rng.random() > 0.2 else None for kind in kinds],
        'price': [float(10 * kind + rng.normal()) if rng.random() > 0.2 else None for kind in kinds],
    }
    return write_snapshot(folder, fields, Block(keys=[f'{i:04}' for i in range(ROWS)], columns=columns)).rows()


def build() -> nn.Module:
    """With dropout of rows, features and modalities."""
    return mm.MultitaskModel(
        encoders={'photo': mm.encoders.image(8, width=8)},
        tasks=[mm.classification('kind', ('cup', 'hat', 'map')), mm.regression('price')],
        hidden=16,
        dropout=0.3,
        modality_dropout=0.2,
    )


def train(rows: Any, runs: Path, epochs: int, told: Callable[[int], None]) -> Run:
    """Train to the end, going on where a run of this name was killed; tell each step when it is taken."""
    loader = mm.DataLoader(
        rows, batch_size=BATCH, shuffle=True, seed=5, device='cpu', num_workers=WORKERS,
        host_transforms={'photo': noisy}, transforms={'photo': mm.transforms.image(crop=12, flip=True)},
    )  # fmt: skip
    trainer = mm.Trainer(
        epochs=epochs, runs=runs, accumulate=ACCUMULATE, schedule='cosine', warmup=3, checkpoint_every=2,
        checkpoint_seconds=None, log_every=1, seed=7, ema=0.9, clip=1.0,
        progress=lambda stage, done, total, unit: told(done),
    )  # fmt: skip
    return trainer.fit(build, loader, name='killed', resume='auto')


def child_of(work: Callable[[Callable[[int], None]], None]) -> tuple[int, int]:
    """Fork a process that does some work: its number, and a pipe to which it tells its steps, 4 bytes each."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(read)
            torch.set_num_threads(1)
            work(lambda step: os.write(write, step.to_bytes(4, 'little')) and None)
            status = 0
        finally:
            os._exit(status)
    os.close(write)
    return child, read


def killed_steps(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill one training `count` times at random steps, each time going on; compare it with one that never was.

    Returns:
        Kills that found it working, losses that were compared and those that were equal to the last bit, and whether
        the weights, the optimizer and the averages at the end were.
    """
    rng = random.Random(seed)
    rows = made_rows(folder / 'rows')
    epochs = -(-3 * count // STEPS_PER_EPOCH) + 2  # some three steps forward from kill to kill
    kills = starts = 0
    while True:
        ahead = rng.randrange(1, 8) if kills < count else 1 << 30
        child, told = child_of(lambda tell: train(rows, folder / 'killed', epochs, tell))
        starts += 1
        seen = 0
        deadline = time.monotonic() + PATIENCE_S
        while seen < ahead:
            if not select.select([told], [], [], max(deadline - time.monotonic(), 0))[0]:
                raise TimeoutError(f'start {starts} told no step for {PATIENCE_S} s')
            if not os.read(told, 4):  # it ended, or failed
                break
            seen += 1
            deadline = time.monotonic() + PATIENCE_S
        if seen == ahead:
            time.sleep(rng.uniform(0, 0.01))  # anywhere in a step, or in a save
            os.kill(child, signal.SIGKILL)
        os.close(told)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            kills += 1
        elif os.WEXITSTATUS(status):
            raise RuntimeError(f'start {starts} failed with {os.WEXITSTATUS(status)}')
        else:
            break
    killed, whole = open_run('killed', runs=folder / 'killed'), train(rows, folder / 'whole', epochs, lambda _: None)
    ours, theirs = killed.history(), whole.history()
    files = sorted(path.name for path in whole.checkpoint().glob('*.safetensors'))
    return {
        'kills': kills,
        'lines': len(theirs),
        'equal': sum(a == b for a, b in zip(ours, theirs, strict=False)) if len(ours) == len(theirs) else 0,
        'files': {
            name: (killed.checkpoint() / name).read_bytes() == (whole.checkpoint() / name).read_bytes()
            for name in files
        },
    }


def made(width: int) -> tuple[nn.Module, torch.optim.Optimizer, dict[str, nn.Module]]:
    """A model with another part beside it, and an optimizer that has taken a step."""
    model, parts = nn.Linear(width, width), {'average': nn.Linear(width, 1)}
    optimizer = torch.optim.AdamW([*model.parameters(), *parts['average'].parameters()])
    stepped(model, parts, optimizer)
    return model, optimizer, parts


def stepped(model: nn.Module, parts: dict[str, nn.Module], optimizer: torch.optim.Optimizer) -> None:
    """One step of anything."""
    width = next(model.parameters()).shape[1]
    parts['average'](model(torch.randn(4, width))).sum().backward()
    optimizer.step()


def save_until_killed(run: Run, width: int, *, in_pieces: bool) -> None:
    """Train and save, for ever."""
    model, optimizer, parts = made(width)
    number, writing = 1, Writing()
    while True:
        number += 1
        stepped(model, parts, optimizer)
        if in_pieces:  # written while the next step is taken
            save_in_pieces(run, model, optimizer, {'step': number}, parts=parts, writing=writing)
        else:
            save_checkpoint(run, model, optimizer, {'step': number}, parts=parts)


def killed_saves(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """Kill `count` processes while they save.

    Returns:
        Kills, those that left a checkpoint that loads (the old or the new one), and the steps of these.
    """
    rng, right, finished = random.Random(seed), 0, set()
    for number in range(count):
        run = create_run('saves', {'snapshot': {'id': 's'}}, runs=folder)
        width = rng.choice((4, 64, 256))
        model, optimizer, parts = made(width)
        save_checkpoint(run, model, optimizer, {'step': 1}, parts=parts)
        save = functools.partial(save_until_killed, run, width, in_pieces=number % 3 == 0)
        child, told = child_of(lambda tell, save=save: save())  # type: ignore[misc]
        deadline = time.monotonic() + PATIENCE_S
        while number % 2 and max(run.checkpoints()) == 1 and time.monotonic() < deadline:
            time.sleep(0.002)  # every second one is killed when it has saved before
        time.sleep(rng.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.close(told)
        os.waitpid(child, 0)
        found = open_run(run).checkpoints()
        newest = found[max(found)]
        state = load_checkpoint(run, newest, model, optimizer, parts=parts)
        right += state['step'] == max(found) == json.loads((newest / 'checkpoint.json').read_text())['about']['step']
        finished.add(max(found))
    return {'kills': count, 'right': right, 'steps': sorted(finished)}


def main(what: str, count: str, seed: str, folder: str) -> None:
    """The command."""
    torch.set_num_threads(1)
    killing = {'steps': killed_steps, 'saves': killed_saves}[what]
    print(json.dumps(killing(Path(folder), int(count), int(seed))))


if __name__ == '__main__':
    main(*sys.argv[1:])

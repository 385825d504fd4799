"""Four loops that train the same: `mm.Trainer`, one written by hand, and that one in Lightning Fabric and Accelerate.

The same model, optimizer, order, batches and losses, rows in memory, steps of some 20 ms. A machine's speed changes by
more than what is measured within seconds. So the loops take turns of 20 steps, in one process: the trainer stands in a
callback while the others, which are generators, do theirs. Each turn of a loop is compared with the turn of the loop by
hand beside it. Losses are compared as well: they must be equal to 1e-5, or nothing is told.
"""

from __future__ import annotations

import importlib.util
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import rotated
from torch import nn

import mmpipe as mm
from mmpipe.models import BareModel
from mmpipe.shards import Block, Field, write_snapshot
from mmpipe.train import Callback
from mmpipe.train.optimizer import make_optimizer
from mmpipe.train.random_numbers import borrowed_generators, seed_generators

FEATURES, CLASSES, BATCH = 512, 10, 128
STEP_S, WIDTHS = 0.02, (128, 192, 256, 384, 512, 640, 768, 1024, 1536)
READ_EVERY, TURN = 10, 20  # steps

Turns = Iterator[tuple[float, list[float]]]


class Network(nn.Module):
    """Layers of one width."""

    def __init__(self, width: int, depth: int = 6) -> None:
        super().__init__()
        sizes = [FEATURES, *[width] * depth]
        layers: list[nn.Module] = []
        for i, o in itertools.pairwise(sizes):
            layers += [nn.Linear(i, o), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, CLASSES))

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.layers(values)


def made_rows(folder: Path, turns: int) -> Any:
    """A snapshot of vectors with a class each, whose epoch is longer than so many turns and one before them."""
    rows, rng = BATCH * (TURN * (turns + 1) + 1), np.random.default_rng(0)
    kinds = rng.integers(0, CLASSES, rows)
    vectors = rng.normal(size=(rows, FEATURES)).astype(np.float32) + np.float32(0.1) * kinds[:, None].astype(np.float32)
    fields = [
        Field(name='vector', kind='tensor', dtype='float32', shape=(FEATURES,)),
        Field(name='kind', kind='label', vocabulary=tuple(f'k{i}' for i in range(CLASSES))),
    ]
    columns = {'vector': list(vectors), 'kind': [f'k{i}' for i in kinds]}
    return write_snapshot(folder, fields, Block(keys=[f'{i:06}' for i in range(rows)], columns=columns)).rows()


def build(width: int) -> nn.Module:
    torch.manual_seed(0)
    return BareModel(Network(width), inputs='vector', tasks=[mm.classification('kind', CLASSES)])


def loader_of(rows: Any) -> mm.DataLoader:
    return mm.DataLoader(rows, batch_size=BATCH, shuffle=True, seed=0, device='cpu')


def by_hand(rows: Any, width: int, wrap: Callable[..., Any] | None = None) -> Turns:
    """The loop that one would write: tensors in memory, an index per batch, AdamW, losses read every ten steps.

    Gives after each turn its seconds, and the losses that it read.
    """
    vectors, kinds = torch.from_numpy(rows.read('vector')[0]), torch.from_numpy(rows.read('kind')[0])
    with borrowed_generators(torch.device('cpu')):
        seed_generators(torch.device('cpu'), 0)
        model: Any = build(width)
    optimizer: Any = make_optimizer(model, lr=1e-3, weight_decay=0.01)
    backward: Callable[[torch.Tensor], Any] = torch.Tensor.backward
    if wrap is not None:
        model, optimizer, backward = wrap(model, optimizer)
    told: list[float] = []
    kept: list[torch.Tensor] = []
    model.train()
    began = time.perf_counter()
    for number, positions in enumerate(loader_of(rows).batches.global_steps(0), 1):
        index = torch.from_numpy(positions)
        batch = {'vector': vectors[index], 'kind': kinds[index]}
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(batch)['kind'], batch['kind'])
        backward(loss)
        optimizer.step()
        kept.append(loss.detach())
        if number % READ_EVERY == 0:
            told.append(float(torch.stack(kept).mean()))
            kept.clear()
        if number % TURN == 0:
            yield time.perf_counter() - began, told
            told = []
            began = time.perf_counter()


def with_fabric(model: nn.Module, optimizer: Any) -> Any:
    from lightning.fabric import Fabric

    fabric = Fabric(accelerator='cpu', devices=1)
    model, optimizer = fabric.setup(model, optimizer)
    return model, optimizer, fabric.backward


def with_accelerate(model: nn.Module, optimizer: Any) -> Any:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model, optimizer = accelerator.prepare(model, optimizer)
    return model, optimizer, accelerator.backward


class Taking(Callback):
    """Times the trainer's turns, and lets the other loops have theirs in between, in an order that changes."""

    def __init__(self, others: dict[str, Turns]) -> None:
        self.others = others
        self.seconds: dict[str, list[float]] = {name: [] for name in ('trainer', *others)}
        self.told: dict[str, list[float]] = {name: [] for name in ('trainer', *others)}
        self.began = 0.0

    def on_start(self, run: Any) -> None:
        self.began = time.perf_counter()

    def on_losses(self, run: Any, step: int, losses: Any) -> None:
        self.told['trainer'].append(losses['kind'])
        if step % TURN:
            return
        self.seconds['trainer'].append(time.perf_counter() - self.began)
        for name in rotated(list(self.others), step // TURN):
            seconds, told = next(self.others[name])
            self.seconds[name].append(seconds)
            self.told[name] += told
        self.began = time.perf_counter()


def overhead(rows: Any, turns: int, runs: Path, width: int) -> dict[str, tuple[float, str]]:
    """Seconds of a step of each loop, and the median share that each adds to the turns by hand beside its own."""
    others = {'by_hand': by_hand(rows, width)}
    if importlib.util.find_spec('lightning') is not None:
        others['fabric'] = by_hand(rows, width, with_fabric)
    if importlib.util.find_spec('accelerate') is not None:
        others['accelerate'] = by_hand(rows, width, with_accelerate)
    taking = Taking(others)
    trainer = mm.Trainer(
        epochs=1, max_steps=TURN * (turns + 1), lr=1e-3, log_every=READ_EVERY, runs=runs, callbacks=[taking],
        checkpoint_seconds=None,
    )  # fmt: skip
    trainer.fit(build, loader_of(rows), args={'width': width}, name='loops')
    hand = taking.seconds['by_hand'][1:]  # the first turn warms up
    found: dict[str, tuple[float, str]] = {}
    for name, told in taking.told.items():
        if not np.allclose(told, taking.told['by_hand'], rtol=1e-5):
            raise ValueError(f'{name} trains something else: {told[-3:]}, and by hand {taking.told["by_hand"][-3:]}')
        seconds = taking.seconds[name][1:]
        found[f'{name}_step_ms'] = (1000 * statistics.median(seconds) / TURN, 'ms')
        if name != 'by_hand':
            ratios = [mine / theirs for mine, theirs in zip(seconds, hand, strict=True)]
            found[f'{name}_overhead'] = (statistics.median(ratios) - 1, 'of a step')
    return found


def fitting_width(rows: Any) -> int:
    """The width whose steps take some 20 ms here."""

    def step_s(width: int) -> float:
        return next(by_hand(rows, width))[0] / TURN

    return min(WIDTHS, key=lambda width: abs(step_s(width) - STEP_S))

"""What training costs beside plain PyTorch, and what its techniques give; several figures of `techniques.py` besides.

`trainer_overhead`         seconds of a step of `mm.Trainer` over those of a loop written by hand, less 1 (see
                           `training_loops.py`)
`fabric_overhead`, `accelerate_overhead`   the same of Lightning Fabric and Accelerate around the loop by hand, where
                           they are installed
`bf16_speedup`             steps per second of a ResNet in bf16 over float32, on a CPU that has avx512_bf16
`multitask_cost_ratio`     seconds of a step with five tasks over one, the higher of a frozen and a trainable encoder
`multitask_memory_ratio`   the same of the bytes that a step saves for its backward pass
`checkpointing_memory_saved`     share of a step's saved bytes that activation checkpointing per block leaves out, of a
                           transformer of 12 blocks (`..._selective`: products of matrices and attention stay);
                           gradients are compared and must be equal
`cached_features_speedup`  seconds of an epoch through a frozen ResNet over one on its features (`mm.embed`), whose
                           validation metrics must be the same; an epoch on features with its evaluation
`resume_kills_bitwise`     of 100 SIGKILLs at random steps of one training with augmentation, dropout, accumulation and
                           two worker processes: share of its losses that equal those of one that was never killed
`save_kills_ok`            of 100 processes killed while they save: those that left the old checkpoint or the new one

    python benchmarks/training.py [--quick] [--repeats N] [--json] [--out DIR]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent))

from harness import Bench  # noqa: E402
from techniques import HAS_BF16, batch_of, images_snapshot, transformer  # noqa: E402
from training_loops import BATCH, FEATURES, TURN, WIDTHS, fitting_width, made_rows, overhead  # noqa: E402

import mmpipe as mm  # noqa: E402
from mmpipe.train import Callback  # noqa: E402
from mmpipe.train.balancing import Balancing  # noqa: E402
from mmpipe.train.optimizer import make_optimizer  # noqa: E402
from mmpipe.train.recompute import forget_blocks, saved_bytes  # noqa: E402
from mmpipe.train.step import Stepper  # noqa: E402
from mmpipe.train.strategy import Replicated  # noqa: E402

WANTED = {
    'trainer_overhead': 'at most 0.02',
    'bf16_speedup': 'at least 1.3, on a CPU with avx512_bf16',
    'multitask_cost_ratio': 'below 1.3',
    'multitask_memory_ratio': 'below 1.3',
    'checkpointing_memory_saved': 'at least 0.35',
    'cached_features_speedup': 'at least 20',
    'resume_kills_bitwise': '1, of 100 kills',
    'save_kills_ok': '100 of 100',
}
CLASSES = 10
STEPS, TURNS = 10, 10


def resnet_steps(precision: str, steps: int) -> float:
    """Seconds of a step of timm's ResNet-18 on 32 images of 64 pixels, as the trainer takes it."""
    task = mm.classification('kind', CLASSES)
    model = mm.MultitaskModel(encoders={'photo': mm.encoders.timm('resnet18')}, tasks=[task])
    model.to(memory_format=torch.channels_last)
    stepper = Stepper(
        model, [task], make_optimizer(model, lr=1e-3, weight_decay=0.01), balancing=Balancing(), strategy=Replicated(),
        device=torch.device('cpu'), precision=precision, channels_last=True,
    )  # fmt: skip
    batch = {
        'photo': torch.randn(32, 3, 64, 64), 'kind': torch.arange(32) % CLASSES, '_key': ['k'] * 32,
        '_mask': {'kind': torch.ones(32, dtype=torch.bool)}, '_present': {'photo': np.arange(32)},
    }  # fmt: skip
    return seconds_of(stepper, batch, [32.0], steps)[0]


def seconds_of(stepper: Stepper, batch: dict[str, Any], counts: list[float], steps: int) -> tuple[float, int]:
    """Seconds of a step, and bytes that its forward pass saves for the backward pass."""
    saved: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        stepper([batch], counts, factor=1.0)
    parameters = {p.untyped_storage().data_ptr() for p in stepper.parameters}
    started = time.perf_counter()
    for _ in range(steps):
        stepper([batch], counts, factor=1.0)
    took = (time.perf_counter() - started) / steps
    return took, sum(size for at, size in saved.items() if at not in parameters)


def tasks_steps(count: int, *, frozen: bool, steps: int) -> tuple[float, int]:
    """A step with so many tasks on one encoder; every row has every label."""
    tasks = [mm.classification(f't{i}', CLASSES) for i in range(count)]
    model = mm.MultitaskModel(encoders={'photo': mm.encoders.timm('resnet18')}, tasks=tasks)
    model.freeze('encoders' if frozen else None)
    model.train()
    stepper = Stepper(
        model, tasks, make_optimizer(model, lr=1e-3, weight_decay=0.01), balancing=Balancing(), strategy=Replicated(),
        device=torch.device('cpu'),
    )  # fmt: skip
    batch: dict[str, Any] = {'photo': torch.randn(32, 3, 64, 64), '_key': ['k'] * 32, '_mask': {}}
    for task in tasks:
        batch[task.field] = torch.arange(32) % CLASSES
        batch['_mask'][task.field] = torch.ones(32, dtype=torch.bool)
    return seconds_of(stepper, batch, [32.0] * count, steps)


def multitask(steps: int) -> dict[str, tuple[float, str]]:
    found: dict[str, tuple[float, str]] = {}
    for name, frozen in (('frozen', True), ('trainable', False)):
        one, one_bytes = tasks_steps(1, frozen=frozen, steps=steps)
        five, five_bytes = tasks_steps(5, frozen=frozen, steps=steps)
        found[f'multitask_cost_ratio_{name}'] = (five / one, 'ratio')
        found[f'multitask_memory_ratio_{name}'] = (five_bytes / one_bytes, 'ratio')
    for what in ('cost', 'memory'):
        both = [found[f'multitask_{what}_ratio_{name}'][0] for name in ('frozen', 'trainable')]
        found[f'multitask_{what}_ratio'] = (max(both), 'ratio')
    return found


def checkpointing() -> dict[str, tuple[float, str]]:
    """Bytes that a forward pass leaves for the backward pass, and gradients, with and without."""
    saved, gradients = {}, {}
    for name, chosen in (('plain', False), ('blocks', True), ('selective', 'matmuls')):
        torch.manual_seed(0)
        tasks = [mm.classification('t0', CLASSES)]
        model = transformer(tasks).train()
        if chosen:
            forget_blocks(model, chosen)
        batch = batch_of(tasks)

        def forward(model: Any = model, batch: Any = batch) -> torch.Tensor:
            torch.manual_seed(1)  # of dropout behind the fusion
            return nn.functional.cross_entropy(model(batch)['t0'], batch['t0'])

        saved[name] = saved_bytes(forward)
        forward().backward()
        gradients[name] = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    for name in ('blocks', 'selective'):
        if not all(torch.equal(a, b) for a, b in zip(gradients[name], gradients['plain'], strict=True)):
            raise ValueError(f'activation checkpointing ({name}) changes gradients')
    return {
        'checkpointing_memory_saved': (1 - saved['blocks'] / saved['plain'], 'of the saved bytes'),
        'checkpointing_memory_saved_selective': (1 - saved['selective'] / saved['plain'], 'of the saved bytes'),
    }


class Epochs(Callback):
    """When epochs ended."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_epoch(self, run: Any, epoch: int, metrics: Any) -> None:
        self.at.append(time.perf_counter())


def resnet_model() -> nn.Module:
    return mm.MultitaskModel(
        encoders={'photo': mm.encoders.timm('resnet18')}, tasks=[mm.classification('kind', CLASSES)]
    )


def cached(folder: Path, rows_count: int) -> dict[str, tuple[float, str]]:
    """The same heads on the same rows, through the frozen encoder and on its features."""
    rows, runs = images_snapshot(folder / f'images{rows_count}', rows_count), folder / 'runs'
    base = mm.Trainer(max_steps=1, runs=runs).fit(resnet_model, mm.DataLoader(rows, batch_size=64, device='cpu'))
    took, metrics = {}, {}
    for name in ('through', 'cached'):
        given = mm.embed(base, mm.DataLoader(rows, batch_size=64, device='cpu'), folder=folder / 'features')
        chosen = given if name == 'cached' else rows
        train = mm.DataLoader(chosen, batch_size=64, shuffle=True, seed=1, device='cpu')
        epochs = Epochs()
        trainer = mm.Trainer(epochs=3, runs=runs, callbacks=[epochs], checkpoint_seconds=None)
        tasks = [mm.classification('kind', CLASSES)]
        factory = mm.transfer(base, tasks=tasks, cached=name == 'cached')
        run = trainer.fit(factory, train, mm.DataLoader(chosen, batch_size=64, device='cpu'), name=name)
        took[name] = (epochs.at[-1] - epochs.at[0]) / 2
        metrics[name] = run.metrics['kind']
    if abs(metrics['cached']['loss'] - metrics['through']['loss']) > 1e-3 * metrics['through']['loss']:
        raise ValueError(f'features train something else: {metrics}')
    return {'cached_features_speedup': (took['through'] / took['cached'], 'ratio')}


def kills(count: int) -> dict[str, tuple[float, str]]:
    """See `training_kills.py`."""
    found = {}
    for what in ('steps', 'saves'):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(HERE / 'training_kills.py'), what, str(count), '1', folder]
            environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        found[what] = json.loads(done.stdout)
    steps, saves = found['steps'], found['saves']
    bitwise = steps['equal'] / steps['lines'] if all(steps['files'].values()) else 0.0
    return {
        'resume_kills_bitwise': (bitwise, f'of the losses after {steps["kills"]} kills'),
        'save_kills_ok': (saves['right'], f'of {saves["kills"]}'),
    }


def precision(steps: int) -> dict[str, tuple[float, str]]:
    return {'bf16_speedup': (resnet_steps('fp32', steps) / resnet_steps('bf16', steps), 'ratio')}


def main() -> None:
    """The command."""
    bench = Bench.from_arguments('training', __doc__)
    torch.set_num_threads(1)
    steps, turns = (2, 1) if bench.quick else (STEPS, TURNS)
    bench.notes = {'wanted': WANTED, 'bf16': HAS_BF16}
    with tempfile.TemporaryDirectory() as folder, bench.recording():
        rows = made_rows(Path(folder) / 'rows', turns)
        width = WIDTHS[0] if bench.quick else fitting_width(rows)
        bench.notes['loops'] = {'features': FEATURES, 'batch': BATCH, 'width': width, 'turn': TURN, 'turns': turns}
        runs = Path(folder) / 'runs'
        bench.compare(
            {
                'loops': lambda: overhead(rows, turns, runs, width),
                **({'precision': lambda: precision(steps)} if HAS_BF16 else {}),
                'multitask': lambda: multitask(steps),
            },
            repeats=7,
        )
        rows_count = 64 if bench.quick else 512
        bench.compare({'cached': lambda: cached(Path(folder), rows_count)}, repeats=5, warmup=False)
        count = 1 if bench.quick else 100
        once = {'checkpointing': checkpointing, 'kills': lambda: kills(count)}
        bench.compare(once, repeats=1, warmup=False)


if __name__ == '__main__':
    main()

"""What several processes compute against what one does, and what the input costs them.

A vision transformer of timm (5.5 million parameters) with two tasks on scikit-learn's digits at 64 x 64 pixels, every
seventh image and a third of the labels of each task missing; five steps of SGD with momentum. Each way of spreading
takes them under torchrun with gloo, and so does one process with the same micro-batches and precision. Compared are
losses and the gradient of the last step: |one - spread| / |one|, of the gradient by its norm over all parameters.

`parity_max_rel_fp32`, `parity_max_rel_bf16`   the largest of all ways and steps
`parity_loss_<precision>`                      the largest of losses alone
`parity_noise_bf16`                            one process with bf16 beside one process with fp32: what rounding does
`parity_halves_bf16`                           one process that adds the halves of the products which two cut, each
                                               rounded, beside one that does not: what rounding adds to 'tensor'
`parity_<way>_<precision>`                     of one way
`parity_worst_tensor_fp32`                     of gradients by the norm of each parameter; those that are rounding
                                               noise (below 1e-6 of the whole) left out
`parity_same_keys`                             ways whose steps had the sample keys of one process, of all
`dp_input_overhead`                            share of the time of two ranks that goes into waiting for data
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import mmpipe as mm
from mmpipe.models.spread import held_of, union, whole_of
from mmpipe.runs import open_run
from mmpipe.shards import Block, Field, write_snapshot
from mmpipe.train import Callback

Figures = dict[str, tuple[float, str]]
BF16 = torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
SIDE, STEPS, BATCH = 64, 5, 32
WAYS: dict[str, tuple[int, dict[str, Any]]] = {
    'ddp': (2, {}),
    'fsdp': (2, {'dp_shard': 2}),
    'tensor': (2, {'tp': 2}),
    'pipeline': (2, {'pp': 2}),
    'hybrid': (4, {'dp_replicate': 2, 'dp_shard': 2}),
    'data_x_tensor': (4, {'dp_replicate': 2, 'tp': 2}),
    'shards_x_tensor': (4, {'dp_shard': 2, 'tp': 2}),
    'data_x_pipeline': (4, {'dp_replicate': 2, 'pp': 2}),
}
kept: dict[str, Any] = {}


def figures(*, quick: bool) -> Figures:
    """All figures of several processes.

    Args:
        quick: two ways, to see it run.
    """
    ways = {way: WAYS[way] for way in ('fsdp', 'pipeline') if way in WAYS} if quick else WAYS
    found: Figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder / 'shards', 512)
        worst_tensor, same, ones = 0.0, [], {}
        for precision in ('fp32', 'bf16') if BF16 and not quick else ('fp32',):
            spawn(folder, 'one', 1, {}, precision=precision)
            one = ones[precision] = read(folder / f'one-{precision}')
            most = loss = 0.0
            for way, (processes, sizes) in ways.items():
                spawn(folder, way, processes, sizes, precision=precision)
                losses, tensors, keys = read(folder / f'{way}-{precision}')
                apart = max(_apart(losses, one[0]), _norm(one[1], tensors) / _norm(one[1]))
                found[f'parity_{way}_{precision}'] = (apart, 'relative')
                most, loss = max(most, apart), max(loss, _apart(losses, one[0]))
                same.append(keys == one[2])
                if precision == 'fp32':
                    worst_tensor = max(worst_tensor, _worst(one[1], tensors))
            found[f'parity_max_rel_{precision}'] = (most, 'relative')
            found[f'parity_loss_{precision}'] = (loss, 'relative')
        if 'bf16' in ones:
            low, full = ones['bf16'], ones['fp32']
            spawn(folder, 'halves', 1, {}, precision='bf16')
            halves = read(folder / 'halves-bf16')
            for name, beside, other in (('noise', full, low), ('halves', low, halves)):
                apart = max(_apart(other[0], beside[0]), _norm(beside[1], other[1]) / _norm(beside[1]))
                found[f'parity_{name}_bf16'] = (apart, 'relative')
        found['parity_worst_tensor_fp32'] = (worst_tensor, 'relative')
        found['parity_same_keys'] = (sum(same), f'of {len(same)}')
        found['dp_input_overhead'] = (input_overhead(folder, rounds=1 if quick else 3, quick=quick), 'of a step')
    return found


def input_overhead(folder: Path, *, rounds: int, quick: bool) -> float:
    """The median of rounds, each the most that a rank of two waited."""
    shares = []
    for number in range(rounds):
        spawn(folder, f'input{number}', 2, {}, precision='fp32', steps=8 if quick else 60)
        shares.append(open_run(f'input{number}', runs=folder / 'runs').record['data_wait_percent'] / 100)
    return statistics.median(shares)


def spawn(folder: Path, way: str, processes: int, sizes: dict[str, Any], *, precision: str, steps: int = STEPS) -> None:
    """Take the steps in processes of their own."""
    asked = json.dumps({'way': way, 'sizes': sizes, 'precision': precision, 'steps': steps})
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(processes)]
    done = subprocess.run(
        [*command, __file__, str(folder), asked],
        env={**os.environ, 'OMP_NUM_THREADS': '1'}, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f'{way}: {done.stderr[-3000:]}')


def write(folder: Path, rows: int) -> None:
    """Digits as uint8 [3, SIDE, SIDE], their classes, and the share of ink."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = digits.images[:rows] / 16
    large = torch.nn.functional.interpolate(torch.tensor(images)[:, None], size=(SIDE, SIDE), mode='bilinear')
    pixels = (large * 255).to(torch.uint8).expand(-1, 3, -1, -1).numpy()
    columns = {
        'photo': [None if i % 7 == 3 else image for i, image in enumerate(pixels)],
        'digit': [None if i % 3 == 0 else str(target) for i, target in enumerate(digits.target[:rows])],
        'ink': [None if i % 3 == 1 else float(image.mean()) for i, image in enumerate(images)],
    }
    fields = [
        Field(name='photo', kind='tensor', dtype='uint8', shape=(3, SIDE, SIDE)),
        Field(name='digit', kind='label', vocabulary=tuple('0123456789')),
        Field(name='ink', kind='scalar', dtype='float32'),
    ]
    keys = [f'{i:05}' for i in range(rows)]
    write_snapshot(folder, fields, Block(keys=keys, columns=columns, splits=['train'] * rows))


def build(halves: bool = False) -> mm.MultitaskModel:
    encoder = mm.encoders.timm('vit_tiny_patch16_224', img_size=SIDE)
    for name, style in encoder.tensor_plan().items() if halves else ():
        in_halves(encoder.get_submodule(name), by_rows=type(style).__name__ == 'RowwiseParallel')
    model = mm.MultitaskModel(
        encoders={'photo': encoder}, tasks=[mm.classification('digit', 10), mm.regression('ink')], dropout=0.0
    )
    kept['model'], kept['keys'] = model, []
    model.register_forward_pre_hook(lambda module, inputs: kept['keys'].extend(inputs[0]['_key']))
    return model


def in_halves(layer: torch.nn.Linear, *, by_rows: bool) -> None:
    """Let it compute what each of two processes would, and put that together."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        if by_rows:
            pairs = zip(x.chunk(2, -1), layer.weight.chunk(2, 1), strict=True)
            return sum(torch.nn.functional.linear(part, weight) for part, weight in pairs) + layer.bias
        pairs = zip(layer.weight.chunk(2), layer.bias.chunk(2), strict=True)
        return torch.cat([torch.nn.functional.linear(x, weight, bias) for weight, bias in pairs], dim=-1)

    layer.forward = forward


class Losses(Callback):
    """Keeps them."""

    def on_losses(self, run: Any, step: int, losses: Any) -> None:
        kept.setdefault('losses', []).append([losses[name] for name in sorted(losses)])


def take(folder: Path, way: str, sizes: dict[str, Any], precision: str, steps: int) -> None:
    """What each process does."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group('gloo')
    # AdamW would make steps of the rate's size of gradients that are rounding noise; input is measured with it.
    optimizer = functools.partial(torch.optim.SGD, lr=1e-3, momentum=0.9) if steps == STEPS else None
    # Two micro-batches in each step, so that one process computes the same as two stages.
    train = mm.DataLoader(
        mm.open_snapshot(str(folder / 'shards')).split('train'), global_batch_size=BATCH // 2, shuffle=True,
        device='cpu', pad_last=True, transforms={'photo': mm.transforms.image(resize=SIDE)},
    )  # fmt: skip
    trainer = mm.Trainer(
        epochs=20, max_steps=steps, accumulate=2, log_every=1, optimizer=optimizer, precision=precision,
        callbacks=[Losses()], parallel=mm.Parallel(**sizes), checkpoint_seconds=None, runs=folder / 'runs',
    )  # fmt: skip
    trainer.fit(build, train, args={'halves': way == 'halves'}, name=way if steps != STEPS else f'{way}-{precision}')
    model = kept['model']
    gradients = {
        name: whole_of(parameter.grad).detach() for name, parameter in model.named_parameters()
        if parameter.grad is not None
    }  # fmt: skip
    held = held_of(model)
    if held is not None:
        gradients = union(gradients, held, keep=True)
    keys: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(keys, kept['keys'])
    if torch.distributed.get_rank() == 0:
        target = folder / (way if steps != STEPS else f'{way}-{precision}')
        target.mkdir()
        np.savez(target / 'gradients.npz', **{name: value.float().numpy() for name, value in gradients.items()})
        seen = sorted({key for rank in keys for key in rank})
        (target / 'seen.json').write_text(json.dumps({'losses': kept['losses'], 'keys': seen}))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def read(folder: Path) -> tuple[list[list[float]], dict[str, np.ndarray], list[str]]:
    """Losses by step, gradients by name, and the keys of the rows."""
    seen = json.loads((folder / 'seen.json').read_text())
    with np.load(folder / 'gradients.npz', allow_pickle=False) as found:
        return seen['losses'], dict(found), seen['keys']


def _apart(found: list[list[float]], wanted: list[list[float]]) -> float:
    assert len(found) == len(wanted) == STEPS
    return float(np.max(np.abs(np.array(found) - np.array(wanted)) / np.abs(np.array(wanted))))


def _norm(one: dict[str, np.ndarray], other: dict[str, np.ndarray] | None = None) -> float:
    """Of a gradient, or of what two differ by."""
    assert other is None or one.keys() == other.keys(), sorted(set(one) ^ set(other))
    apart = [one[name] - (0 if other is None else other[name]) for name in one]
    return float(np.sqrt(sum(np.square(each.astype(float)).sum() for each in apart)))


def _worst(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> float:
    whole = _norm(one)
    large = [name for name in one if np.linalg.norm(one[name]) > 1e-6 * whole]
    return max(float(np.linalg.norm(one[name] - other[name]) / np.linalg.norm(one[name])) for name in large)


if __name__ == '__main__':
    asked = json.loads(sys.argv[2])
    take(Path(sys.argv[1]), asked['way'], asked['sizes'], asked['precision'], asked['steps'])

"""What each technique of training does to time and memory: with it over without it, taking turns.

Time is seconds of an optimizer step, memory the most bytes that a step holds at a time (weights, gradients, optimizer
and activations), both as ratios: below 1 is less. Rows whose technique changes something else say what.

`optimizer`             fused AdamW, over torch's AdamW in a loop over the parameters
`mixed_precision`       bf16 autocast, on a device that has instructions for it
`channels_last`         layout of images and weights of convolutions
`both_of_them`          bf16 and channels last
`compile`               `torch.compile`, after its warm-up; `compile_warmup_s` is that
`accumulation`          four batches of 8 images over one of 32, the same effective batch
`recompute_blocks`      activation checkpointing per block, of timm's ViT of 12 blocks
`recompute_selective`   the same, keeping products of matrices and attention
`clip`                  the gradient's norm
`ema`                   averaged weights
`uncertainty`           two losses balanced by their uncertainty, over fixed weights
`frozen_encoder`        heads alone are trained
`max_batch`             peak of the batch that the finder says fits, of the limit; `max_batch_search_s` is what it took
`initialisation`        activations' standard deviation behind 16 layers of ReLU over before: He's, and torch's default
`created_on_device`     bytes made on the host while a model of 11 million parameters is built on another device
`normalise_on_device`   seconds of a batch that crosses as bytes and is normalised there, over one normalised before;
                        memory: bytes that cross
`workers`               seconds of a batch of decoded JPEG with reading threads, over none
`pin_memory`            a copy to the device out of page-locked memory over any; on CUDA alone

    python benchmarks/techniques.py [--quick] [--repeats N] [--json] [--out DIR]
"""

from __future__ import annotations

import functools
import io
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent))

from harness import Bench  # noqa: E402

import mmpipe as mm  # noqa: E402
from mmpipe.shards import Block, Field, write_snapshot  # noqa: E402
from mmpipe.train.average import Average  # noqa: E402
from mmpipe.train.balancing import make_balancing  # noqa: E402
from mmpipe.train.compiling import compile_parts  # noqa: E402
from mmpipe.train.max_batch import allocated_bytes, held_bytes  # noqa: E402
from mmpipe.train.optimizer import make_optimizer  # noqa: E402
from mmpipe.train.recompute import forget_blocks  # noqa: E402
from mmpipe.train.step import Stepper  # noqa: E402
from mmpipe.train.strategy import Replicated  # noqa: E402

Figures = dict[str, tuple[float, str]]
CPU = torch.device('cpu')
CPUINFO = Path('/proc/cpuinfo')
DEVICE = torch.accelerator.current_accelerator() or CPU if torch.cuda.is_available() else CPU
# Without its instructions a CPU computes bf16 many times slower than float32, which nobody would use.
HAS_BF16 = DEVICE.type == 'cuda' or (CPUINFO.exists() and 'avx512_bf16' in CPUINFO.read_text())
IMAGES, SIDE, CLASSES = 32, 64, 10


def resnet(tasks: Sequence[Any]) -> mm.MultitaskModel:
    return mm.MultitaskModel(encoders={'photo': mm.encoders.timm('resnet18')}, tasks=tasks)


def transformer(tasks: Sequence[Any]) -> mm.MultitaskModel:
    """timm's smallest ViT: 12 blocks of width 192, here over 65 tokens."""
    encoder = mm.encoders.timm('vit_tiny_patch16_224', img_size=SIDE, patch_size=8)
    return mm.MultitaskModel(encoders={'photo': encoder}, tasks=tasks)


def batch_of(tasks: Sequence[Any], rows: int = IMAGES) -> dict[str, Any]:
    """Every row has everything."""
    batch: dict[str, Any] = {
        'photo': torch.randn(rows, 3, SIDE, SIDE, device=DEVICE), '_key': ['k'] * rows,
        '_present': {'photo': np.arange(rows)}, '_mask': {},
    }  # fmt: skip
    for task in tasks:
        batch[task.field] = torch.arange(rows, device=DEVICE) % CLASSES
        batch['_mask'][task.field] = torch.ones(rows, dtype=torch.bool, device=DEVICE)
    return batch


class Training:
    """A model that can take steps, in one way or another."""

    def __init__(
        self,
        make: Callable[[Sequence[Any]], mm.MultitaskModel] = resnet,
        *,
        count: int = 1,
        accumulate: int = 1,
        balancing: str = 'fixed',
        recompute: bool | str = False,
        compiled: bool = False,
        ema: float | None = None,
        freeze: str | None = None,
        optimizer: Callable[..., torch.optim.Optimizer] | None = None,
        **options: Any,
    ) -> None:
        torch.manual_seed(0)
        tasks = [mm.classification(f't{i}', CLASSES) for i in range(count)]
        self.model = make(tasks).to(DEVICE)
        self.model.freeze(freeze)
        self.model.train()
        if options.get('channels_last'):
            self.model.to(memory_format=torch.channels_last)
        if recompute:
            forget_blocks(self.model, recompute)
        if compiled:
            compile_parts(self.model)
        chosen = make_balancing(balancing, tasks).to(DEVICE)
        trained = nn.ModuleDict({'model': self.model, 'balancing': chosen})
        self.stepper = Stepper(
            self.model, tasks, make_optimizer(trained, lr=1e-4, weight_decay=0.01, factory=optimizer),
            balancing=chosen, strategy=Replicated(), device=DEVICE, **options,
        )  # fmt: skip
        self.average = None if ema is None else Average(self.model, decay=ema)
        self.batches = [batch_of(tasks, IMAGES // accumulate) for _ in range(accumulate)]
        self.counts = [float(IMAGES)] * count

    def step(self) -> None:
        self.stepper(list(self.batches), self.counts, factor=1.0)
        if self.average is not None:
            self.average.update()

    def seconds(self, steps: int) -> float:
        self.step()
        settled()
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        settled()
        return (time.perf_counter() - started) / steps

    def bytes(self) -> int:
        """Held at most during a step; on the CPU as the profiler counts allocations."""
        if DEVICE.type == 'cuda':
            torch.cuda.reset_peak_memory_stats()
            self.step()
            return torch.cuda.max_memory_allocated()
        optimizer = self.stepper.optimizer
        state = sum(v.nbytes for s in optimizer.state.values() for v in s.values() if isinstance(v, torch.Tensor))
        average = 0 if self.average is None else held_bytes(self.average.model)
        return held_bytes(self.model) + state + average + allocated_bytes(self.step)


def settled() -> None:
    if DEVICE.type == 'cuda':
        torch.cuda.synchronize()


def effect(name: str, steps: int, without: Mapping[str, Any], **changed: Any) -> Figures:
    """A training with a technique over one without it."""
    plain, other = Training(**without), Training(**{**without, **changed})
    seconds = [training.seconds(steps) for training in (plain, other)]
    held = [training.bytes() for training in (plain, other)]
    return {f'{name}_time': (seconds[1] / seconds[0], 'ratio'), f'{name}_memory': (held[1] / held[0], 'ratio')}


def compiled(steps: int) -> Figures:
    started = time.perf_counter()
    training = Training(compiled=True)
    training.step()
    warm = time.perf_counter() - started
    return {
        'compile_warmup_s': (warm, 's'),
        'compile_time': (training.seconds(steps) / Training().seconds(steps), 'ratio'),
    }


def max_batch(folder: Path) -> Figures:
    """Of a limit of 1.5 GB."""
    rows = images_snapshot(folder / 'images', 64)
    limit = 1_500_000_000
    loader = mm.DataLoader(rows, batch_size=16, device=DEVICE)
    started = time.perf_counter()
    found = mm.find_max_batch(
        functools.partial(resnet, [mm.classification('kind', CLASSES)]), loader, trainer=mm.Trainer(), limit_bytes=limit
    )
    return {
        'max_batch_search_s': (time.perf_counter() - started, 's'),
        'max_batch_rows': (found.largest, 'rows'),
        'max_batch_memory': ((found.confirmed_bytes or 0) / limit, 'of the limit'),
    }


def images_snapshot(folder: Path, rows: int) -> Any:
    rng = np.random.default_rng(0)
    fields = [
        Field(name='photo', kind='tensor', dtype='uint8', shape=(3, SIDE, SIDE)),
        Field(name='kind', kind='label', vocabulary=tuple(f'k{i}' for i in range(CLASSES))),
    ]
    columns = {
        'photo': list(rng.integers(0, 256, (rows, 3, SIDE, SIDE), dtype=np.uint8)),
        'kind': [f'k{i % CLASSES}' for i in range(rows)],
    }
    if not folder.exists():
        write_snapshot(folder, fields, Block(keys=[f'{i:04}' for i in range(rows)], columns=columns))
    return mm.open_snapshot(folder).rows()


def created_on_device() -> Figures:
    """Bytes made on the host, with torch's 'meta' as the other device, which has no memory at all."""
    made = {}
    for where in ('cpu', 'meta'):
        with torch.device(where):
            made[where] = allocated_bytes(functools.partial(resnet, [mm.classification('kind', CLASSES)]))
    return {'created_on_device_memory': (made['meta'] / made['cpu'], 'ratio')}


def normalise(steps: int) -> Figures:
    """A batch of 256 images: bytes that cross and are normalised there, over floats that were made on the host."""
    images = torch.randint(0, 256, (256, 3, SIDE, SIDE), dtype=torch.uint8)
    mean, std = torch.tensor([124.0, 116, 104])[:, None, None], torch.tensor([58.0, 57, 57])[:, None, None]

    def before() -> torch.Tensor:
        return ((images.float() - mean) / std).to(DEVICE, copy=True)

    mean_there, std_there = mean.to(DEVICE), std.to(DEVICE)

    def after() -> torch.Tensor:
        return (images.to(DEVICE, copy=True).float() - mean_there) / std_there

    seconds = {}
    for name, make in (('before', before), ('after', after)):
        make()
        settled()
        started = time.perf_counter()
        for _ in range(steps):
            make()
        settled()
        seconds[name] = time.perf_counter() - started
    return {
        'normalise_on_device_time': (seconds['after'] / seconds['before'], 'ratio'),
        'normalise_on_device_memory': (images.element_size() / 4, 'of the bytes that cross'),
    }


def workers(folder: Path, rows: int) -> Figures:
    """An epoch of JPEG files, decoded by two threads (the one that asks among them) over one."""
    from PIL import Image

    root = folder / 'jpeg'
    if not root.exists():
        rng, files = np.random.default_rng(0), []
        for _ in range(16):
            coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
            stored = io.BytesIO()
            coarse.resize((500, 375), Image.Resampling.BICUBIC).save(stored, 'JPEG', quality=90)
            files.append(stored.getvalue())
        columns = {'photo': [files[i % 16] for i in range(rows)]}
        block = Block(keys=[f'{i:05}' for i in range(rows)], columns=columns)
        write_snapshot(root, [Field(name='photo', kind='binary')], block)
    seconds = {}
    for threads in (0, 1):
        loader = mm.DataLoader(
            mm.open_snapshot(root).rows(), batch_size=32, num_workers=threads, device='cpu',
            decode={'photo': mm.decode.image(size=224, crop='center')},
        )  # fmt: skip
        for _ in loader:
            pass
        started = time.perf_counter()
        for _ in loader:
            pass
        seconds[threads] = time.perf_counter() - started
    return {'workers_time': (seconds[1] / seconds[0], 'ratio')}


def pinned(steps: int) -> Figures:
    """Not yet run: no test machine had a device."""
    images = torch.randint(0, 256, (256, 3, 224, 224), dtype=torch.uint8)
    seconds = []
    for source in (images, images.pin_memory()):
        torch.cuda.synchronize()
        started = time.perf_counter()
        for _ in range(steps):
            source.to(DEVICE, non_blocking=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return {'pin_memory_time': (seconds[1] / seconds[0], 'ratio')}


def initialisation() -> Figures:
    """16 layers of ReLU: what comes out of them, over what goes in."""
    found = {}
    for name in ('torch', 'he'):
        torch.manual_seed(0)
        layers = nn.Sequential(*(each for _ in range(16) for each in (nn.Linear(256, 256), nn.ReLU())))
        if name == 'he':
            mm.initialise(layers)
        values = torch.randn(512, 256)
        with torch.no_grad():
            found[name] = float(layers(values).square().mean().sqrt())
    return {f'initialisation_{name}': (value, 'of the input') for name, value in found.items()}


def main() -> None:
    """The command."""
    bench = Bench.from_arguments('techniques', __doc__)
    torch.set_num_threads(1)
    steps = 1 if bench.quick else 6
    bench.notes = {'device': str(DEVICE), 'images': [IMAGES, 3, SIDE, SIDE], 'model': 'timm resnet18'}
    plain: dict[str, Any] = {}
    blocks = {'make': transformer}
    with tempfile.TemporaryDirectory() as name, bench.recording():
        folder = Path(name)
        rows = 64 if bench.quick else 1024
        loop = functools.partial(torch.optim.AdamW, lr=1e-4, foreach=False, fused=False)
        variants: dict[str, Callable[[], Figures]] = {
            'optimizer': lambda: effect('optimizer', steps, {'optimizer': loop}, optimizer=None),
            'mixed_precision': lambda: effect('mixed_precision', steps, plain, precision='bf16'),
            'channels_last': lambda: effect('channels_last', steps, plain, channels_last=True),
            'both': lambda: effect('both_of_them', steps, plain, precision='bf16', channels_last=True),
            'accumulation': lambda: effect('accumulation', steps, plain, accumulate=4),
            'recompute': lambda: effect('recompute_blocks', max(1, steps // 3), blocks, recompute=True),
            'selective': lambda: effect('recompute_selective', max(1, steps // 3), blocks, recompute='matmuls'),
            'clip': lambda: effect('clip', steps, plain, clip=1.0),
            'ema': lambda: effect('ema', steps, plain, ema=0.999),
            'uncertainty': lambda: effect('uncertainty', steps, {'count': 2}, balancing='uncertainty'),
            'frozen': lambda: effect('frozen_encoder', steps, plain, freeze='encoders'),
            'initialisation': initialisation,
            'created': created_on_device,
            'normalise': lambda: normalise(steps),
            'workers': lambda: workers(folder, rows),
        }
        if not HAS_BF16:
            bench.notes['skipped'] = 'bf16: this processor has no instructions for it (avx512_bf16)'
            del variants['mixed_precision'], variants['both']
        if DEVICE.type == 'cuda':
            variants['pin_memory'] = lambda: pinned(steps)
        bench.compare(variants, repeats=3)
        once = {'compile': lambda: compiled(steps), 'max_batch': lambda: max_batch(folder)}
        bench.compare(once, repeats=1, warmup=False)


if __name__ == '__main__':
    main()

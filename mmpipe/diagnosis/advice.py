"""What could be set otherwise, and what the measured stages let expect of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mmpipe.data.loader import DataLoader
from mmpipe.diagnosis.rates import Machine, batch_seconds, limits
from mmpipe.diagnosis.report import GAIN, Advice, Stage
from mmpipe.diagnosis.stages import Host, per_call

NEARLY = 0.97  # of the largest gain is enough for fewer workers
MOST_WORKERS = 16
IDLE = 1 / 3  # of a worker's time that it waits for other things than cores
SIMPLEJPEG = 0.85  # of the time that Pillow takes to decode a JPEG (`mmpipe.decode.jpeg`)


@dataclass(frozen=True, kw_only=True)
class Findings:
    """What advice is made of.

    Args:
        loader: as it is set now.
        machine: what it runs on.
        host: its stages in the workers.
        stages: all of them.
        twice: what they would take for batches of twice the size; None where that is not to be told.
        measured: samples per second.
        waiting: share of the time that waits for data; 1 without a model.
    """

    loader: DataLoader
    machine: Machine
    host: Host
    stages: tuple[Stage, ...]
    twice: tuple[Stage, ...] | None
    measured: float
    waiting: float

    @property
    def seconds(self) -> float:
        """Per batch, as expected of the present settings."""
        return batch_seconds(self.stages, self.machine)


def to_try(found: Findings) -> list[tuple[Advice, dict[str, Any]]]:
    """Advice that can be tried by running the loader, with the settings that do it; the largest gain first."""
    tries = [*_workers(found), *_batch_size(found), *_prefetch(found), *_pinned(found)]
    return sorted(tries, key=lambda each: -each[0].expected_gain)


def to_tell(found: Findings) -> list[Advice]:
    """Advice that needs the user's hands."""
    told = [*_decoded(found), *_device_transforms(found), *_simplejpeg(found)]
    return [advice for advice in told if advice.expected_gain >= GAIN]


def _workers(found: Findings) -> Iterator[tuple[Advice, dict[str, Any]]]:
    host = [stage for stage in found.stages if stage.side == 'host']
    wall = sum(stage.seconds for stage in host)
    cores, now = found.machine.cores, found.machine.workers
    counts = {0, 1, 2, cores}
    if found.host.idle > IDLE:  # of such workers there can be more than cores
        counts |= {2 * cores, 4 * cores}
    gains = {
        count: found.seconds / batch_seconds(found.stages, _with(found.machine, count))
        for count in sorted(counts - {now})
        if count <= MOST_WORKERS
    }
    best = max(gains.values())
    enough = [count for count, gain in gains.items() if gain >= NEARLY * best][:1] if best >= GAIN else []
    # What handing batches over costs is in no stage: where data is waited for, counts that should not matter may.
    near = [count for count, gain in gains.items() if gain >= 0.95 and count not in enough and found.waiting > GAIN - 1]
    for count in [*enough, *sorted(near, key=lambda count: -gains[count])[: 3 - len(enough)]]:
        why = f'Making a batch takes one worker {1000 * wall:.3g} ms, the step {1000 * _step(found):.3g} ms.'
        if count > cores:
            why = f'Workers wait {100 * found.host.idle:.0f} % of the time, so there can be more of them than cores.'
        elif count < now:
            why = 'Making a batch takes so little that handing it over between threads shows.'
        yield Advice(setting='num_workers', value=count, why=why, expected_gain=gains[count]), {'num_workers': count}


def _batch_size(found: Findings) -> Iterator[tuple[Advice, dict[str, Any]]]:
    if found.twice is None:
        return
    gain = 2 * found.seconds / batch_seconds(found.twice, found.machine)
    name, size = size_of(found.loader)
    if gain >= GAIN:
        why = 'Part of the time is taken once per batch, whatever its size. It changes the training: tune lr with it.'
        yield Advice(setting=name, value=2 * size, why=why, expected_gain=gain), {name: 2 * size}


def _prefetch(found: Findings) -> Iterator[tuple[Advice, dict[str, Any]]]:
    batch = found.host.batch
    gain = batch / found.measured / found.seconds
    if not found.machine.workers or gain < 2 * GAIN - 1 or found.waiting < GAIN - 1:
        return
    value = max(4, 2 * (found.loader.prefetch_factor or 0))
    why = 'Less is measured than the stages come to: more batches made ahead hide late ones, and the handing over.'
    advice = Advice(setting='prefetch_factor', value=value, why=why, expected_gain=gain)
    yield advice, {'prefetch_factor': value}


def _pinned(found: Findings) -> Iterator[tuple[Advice, dict[str, Any]]]:
    bus = next((stage for stage in found.stages if stage.side == 'bus'), None)
    if found.loader.device.type != 'cuda' or found.loader.pin_memory or bus is None:
        return
    gain = found.seconds / batch_seconds(_without(found.stages, bus.name), found.machine)
    why = 'Batches cross faster, and while the step before them runs.'
    yield Advice(setting='pin_memory', value=True, why=why, expected_gain=gain), {'pin_memory': True}


def _decoded(found: Findings) -> Iterator[Advice]:
    task = found.loader.dataset.task
    for name, decoder in task.decode.items():
        if decoder.shape is None:
            continue
        row = math.prod(decoder.shape) * np.dtype(decoder.dtype).itemsize
        copied = copy_seconds(row, found.host.batch)
        instead = Stage(name=f'read {name}', side='host', seconds=copied, cpu_s=copied)
        stages = [*_without(found.stages, f'decode {name}'), instead]
        square = len(decoder.shape) == 3 and decoder.shape[0] == 3 and decoder.shape[1] == decoder.shape[2]
        spec = f'mm.field.image(..., size={decoder.shape[1]})' if square else 'decoded'
        why = f'Its {len(task.rows):,} rows then take {size_text(row * len(task.rows))} on the disk.'
        if decoder.draws:
            why += ' Random crops are then taken on the device, by mm.transforms: store it larger by their margin.'
        yield Advice(
            setting='fields', value=f'{name}: {spec}', why=why,
            expected_gain=found.seconds / batch_seconds(stages, found.machine),
        )  # fmt: skip


def _device_transforms(found: Findings) -> Iterator[Advice]:
    for name in found.loader.dataset.task.host:
        seconds = batch_seconds(_without(found.stages, f'transform {name}'), found.machine)
        why = 'At most: of whole batches on the device, it takes time there. Reading then needs threads, no processes.'
        yield Advice(
            setting='transforms', value=f'{name}, instead of host_transforms', why=why,
            expected_gain=found.seconds / max(seconds, 1e-9),
        )  # fmt: skip


def _simplejpeg(found: Findings) -> Iterator[Advice]:
    images = {
        f'decode {name}'
        for name, decoder in found.loader.dataset.task.decode.items()
        if type(decoder).__module__ == 'mmpipe.decode.images'
    }
    if not images:
        return
    from mmpipe.decode import jpeg

    if jpeg.backend() == 'pillow':
        stages = [stage.scaled(SIMPLEJPEG) if stage.name in images else stage for stage in found.stages]
        yield Advice(
            setting='extra', value='jpeg', why="pip install 'mmpipe[jpeg]': simplejpeg decodes faster than Pillow.",
            expected_gain=found.seconds / batch_seconds(stages, found.machine),
        )  # fmt: skip


def _with(machine: Machine, workers: int) -> Machine:
    return replace(machine, workers=workers, hindrance=machine.hindrance if workers > 1 else 1.0)


def _without(stages: Sequence[Stage], name: str) -> list[Stage]:
    return [stage for stage in stages if stage.name != name]


def _step(found: Findings) -> float:
    return limits(found.stages, replace(found.machine, workers=1))['device']


def size_of(loader: DataLoader) -> tuple[str, int]:
    """Name and value of the argument that sets the size of batches; 0 where the sampling does.

    >>> from mmpipe.data.collate import example_rows
    >>> size_of(DataLoader(example_rows(), global_batch_size=2, device='cpu'))
    ('global_batch_size', 2)
    """
    batches = loader.batches
    if batches.batch_size is not None:
        return 'batch_size', batches.batch_size
    return 'global_batch_size', batches.global_batch_size or 0


def copy_seconds(row_bytes: int, rows: float) -> float:
    """Seconds to copy so many rows of so many bytes into memory that was used before."""
    import torch

    source = np.zeros((max(1, round(rows)), row_bytes), dtype=np.uint8)
    out = np.zeros_like(source)
    return per_call(lambda _: np.copyto(out, source), [None], torch.device('cpu'), seconds=0.0)[0]


def size_text(count: float) -> str:
    """Words for a number of bytes.

    >>> size_text(1500), size_text(6.2e9)
    ('1.5 kB', '6.2 GB')
    """
    for unit, size in (('GB', 1e9), ('MB', 1e6), ('kB', 1e3)):
        if count >= size:
            return f'{count / size:.1f} {unit}'
    return f'{count:.0f} B'

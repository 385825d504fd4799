"""The examination: stages, what they come to, what else could be set, and whether that helps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from mmpipe.cores import cores
from mmpipe.data.leases import memory_bytes
from mmpipe.data.loader import DataLoader
from mmpipe.diagnosis.advice import Findings, size_of, size_text, to_tell, to_try
from mmpipe.diagnosis.rates import Machine, batch_seconds, bottleneck, limits, loading_seconds
from mmpipe.diagnosis.report import GAIN, Advice, Diagnosis, Stage
from mmpipe.diagnosis.stages import Host, device_stages, held_batches, host_stages, steps_of, with_rates
from mmpipe.diagnosis.step import TrainingStep, generators_kept
from mmpipe.diagnosis.trials import TURNS, Running, changed, gain
from mmpipe.errors import ConfigError
from mmpipe.train.evaluate import fields_of, tasks_of
from mmpipe.train.tasks import Task
from mmpipe.wording import how_many

FIT_ROWS = 256  # that buffers of a copied model are fitted on
CACHED = 0.7  # of the memory, that read files may fill for the next epoch to find them there
HANDED_S = 0.002  # per batch, below which handing it over is what slows workers
BUSY = 0.1  # of the time, for others
SLOWED = 1.5  # by each other, from which it is said of workers


def doctor(
    loader: DataLoader,
    model: nn.Module | None = None,
    *,
    tasks: Sequence[Task] | None = None,
    precision: str = 'fp32',
    seconds: float = 10.0,
) -> Diagnosis:
    """Measure what training on a loader waits for, and try what would make it faster.

    Reading, decoding, the functions of samples, the transfer, the transforms on the device and the training step are
    measured apart, on real batches of the loader's first epoch. Then the loader runs with settings that should be
    faster, in turns with its present ones; what gains less than 5 % is not advised. Checks read rows that were read
    before, so from the page cache.

    The loader keeps its place and its memory, the model its weights, buffers, gradients and mode (a copy of it is
    trained), and the global random generators their states. The machine should do nothing else meanwhile.

    Args:
        loader: what to examine.
        model: from a batch to {task name: output}; None to examine the loading alone.
        tasks: for a model that has none of its own.
        precision: 'fp32' or 'bf16', as in `mm.Trainer`.
        seconds: to take, about; a model's first step, and steps or workers that are slow to start, come on top.

    Returns:
        A value that prints well: stages, bottleneck, and what to set, with expected and measured gains.

    Raises:
        ConfigError: not a loader, no time, a model without tasks or one that cannot be copied, or no batch.
        DataError: a value that cannot be decoded, unless the loader has on_error='mask'.

    >>> from mmpipe.data.collate import example_rows
    >>> found = doctor(DataLoader(example_rows(), batch_size=2, device='cpu'), seconds=0.1)
    >>> [stage.name for stage in found.stages]
    ['read', 'collate', 'transfer']
    """
    if not isinstance(loader, DataLoader):
        raise ConfigError(f'mm.doctor examines an mm.DataLoader, not a {type(loader).__name__}: pass one.')
    if not seconds > 0:
        raise ConfigError(f'doctor(seconds={seconds}): a positive number is meant.')
    with generators_kept(loader.device):
        return _examined(loader, model, tasks, precision, seconds)


def _examined(
    loader: DataLoader, model: nn.Module | None, tasks: Sequence[Task] | None, precision: str, seconds: float
) -> Diagnosis:
    began = time.perf_counter()
    wanted = () if model is None else tasks_of(model, tasks)
    own = changed(loader if model is None else loader.fresh(fields=fields_of(model, wanted)))
    host = host_stages(changed(own), seconds=0.15 * seconds)
    train = None
    if model is not None:
        few = next(steps_of(changed(own)))[1].positions[:FIT_ROWS]
        train = TrainingStep(model, wanted, own.rows.take(few), own.device, precision=precision)
    everyone = _loading_rate(own, 0.1 * seconds)
    after = _after(own, train, 0.15 * seconds)
    machine = Machine(workers=own.num_workers, cores=cores(), apart=own.device.type != 'cpu')
    notes, host = _from_disk(own, host, sum(stage.seconds for stage in (*host.stages, *after)))
    machine, more = _hindered(machine, host, everyone, processes=bool(own.dataset.task.host))
    if host.queued > BUSY:
        more.append(
            f'other programs had the cores for {100 * host.queued:.0f} % of the time: measure again without them.'
        )
    stages = (*host.stages, *after)
    twice = _twice(own, train, stages, 0.1 * seconds)
    running = Running(changed(own), train)
    measured = running.rate(0.1 * seconds)
    running.close()
    waiting = None
    if train is not None:  # on an accelerator, the thread that iterates also waits for batches while the device works
        busy = limits(stages, machine)['device'] * measured / host.batch
        waiting = max(0.0, 1 - busy) if machine.apart else running.waited
    found = Findings(
        loader=own, machine=machine, host=host, stages=stages, twice=twice, measured=measured,
        waiting=1.0 if waiting is None else waiting,
    )  # fmt: skip
    advice, dropped, untried = _tried(found, train, time.perf_counter() + 0.4 * seconds)
    slowest = bottleneck(stages, machine)
    rest = batch_seconds([stage for stage in stages if stage is not slowest], machine)
    return Diagnosis(
        device=str(own.device),
        batch=host.batch,
        num_workers=own.num_workers,
        cores=machine.cores,
        stages=with_rates(stages, host.batch, everyone / host.batch * sum(stage.seconds for stage in host.stages)),
        expected=host.batch / found.seconds,
        measured=measured,
        waiting=waiting,
        bottleneck=slowest.name,
        share=slowest.seconds / sum(stage.seconds for stage in stages),
        gain_without=found.seconds / rest if rest else None,
        loading_s=loading_seconds(stages, machine),
        step_s=max(limits(stages, replace(machine, workers=1))[side] for side in ('bus', 'device')),
        advice=advice,
        dropped=dropped,
        notes=(*notes, *more, *untried),
        took_s=time.perf_counter() - began,
    )


def _loading_rate(own: DataLoader, seconds: float) -> float:
    """Samples per second of all workers when nothing is done with their batches."""
    running = Running(changed(own, transforms={}, device=torch.device('cpu')))
    rate = running.rate(seconds)
    running.close()
    return rate


def _after(own: DataLoader, train: TrainingStep | None, seconds: float) -> tuple[Stage, ...]:
    held = held_batches(changed(own, transforms={}, device=torch.device('cpu'), num_workers=0))
    return device_stages(changed(own), held, train, seconds=seconds)


def _from_disk(own: DataLoader, host: Host, whole: float) -> tuple[list[str], Host]:
    """What first and second reading tell; rows that do not fit into memory come from the disk in each epoch."""
    read = host.stages[0]
    size = host.bytes_per_sample * len(own.rows)
    if read.first_s is None or read.first_s - read.seconds < max((SLOWED - 1) * read.seconds, (GAIN - 1) * whole):
        return [], host
    note = f'the first reading of rows took {read.first_s / max(read.seconds, 1e-9):.1f} times as long as the second'
    if size < CACHED * memory_bytes():
        return [f'{note}; all {size_text(size)} fit into memory, where later epochs find them.'], host
    slow = replace(read, seconds=read.first_s)
    note += f', and {size_text(size)} do not fit into memory: every epoch reads them at the first speed, counted here.'
    return [note], replace(host, stages=(slow, *host.stages[1:]))


def _hindered(machine: Machine, host: Host, everyone: float, *, processes: bool) -> tuple[Machine, list[str]]:
    """How far workers stand in each other's way."""
    if not machine.workers:
        return machine, []
    hindrance = host.batch / everyone / loading_seconds(host.stages, machine)
    machine = replace(machine, hindrance=float(np.clip(hindrance, 1.0, machine.workers)))
    one = sum(stage.seconds for stage in host.stages)
    if machine.workers > 1 and hindrance > SLOWED and one > HANDED_S and host.queued < BUSY:
        speedup = one * everyone / host.batch
        slow = max(host.stages, key=lambda stage: stage.cpu_s).name
        why = 'the memory is busy' if processes else f"{slow} holds Python's lock, or the memory is busy"
        many = how_many(machine.workers, 'worker')
        return machine, [f'{many} make batches only {speedup:.1f} times as fast as one: {why}.']
    return machine, []


def _twice(
    own: DataLoader, train: TrainingStep | None, stages: tuple[Stage, ...], seconds: float
) -> tuple[Stage, ...] | None:
    """What batches of twice the size would take, from what batches of half the size do."""
    name, size = size_of(own)
    if size < 4 or 2 * own.batches.global_batch > own.batches.end:
        return None
    half = changed(own, **{name: size // 2})
    parts = {stage.name: stage for stage in host_stages(half, seconds=seconds / 2).stages}
    parts |= {stage.name: stage for stage in _after(half, train, seconds / 2)}
    return tuple(stage.scaled(_growth(stage.seconds, parts[stage.name].seconds)) for stage in stages)


def _growth(whole: float, half: float) -> float:
    """How many times as long twice the size takes, in a straight line through half of it and the whole.

    >>> _growth(4.0, 3.0), _growth(4.0, 2.0), _growth(4.0, 5.0), _growth(0.0, 0.0)
    (1.5, 2.0, 1.0, 1.0)
    """
    return min(max(1.0 + 2 * (whole - half) / whole, 1.0), 2.0) if whole else 1.0


def _tried(
    found: Findings, train: TrainingStep | None, end: float
) -> tuple[tuple[Advice, ...], tuple[Advice, ...], list[str]]:
    """What to advise after trying it, what to drop, and what there was no time to try."""
    kept: list[Advice] = []
    dropped: list[Advice] = []
    late: list[str] = []
    tries = to_try(found)
    for number, (advice, settings) in enumerate(tries):
        left = end - time.perf_counter()
        runs = (Running(changed(found.loader, **each)) for each in ({}, settings))
        turn = sum(run.shortest for run in runs) * found.host.batch / found.measured  # of both
        if number and left < 2 * turn:
            late.append(f'{advice.setting}={advice.value} (expected {advice.expected_gain:.2f}x)')
            continue
        turns = TURNS if left > TURNS * turn else 2
        share = max(left, 0.0) / (len(tries) - number)
        checked = replace(advice, checked_gain=gain(found.loader, settings, train, seconds=share, turns=turns))
        (kept if (checked.checked_gain or 0.0) >= GAIN else dropped).append(checked)
    kept += to_tell(found)
    kept.sort(key=lambda each: -(each.checked_gain or each.expected_gain))
    workers = next((each for each in kept if each.setting == 'num_workers'), None)
    kept = [each for each in kept if each.setting != 'num_workers' or each is workers]
    notes = [f'no time was left to try {", ".join(late)}: give seconds= more.'] if late else []
    return tuple(kept), tuple(dropped), notes

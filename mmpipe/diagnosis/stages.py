"""Each stage by itself, on batches of the loader's own order, timed inside the code that makes batches anyway."""

from __future__ import annotations

import copy
import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from mmpipe.data.batch import BatchTask, Request
from mmpipe.data.batches import Step
from mmpipe.data.device import to_device
from mmpipe.data.loader import DataLoader
from mmpipe.diagnosis.report import Stage
from mmpipe.errors import ConfigError

PAGE = 4096  # bytes
MOST_BATCHES = 32  # that are measured one by one
KEPT = 4  # batches that the stages after loading are measured on
ROUNDS = 5  # at most, over the same batches


class Clock:
    """Seconds of this thread by stage: `{stage: [wall, on a core]}`; and bytes that were read."""

    def __init__(self) -> None:
        self.taken: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self.read_bytes = 0

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, whose time is noted."""

        def run(*args: Any, **options: Any) -> Any:
            wall, core = time.perf_counter(), time.thread_time()
            try:
                return function(*args, **options)
            finally:
                taken = self.taken[name]
                taken[0] += time.perf_counter() - wall
                taken[1] += time.thread_time() - core

        return run


class TimedDecoder:
    """A decoder whose work is timed."""

    def __init__(self, decoder: Any, name: str, clock: Clock) -> None:
        self._decoder, self._name, self._clock = decoder, name, clock

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._decoder, attribute)
        if callable(value) and attribute.startswith('decode'):
            value = self._clock.timed(self._name, value)
        self.__dict__[attribute] = value  # found without this method from now on
        return value


class TimedRows:
    """Rows whose reading is timed, up to the last page: what is only mapped would be read by whoever looks first."""

    def __init__(self, rows: Any, clock: Clock) -> None:
        self._rows, self._clock = rows, clock

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._rows, attribute)
        if callable(value):
            # Keys are read too, where shards are many, but are no values of the sample.
            value = self._clock.timed('read', value if attribute == 'keys_at' else self._touching(value))
        return value

    def _touching(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **options: Any) -> Any:
            found = function(*args, **options)
            values = found[0] if isinstance(found, tuple) else options.get('out', args[-1] if args else ())
            for value in values if isinstance(values, list) else [values]:
                if isinstance(value, np.ndarray):
                    if isinstance(values, list) and value.size:
                        value.reshape(-1).view(np.uint8)[::PAGE].max()
                    self._clock.read_bytes += value.nbytes
                elif isinstance(value, (bytes, str)):
                    self._clock.read_bytes += len(value)
            return found

        return run


def timed_task(task: BatchTask, clock: Clock) -> BatchTask:
    """The task, with its reading, decoding and functions timed."""
    own = copy.copy(task)
    own.rows = TimedRows(task.rows, clock)  # type: ignore[assignment]
    own.decode = {name: TimedDecoder(each, f'decode {name}', clock) for name, each in task.decode.items()}
    own.host = {name: clock.timed(f'transform {name}', each) for name, each in task.host.items()}
    return own


@dataclass(frozen=True, kw_only=True)
class Host:
    """What was measured of making batches.

    Args:
        stages: per batch, by one worker.
        batch: mean samples per batch.
        bytes_per_sample: read.
        queued: share of the time in which this thread could have gone on, but other programs had the cores.
    """

    stages: tuple[Stage, ...]
    batch: float
    bytes_per_sample: float
    queued: float = 0.0

    @property
    def idle(self) -> float:
        """Share of the time in which a worker waits for something else than a core: a disk, a network, a sleep."""
        wall, core = (sum(getattr(stage, name) for stage in self.stages) for name in ('seconds', 'cpu_s'))
        return max(0.0, 1 - self.queued - core / wall) if wall else 0.0


Taken = dict[str, tuple[float, float]]


def host_stages(loader: DataLoader, *, seconds: float) -> Host:
    """Measure reading, decoding, functions and collating in this thread.

    The first batch opens files and is not counted. Some batches are then made for the first time, and again as often
    as there is time for; the fastest time of each counts.

    Args:
        loader: whose batches to make; private to the caller.
        seconds: to take, about.
    """
    end = time.perf_counter() + seconds
    clock = Clock()
    task = timed_task(loader.dataset.task, clock)
    requests = (Request(step.positions, epoch=epoch, padded=step.padded) for epoch, step in steps_of(loader))
    _made(task, next(requests), loader, clock)
    first: list[tuple[Request, Taken]] = []
    clock.read_bytes = 0
    for request in itertools.islice(requests, MOST_BATCHES):
        first.append((request, _made(task, request, loader, clock)))
        if time.perf_counter() > end - 2 * seconds / 3:
            break
    read_bytes, began, queue = clock.read_bytes, time.perf_counter(), queued_seconds()
    best: list[Taken] = []
    for _ in range(ROUNDS):
        again = []
        for request, _ in first:
            again.append(_made(task, request, loader, clock))
        best = [min(pair, key=lambda taken: taken['all'][0]) for pair in zip(best or again, again, strict=True)]
        if time.perf_counter() > end:
            break
    queued = (queued_seconds() - queue) / (time.perf_counter() - began)
    names = list(dict.fromkeys(name for taken in best for name in taken if name != 'all'))
    samples = sum(len(request.positions) for request, _ in first)
    stages = []
    for name in sorted(names, key=_order):
        wall, core = np.mean([taken.get(name, (0.0, 0.0)) for taken in best], axis=0).tolist()
        once = float(np.mean([taken['read'][0] for _, taken in first])) if name == 'read' else None
        stages.append(Stage(name=name, side='host', seconds=wall, cpu_s=min(core, wall), first_s=once))
    return Host(stages=tuple(stages), batch=samples / len(first), bytes_per_sample=read_bytes / samples, queued=queued)


def _made(task: BatchTask, request: Request, loader: DataLoader, clock: Clock) -> Taken:
    """Make a batch, and say what it took; what is no other stage's is 'collate'."""
    clock.taken.clear()
    clock.timed('all', task)(request, loader.pool)
    taken = {name: (wall, core) for name, (wall, core) in clock.taken.items()}
    parts = [pair for name, pair in taken.items() if name != 'all']
    wall, core = (max(0.0, taken['all'][i] - sum(pair[i] for pair in parts)) for i in range(2))
    return {'read': (0.0, 0.0), **taken, 'collate': (wall, core)}


def queued_seconds() -> float:
    """Seconds for which this thread has been ready while others had the cores; 0 where the system does not tell.

    >>> queued_seconds() >= 0
    True
    """
    try:
        with open('/proc/thread-self/schedstat') as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, ValueError, IndexError):
        return 0.0


def _order(name: str) -> int:
    return ('read', 'decode', 'transform', 'collate').index(name.split()[0])


def steps_of(loader: DataLoader) -> Iterator[tuple[int, Step]]:
    """(epoch, step) of a loader that has rows for this rank, epoch after epoch without end.

    Raises:
        ConfigError: there is none in an epoch.
    """
    for epoch in itertools.count():
        some = False
        for step in loader.batches.steps(epoch):
            if len(step.positions):
                some = True
                yield epoch, step
        if not some:
            raise ConfigError(
                f'There is no batch to measure: {len(loader.rows)} rows in batches of {loader.batch_size}, of which '
                f'the last is dropped. Use a smaller batch_size, or drop_last=False.'
            )


def held_batches(loader: DataLoader, count: int = KEPT) -> list[tuple[int, Step, dict[str, Any]]]:
    """The first batches as a loader that is new gives them, with their epochs and steps."""
    pairs = zip(loader.batches.steps(0), loader, strict=False)
    return [(0, step, batch) for step, batch in itertools.islice(pairs, count) if len(step.positions)]


def device_stages(
    loader: DataLoader,
    held: Sequence[tuple[int, Step, dict[str, Any]]],
    train: Callable[[dict[str, Any]], None] | None,
    *,
    seconds: float,
) -> tuple[Stage, ...]:
    """Measure the transfer, the transforms on the device, and a training step.

    Args:
        loader: private to the caller.
        held: batches on the host.
        train: one training step; None for none.
        seconds: to take, about.
    """
    device = loader.device
    each = seconds / 3
    stages = [Stage(name='transfer', side='bus', seconds=0.0, cpu_s=0.0)]
    there = [(epoch, step, _shallow(batch)) for epoch, step, batch in held]
    if device.type != 'cpu':

        def cross(item: tuple[int, Step, dict[str, Any]]) -> dict[str, Any]:
            return to_device(item[2], device, non_blocking=loader.pin_memory)

        wall, core = per_call(cross, held, device, seconds=each)
        stages = [Stage(name='transfer', side='bus', seconds=wall, cpu_s=core)]
        there = [(epoch, step, to_device(batch, device)) for epoch, step, batch in held]

    def change(item: tuple[int, Step, dict[str, Any]]) -> dict[str, Any]:
        epoch, step, batch = item
        return loader._transformed(_shallow(batch), step, epoch)

    if loader.transforms:
        wall, core = per_call(change, there, device, seconds=each)
        stages.append(Stage(name='device transforms', side='device', seconds=wall, cpu_s=core))
    if train is not None:
        ready = [change(item) for item in there]
        wall, core = per_call(train, ready, device, seconds=each)
        stages.append(Stage(name='compute', side='device', seconds=wall, cpu_s=core))
    return tuple(stages)


def _shallow(batch: dict[str, Any]) -> dict[str, Any]:
    """A batch whose fields can be put in the place of others without changing the one it is made of."""
    return {name: dict(value) if isinstance(value, dict) else value for name, value in batch.items()}


def per_call(
    call: Callable[[Any], Any], items: Sequence[Any], device: torch.device, *, seconds: float
) -> tuple[float, float]:
    """Seconds per call on the device, and on a core of the host.

    Rounds over all items wait for the device only at their end, as a training does; the fastest round counts. On an
    accelerator, the second number is how long the host takes to start the work.

    Args:
        call: what to time.
        items: given to it, one after the other.
        device: that it works on.
        seconds: to take, about; two rounds are made in any case.

    >>> wall, core = per_call(lambda item: time.sleep(0.001), [1, 2], torch.device('cpu'), seconds=0.01)
    >>> wall >= 0.001 > core
    True
    """
    began = time.perf_counter()
    call(items[0])  # brings up what is made once
    wait_for(device)
    if time.perf_counter() - began > seconds / 4:
        items = items[:1]
    best = (float('inf'), 0.0)
    rounds = 0
    while rounds < 2 or time.perf_counter() - began < seconds:
        wall, core = time.perf_counter(), time.process_time()
        for item in items:
            call(item)
        started = time.perf_counter() - wall
        core = time.process_time() - core
        wait_for(device)
        wall = time.perf_counter() - wall
        best = min(best, (wall / len(items), (core if device.type == 'cpu' else started) / len(items)))
        rounds += 1
    return best


def wait_for(device: torch.device) -> None:
    """Wait until an accelerator has done what it was told.

    >>> wait_for(torch.device('cpu'))
    """
    if device.type not in ('cpu', 'meta'):
        torch.accelerator.synchronize(device)


def with_rates(stages: Iterable[Stage], batch: float, speedup: float) -> tuple[Stage, ...]:
    """Stages with their samples per second.

    Args:
        stages: of one worker.
        batch: samples per batch.
        speedup: how many times as many batches all workers make as one does.
    """
    out = []
    for stage in stages:
        one = batch / stage.seconds if stage.seconds else None
        everyone = one * speedup if one is not None and stage.side == 'host' else one
        out.append(replace(stage, samples_per_s=one, samples_per_s_all=everyone))
    return tuple(out)

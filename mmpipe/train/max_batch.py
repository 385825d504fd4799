"""The largest batch that fits, without running out of memory to find it.

    two points      a step on fake tensors, which have shapes and no memory: its peak at two batch sizes
    a line          through them says where the limit is reached; further fake steps there correct it, where recomputing
                    or another moment of the step being the highest bends the line
    a probe         a real forward and backward pass of that size, beside memory as large as the optimizer's state; of
                    fewer rows where kernels have more memory of their own than is left (up to a quarter was seen)

Over ranks the smallest counts. The effective batch stays what it was: a smaller batch is accumulated.
"""

from __future__ import annotations

import copy
import functools
import math
import os
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import distributed, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmpipe.data.loader import DataLoader, world
from mmpipe.errors import ConfigError, TrainError
from mmpipe.train.balancing import make_balancing
from mmpipe.train.evaluate import fields_of, tasks_of
from mmpipe.train.optimizer import make_optimizer
from mmpipe.train.recompute import forget_blocks
from mmpipe.train.step import Stepper
from mmpipe.train.strategy import Alone
from mmpipe.train.tasks import Task

if TYPE_CHECKING:
    from mmpipe.train.trainer import Trainer

SHARE = {'cpu': 0.5, 'cuda': 0.9}  # of the memory that is free; allocators and other programs want some
FIRST, SECOND = 16, 32
ROUNDED = 8  # batches above it are rounded down to a multiple of it, which kernels like
MOST = 1 << 20
LOOKS = 12  # fake steps at most
NEAR = 64  # part of a batch that is not worth another look


@dataclass(frozen=True, kw_only=True)
class MaxBatch:
    """What `find_max_batch` found.

    Args:
        largest: rows per batch on each rank that fit.
        batch_size: to give the loader: `largest`, or less so that the effective batch is exactly kept.
        accumulate: to give the trainer.
        effective_batch: rows of an optimizer step over all ranks: the product of both, times the ranks.
        limit_bytes: memory that may be used.
        predicted_bytes: peak of a step of `largest` rows, by fake tensors.
        confirmed_bytes: of one that was really taken; None where it was not.
        points: (rows, predicted bytes) of each fake step.

    >>> print(MaxBatch(largest=96, batch_size=64, accumulate=4, effective_batch=256, limit_bytes=2**30,
    ...                predicted_bytes=10**9, confirmed_bytes=None, points=()))
    batch_size=64, accumulate=4: an effective batch of 256. Up to 96 rows fit into 1.07 GB (1.00 GB predicted)
    """

    largest: int
    batch_size: int
    accumulate: int
    effective_batch: int
    limit_bytes: int
    predicted_bytes: int
    confirmed_bytes: int | None
    points: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        real = '' if self.confirmed_bytes is None else f', {self.confirmed_bytes / 1e9:.2f} GB measured'
        return (
            f'batch_size={self.batch_size}, accumulate={self.accumulate}: an effective batch of '
            f'{self.effective_batch:,}. Up to {self.largest:,} rows fit into {self.limit_bytes / 1e9:.2f} GB '
            f'({self.predicted_bytes / 1e9:.2f} GB predicted{real})'
        )


def find_max_batch(
    factory: Callable[..., nn.Module] | nn.Module,
    loader: DataLoader,
    *,
    trainer: Trainer,
    args: Mapping[str, Any] | None = None,
    tasks: Sequence[Task] | None = None,
    limit_bytes: int | None = None,
    effective_batch: int | None = None,
    confirm: bool = True,
) -> MaxBatch:
    """The largest batch that a training can use, and how to keep its effective batch with it.

    Every row counts as having every modality and label; ragged fields are as long as in the loader's first batch. Each
    rank counts as having the whole model: where `trainer.parallel` keeps parts of it, more may fit than is found.

    Args:
        factory: as for `Trainer.fit`.
        loader: as for `Trainer.fit`; it is not moved.
        trainer: its precision, optimizer, recomputing and so on count.
        args: of the factory.
        tasks: for a model that has none of its own.
        limit_bytes: memory that may be used, weights and optimizer included; 0.9 of what is free on CUDA, and half of
            it on the CPU, when None.
        effective_batch: rows of an optimizer step, over all ranks; what loader and trainer have now when None.
        confirm: take a real step of the size found, and of less where kernels need more than was predicted.

    Returns:
        The sizes, and the bytes they are about.

    Raises:
        ConfigError: an effective batch that the ranks do not divide.
        TrainError: not even one row fits; or the model does what fake tensors cannot follow.

    >>> import mmpipe as mm
    >>> from mmpipe.data.collate import example_rows
    >>> model = mm.MultitaskModel(
    ...     encoders={'price': mm.encoders.vector(1, 64)}, tasks=[mm.classification('kind', ['cat', 'dog'])]
    ... )
    >>> loader = mm.DataLoader(example_rows(), batch_size=2, device='cpu')
    >>> found = find_max_batch(model, loader, trainer=mm.Trainer(), limit_bytes=10**8)
    >>> found.batch_size, found.accumulate, found.largest > 100
    (2, 1, True)
    """
    ranks = world()[1]
    effective = effective_batch or loader.batch_size * trainer.accumulate * ranks
    if effective % ranks:
        raise ConfigError(f'effective_batch={effective} is not divided by {ranks} ranks: give a multiple of {ranks}.')
    model = factory if isinstance(factory, nn.Module) else factory(**(args or {}))
    wanted = tasks_of(model, tasks)
    batch = next(iter(loader.fresh(fields=fields_of(model, wanted))))
    limit = free_bytes(loader.device) if limit_bytes is None else limit_bytes
    peaks: dict[int, int] = {}
    # Gradients travel as one piece.
    sent = sum(4 * p.numel() for p in model.parameters() if p.requires_grad) if ranks > 1 else 0

    def peak(rows: int) -> int:
        if rows not in peaks:
            peaks[rows] = predicted_bytes(model, wanted, batch, rows, trainer=trainer) + sent
        return peaks[rows]

    largest = _over_ranks(largest_within(peak, limit), loader.device, distributed.ReduceOp.MIN)
    limit_of_all = _over_ranks(limit, loader.device, distributed.ReduceOp.MIN)
    confirmed = None
    while largest > 0 and confirm and (confirmed is None or confirmed > limit_of_all):
        if confirmed is not None:  # kernels have memory of their own, which fake ones do not
            less = math.ceil(largest * (confirmed - limit_of_all) / confirmed)
            largest = max(largest - max(less, ROUNDED if largest > ROUNDED else 1), 0)
        if largest:  # and all ranks decide by the same number
            probed = probed_bytes(model, wanted, batch, largest, trainer=trainer, device=loader.device) + sent
            confirmed = _over_ranks(probed, loader.device, distributed.ReduceOp.MAX)
    if largest < 1:
        raise TrainError(
            f'Not even a batch of one row fits: it takes {max(peak(1), confirmed or 0):,} bytes, and {limit:,} may be '
            f"used. Freeze a part, recompute blocks (Trainer(recompute=True)), use precision='bf16', or a smaller "
            f'model.'
        )
    accumulate = next(a for a in range(1, effective // ranks + 1) if _kept(effective // ranks, a, largest))
    return MaxBatch(
        largest=largest,
        batch_size=effective // ranks // accumulate,
        accumulate=accumulate,
        effective_batch=effective,
        limit_bytes=limit,
        predicted_bytes=peak(largest),
        confirmed_bytes=confirmed,
        points=tuple(sorted(peaks.items())),
    )


def predicted_bytes(
    model: nn.Module, tasks: Sequence[Task], batch: Mapping[str, Any], rows: int, *, trainer: Trainer
) -> int:
    """Peak memory of an optimizer step of so many rows: weights, gradients, optimizer, activations. Allocates nothing.

    Args:
        model: what is trained; it is not changed.
        tasks: what it learns.
        batch: any batch of its loader.
        rows: of the batch to predict.
        trainer: how it is trained.

    Raises:
        TrainError: the model does what fake tensors cannot follow.
    """
    # Private names of torch, here alone; the same from 2.10 to 2.14.
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeCopyMode,
        FakeTensorMode,
    )

    fake, peak = FakeTensorMode(), _Peak()
    try:
        with FakeCopyMode(fake):
            copied = copy.deepcopy(model)
        with fake:
            step = _stepper(copied.train(), tasks, trainer, _device_of(batch))
            for _ in range(2):  # the first one makes the optimizer's state
                with peak:
                    peak.most = peak.now
                    step([enlarged(batch, rows)], [float(rows)] * len(tasks), factor=1.0)
    except (DynamicOutputShapeException, DataDependentOutputException) as error:
        raise TrainError(
            f'The memory of {type(model).__name__} cannot be predicted: {error} gives a result whose shape depends on '
            f'values. Compute with masks instead of picking rows by value, or try batch sizes by hand.'
        ) from error
    return held_bytes(model) + peak.most


class _Peak(TorchDispatchMode):
    """Bytes of all that was made inside and is still held by somebody, now and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self._held: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
        out = func(*args, **(kwargs or {}))
        for tensor in _tensors(out):
            storage = tensor.untyped_storage()
            at, size = storage._cdata, storage.nbytes()
            if at not in given and at not in self._held:
                self.now += size
                self._held[at] = weakref.ref(storage, functools.partial(self._gone, at, size))
        self.most = max(self.most, self.now)
        return out

    def _gone(self, at: int, size: int, *_: Any) -> None:
        self.now -= size
        self._held.pop(at, None)


def _tensors(value: Any) -> list[torch.Tensor]:
    return [each for each in tree_leaves(value) if isinstance(each, torch.Tensor)]


def held_bytes(model: nn.Module) -> int:
    """Of the weights and buffers of a model.

    >>> held_bytes(nn.Linear(3, 1))
    16
    """
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def probed_bytes(
    model: nn.Module, tasks: Sequence[Task], batch: Mapping[str, Any], rows: int, *, trainer: Trainer,
    device: torch.device,
) -> int:  # fmt: skip
    """Peak memory of a real forward and backward pass, beside memory of the size of the optimizer's state.

    The model comes out as it went in. Counted is what torch allocates, inside of its kernels too.

    Args:
        model: as for `predicted_bytes`; on `device` afterwards.
        tasks: as there.
        batch: as there.
        rows: as there.
        trainer: as there.
        device: where it is trained.
    """
    model = copy.deepcopy(model).to(device).train()
    step = _stepper(model, tasks, trainer, device)
    weights = [p for p in step.parameters if p.requires_grad]
    step.optimizer.step = lambda *_, **__: None  # type: ignore[assignment,method-assign]

    def take() -> None:
        state = [torch.zeros_like(parameter) for parameter in weights for _ in range(_moments(step.optimizer))]
        step([enlarged(batch, rows, real=True)], [float(rows)] * len(tasks), factor=1.0)
        del state

    if device.type == 'cuda':  # not yet run: no test machine had a device
        torch.cuda.reset_peak_memory_stats(device)
        try:
            take()
        except torch.OutOfMemoryError:  # the margin of the limit was smaller than what kernels needed
            torch.cuda.empty_cache()
            return 2 * torch.cuda.max_memory_allocated(device)
        return torch.cuda.max_memory_allocated(device)
    return held_bytes(model) + allocated_bytes(take)


def allocated_bytes(run: Callable[[], Any]) -> int:
    """The most that torch has allocated on the CPU at a time while something runs, inside of its kernels too.

    >>> allocated_bytes(lambda: torch.zeros(1000) + torch.zeros(1000)) // 4000
    3
    """
    os.environ.setdefault('KINETO_LOG_LEVEL', '6')  # else the profiler tells on stderr that it starts
    with torch.autograd.profiler.profile(profile_memory=True, use_kineto=True) as profile:
        run()
    events = profile.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == '[memory]')
    return int(max(np.cumsum([size for _, size in changes]), default=0))


def enlarged(batch: Mapping[str, Any], rows: int, *, real: bool = False) -> dict[str, Any]:
    """A batch of so many rows, all of which have everything.

    Args:
        batch: of a loader.
        rows: wanted.
        real: repeat the rows of the batch; else tensors of the same form with any content.

    >>> found = enlarged({'price': torch.tensor([1.0, 2.0]), '_key': ['a', 'b']}, 5, real=True)
    >>> found['price'], len(found['_key'])
    (tensor([1., 2., 1., 2., 1.]), 5)
    """

    def tensor(value: torch.Tensor, fill: Any = None) -> torch.Tensor:
        shape = (rows, *value.shape[1:])
        if fill is not None:
            return torch.full(shape, fill, dtype=value.dtype, device=value.device)
        if not real:
            return torch.empty(shape, dtype=value.dtype, device=value.device)
        return value[torch.arange(rows, device=value.device) % len(value)]

    found: dict[str, Any] = {'_key': [''] * rows}
    for name, value in batch.items():
        if isinstance(value, torch.Tensor):
            found[name] = tensor(value)
        elif name == '_mask':
            found[name] = {field: tensor(mask, True) for field, mask in value.items()}
        elif name == '_length':
            found[name] = {field: tensor(length, batch[field].shape[1]) for field, length in value.items()}
        elif name == '_present':
            found[name] = {field: np.arange(rows) for field in value}
    return found


def free_bytes(device: torch.device) -> int:
    """How much memory a training may use here, when nobody says.

    >>> free_bytes(torch.device('cpu')) > 0
    True
    """
    if device.type == 'cuda':
        free, _ = torch.cuda.mem_get_info(device)
        return int(SHARE['cuda'] * (free + torch.cuda.memory_reserved(device)))
    return int(SHARE['cpu'] * os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE'))


def largest_within(peak: Callable[[int], int], limit: int) -> int:
    """Nearly the largest number of rows whose peak is within a limit: 1/64 less at most, and rounded down.

    Args:
        peak: bytes of so many rows, which grow with them.
        limit: bytes.

    Returns:
        0 where not even one row fits.

    >>> largest_within(lambda rows: 1000 + 10 * rows, 4000), largest_within(lambda rows: 1000 + 10 * rows, 1055)
    (296, 5)
    """
    known = {rows: peak(rows) for rows in (FIRST, SECOND)}
    for look in range(LOOKS):
        fits = max((rows for rows, size in known.items() if size <= limit), default=0)
        over = min((rows for rows, size in known.items() if size > limit), default=MOST + 1)
        if over - fits <= max(1, fits // NEAR):
            break
        # Where the line through the points around the limit reaches it, or through the last two.
        below = sum(rows < over for rows in known)
        (a, at_a), (b, at_b) = sorted(known.items())[min(max(below - 1, 0), len(known) - 2) :][:2]
        slope = (at_b - at_a) / (b - a)
        guess = a + math.floor((limit - at_a) / slope) if slope > 0 else MOST
        if look % 2 and over <= MOST:  # where the line is bent, it comes near from one side only
            guess = (fits + over) // 2
        guess = min(max(guess, fits + 1), over - 1)
        known[guess] = peak(guess)
    fits = max((rows for rows, size in known.items() if size <= limit), default=0)
    return fits - fits % ROUNDED if fits > ROUNDED else fits


def _kept(rows: int, accumulate: int, largest: int) -> bool:
    return rows % accumulate == 0 and rows // accumulate <= largest


def _stepper(model: nn.Module, tasks: Sequence[Task], trainer: Trainer, device: torch.device) -> Stepper:
    if trainer.recompute:
        forget_blocks(model, trainer.recompute)
    with torch.device(device):
        balancing = make_balancing(trainer.balancing, tasks)
    optimizer = make_optimizer(
        nn.ModuleDict({'model': model, 'balancing': balancing}), lr=trainer.lr, weight_decay=trainer.weight_decay,
        layer_decay=trainer.layer_decay, factory=trainer.optimizer,
    )  # fmt: skip
    return Stepper(
        model, tasks, optimizer, balancing=balancing, strategy=Alone(), device=device,
        precision=trainer.precision, clip=trainer.clip, channels_last=trainer.channels_last,
    )  # fmt: skip


def _moments(optimizer: torch.optim.Optimizer) -> int:
    """Tensors of the size of a parameter that an optimizer keeps for it."""
    return {'SGD': int(optimizer.defaults.get('momentum', 0) > 0)}.get(type(optimizer).__name__, 2)


def _device_of(batch: Mapping[str, Any]) -> torch.device:
    return next(value.device for value in batch.values() if isinstance(value, torch.Tensor))


def _over_ranks(number: int, device: torch.device, how: Any) -> int:
    if world()[1] == 1:
        return number
    value = torch.tensor(number, device=device)
    distributed.all_reduce(value, op=how)
    return int(value)

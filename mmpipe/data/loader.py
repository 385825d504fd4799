"""Batches of a snapshot on the device, in an order that resumes anywhere.

sampling.sequence(seed, epoch)        positions of the epoch, the same on every rank
  └─ global batches, rank slices      this rank's steps                    (EpochBatches)
       └─ BatchTask                   gather, decode, pad: reading threads, ahead of the consumer, into lent memory
            └─ device                 as stored: uint8 stays uint8; on CUDA from pinned memory, on its own stream
                 └─ transforms        on the device
"""

from __future__ import annotations

import copy
import hashlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch

from mmpipe.cores import cores
from mmpipe.data import transforms as _transforms
from mmpipe.data.batch import Request
from mmpipe.data.batches import EpochBatches, Step, world
from mmpipe.data.collate import as_tensors
from mmpipe.data.crossing import crossed
from mmpipe.data.dataset import ShardDataset
from mmpipe.data.depth import Depth
from mmpipe.data.device import Transfer, resolve, to_device
from mmpipe.data.fetching import Fetching
from mmpipe.data.grouped import GroupedReader, batches_at_once
from mmpipe.data.leases import Leases
from mmpipe.data.order import sample_hashes
from mmpipe.data.sampling import Sampled, Sampling, Sequential, Shuffle
from mmpipe.data.seen import SeenRows
from mmpipe.data.threads import Reader, ThreadReader
from mmpipe.data.transforms.calling import Steps
from mmpipe.decode import Decoder
from mmpipe.errors import ConfigError, DataError
from mmpipe.runs.described import NotDescribed, described, rebuilt
from mmpipe.shards import Rows
from mmpipe.workers import ProcessReader

__all__ = ['DataLoader', 'rows_digest', 'world']

THREADS = 8  # at most, where their number is not given
UNTOLD = 64  # rows per batch where a sampling cuts batches of several sizes
ANNOUNCED = 64  # batches whose shards are fetched ahead, as far as the cache has room for them


class DataLoader:
    """Iterates batches of a snapshot on a device: uint8 crosses, then the transforms run there.

    Each pass is one epoch; passes number the epochs. Under `torch.distributed`, every rank makes the same loader and
    gets its own part of each step; a last step that the ranks cannot share evenly is split unevenly, so that every
    sample comes once (a rank's last batch can be empty), unless `pad_last` or `drop_last` says otherwise. Drawing from
    the global random generators does not change the order, nor does iterating change them.

    Batches are made ahead by threads, in memory that is lent: it is used again when the last tensor over it is gone, so
    batches can be kept as long as they are needed.

    Args:
        rows: what to load, such as `snapshot.split('train')`; or a mixture (`mm.sampling.mixture`).
        batch_size: rows per batch on each rank.
        global_batch_size: instead of it, rows per step over all ranks.
        shuffle: a new order each epoch.
        sampler: what an epoch visits (`mm.sampling`), instead of `shuffle`.
        seed: of order, decoding and augmentation.
        device: 'auto', 'cpu' or any torch device.
        decode: {field: decoder} for fields of encoded files (`mm.decode`).
        transforms: {field, or '*' for the whole batch: a callable of the tensor on the device, or several in order};
            see `mmpipe.data.transforms`.
        host_transforms: {field: function of one sample's array on the CPU, after decoding}. Such functions hold the
            interpreter lock, so batches are then made in worker processes, which must be able to import the function.
        num_workers: reading threads, which the thread that iterates helps while it waits; 'auto' for one per core but
            one, 0 for none. With `host_transforms`, processes; 'auto' for one per core.
        prefetch_factor: batches made ahead per worker; None to go by how fast they are made and used, and to read
            several at once where they are small.
        pin_memory: make batches in page-locked memory; only on CUDA when None.
        drop_last: leave out a last step that is not full; `dropped` says how many samples that are.
        pad_last: fill it with samples from the start of the epoch, whose values all count as missing.
        fields: names of the fields to read; all when None.
        on_error: what to do with a value that cannot be decoded: 'raise', or 'mask' to count it as missing, and keep
            key, field and cause in `failed`.
        on_transfer: told of every tensor that crosses to the device: (name, dtype, bytes, device).
        pool_bytes: memory that may be lent at once; a quarter of the machine's when None.

    Raises:
        ConfigError: numbers that are not possible, options that exclude each other, or pinning without CUDA.
        DataError: no rows, or a field or transform that names no field.

    Attributes:
        failed: {(key, field): cause} of values that could not be decoded, with `on_error='mask'`.
        waited_s: seconds that the newest pass waited for batches.

    >>> from mmpipe.data.collate import example_rows
    >>> loader = DataLoader(example_rows(), batch_size=2, device='cpu')
    >>> [batch['_key'] for batch in loader], len(loader)
    ([['a', 'b']], 1)
    """

    def __init__(
        self,
        rows: Rows | Sampled,
        *,
        batch_size: int | None = None,
        global_batch_size: int | None = None,
        shuffle: bool = False,
        sampler: Sampling | None = None,
        seed: int = 0,
        device: str | torch.device = 'auto',
        decode: Mapping[str, Decoder] | None = None,
        transforms: Mapping[str, Steps] | None = None,
        host_transforms: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
        num_workers: int | Literal['auto'] = 'auto',
        prefetch_factor: int | None = None,
        pin_memory: bool | None = None,
        drop_last: bool = False,
        pad_last: bool = False,
        fields: Iterable[str] | None = None,
        on_error: Literal['raise', 'mask'] = 'raise',
        on_transfer: Transfer | None = None,
        pool_bytes: int | None = None,
    ) -> None:
        chosen: Any = rows
        if isinstance(rows, Sampled):
            if sampler is not None or shuffle:
                raise ConfigError('these rows come with a sampling of their own: leave out shuffle and sampler.')
            chosen, sampler = rows.rows, rows.sampling
        # The thread that iterates helps where it waits, and has other things to do where it does not.
        spare = cores() if host_transforms else max(cores() - 1, 1)
        workers = min(spare, THREADS) if num_workers == 'auto' else num_workers
        if workers < 0 or (prefetch_factor is not None and prefetch_factor < 1):
            raise ConfigError(
                f'DataLoader(num_workers={num_workers}, prefetch_factor={prefetch_factor}): give at least 0 workers '
                f'and 1 batch per worker.'
            )
        if shuffle and sampler is not None:
            raise ConfigError('DataLoader(shuffle=True, sampler=...): a sampler decides the order alone; give one.')
        self.device = resolve(device)
        if pin_memory and self.device.type != 'cuda':
            raise ConfigError(
                f'pin_memory=True speeds up copies to CUDA only, and the device is {self.device}: leave it out.'
            )
        self.pin_memory = self.device.type == 'cuda' if pin_memory is None else pin_memory
        self.dataset = ShardDataset(
            chosen, fields=fields, decode=decode, host_transforms=host_transforms, seed=seed, on_error=on_error
        )
        self.transforms = dict(transforms or {})
        _transforms.check(self.transforms, self.dataset.fields)
        self.num_workers, self.prefetch_factor = workers, prefetch_factor
        self.on_transfer = on_transfer
        self.batches = EpochBatches(
            chosen,
            sampling=sampler or (Shuffle() if shuffle else Sequential()),
            batch_size=batch_size,
            global_batch_size=global_batch_size,
            seed=seed,
            drop_last=drop_last,
            pad_last=pad_last,
        )
        self.pool = Leases(limit_bytes=pool_bytes, pinned=self.pin_memory)
        self.failed: dict[tuple[str, str], str] = {}
        self.waited_s = 0.0
        self._epoch = self._resume_at = 0
        self._position = (0, 0)
        self._processes: ProcessReader | None = None
        self._depth = self._new_depth()  # what one pass shows of the times, the next one knows

    @property
    def rows(self) -> Rows:
        """The rows it loads, on all ranks together."""
        return self.dataset.rows

    @property
    def seen(self) -> SeenRows:
        """The rows as a model sees them: decoded and transformed, less what is random. What is fitted, is on these."""
        return SeenRows(self.rows, self.dataset.task, self.transforms)

    @property
    def fields(self) -> list[str]:
        """Names of the fields it reads."""
        return self.dataset.fields

    @property
    def batch_size(self) -> int:
        """Rows per batch on each rank; the largest of them where the ranks cannot share a step evenly."""
        return -(-self.batches.global_batch // world()[1])  # 0 where the sampling cuts batches of several sizes

    @property
    def dropped(self) -> int:
        """Samples at the end of each epoch that `drop_last` leaves out."""
        return self.batches.dropped

    @property
    def padded(self) -> int:
        """Samples that `pad_last` adds at the end of each epoch, on all ranks together."""
        return self.batches.padded

    @cached_property
    def digest(self) -> str:
        """`rows_digest` of its rows."""
        return rows_digest(self.rows)

    def __len__(self) -> int:
        """Batches in one whole epoch: the next one, where a sampling cuts batches of several sizes."""
        return self.batches.count(self._epoch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        epoch, start = self._epoch, self._resume_at
        self._resume_at = 0
        self._position = (epoch, start)
        self.dataset.set_epoch(epoch)
        for step, batch in self._on_device(self._made(epoch, start)):
            self._position = (epoch, step.consumed)
            yield self._transformed(batch, step, epoch)
        self._epoch = epoch + 1
        self._position = (epoch + 1, 0)

    def _on_device(self, made: Iterator[tuple[Step, dict[str, Any]]]) -> Iterator[tuple[Step, dict[str, Any]]]:
        if self.device.type == 'cuda':
            return crossed(made, self.device, on_transfer=self.on_transfer)
        if self.device.type == 'cpu' and self.on_transfer is None:
            return made  # is there
        return ((step, to_device(batch, self.device, on_transfer=self.on_transfer)) for step, batch in made)

    def _made(self, epoch: int, start: int) -> Iterator[tuple[Step, dict[str, Any]]]:
        """Batches of this rank on the host, made ahead."""
        fetching = Fetching(self.rows, self.fields)
        steps = _announced(self.batches.steps(epoch, start), fetching)
        reader, depth = self._reader(fetching), self._depth
        at_once = self._at_once if isinstance(reader, GroupedReader) else 1
        given: deque[Step] = deque()

        def submit() -> None:
            while len(given) < depth.now * at_once and (step := next(steps, None)) is not None:
                if reader is self._processes:
                    fetching.wait(step.positions)  # else the threads do
                keys = self.rows.keys_at(step.positions).tolist() if reader is self._processes else None
                reader.submit(Request(step.positions, epoch, step.padded, step.repeats, keys))
                given.append(step)

        self.waited_s, had, whole = 0.0, time.perf_counter(), False
        try:
            while True:
                returned = time.perf_counter()
                submit()
                if not given:
                    whole = True
                    return
                asked = time.perf_counter()
                batch = reader.next()
                waited = time.perf_counter() - asked
                self.waited_s += waited
                depth.note(made_s=reader.made_s, used_s=returned - had, waited_s=waited)
                for key, field, why in batch.pop('_failed', ()):
                    self.failed[key, field] = why
                # Which rows have a value is known here, on the host. Sent along, it spares the model and the losses a
                # round trip to the device per field and step.
                batch['_present'] = {name: np.flatnonzero(mask) for name, mask in batch['_mask'].items()}
                step = given.popleft()
                if self.num_workers:
                    submit()  # so that the next one is on its way while this one is used
                tensors = as_tensors(batch)
                had = time.perf_counter()
                yield step, tensors
        finally:
            fetching.close()
            self._leave(reader, whole)

    @property
    def _at_once(self) -> int:
        return batches_at_once(self.dataset.task, self.batch_size) if self.prefetch_factor is None else 1

    def _new_depth(self) -> Depth:
        return Depth(self.num_workers, fixed=self.prefetch_factor, together=not self.dataset.task.host)

    def _reader(self, fetching: Fetching) -> Reader:
        if not (self.dataset.task.host and self.num_workers):
            first = (lambda request: fetching.wait(request.positions)) if fetching.remote else None
            reader = ThreadReader(self.dataset.task, threads=self.num_workers, allocate=self.pool, first=first)
            grouped = self._at_once > 1 and not fetching.remote
            return GroupedReader(reader, most=self._at_once) if grouped else reader
        if self._processes is None:
            self._processes = ProcessReader(self.dataset.task, processes=self.num_workers, pool=self.pool.limit_bytes)
        return self._processes

    def _leave(self, reader: Reader, whole: bool) -> None:
        """Worker processes stay for the next pass, unless they make what nobody wants any more, or one has died."""
        if reader is not self._processes:
            reader.close()
        elif not whole:
            reader.close()
            self._processes = None

    def _transformed(self, batch: dict[str, Any], step: Step, epoch: int) -> dict[str, Any]:
        if self.transforms:
            hashes = sample_hashes(self.rows.hashes[step.positions], step.repeats)
            draw = _transforms.Draw(hashes, self.batches.seed, epoch)
            allocate = self.pool if self.device.type == 'cpu' else None
            batch = _transforms.apply_all(self.transforms, batch, draw, allocate=allocate)
        return batch

    def set_epoch(self, epoch: int) -> None:
        """Let the next pass be this epoch, from its start.

        Args:
            epoch: from 0.

        >>> from mmpipe.data.collate import example_rows
        >>> loader = DataLoader(example_rows(), batch_size=1, device='cpu')
        >>> loader.set_epoch(3); loader.state_dict()['epoch']
        3
        """
        self._epoch, self._resume_at = epoch, 0
        self._position = (epoch, 0)

    def state_dict(self) -> dict[str, Any]:
        """Where the newest pass stands, as JSON: after the batches it has yielded so far.

        >>> from mmpipe.data.collate import example_rows
        >>> DataLoader(example_rows(), batch_size=1, device='cpu').state_dict()['consumed']
        0
        """
        epoch, consumed = self._position
        return {
            'epoch': epoch,
            'consumed': consumed,
            'global_batch': self.batches.global_batch,
            'seed': self.batches.seed,
            'sampling': self.batches.sampling.identity(),
            'rows': len(self.rows),
            'digest': self.digest,
            'order': self.batches.digest(epoch) if consumed else None,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass go on from a state, also of another world size, batch size or number of workers.

        Args:
            state: from `state_dict`. Every sample of its epoch that was not consumed then comes once, none twice.

        Raises:
            DataError: it belongs to other rows or another order.
        """
        mine = self.state_dict()
        for name in ('rows', 'digest', 'seed', 'sampling'):
            if state[name] != mine[name]:
                raise DataError(
                    f'The state of a loader with {name}={state[name]!r} was given to one with {name}={mine[name]!r} '
                    f'(snapshot {self.rows.snapshot.id}). Open the snapshot it was made on, with the same seed.'
                )
        epoch, consumed = int(state['epoch']), int(state['consumed'])
        if consumed and state['order'] != self.batches.digest(epoch):
            raise DataError(
                f'The state stands in the middle of epoch {epoch}, whose order is another one now: '
                f'{type(self.batches.sampling).__name__} goes by where rows are stored, or is not a function of seed '
                f'and epoch. Open the snapshot it was made on (not its compaction), or begin the epoch anew with '
                f'set_epoch({epoch}).'
            )
        if consumed >= self.batches.end:
            epoch, consumed = epoch + 1, 0
        self._epoch, self._resume_at = epoch, consumed
        self._position = (epoch, consumed)

    def over(self, rows: Rows, *, fields: Iterable[str] | None = None) -> DataLoader:
        """A loader of the same settings over other rows of the same fields, in their order, each once.

        Args:
            rows: what to load.
            fields: read only these (and run only their transforms); as this one when None.

        >>> from mmpipe.data.collate import example_rows
        >>> loader = DataLoader(example_rows(), batch_size=1, device='cpu', shuffle=True)
        >>> [batch['_key'] for batch in loader.over(example_rows().take([1]))]
        [['b']]
        """
        other = self.fresh(fields=fields)
        task = other.dataset.task
        other.dataset = ShardDataset(
            rows, fields=other.fields, decode=task.decode, host_transforms=task.host, seed=task.seed,
            on_error=task.on_error,
        )  # fmt: skip
        size = self.batches.batch_size or -(-(self.batches.global_batch_size or UNTOLD) // world()[1])
        other.batches = EpochBatches(rows, sampling=Sequential(), batch_size=size, seed=self.batches.seed)
        other.__dict__.pop('digest', None)
        return other

    def description(self) -> dict[str, Any]:
        """Its settings as JSON, from which `DataLoader.described` makes it again over the same rows.

        What only decides how fast it is (workers, memory) stays out, but for the device.

        Raises:
            NotDescribed: a transform, decoder or sampling that no other process could make; the text names it.

        >>> from mmpipe.data.collate import example_rows
        >>> loader = DataLoader(example_rows(), batch_size=2, device='cpu', shuffle=True, seed=7)
        >>> again = DataLoader.described(loader.description(), example_rows())
        >>> again.state_dict() == loader.state_dict()
        True
        """
        task, batches = self.dataset.task, self.batches
        return {
            'fields': self.fields,
            'decode': _described('decoder', task.decode),
            'host_transforms': _described('host transform', task.host),
            'transforms': _described('transform', self.transforms),
            'on_error': task.on_error,
            'sampler': _described('sampling', {'': batches.sampling})[''],
            'batch_size': batches.batch_size,
            'global_batch_size': batches.global_batch_size,
            'seed': batches.seed,
            'drop_last': batches.drop_last,
            'pad_last': batches.pad_last,
            'device': self.device.type,
        }

    @classmethod
    def described(
        cls, description: Mapping[str, Any], rows: Rows | Sampled, *, run: str = 'this run', **others: Any
    ) -> DataLoader:
        """A loader of a description.

        Args:
            description: of `description`.
            rows: what to load.
            run: id of the run it is of, for messages.
            others: arguments that are to be others than described, such as `device`.

        Raises:
            RunError: the code of a transform or decoder is gone.
        """
        return cls(rows, **{**rebuilt(dict(description), run=run), **others})

    def fresh(self, *, fields: Iterable[str] | None = None, seed: int | None = None) -> DataLoader:
        """A loader of the same settings at epoch 0, which goes its own way. The two lend memory from one pool.

        Args:
            fields: read only these (and run only their transforms); as this one when None.
            seed: of order, decoding and augmentation; as this one when None.

        >>> from mmpipe.data.collate import example_rows
        >>> DataLoader(example_rows(), batch_size=1, device='cpu').fresh(fields=['price']).fields
        ['price']
        """
        other = copy.copy(self)
        wanted = set(self.fields if fields is None else fields)
        other.dataset = self.dataset.fresh([name for name in self.fields if name in wanted])
        other.transforms = _transforms.select(self.transforms, other.dataset.fields)
        other.batches, other.failed = copy.copy(self.batches), {}
        if seed is not None:
            other.batches, other.dataset.task.seed = self.batches.reseeded(seed), seed
        other._epoch, other._resume_at, other._position, other._processes = 0, 0, (0, 0), None
        other._depth = other._new_depth()
        return other


def _announced(steps: Iterator[Step], fetching: Fetching) -> Iterator[Step]:
    """The steps, each of which was announced some steps before where its shards have to be fetched."""
    coming: deque[Step] = deque()
    while fetching.remote:
        while len(coming) < ANNOUNCED and (step := next(steps, None)) is not None:
            fetching.want(step.positions)
            coming.append(step)
        if not coming:
            return
        yield coming.popleft()
    yield from steps


def _described(what: str, values: Mapping[str, Any]) -> dict[str, Any]:
    made = {}
    for name, value in values.items():
        try:
            made[name] = described(value)
        except NotDescribed as why:
            raise NotDescribed(f'{what} of {name!r}: {why}' if name else f'{what}: {why}') from why
    return made


def rows_digest(rows: Rows) -> str:
    """Digest of the set of row keys, whatever their order: 32 hexadecimal characters.

    >>> from mmpipe.data.collate import example_rows
    >>> rows_digest(example_rows()) == rows_digest(example_rows().take([1, 0]))
    True
    """
    return hashlib.blake2b(np.sort(rows.hashes).tobytes(), digest_size=16).hexdigest()

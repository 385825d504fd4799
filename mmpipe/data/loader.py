"""Batches of a snapshot on the device, in an order that resumes anywhere.

epoch_order(hashes, seed, epoch)      positions, the same on every rank
  └─ global batches of batch_size x world_size
       └─ rank_slice                  this rank's positions          (EpochBatches)
            └─ ShardDataset           one gather per field           torch DataLoader: workers, pinning
                 └─ to_device         as stored: uint8 stays uint8
                      └─ transforms   on the device
"""

from __future__ import annotations

import copy
import hashlib
import math
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.utils.data import DataLoader as TorchDataLoader
from torch.utils.data import Sampler

from mmpipe.data import transforms as _transforms
from mmpipe.data.dataset import ShardDataset
from mmpipe.data.device import Transfer, resolve, to_device
from mmpipe.data.order import epoch_order, rank_slice
from mmpipe.errors import ConfigError, DataError
from mmpipe.shards import Rows


class EpochBatches(Sampler):
    """The positions of each batch of one rank, from a given sample of an epoch on.

    Args:
        hashes: uint64 `[N]` of all rows, the same on every rank.
        batch_size: rows per batch on one rank.
        shuffle: order by `epoch_order`, else as stored.
        seed: of the order.
        drop_last: leave out a last global batch that is not full.

    >>> batches = EpochBatches(np.arange(5, dtype=np.uint64), batch_size=2, shuffle=False, seed=0, drop_last=False)
    >>> [batch.tolist() for batch in batches]
    [[0, 1], [2, 3], [4]]
    """

    def __init__(self, hashes: np.ndarray, *, batch_size: int, shuffle: bool, seed: int, drop_last: bool) -> None:
        self.hashes = hashes
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.drop_last = drop_last
        self.epoch = 0
        self.start = 0
        self.given: deque[np.ndarray] = deque()  # handed to the reading side and not yet back: it reads ahead

    @property
    def global_batch(self) -> int:
        """Rows that one step takes over all ranks."""
        return self.batch_size * world()[1]

    @property
    def end(self) -> int:
        """Samples an epoch visits."""
        count = len(self.hashes)
        return count - count % self.global_batch if self.drop_last else count

    def __len__(self) -> int:
        return math.ceil((self.end - self.start) / self.global_batch)

    def __iter__(self) -> Iterator[np.ndarray]:
        rank, world_size = world()
        order = epoch_order(self.hashes, self.seed, self.epoch) if self.shuffle else np.arange(len(self.hashes))
        self.given.clear()
        for start in range(self.start, self.end, self.global_batch):
            step = order[start : min(start + self.global_batch, self.end)]
            positions = step[rank_slice(len(step), rank, world_size)]
            self.given.append(positions)
            yield positions


class DataLoader:
    """Iterates batches of a snapshot on a device: uint8 crosses, then the transforms run there.

    Each pass is one epoch; passes number the epochs. Under `torch.distributed`, every rank makes the same loader and
    gets its own part of each step; a last step that the ranks cannot share evenly is split unevenly, so that every
    sample comes once (a rank's last batch can be empty). Drawing from the global random generators does not change
    the order, nor does iterating change them.

    Args:
        rows: what to load, such as `snapshot.split('train')`.
        batch_size: rows per batch on each rank.
        shuffle: a new order each epoch.
        seed: of order and augmentation.
        device: 'auto', 'cpu' or any torch device.
        transforms: {field: callable on the field's tensor on the device}; see `mmpipe.data.transforms`.
        num_workers: reading processes (spawned); 0 reads in this one, which is the faster way unless a field is
            slow to decode.
        pin_memory: copy to page-locked memory before the transfer; only on CUDA when None.
        drop_last: leave out a last step that is not full.
        fields: names of the fields to read; all when None.
        on_transfer: told of every tensor that crosses to the device: (name, dtype, bytes, device).

    Raises:
        ConfigError: a batch size below 1, a negative number of workers, or pinning without CUDA.
        DataError: no rows, or a field or transform that names no field.

    >>> from mmpipe.data.collate import example_rows
    >>> loader = DataLoader(example_rows(), batch_size=2, device='cpu')
    >>> [batch['_key'] for batch in loader], len(loader)
    ([['a', 'b']], 1)
    """

    def __init__(
        self,
        rows: Rows,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        device: str | torch.device = 'auto',
        transforms: Mapping[str, Callable[..., torch.Tensor]] | None = None,
        num_workers: int = 0,
        pin_memory: bool | None = None,
        drop_last: bool = False,
        fields: Iterable[str] | None = None,
        on_transfer: Transfer | None = None,
    ) -> None:
        if batch_size < 1 or num_workers < 0:
            raise ConfigError(
                f'DataLoader(batch_size={batch_size}, num_workers={num_workers}): give at least 1 row and 0 workers.'
            )
        self.device = resolve(device)
        if pin_memory and self.device.type != 'cuda':
            raise ConfigError(
                f'pin_memory=True speeds up copies to CUDA only, and the device is {self.device}: leave it out.'
            )
        self.pin_memory = self.device.type == 'cuda' if pin_memory is None else pin_memory
        self.dataset = ShardDataset(rows, fields=fields)
        self.transforms = dict(transforms or {})
        unknown = [name for name in self.transforms if name not in self.dataset.fields]
        if unknown:
            raise DataError(
                f'transforms= names the field {unknown[0]!r}, which is not loaded; loaded are '
                f'{", ".join(self.dataset.fields)}. Correct the name, or add it to fields=.'
            )
        self.num_workers = num_workers
        self.on_transfer = on_transfer
        self.batches = EpochBatches(rows.hashes, batch_size=batch_size, shuffle=shuffle, seed=seed, drop_last=drop_last)
        self._resume_at = 0
        self._position = (0, 0)
        self._torch_loader: TorchDataLoader | None = None

    @property
    def rows(self) -> Rows:
        """The rows it loads, on all ranks together."""
        return self.dataset.rows

    @property
    def fields(self) -> list[str]:
        """Names of the fields it reads."""
        return self.dataset.fields

    @property
    def batch_size(self) -> int:
        """Rows per batch on each rank."""
        return self.batches.batch_size

    @cached_property
    def digest(self) -> str:
        """`rows_digest` of its rows."""
        return rows_digest(self.rows)

    def __len__(self) -> int:
        """Batches in one whole epoch."""
        return math.ceil(self.batches.end / self.batches.global_batch)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        batches = self.batches
        batches.start, self._resume_at = self._resume_at, 0
        epoch, consumed = batches.epoch, batches.start
        self._position = (epoch, consumed)
        # The sampler is consumed in this process, also with workers, which read ahead in order; so `given` holds the
        # positions of exactly the batches still to come.
        for batch in self._reader():
            positions = batches.given.popleft()
            consumed = min(consumed + batches.global_batch, batches.end)
            self._position = (epoch, consumed)
            yield self._finished(batch, self.rows.hashes[positions], epoch)
        batches.epoch, batches.start = epoch + 1, 0
        self._position = (epoch + 1, 0)

    def _reader(self) -> TorchDataLoader:
        if self._torch_loader is None:
            workers: dict[str, Any] = {
                'multiprocessing_context': 'spawn',
                'persistent_workers': True,
                'worker_init_fn': _leave_interrupts_to_parent,
            }
            self._torch_loader = TorchDataLoader(
                self.dataset,
                sampler=self.batches,
                batch_size=None,
                collate_fn=_as_it_is,
                num_workers=self.num_workers,
                pin_memory=self.pin_memory,
                # Making an iterator draws a seed; from a generator of our own, so that the global one stays untouched.
                generator=torch.Generator().manual_seed(self.batches.seed),
                **(workers if self.num_workers else {}),
            )
        return self._torch_loader

    def _finished(self, batch: dict[str, Any], hashes: np.ndarray, epoch: int) -> dict[str, Any]:
        # Which rows have a value is known here, on the host. Sent along, it spares the model and the losses a
        # round trip to the device per field and step.
        batch['_present'] = {name: mask.nonzero().flatten() for name, mask in batch['_mask'].items()}
        batch = to_device(batch, self.device, non_blocking=self.pin_memory, on_transfer=self.on_transfer)
        draw = _transforms.Draw(hashes, self.batches.seed, epoch)
        for name, transform in self.transforms.items():
            batch[name] = _transforms.apply(transform, batch[name], draw)
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
        self.load_state_dict({**self.state_dict(), 'epoch': epoch, 'consumed': 0})

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
            'shuffle': self.batches.shuffle,
            'rows': len(self.rows),
            'digest': self.digest,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Let the next pass go on from a state, also of another world size, batch size or number of workers.

        Args:
            state: from `state_dict`. Every sample of its epoch that was not consumed then comes once, none twice.

        Raises:
            DataError: it belongs to other rows or another order.
        """
        mine = self.state_dict()
        for name in ('rows', 'digest', 'seed', 'shuffle'):
            if state[name] != mine[name]:
                raise DataError(
                    f'The state of a loader with {name}={state[name]!r} was given to one with {name}={mine[name]!r} '
                    f'(snapshot {self.rows.snapshot.id}). Open the snapshot it was made on, with the same seed.'
                )
        epoch, consumed = int(state['epoch']), int(state['consumed'])
        if consumed >= self.batches.end:
            epoch, consumed = epoch + 1, 0
        self.batches.epoch, self._resume_at = epoch, consumed
        self._position = (epoch, consumed)

    def fresh(self, *, fields: Iterable[str] | None = None) -> DataLoader:
        """A loader of the same settings at epoch 0, which shares no state with this one.

        Args:
            fields: read only these (and run only their transforms); as this one when None.

        >>> from mmpipe.data.collate import example_rows
        >>> DataLoader(example_rows(), batch_size=1, device='cpu').fresh(fields=['price']).fields
        ['price']
        """
        other = copy.copy(self)
        if fields is not None:
            wanted = set(fields)
            other.dataset = ShardDataset(self.rows, fields=[name for name in self.rows.fields if name in wanted])
            other.transforms = {name: value for name, value in self.transforms.items() if name in wanted}
        old = self.batches
        other.batches = EpochBatches(
            old.hashes, batch_size=old.batch_size, shuffle=old.shuffle, seed=old.seed, drop_last=old.drop_last
        )
        other._resume_at, other._position, other._torch_loader = 0, (0, 0), None
        return other


def world() -> tuple[int, int]:
    """(rank, world_size) of this process; (0, 1) where `torch.distributed` is not initialised.

    >>> world()
    (0, 1)
    """
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def _leave_interrupts_to_parent(worker: int) -> None:
    """A terminal's Ctrl-C reaches every process; the workers go on, so that the running step can be finished."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _as_it_is(batch: Any) -> Any:
    """Instead of torch's own walk through every string and tensor of a batch that is one already."""
    return batch


def rows_digest(rows: Rows) -> str:
    """Digest of the set of row keys, whatever their order: 32 hexadecimal characters.

    >>> from mmpipe.data.collate import example_rows
    >>> rows_digest(example_rows()) == rows_digest(example_rows().take([1, 0]))
    True
    """
    return hashlib.blake2b(np.sort(rows.hashes).tobytes(), digest_size=16).hexdigest()

"""Rows of a snapshot as a torch map-style dataset."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset

from mmpipe.data.batch import BatchTask, Request
from mmpipe.data.collate import as_tensors, split_batch
from mmpipe.decode import Decoder
from mmpipe.errors import DataError
from mmpipe.shards import Rows


class ShardDataset(Dataset):
    """A `torch.utils.data.Dataset` over rows of a snapshot, for any loader that takes one.

    It reads straight from the memory-mapped shards, can be pickled into spawned workers (they map the files
    themselves), and gathers whole batches with one read per field:

        DataLoader(dataset, batch_size=64, shuffle=True, num_workers=2, multiprocessing_context='spawn')
        DataLoader(dataset, sampler=BatchSampler(RandomSampler(dataset), 64, False), batch_size=None)

    Both give the batch layout of `mmpipe.data.batch`. The second skips collating and is faster. A sample is the same
    as in `mm.DataLoader` of the same seed and epoch.

    Args:
        rows: what to read, such as `snapshot.split('train')`.
        fields: names of the fields to read; all when None.
        decode: {field: decoder} for fields of encoded files, as in `mm.DataLoader`.
        host_transforms: {field: function of one sample's array, after decoding}.
        seed: of what decoders draw.
        on_error: 'raise', or 'mask' to count a value that cannot be decoded as missing.

    Raises:
        DataError: no rows, or a field that the snapshot does not hold.
        ConfigError: a decoder for a field that is not read, or is stored decoded.

    >>> from mmpipe.data.collate import example_rows
    >>> dataset = ShardDataset(example_rows())
    >>> len(dataset), dataset[0]['price'], dataset[[1, 0]]['kind']
    (2, tensor(1.5000), tensor([0, 1]))
    """

    def __init__(
        self,
        rows: Rows,
        *,
        fields: Iterable[str] | None = None,
        decode: Mapping[str, Decoder] | None = None,
        host_transforms: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
        seed: int = 0,
        on_error: Literal['raise', 'mask'] = 'raise',
    ) -> None:
        self.rows = rows
        self.fields = list(rows.fields) if fields is None else list(fields)
        missing = [name for name in self.fields if name not in rows.fields]
        if missing:
            raise DataError(
                f'snapshot {rows.snapshot.id} in {rows.snapshot.root!r} has no field {missing[0]!r}; it has '
                f'{", ".join(rows.fields)}. Add it to the snapshot, or correct the name.'
            )
        if len(rows) == 0:
            raise DataError(
                f'There are no rows to load from snapshot {rows.snapshot.id} in {rows.snapshot.root!r} '
                f'(splits: {dict(rows.snapshot.splits)}). Check the split and the filter.'
            )
        self.task = BatchTask(rows, self.fields, decode=decode, host=host_transforms, seed=seed, on_error=on_error)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # workers that are there already see it change

    def set_epoch(self, epoch: int) -> None:
        """Let decoders draw the random numbers of an epoch, in workers too.

        Args:
            epoch: from 0.
        """
        self._epoch.fill_(epoch)

    def fresh(self, fields: Iterable[str]) -> ShardDataset:
        """The same at epoch 0, with some of its fields."""
        task = self.task.only(fields)
        return ShardDataset(
            self.rows,
            fields=task.fields,
            decode=task.decode,
            host_transforms=task.host,
            seed=task.seed,
            on_error=task.on_error,
        )

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | Sequence[int] | np.ndarray) -> dict[str, Any]:
        """One sample for an integer, one batch for a sequence of integers.

        Raises:
            IndexError: a position outside the rows.
        """
        if isinstance(index, (Sequence, np.ndarray)):
            positions = self._positions(np.asarray(index, dtype=np.int64))
            return as_tensors(self.task(Request(positions, epoch=int(self._epoch))))
        return self.__getitems__([operator.index(index)])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """The samples of one batch, read together; torch's loader calls this where it exists."""
        return split_batch(self[np.asarray(indices, dtype=np.int64)])

    def _positions(self, indices: np.ndarray) -> np.ndarray:
        count = len(self.rows)
        wrong = (indices < -count) | (indices >= count)
        if wrong.any():
            raise IndexError(f'row {int(indices[wrong][0])} of a dataset with {count} rows')
        return np.where(indices < 0, indices + count, indices)

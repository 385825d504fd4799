"""Rows of a snapshot as a torch map-style dataset."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from mmpipe.data.collate import read_batch, split_batch
from mmpipe.errors import DataError
from mmpipe.shards import Rows


class ShardDataset(Dataset):
    """A `torch.utils.data.Dataset` over rows of a snapshot, for any loader that takes one.

    It reads straight from the memory-mapped shards, can be pickled into spawned workers (they map the files
    themselves), and gathers whole batches with one read per field:

        DataLoader(dataset, batch_size=64, shuffle=True, num_workers=2, multiprocessing_context='spawn')
        DataLoader(dataset, sampler=BatchSampler(RandomSampler(dataset), 64, False), batch_size=None)

    Both give the batch layout of `mmpipe.data.collate`. The second skips collating and is faster.

    Args:
        rows: what to read, such as `snapshot.split('train')`.
        fields: names of the fields to read; all when None.

    Raises:
        DataError: no rows, or a field that the snapshot does not hold.

    >>> from mmpipe.data.collate import example_rows
    >>> dataset = ShardDataset(example_rows())
    >>> len(dataset), dataset[0]['price'], dataset[[1, 0]]['kind']
    (2, tensor(1.5000), tensor([0, 1]))
    """

    def __init__(self, rows: Rows, *, fields: Iterable[str] | None = None) -> None:
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

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | Sequence[int] | np.ndarray) -> dict[str, Any]:
        """One sample for an integer, one batch for a sequence of integers.

        Raises:
            IndexError: a position outside the rows.
        """
        if isinstance(index, (Sequence, np.ndarray)):
            return read_batch(self.rows, self.fields, self._positions(np.asarray(index, dtype=np.int64)))
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

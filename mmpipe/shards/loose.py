"""Rows that lie in no shard: a few values at hand, read as those of a snapshot are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from mmpipe.shards.column import one_array
from mmpipe.shards.field import Column, Field, encode
from mmpipe.shards.writer import key_hash


class LooseRows:
    """Some rows in memory, with what a loader asks of `mmpipe.shards.Rows`.

    Args:
        fields: what the values are.
        columns: field name to values, None for null.
        keys: the rows' names.

    Raises:
        FieldError: a value that does not fit its field; names the row.

    >>> rows = LooseRows([Field(name='price', kind='scalar', dtype='float32')], {'price': [1.5, None]}, keys=['a', 'b'])
    >>> rows.read('price')
    (array([1.5, 0. ], dtype=float32), array([ True, False]))
    """

    id, root = 'none', 'memory'  # of the snapshot, in messages
    scattered = False  # as `mmpipe.shards.Rows` says

    def __init__(self, fields: Sequence[Field], columns: Mapping[str, Sequence[Any]], *, keys: Sequence[str]) -> None:
        self.fields = {field.name: field for field in fields}
        self.keys = np.array(keys, dtype=object)
        self.hashes = np.array([key_hash(key) for key in keys], dtype=np.uint64)
        self.snapshot = self
        self._columns = {
            name: Column(field, one_array(pa.chunked_array([encode(field, list(columns[name]), keys=list(keys))])))
            for name, field in self.fields.items()
        }

    def __len__(self) -> int:
        return len(self.keys)

    def keys_at(self, positions: np.ndarray) -> np.ndarray:
        """As `mmpipe.shards.Rows.keys_at`."""
        return self.keys[positions]

    def read(self, name: str, indices: Any = None) -> tuple[Any, np.ndarray]:
        """As `mmpipe.shards.Rows.read`."""
        rows = np.arange(len(self)) if indices is None else np.asarray(indices, dtype=np.int64)
        column, field = self._columns[name], self.fields[name]
        values, valid = column.gather(rows), np.ones(len(rows), dtype=bool)
        if column.valid is not None:
            valid = column.valid[rows]
            if field.kind == 'tensor':
                values = np.where(valid.reshape(-1, *[1] * len(field.shape)), values, np.zeros((), values.dtype))
            elif field.kind == 'ragged':
                values = [value if ok else value[:0] for value, ok in zip(values, valid, strict=True)]
        return values, valid

    def fill(self, name: str, indices: np.ndarray, out: np.ndarray) -> np.ndarray:
        """As `mmpipe.shards.Rows.fill`."""
        values, valid = self.read(name, indices)
        out[...] = values
        return valid

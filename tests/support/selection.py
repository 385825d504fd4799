"""Rows without files, for properties of orders: any keys, in any order, with columns of numbers."""

from __future__ import annotations

import numpy as np

from mmpipe.shards import Field, key_hash


class Selection:
    """What a sampling reads of rows.

    Args:
        keys: one per row.
        blocks: the block that each row lies in; all in one when None.
        columns: {field: values}, None for a missing one; words are labels, whole numbers int64, others float64.
    """

    def __init__(self, keys, *, blocks=None, **columns):
        self.keys = np.array(list(keys), dtype=object)
        self.hashes = np.array([key_hash(key) for key in self.keys], dtype=np.uint64)
        where = np.zeros(len(self.keys), dtype=np.int64) if blocks is None else np.asarray(blocks)
        self.places = np.stack([where, np.arange(len(where))], axis=1)
        self.columns, self.fields = columns, {}
        for name, values in columns.items():
            known = [value for value in values if value is not None]
            if any(isinstance(value, str) for value in known):
                self.fields[name] = Field(name=name, kind='label', vocabulary=tuple(sorted(set(known))))
            else:
                whole = all(isinstance(value, int) for value in known)
                self.fields[name] = Field(name=name, kind='scalar', dtype='int64' if whole else 'float64')

    def __len__(self):
        return len(self.keys)

    def read(self, name, indices=None):
        field, values = self.fields[name], self.columns[name]
        valid = np.array([value is not None for value in values], dtype=bool)
        if field.kind == 'label':
            return np.array([0 if v is None else field.vocabulary.index(v) for v in values], dtype=np.int64), valid
        return np.array([0 if v is None else v for v in values], dtype=field.dtype), valid

    def take(self, index):
        """The same rows stored in another order."""
        columns = {name: [values[i] for i in index] for name, values in self.columns.items()}
        return Selection(self.keys[index], blocks=self.places[index, 0], **columns)


def visited(sampling, rows, *, seed=0, epoch=0):
    """Keys in the order of an epoch."""
    sequence = sampling.sequence(rows, seed=seed, epoch=epoch)
    assert sequence.dtype == np.int64
    assert len(sequence) == sampling.length(rows)
    return rows.keys[sequence].tolist()

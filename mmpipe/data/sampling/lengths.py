"""Lengths of rows, found without reading their values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow.compute as pc

from mmpipe.data.many import ManyRows
from mmpipe.data.sampling.weighted import numbers_of
from mmpipe.errors import DataError
from mmpipe.shards import Rows
from mmpipe.shards.gather import by_group

STORED = ('ragged', 'string', 'binary')


def lengths_of(rows: Rows | ManyRows, given: Any) -> np.ndarray:
    """How long each row is.

    Args:
        rows: any.
        given: a ragged field (steps of its first dimension), a string or binary field (bytes), a number field such as a
            duration in seconds, or an array with a number per row. Of stored fields only the offsets are read; of an
            object store, their shards are fetched for that, so give a number field there.

    Returns:
        float64 `[N]`, 0 where the value is missing.

    Raises:
        DataError: no such field, an array of another length, or lengths below 0 or not finite.

    >>> from mmpipe.data.collate import example_rows
    >>> lengths_of(example_rows(), 'price')
    array([1.5, 0. ])
    """
    field = rows.fields.get(given) if isinstance(given, str) else None
    if field is not None and field.kind in STORED:
        return stored_lengths(rows, field.name).astype(np.float64)
    lengths = numbers_of(rows, given, 'lengths')
    if isinstance(given, str):
        lengths = np.nan_to_num(lengths, nan=0.0, posinf=np.inf)
    wrong = np.flatnonzero(~(np.isfinite(lengths) & (lengths >= 0)))
    if len(wrong):
        key = rows.keys[wrong[0]]
        raise DataError(
            f'{len(wrong):,} rows have a length that is below 0 or not finite, such as {lengths[wrong[0]]} of {key!r}. '
            f'Correct them, or leave these rows out with rows.take(...).'
        )
    return lengths


def stored_lengths(rows: Rows | ManyRows, name: str) -> np.ndarray:
    """Lengths of the values of a ragged field (steps), or of a string or binary one (bytes): int64 `[N]`, 0 for null.

    >>> import tempfile
    >>> from mmpipe.shards import Block, Field, write_snapshot
    >>> fields, block = [Field(name='note', kind='string')], Block(keys=['a', 'b'], columns={'note': ['hello', None]})
    >>> stored_lengths(write_snapshot(tempfile.mkdtemp(), fields, block).rows(), 'note')
    array([5, 0])
    """
    out = np.zeros(len(rows), dtype=np.int64)
    if isinstance(rows, ManyRows):
        for number, where in by_group(rows.sources):
            part = rows.parts[rows.names[number]]
            if name in part.fields:
                out[where] = stored_lengths(part, name)[rows.local[where]]
        return out
    field = rows.fields[name]
    for block, where in by_group(rows.places[:, 0]):
        for column, at, here in rows.snapshot.column(block, name).groups(rows.places[where, 1]):
            if field.kind == 'ragged':
                found = (column.offsets[at + 1] - column.offsets[at]) // math.prod(field.shape)
            else:
                found = pc.fill_null(pc.binary_length(column.array), 0).to_numpy(zero_copy_only=False)[at]
            out[where[here]] = found
    return out

"""A field of a block as a shard of its own, or of a few of its rows: what is written of a row that changed in part."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from mmpipe.shards.field import DIGEST_BYTES, Field, content_digest, encode
from mmpipe.shards.files import NewFile
from mmpipe.shards.leaf import Shard
from mmpipe.shards.root import Root

BATCH_BYTES = 64 << 20  # values gathered in memory before they are written
PATCH_SHARE = 4  # a patch holds at most this part of the rows of its block

Cell = tuple[int, Any, bytes, str]
"""Row in the block, value, digest, key."""


def pick(parts: Sequence[pa.Array], index: np.ndarray) -> pa.Array:
    """Values of several arrays of one type, laid end to end, in the order of `index`.

    Args:
        parts: Arrow arrays as `mmpipe.shards.field.encode` makes them, or slices of them.
        index: int64 positions in the parts laid end to end.

    >>> pick([pa.array([1, 2]), pa.array([30, None])], np.array([2, 0, 3])).to_pylist()
    [30, 1, None]
    """
    if not isinstance(parts[0], pa.ExtensionArray):
        whole = parts[0] if len(parts) == 1 else pa.concat_arrays(parts)
        return whole.take(pa.array(index))
    # A tensor that is null keeps its zeros: take() would put nulls among its elements, which numpy cannot map.
    kind = parts[0].storage.type
    out = np.zeros((len(index), kind.list_size), dtype=kind.value_type.to_pandas_dtype())
    null = np.zeros(len(index), dtype=bool)
    start = 0
    for part in parts:
        where = np.flatnonzero((index >= start) & (index < start + len(part)))
        rows, storage = index[where] - start, part.storage
        out[where] = storage.values.to_numpy().reshape(-1, kind.list_size)[rows + storage.offset]
        if storage.null_count:
            null[where] = storage.is_null().to_numpy(zero_copy_only=False)[rows]
        start += len(part)
    storage = pa.FixedSizeListArray.from_arrays(pa.array(out.reshape(-1)), kind.list_size, mask=pa.array(null))
    return pa.ExtensionArray.from_storage(parts[0].type, storage)


class Stored(Protocol):
    """Where a column of a block lies now: a `mmpipe.shards.Snapshot`."""

    def unpatched(self, block: int, name: str) -> pa.ChunkedArray: ...  # noqa: D102

    def patch(self, block: int, name: str) -> tuple[np.ndarray, pa.Array] | None: ...  # noqa: D102

    def stored(self, block: int, name: str, start: int = 0, stop: int | None = None) -> pa.Array: ...  # noqa: D102


class ColumnWriter:
    """Write a field of one block from its changed values, in bounded memory.

    A few changed rows become a patch, together with those patched before. Else the values of the other rows are copied,
    or null where the field is new.

    Args:
        root: snapshot root.
        field: the field as the new snapshot has it.
        block: number of the block.
        rows: rows in the block.
        old: the snapshot that holds its present values; None for a field that is new.
    """

    def __init__(self, root: str | Path | Root, field: Field, *, block: int, rows: int, old: Stored | None) -> None:
        self.field, self.block, self.rows = field, block, rows
        self._names = [field.name, f'_digest.{field.name}']
        self._old = old
        per_row = (old.unpatched(block, field.name).nbytes // rows if old is not None else field.bytes_per_row) or 1024
        self._step = max(1, BATCH_BYTES // (per_row + DIGEST_BYTES))
        self._start = 0
        self._pending: list[Cell] = []
        self._bytes = 0
        self._file = NewFile(root, 'shards', '.arrow')
        self._writer: Any = None

    def put(self, row: int, value: Any, digest: bytes, *, key: str, size: int) -> None:
        """Give a row its value; rows come in rising order.

        Args:
            row: its number in the block.
            value: as `encode` takes it; None for null.
            digest: `content_digest` of it.
            key: the row's key, for messages.
            size: bytes that the value takes in memory, roughly.
        """
        self._pending.append((row, value, digest, key))
        self._bytes += size
        if self._bytes >= BATCH_BYTES:
            self._write(row + 1)

    def close(self) -> Shard:
        """Write what is left.

        Raises:
            FieldError: a value that does not fit its field.
        """
        listed: tuple[str, ...] = (self.field.name,)
        rows = self._patched_rows()
        if self._old is not None and self._writer is None and len(rows) * PATCH_SHARE <= self.rows:
            listed = ('_row', self.field.name)
            self._append([pa.array(rows), *self._patch(rows)], ['_row', *self._names])
        else:
            rows = np.arange(self.rows)
            self._write(self.rows)
        self._writer.close()
        path, sha, size = self._file.keep()
        return Shard(block=self.block, path=path, fields=listed, rows=len(rows), bytes=size, sha256=sha)

    def abandon(self) -> None:
        """Leave no file behind."""
        self._file.abandon()

    def _write(self, end: int) -> None:
        while self._start < end:
            stop = min(end, self._start + self._step)
            count = next((i for i, item in enumerate(self._pending) if item[0] >= stop), len(self._pending))
            mine, self._pending = self._pending[:count], self._pending[count:]
            self._append(self._batch(stop, mine), self._names)
            self._start = stop
        self._bytes = 0

    def _append(self, arrays: Sequence[pa.Array], names: Sequence[str]) -> None:
        batch = pa.record_batch(arrays, names=list(names))
        if self._writer is None:
            self._writer = pa.ipc.new_file(pa.PythonFile(self._file, mode='w'), batch.schema)
        self._writer.write_batch(batch)

    def _batch(self, stop: int, cells: Sequence[Cell]) -> list[pa.Array]:
        """Values and digests of the rows from `_start` to `stop`."""
        count = stop - self._start
        if self._old is None:
            base, index = self._encoded([(0, None, content_digest(self.field, None), '')]), np.zeros(count, np.int64)
        else:
            base = [self._old.stored(self.block, name, self._start, stop) for name in self._names]
            index = np.arange(count)
        index[[row - self._start for row, *_ in cells]] = len(base[0]) + np.arange(len(cells))
        return [pick(parts, index) for parts in zip(base, self._encoded(cells), strict=True)]

    def _patched_rows(self) -> np.ndarray:
        """Rows that a patch would have: those patched before, and those with a new value."""
        before = self._old.patch(self.block, self.field.name) if self._old is not None else None
        now = np.array([row for row, *_ in self._pending], dtype=np.int64)
        return now if before is None else np.union1d(before[0], now)

    def _patch(self, rows: np.ndarray) -> list[pa.Array]:
        """Values and digests of a patch of these rows."""
        assert self._old is not None
        arrays = []
        now = np.searchsorted(rows, [row for row, *_ in self._pending])
        for name, fresh in zip(self._names, self._encoded(self._pending), strict=True):
            before = self._old.patch(self.block, name)
            parts, index = [fresh], np.zeros(len(rows), dtype=np.int64)
            if before is not None:
                parts.append(before[1])
                index[np.searchsorted(rows, before[0])] = len(fresh) + np.arange(len(before[0]))
            index[now] = np.arange(len(now))
            arrays.append(pick(parts, index))
        return arrays

    def _encoded(self, cells: Sequence[Cell]) -> list[pa.Array]:
        values = encode(self.field, [value for _, value, _, _ in cells], keys=[key for _, _, _, key in cells])
        return [values, pa.array([digest for _, _, digest, _ in cells], type=pa.binary(DIGEST_BYTES))]


def one_array(chunked: pa.ChunkedArray) -> pa.Array:
    """The values of a stored column as one array: a view where they lie in one record batch.

    >>> one_array(pa.chunked_array([[1, 2], [3]])).to_pylist()
    [1, 2, 3]
    """
    chunks = [chunk for chunk in chunked.chunks if len(chunk)] or chunked.chunks
    return chunks[0] if len(chunks) == 1 else pick(chunks, np.arange(len(chunked)))

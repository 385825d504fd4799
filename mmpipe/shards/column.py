"""One field of a block as a shard of its own: what is written when a column is computed again, or is new."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mmpipe.shards.field import DIGEST_BYTES, Field, content_digest, encode
from mmpipe.shards.manifest import NewFile, Shard

BATCH_BYTES = 64 << 20  # values gathered in memory before they are written


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


class ColumnWriter:
    """Write a field of one block from its changed values, in bounded memory; the others are copied, or null.

    Args:
        root: snapshot root.
        field: the field as the new snapshot has it.
        block: number of the block.
        rows: rows in the block.
        old: the stored values and their digests; None for a field that is new.
    """

    def __init__(
        self, root: Path, field: Field, *, block: int, rows: int, old: tuple[pa.ChunkedArray, pa.ChunkedArray] | None
    ) -> None:
        self.field, self.block, self.rows = field, block, rows
        self._old = old
        per_row = (old[0].nbytes // rows if old is not None else field.bytes_per_row) or 1024
        self._step = max(1, BATCH_BYTES // (per_row + DIGEST_BYTES))
        self._start = 0
        self._pending: list[tuple[int, Any, bytes, str]] = []
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
        self._write(self.rows)
        self._writer.close()
        path, sha, size = self._file.keep()
        return Shard(
            block=self.block, path=path, fields=(self.field.name,), rows=self.rows, bytes=size, sha256=sha
        )  # fmt: skip

    def abandon(self) -> None:
        """Leave no file behind."""
        self._file.abandon()

    def _write(self, end: int) -> None:
        while self._start < end:
            stop = min(end, self._start + self._step)
            count = next((i for i, item in enumerate(self._pending) if item[0] >= stop), len(self._pending))
            mine, self._pending = self._pending[:count], self._pending[count:]
            arrays = self._batch(stop, mine)
            batch = pa.record_batch(arrays, names=[self.field.name, f'_digest.{self.field.name}'])
            if self._writer is None:
                self._writer = pa.ipc.new_file(pa.PythonFile(self._file, mode='w'), batch.schema)
            self._writer.write_batch(batch)
            self._start = stop
        self._bytes = 0

    def _batch(self, stop: int, mine: list[tuple[int, Any, bytes, str]]) -> list[pa.Array]:
        """Values and digests of the rows from `_start` to `stop`."""
        fresh = encode(self.field, [value for _, value, _, _ in mine], keys=[key for _, _, _, key in mine])
        digests = pa.array([digest for _, _, digest, _ in mine], type=pa.binary(DIGEST_BYTES))
        count = stop - self._start
        if self._old is None:
            null = pa.array([content_digest(self.field, None)], type=pa.binary(DIGEST_BYTES))
            base, index = [encode(self.field, [None]), null], np.zeros(count, dtype=np.int64)
        else:
            base, index = [one_array(part.slice(self._start, count)) for part in self._old], np.arange(count)
        index[[row - self._start for row, _, _, _ in mine]] = len(base[0]) + np.arange(len(mine))
        return [pick([base[0], fresh], index), pick([base[1], digests], index)]


def one_array(chunked: pa.ChunkedArray) -> pa.Array:
    """The values of a stored column as one array: a view where they lie in one record batch.

    >>> one_array(pa.chunked_array([[1, 2], [3]])).to_pylist()
    [1, 2, 3]
    """
    chunks = [chunk for chunk in chunked.chunks if len(chunk)] or chunked.chunks
    return chunks[0] if len(chunks) == 1 else pick(chunks, np.arange(len(chunked)))

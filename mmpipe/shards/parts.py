"""Keys and few rows of a remote shard are read without the rest of it.

    schema, metadata, _key _hash _split _rowid | photo ... | _digest.photo ... | footer
    ============================================                               ========   keys: two requests at once
                                                  == ==      = =                          few rows and their digests

Each value is compared with the digest that lies beside it, and each key with its hash. What a shard gives in this way
is less than a part of it; when more is asked for, it is fetched whole and kept (`mmpipe.shards.copies`).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mmpipe.errors import ShardError
from mmpipe.shards import copies
from mmpipe.shards.field import DIGEST_BYTES, Column, Field, content_digest, encode
from mmpipe.shards.gather import BlockColumn, by_group
from mmpipe.shards.ranges import Ranges

if TYPE_CHECKING:
    from mmpipe.shards.leaf import Shard
    from mmpipe.shards.root import Root

KEYS = ('_key', '_hash', '_split')
SHARE = 4  # rows are read one by one while they are less than this part of a shard
SMALLEST = 1 << 20  # bytes from which a shard is not simply fetched
KEPT_BYTES = 256 << 20  # of ranges that are kept, for rows that are read again
THREADS = 16  # shards of which parts are read at once


class Parts:
    """Shards of a store of which parts are here, of one snapshot.

    Args:
        place: the root they lie in.
        splits: names of the splits of the snapshot.
    """

    def __init__(self, place: Root, splits: Iterable[str]) -> None:
        self._place, self._splits = place, tuple(splits)
        self._keys: dict[str, pa.Table] = {}
        self._open: dict[str, Ranges] = {}
        self._asked: dict[tuple[int, str], np.ndarray] = {}
        self._lock = threading.Lock()

    def keys(self, shard: Shard) -> pa.Table | None:
        """The columns `KEYS` of a shard that `bring_keys` brought."""
        return self._keys.get(shard.path)

    def bring_keys(self, shards: Iterable[Shard]) -> None:
        """Read keys, several shards at once, where that is less than the shards.

        Raises:
            ShardError: a shard is missing or damaged, or the store cannot be read.
        """
        missing = [shard for shard in shards if shard.path not in self._keys and _elsewhere(shard)]
        if missing:
            with ThreadPoolExecutor(min(THREADS, len(missing))) as pool:
                self._keys.update(
                    zip([shard.path for shard in missing], pool.map(self._read_keys, missing), strict=True)
                )

    def _read_keys(self, shard: Shard) -> pa.Table:
        table = copies.find_keys(shard.sha256)
        if table is None or not right_keys(table, shard, self._splits):
            ranges = self._ranges(shard)
            try:
                table = pa.table({name: ranges.column(name) for name in KEYS})
            except (pa.ArrowException, KeyError) as error:
                raise ranges.damaged() from error
            if not right_keys(table, shard, self._splits):
                raise ranges.damaged()
            table = table.take(pa.array(np.arange(len(table))))  # copied, so that the memory of the shard can go
            copies.keep_keys(table, shard.sha256)
        return table

    def few(self, field: Field, shards: Mapping[int, Shard], places: np.ndarray) -> dict[int, BlockColumn]:
        """Rows of a field of those blocks of which only few rows were asked for so far.

        Args:
            field: what is read.
            shards: the file that holds it, for each block where that could be.
            places: int64 `[n, 2]` of block and row.

        Raises:
            ShardError: a shard is missing or damaged, or the store cannot be read.
        """
        jobs = []
        for block, where in by_group(places[:, 0]):
            shard = shards.get(block)
            if shard is None or not _elsewhere(shard):
                continue
            rows = np.unique(places[where, 1])
            with self._lock:
                asked = np.union1d(self._asked.get((block, field.name), rows), rows)
                if pays(field, shard, len(asked)):
                    self._asked[block, field.name] = asked
                    jobs.append((block, shard, rows))
        if not jobs:
            return {}

        def read(job: tuple[int, Shard, np.ndarray]) -> tuple[int, BlockColumn]:
            block, shard, rows = job
            ranges = self._ranges(shard, keep=True)
            with ranges.lock:
                return block, few_rows(ranges, field, rows)

        with ThreadPoolExecutor(min(THREADS, len(jobs))) as pool:
            return dict(pool.map(read, jobs))

    def _ranges(self, shard: Shard, *, keep: bool = False) -> Ranges:
        ranges = self._open.get(shard.path)
        if ranges is None:
            url = self._place.at(shard.path)

            def read(start: int, end: int) -> bytes:
                try:
                    return self._place.read_range(shard.path, start, end)
                except FileNotFoundError:
                    raise ShardError(
                        f"shard '{url}' is missing. Restore it, or write the snapshot again into a new root."
                    ) from None

            ranges = Ranges(read, shard.bytes, url=url)
        if keep:
            with self._lock:
                self._open[shard.path] = ranges
                while len(self._open) > 1 and sum(each.bytes for each in self._open.values()) > KEPT_BYTES:
                    self._open.pop(next(iter(self._open)))
        return ranges


def _elsewhere(shard: Shard) -> bool:
    """Whether a shard is not here, and too large to be simply fetched."""
    return shard.bytes >= SMALLEST and not copies.has(shard.sha256, shard.bytes)


def pays(field: Field, shard: Shard, count: int) -> bool:
    """Whether so many rows of a field are less to read than the shard that holds them.

    Args:
        field: what is read.
        shard: the file that holds it.
        count: rows that are read.
    """
    per_row = (field.bytes_per_row or shard.bytes // max(shard.rows, 1)) + DIGEST_BYTES
    return shard.bytes >= SMALLEST and count * per_row * SHARE < shard.bytes


class FewRows(BlockColumn):
    """Some rows of a field of a block, found by their numbers in the block.

    Args:
        column: their values.
        rows: their numbers, in rising order.
    """

    def __init__(self, column: Column, rows: np.ndarray) -> None:
        super().__init__([column], None)
        self.whole = False  # a row does not lie at its number
        self._rows = rows

    def place(self, row: int) -> tuple[int, int]:  # noqa: D102 (as `BlockColumn`, here and below)
        return 0, int(np.searchsorted(self._rows, row))

    def groups(self, rows: np.ndarray) -> list[tuple[Column, np.ndarray, np.ndarray]]:  # noqa: D102
        return super().groups(np.searchsorted(self._rows, rows))


def few_rows(ranges: Ranges, field: Field, rows: np.ndarray) -> FewRows:
    """Some rows of a field, checked against the digests that lie beside them.

    Args:
        ranges: of the shard that holds it.
        field: what it is.
        rows: int64 numbers of rows in the block, in rising order.

    Raises:
        ShardError: a value that is not what was written, or the store cannot be read.
    """
    try:
        if ranges.table.schema.field(field.name).type != encode(field, []).type:
            raise ranges.damaged()
        column = Column(field, ranges.rows(field.name, rows))
        wanted = ranges.rows(f'_digest.{field.name}', rows).to_pylist()
        found = [content_digest(field, value) for value in _values(column)]
        nothing = [] if column.valid is None else column.gather(np.flatnonzero(~column.valid))
    except (pa.ArrowException, LookupError, ValueError) as error:
        raise ranges.damaged() from error
    if found != wanted or any(np.any(value) for value in nothing):  # what stands for a null has no digest, and is zeros
        raise ranges.damaged()
    return FewRows(column, rows)


def right_keys(table: pa.Table, shard: Shard, splits: Iterable[str]) -> bool:
    """Whether the columns `KEYS` of a shard fit each other, and the splits that there are."""
    try:
        table.validate(full=True)
        keys, hashes, found = (table[name].to_pylist() for name in KEYS)
        right = [hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys]
    except (pa.ArrowException, ValueError, AttributeError, KeyError):
        return False
    same = hashes == [int.from_bytes(each, 'little') for each in right]
    return same and len(keys) == shard.rows and set(found) <= {'', *splits}


def _values(column: Column) -> Sequence[Any]:
    """Values as `content_digest` takes them."""
    field, array = column.field, column.array
    words = field.vocabulary or ()
    if field.kind in ('tensor', 'ragged'):
        values = column.gather(np.arange(len(array)))
        valid = column.valid if column.valid is not None else np.ones(len(array), dtype=bool)
        return [value if ok else None for value, ok in zip(values, valid, strict=True)]
    plain = array.to_pylist()
    if field.kind == 'label':
        return [None if value is None else words[value] for value in plain]
    if field.kind == 'labels':
        return [None if value is None else [words[i] for i in value] for value in plain]
    return plain

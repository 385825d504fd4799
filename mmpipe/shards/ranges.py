"""Keys and few rows of a remote shard are read without the rest of it: only the byte ranges in which they lie.

    schema | metadata, _key _hash _split _rowid, field, _digest.field ... | footer
    ^^^^^^ HEAD ^^^^^^^^^^^^^^^^^^^^^^^^            ..  ..               ^ TAIL ^     two requests at once: keys
                                                    ^^  ^^                             few rows, and their digests

The bytes lie in memory of the size of the shard, at their places; pages that were never written take no space. Arrow is
opened over it, and says by the addresses of its buffers which bytes a value takes.

The digest of a whole file says nothing of a range. So each value is compared with the digest that lies beside it, and
each key with its hash.
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mmpipe.errors import ShardError
from mmpipe.shards import copies
from mmpipe.shards.column import one_array, pick
from mmpipe.shards.field import DIGEST_BYTES, Column, Field, content_digest, encode
from mmpipe.shards.gather import BlockColumn, by_group

if TYPE_CHECKING:
    from mmpipe.shards.manifest import Shard
    from mmpipe.shards.root import Root

KEYS = ('_key', '_hash', '_split')
SHARE = 4  # rows are read one by one while they are less than this part of a shard
SMALLEST = 1 << 20  # bytes from which a shard is not simply fetched
GAP = 256 << 10  # bytes between two ranges from which a request more costs less
HEAD, TAIL = 64 << 10, 16 << 10
THREADS = 8
KEPT_BYTES = 256 << 20  # of ranges that are kept, for rows that are read again
MAGIC = b'ARROW1'

Span = tuple[int, int]
"""Start and end, in bytes."""


class Ranges:
    """A shard of which some bytes are here.

    Args:
        read: gives the bytes from a start to an end.
        size: of the whole shard.
        url: of it, for messages.

    Attributes:
        bytes: that were read so far.

    >>> from mmpipe.shards.files import table_bytes
    >>> data = table_bytes(pa.table({'x': [1, 2, 3]})).to_pybytes()
    >>> Ranges(lambda start, end: data[start:end], len(data), url='').rows('x', np.array([2, 0])).to_pylist()
    [3, 1]
    """

    def __init__(self, read: Callable[[int, int], bytes], size: int, *, url: str) -> None:
        self._read, self._size, self.url = read, size, url
        self._memory = mmap.mmap(-1, size)
        self._whole = pa.py_buffer(self._memory)
        self._have: list[Span] = []
        self.bytes = 0
        self.lock = threading.Lock()  # held by who reads rows, so that none is read twice
        self.get([(0, HEAD), (size - TAIL, size)])
        try:
            self.get(self._metadata())
            self.table = pa.ipc.open_file(pa.BufferReader(self._whole)).read_all()
        except (pa.ArrowException, struct.error, OSError, ValueError) as error:
            raise self.damaged() from error

    def damaged(self) -> ShardError:
        """What is said where the bytes are not those that were written."""
        return ShardError(
            f"shard '{self.url}' does not match its digest. Restore it, or write the snapshot again into a new root."
        )

    def _metadata(self) -> Iterator[Span]:
        """Where the record batches are described, as the footer of an Arrow file says (format/File.fbs)."""
        memory = self._memory
        length, magic = struct.unpack('<i6s', memory[-10:])
        start = self._size - 10 - length
        if magic != MAGIC or start <= 0 or length <= 0:
            raise ValueError('no Arrow file')
        self.get([(start, self._size)])
        table = start + struct.unpack_from('<I', memory, start)[0]
        slots = table - struct.unpack_from('<i', memory, table)[0]
        field = table + struct.unpack_from('<H', memory, slots + 4 + 2 * 3)[0]  # recordBatches is the fourth
        vector = field + struct.unpack_from('<I', memory, field)[0]
        for number in range(struct.unpack_from('<I', memory, vector)[0]):
            offset, size, _ = struct.unpack_from('<qi4xq', memory, vector + 4 + 24 * number)
            yield offset, offset + size

    def get(self, spans: Iterable[Span]) -> None:
        """Read those bytes of some ranges that are not here, neighbours in one request, several at once."""
        missing = _without(_joined(((max(0, a), min(b, self._size)) for a, b in spans), GAP), self._have)
        if not missing:
            return
        with ThreadPoolExecutor(min(THREADS, len(missing))) as pool:
            for (start, end), data in zip(missing, pool.map(lambda span: self._read(*span), missing), strict=True):
                self._memory[start:end] = data
                self.bytes += end - start
        self._have = _joined([*self._have, *missing], 0)

    def column(self, name: str) -> pa.Array:
        """A whole column."""
        chunks = self.table[name].chunks
        self.get(span for chunk in chunks for buffer in _storage(chunk).buffers() for span in self._all(buffer))
        return one_array(self.table[name])

    def rows(self, name: str, rows: np.ndarray) -> pa.Array:
        """Some rows of a column.

        Args:
            name: of the column.
            rows: int64 numbers of rows.
        """
        chunks = self.table[name].chunks
        starts = np.cumsum([0, *(len(chunk) for chunk in chunks)])
        if len(rows) and not 0 <= rows.min() <= rows.max() < starts[-1]:
            raise self.damaged()
        number = np.searchsorted(starts, rows, side='right') - 1
        inside = [np.unique(rows[number == i] - starts[i]) for i in range(len(chunks))]
        pairs = [(_storage(chunk), mine) for chunk, mine in zip(chunks, inside, strict=True) if len(mine)]
        self.get(span for chunk, mine in pairs for span in self._fixed(chunk, mine))
        self.get(span for chunk, mine in pairs for span in self._varying(chunk, mine))
        return pick([chunk for chunk in chunks if len(chunk)] or chunks, rows)

    def _fixed(self, array: pa.Array, rows: np.ndarray) -> Iterator[Span]:
        """Where rows of fixed size lie, or the offsets of others; and which are null."""
        valid, data, *_ = array.buffers()
        yield from self._all(valid)
        kind = array.type
        if pa.types.is_fixed_size_list(kind):
            *_, inner, data = array.buffers()
            yield from self._all(inner)
            yield from self._at(data, rows, rows + 1, kind.list_size * kind.value_type.bit_width // 8)
        elif pa.types.is_boolean(kind):
            yield from self._all(data)
        elif (width := _offset_bytes(kind)) is not None:
            yield from self._at(data, rows, rows + 2, width)
        else:
            yield from self._at(data, rows, rows + 1, kind.bit_width // 8)

    def _varying(self, array: pa.Array, rows: np.ndarray) -> Iterator[Span]:
        """Where values of varying size lie, once their offsets are here."""
        width = _offset_bytes(array.type)
        if width is None:
            return
        _, offsets, *inner, data = array.buffers()
        at = np.frombuffer(offsets, dtype=np.int64 if width == 8 else np.int32)
        for buffer in inner:
            yield from self._all(buffer)
        element = array.type.value_type.bit_width // 8 if pa.types.is_nested(array.type) else 1
        yield from self._at(data, at[rows], at[rows + 1], element)

    def _all(self, buffer: pa.Buffer | None) -> list[Span]:
        return [] if buffer is None else self._at(buffer, np.zeros(1, np.int64), np.array([buffer.size]), 1)

    def _at(self, buffer: pa.Buffer | None, first: np.ndarray, end: np.ndarray, width: int) -> list[Span]:
        if buffer is None:
            return []
        first, end = first.astype(np.int64), end.astype(np.int64)
        if len(first) and not (first.min() >= 0 and end.max() * width <= buffer.size and (first <= end).all()):
            raise self.damaged()  # an offset that was changed
        if not buffer.size:  # such a buffer lies anywhere
            return []
        start = buffer.address - self._whole.address
        return list(zip((start + first * width).tolist(), (start + end * width).tolist(), strict=True))


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
            with ThreadPoolExecutor(min(2 * THREADS, len(missing))) as pool:
                tables = pool.map(lambda shard: keys(self._ranges(shard), self._splits), missing)
                self._keys.update(zip([shard.path for shard in missing], tables, strict=True))

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

        with ThreadPoolExecutor(min(2 * THREADS, len(jobs))) as pool:
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
        self._rows = rows

    def find(self, row: int) -> tuple[Column, int]:  # noqa: D102 (as `BlockColumn`, here and below)
        return self.columns[0], int(np.searchsorted(self._rows, row))

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


def keys(ranges: Ranges, splits: Iterable[str]) -> pa.Table:
    """The columns `KEYS` of a shard, checked against each other and the splits that there are.

    Raises:
        ShardError: a key that has another hash, or a split that the snapshot has not.
    """
    try:
        table = pa.table({name: ranges.column(name) for name in KEYS})
        table.validate(full=True)
        hashes = [
            int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), 'little')
            for key in table['_key'].to_pylist()
        ]
    except (pa.ArrowException, KeyError, UnicodeDecodeError, AttributeError) as error:
        raise ranges.damaged() from error
    if hashes != table['_hash'].to_pylist() or not set(table['_split'].unique().to_pylist()) <= {'', *splits}:
        raise ranges.damaged()
    return table.take(pa.array(np.arange(len(table))))  # copied, so that the memory of the shard can go


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


def _storage(array: pa.Array) -> pa.Array:
    return array.storage if isinstance(array, pa.ExtensionArray) else array


def _offset_bytes(kind: pa.DataType) -> int | None:
    """Bytes of an offset of a type whose values vary in size."""
    types = pa.types
    if types.is_large_string(kind) or types.is_large_binary(kind) or types.is_large_list(kind):
        return 8
    return 4 if types.is_string(kind) or types.is_binary(kind) or types.is_list(kind) else None


def _joined(spans: Iterable[Span], gap: int) -> list[Span]:
    """Spans in order, with those made one that lie at most `gap` apart.

    >>> _joined([(50, 60), (0, 10), (12, 20)], gap=2)
    [(0, 20), (50, 60)]
    """
    out: list[Span] = []
    for start, end in sorted(span for span in spans if span[0] < span[1]):
        if out and start <= out[-1][1] + gap:
            out[-1] = (out[-1][0], max(out[-1][1], end))
        else:
            out.append((start, end))
    return out


def _without(spans: Iterable[Span], have: Sequence[Span]) -> list[Span]:
    """The parts of some spans that are not in others; all in order.

    >>> _without([(0, 10)], [(2, 4), (8, 20)])
    [(0, 2), (4, 8)]
    """
    out: list[Span] = []
    for start, end in spans:
        for first, last in have:
            if last <= start or first >= end:
                continue
            if start < first:
                out.append((start, first))
            start = max(start, last)
        if start < end:
            out.append((start, end))
    return out

"""The bytes of a remote shard that are needed, and no others.

The bytes lie in memory of the size of the shard, at their places; pages that were never written take no space. Arrow is
opened over it, and says by the addresses of its buffers which bytes a value takes. The digest of a whole file says
nothing of a range: what is made of the values checks them (`mmpipe.shards.parts`).
"""

from __future__ import annotations

import mmap
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from mmpipe.errors import ShardError
from mmpipe.shards.column import one_array, pick

GAP = 256 << 10  # bytes between two ranges from which a request more costs less
HEAD, TAIL = 64 << 10, 16 << 10  # bytes that are read of any shard: keys at its start, and the footer
THREADS = 8
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

"""The shards of a run of blocks as columns: no object is made for a shard before somebody asks for it."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa

from mmpipe.errors import ShardError

LEAF_BLOCKS = 2048  # blocks of one leaf: a change of one of them writes 0.1 MB of list and 9 bytes per row of index

DIGEST = np.dtype('V32')
SHARD_LIST = pa.schema(  # of a snapshot with few shards, in one file
    [
        ('block', pa.int64()),
        ('path', pa.string()),
        ('fields', pa.list_(pa.string())),
        ('rows', pa.int64()),
        ('bytes', pa.int64()),
        ('sha256', pa.string()),
    ]
)
LEAF = pa.schema(
    [
        ('block', pa.int64()),
        ('rows', pa.int64()),
        ('bytes', pa.int64()),
        ('sha256', pa.binary(32)),
        ('fields', pa.dictionary(pa.int32(), pa.string())),  # each as a JSON list of names
    ]
)


@dataclass(frozen=True, kw_only=True)
class Shard:
    """One file of data: some fields of one block of rows.

    Among `fields`, `_key` stands for the system columns; with `_row` the file holds only the rows that it names.
    """

    block: int
    path: str
    fields: tuple[str, ...]
    rows: int
    bytes: int
    sha256: str


def path_of(sha256: str) -> str:
    """Where a shard of that digest lies below its root.

    >>> path_of('0123456789abcdef' * 4)
    'shards/0123456789abcdef0123456789abcdef.arrow'
    """
    return f'shards/{sha256[:32]}.arrow'


class Leaf:
    """Shards in order of their blocks, and in a block of their paths.

    Args:
        block: int64 `[n]`.
        rows: int64 `[n]`.
        bytes: int64 `[n]`.
        digests: `[n]` of 32 bytes each, of numpy's type `V32`.
        layout: `[n]`, which of the `layouts` each lists.
        layouts: the different tuples of field names.

    Attributes:
        anchors: positions of the shards that hold the system columns, one per block.

    >>> shards = [Shard(block=i, path=path_of('ab' * 32), fields=('_key',), rows=2, bytes=9, sha256='ab' * 32)
    ...           for i in range(3)]
    >>> leaf = Leaf.of(shards)
    >>> len(leaf), leaf[1] == shards[1], Leaf.read(leaf.table())[2] == shards[2], leaf.span(1)
    (3, True, True, (1, 2))
    """

    def __init__(
        self,
        *,
        block: np.ndarray,
        rows: np.ndarray,
        bytes: np.ndarray,
        digests: np.ndarray,
        layout: np.ndarray,
        layouts: Sequence[tuple[str, ...]],
    ) -> None:
        self.block, self.rows, self.bytes, self.digests = block, rows, bytes, digests
        self.layout, self.layouts = layout, tuple(layouts)

    @classmethod
    def of(cls, shards: Iterable[Shard]) -> Leaf:
        """Columns of shards that are in order."""
        shards = list(shards)
        codes: dict[tuple[str, ...], int] = {}
        layout = np.array([codes.setdefault(shard.fields, len(codes)) for shard in shards], dtype=np.int32)
        numbers = np.array([(shard.block, shard.rows, shard.bytes) for shard in shards], dtype=np.int64).reshape(-1, 3)
        block, rows, size = np.ascontiguousarray(numbers.T)
        return cls(
            block=block,
            rows=rows,
            bytes=size,
            digests=_digests(shard.sha256 for shard in shards),
            layout=layout,
            layouts=list(codes),
        )

    @classmethod
    def read(cls, table: pa.Table) -> Leaf:
        """A table of the schema `LEAF`, over its memory."""
        (batch,) = table.to_batches() or [pa.RecordBatch.from_pylist([], schema=LEAF)]
        fields = batch.column('fields')
        return cls(
            block=numbers(batch.column('block')),
            rows=numbers(batch.column('rows')),
            bytes=numbers(batch.column('bytes')),
            digests=np.frombuffer(batch.column('sha256').buffers()[1] or b'', dtype=DIGEST)[: len(fields)],
            layout=numbers(fields.indices),
            layouts=[tuple(json.loads(text)) for text in fields.dictionary.to_pylist()],
        )

    @classmethod
    def read_flat(cls, table: pa.Table) -> Leaf:
        """A table of the schema `SHARD_LIST`, in which each shard has its fields beside it."""
        fields = [tuple(names) for names in table['fields'].to_pylist()]
        if not any('_key' in names for names in fields):  # written before a block could have several shards
            fields = [('_key', *names) for names in fields]
        codes: dict[tuple[str, ...], int] = {}
        return cls(
            block=numbers(table['block']),
            rows=numbers(table['rows']),
            bytes=numbers(table['bytes']),
            digests=_digests(table['sha256'].to_pylist()),
            layout=np.array([codes.setdefault(names, len(codes)) for names in fields], dtype=np.int32),
            layouts=list(codes),
        )

    def table(self) -> pa.Table:
        """As a table of the schema `LEAF`; the same shards always give the same bytes."""
        names = pa.array([json.dumps(each) for each in self.layouts], type=pa.string())
        fields = pa.DictionaryArray.from_arrays(pa.array(self.layout, type=pa.int32()), names)
        digests = pa.FixedSizeBinaryArray.from_buffers(
            pa.binary(32), len(self), [None, pa.py_buffer(self.digests.tobytes())]
        )
        return pa.table([self.block, self.rows, self.bytes, digests, fields], schema=LEAF)

    def __len__(self) -> int:
        return len(self.block)

    def __getitem__(self, at: int) -> Shard:
        sha256 = self.digest(at).hex()
        return Shard(
            block=int(self.block[at]),
            path=path_of(sha256),
            fields=self.layouts[self.layout[at]],
            rows=int(self.rows[at]),
            bytes=int(self.bytes[at]),
            sha256=sha256,
        )

    def digest(self, at: int) -> bytes:
        """The digest of a shard, 32 bytes."""
        return self.digests[at].item()

    def span(self, block: int) -> tuple[int, int]:
        """Positions of the shards of a block, from the first to behind the last."""
        first, end = np.searchsorted(self.block, [block, block + 1])
        return int(first), int(end)

    @cached_property
    def anchors(self) -> np.ndarray:  # noqa: D102 (above)
        holds = np.array(['_key' in names for names in self.layouts], dtype=bool)
        return np.flatnonzero(holds[self.layout])

    def paths(self) -> list[str]:
        """Where its shards lie below the root."""
        return [path_of(digest.hex()) for digest in self.digests.tolist()]

    def signatures(self) -> list[tuple[int, bytes]]:
        """Each block with what it holds: two blocks of one signature hold the same rows and values."""
        listed = [json.dumps(names).encode() for names in self.layouts]
        each = [digest + listed[code] for digest, code in zip(self.digests.tolist(), self.layout, strict=True)]
        blocks, first, counts = np.unique(self.block, return_index=True, return_counts=True)
        spans = zip(blocks.tolist(), first.tolist(), (first + counts).tolist(), strict=True)
        return [(block, b'|'.join(each[start:end])) for block, start, end in spans]

    def check(self, names: Collection[str], identity: str) -> None:
        """Look whether every block has the system columns and every field once, over one number of rows.

        Raises:
            ShardError: one has not; names it.
        """
        if len(self.layouts) == 1 and self._whole([0], names) and (self.block[1:] > self.block[:-1]).all():
            return  # as most are: a shard per block
        patch = np.array(['_row' in listed for listed in self.layouts], dtype=bool)[self.layout]
        blocks, first, counts = np.unique(self.block, return_index=True, return_counts=True)
        bad = np.zeros(len(blocks), dtype=bool)
        for count in np.unique(counts).tolist():  # blocks of so many shards at once
            which = np.flatnonzero(counts == count)
            at = first[which, None] + np.arange(count)
            combined, number = np.unique(np.sort(self.layout[at], axis=1), axis=0, return_inverse=True)
            wrong = np.array([not self._whole(each.tolist(), names) for each in combined], dtype=bool)
            rows, whole = self.rows[at], ~patch[at]
            least = np.where(whole, rows, np.iinfo(np.int64).max).min(axis=1)
            bad[which] = wrong[number.reshape(-1)] | (np.where(whole, rows, -1).max(axis=1) != least)
        if bad.any():
            self._refuse(int(blocks[bad][0]), names, identity)

    def _whole(self, codes: Sequence[int], names: Collection[str]) -> bool:
        listed, patches = self._listed(codes)
        once = set(patches) <= set(names) and len(set(patches)) == len(patches)
        return sorted(listed) == sorted(['_key', *names]) and once

    def _listed(self, codes: Iterable[int]) -> tuple[list[str], list[str]]:
        listed = [name for code in codes if '_row' not in self.layouts[code] for name in self.layouts[code]]
        return listed, [name for code in codes if '_row' in self.layouts[code] for name in self.layouts[code][1:]]

    def _refuse(self, block: int, names: Collection[str], identity: str) -> None:
        at = range(*self.span(block))
        listed, patches = self._listed([int(self.layout[i]) for i in at])
        rows = sorted({int(self.rows[i]) for i in at if '_row' not in self.layouts[self.layout[i]]})
        raise ShardError(
            f"block {block} of snapshot '{identity}' lists {', '.join(sorted(listed))} over {rows} rows and patches of "
            f'{", ".join(patches) or "nothing"}; it should list each of {", ".join(sorted(["_key", *names]))} once, '
            f'over one number of rows. Open an older snapshot by id, or write it again into a new root.'
        )


def _digests(texts: Iterable[str]) -> np.ndarray:
    return np.frombuffer(b''.join(bytes.fromhex(text) for text in texts), dtype=DIGEST)


def numbers(column: pa.Array | pa.ChunkedArray) -> np.ndarray:
    """Integers without a null, over their memory where they lie in one piece.

    Arrow's own `to_numpy` imports pandas first, which takes longer than opening a snapshot.

    >>> numbers(pa.array([1, 2, 3])[1:]), numbers(pa.chunked_array([[1], [2]], type=pa.int64()))
    (array([2, 3]), array([1, 2]))
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    kind = np.dtype(str(column.type))
    parts = [np.frombuffer(chunk.buffers()[1] or b'', dtype=kind)[chunk.offset :][: len(chunk)] for chunk in chunks]
    return parts[0] if len(parts) == 1 else np.concatenate([np.zeros(0, dtype=kind), *parts])

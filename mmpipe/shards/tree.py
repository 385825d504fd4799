"""The shards of a snapshot, however many: a sequence that is read where it is looked at.

    head ──► tree: a row per leaf ──► leaf: 2048 blocks of shards      mmpipe.shards.leaf
                                  ──► keys, rowids: of all their rows  mmpipe.shards.index

A block lies in the leaf of its number (`block // LEAF_BLOCKS`), whatever else there is. So two snapshots share every
leaf in which no block differs, a new one writes the leaves that its changes touch, and a comparison reads those alone.
A snapshot of few shards is one leaf without an index, written as one list: `flat`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, overload

import numpy as np
import pyarrow as pa

from mmpipe.errors import ShardError
from mmpipe.shards.files import sha256_of
from mmpipe.shards.gather import by_group
from mmpipe.shards.leaf import LEAF_BLOCKS, Leaf, Shard, numbers
from mmpipe.shards.root import Root

THREADS = 16  # files of an object store that are read at once
TREE = pa.schema(
    [
        ('number', pa.int64()),
        ('blocks', pa.int64()),
        ('shards', pa.int64()),
        ('rows', pa.int64()),
        *((f'{kind}_{part}', form) for kind in ('list', 'keys', 'rowids')
          for part, form in (('bytes', pa.int64()), ('sha256', pa.binary(32)))),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Named:
    """A file beside the manifest that is named by its content.

    Args:
        sha256: digest, hexadecimal.
        bytes: its size.
    """

    sha256: str
    bytes: int

    @property
    def path(self) -> str:
        """Below the root."""
        return f'manifests/{self.sha256[:32]}.arrow'


@dataclass(frozen=True, kw_only=True)
class Branch:
    """What is known of a leaf without reading it.

    Args:
        number: of the leaf; its blocks are those from `number * LEAF_BLOCKS` on.
        blocks: how many it has.
        shards: their shards.
        rows: their rows, masked ones included.
        list: the file with its shards; None while it is not written.
        keys: the index with hashes of keys and splits.
        rowids: the index with hashes of the store's names.
        leaf: the shards themselves, where they were not read from `list`.
        before: what it was made of.
    """

    number: int
    blocks: int
    shards: int
    rows: int
    list: Named | None = None
    keys: Named | None = None
    rowids: Named | None = None
    leaf: Leaf | None = None
    before: Branch | None = None

    @classmethod
    def of(cls, number: int, leaf: Leaf, before: Branch | None = None) -> Branch:
        """A leaf that is not written yet."""
        rows = int(leaf.rows[leaf.anchors].sum())
        return cls(number=number, blocks=len(leaf.anchors), shards=len(leaf), rows=rows, leaf=leaf, before=before)


def read_table(root: Root, named: Named) -> pa.Table:
    """A file beside the manifest, checked, and mapped where it lies on this machine.

    Raises:
        ShardError: it is missing or damaged.
    """
    file = root.at(named.path)
    try:
        data = root.mapped(named.path, size=named.bytes, sha256=named.sha256).read_buffer()
    except FileNotFoundError:
        raise ShardError(f"'{file}' is missing. Restore it, or open an older snapshot by id.") from None
    except (pa.ArrowException, OSError):  # an empty file cannot be mapped
        data = pa.py_buffer(b'')
    if not root.remote and sha256_of(data) != named.sha256:  # a copy was compared when it was fetched
        raise ShardError(f"'{file}' does not match its digest. Restore it, or open an older snapshot by id.")
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()


class ShardList(Sequence[Shard]):
    """Shards in order of their blocks.

    Args:
        root: where they lie.
        branches: their leaves, in order.
        names: fields of every block.
        identity: id of the snapshot, for messages.
        flat: whether all is one leaf, whatever the numbers of its blocks.

    Attributes:
        leaves_read: numbers of the leaves that were read from files, in the order in which they were.
        indexed: whether rows can be ordered, split and found without opening shards.

    >>> from mmpipe.shards.root import root_of
    >>> from mmpipe.shards.leaf import path_of
    >>> shards = [Shard(block=i, path=path_of('ab' * 32), fields=('_key',), rows=2, bytes=9, sha256='ab' * 32)
    ...           for i in (0, 1, 5000)]
    >>> found = ShardList.of(root_of('none'), shards, names=[])
    >>> len(found), found[-1].block, found.rows, found.places(np.array([5])).tolist(), found.end
    (3, 5000, 6, [[5000, 1]], 5001)
    """

    def __init__(
        self, root: Root, branches: Sequence[Branch], *, names: Collection[str], identity: str = '', flat: bool = False
    ) -> None:
        self.root, self.branches, self.names, self.identity, self.flat = (
            root,
            tuple(branches),
            tuple(names),
            identity,
            flat,
        )
        self.leaves_read: list[int] = []
        self.indexed = bool(branches) and not flat and all(branch.keys is not None for branch in branches)
        self._shard_starts, self._block_starts, self._row_starts = (
            np.cumsum([0, *(getattr(branch, name) for branch in self.branches)])
            for name in ('shards', 'blocks', 'rows')
        )
        self._numbers = np.array([branch.number for branch in self.branches], dtype=np.int64)
        self._leaves: dict[int, Leaf] = {}
        self._lock = threading.RLock()

    @classmethod
    def of(cls, root: Root, shards: Iterable[Shard], *, names: Collection[str], identity: str = '') -> ShardList:
        """A list of shards that are in order, of which no leaf is written."""
        shards = shards if isinstance(shards, Sequence) else list(shards)
        numbers = np.array([shard.block for shard in shards], dtype=np.int64) // LEAF_BLOCKS
        branches = [Branch.of(number, Leaf.of(shards[i] for i in at.tolist())) for number, at in by_group(numbers)]
        return cls(root, branches, names=names, identity=identity)

    @classmethod
    def read(cls, root: Root, table: pa.Table, *, names: Collection[str], identity: str) -> ShardList:
        """Of a table of the schema `TREE`."""
        branches = []
        for row in table.to_pylist():
            files = {kind: Named(row.pop(f'{kind}_sha256').hex(), row.pop(f'{kind}_bytes'))
                     for kind in ('list', 'keys', 'rowids')}  # fmt: skip
            branches.append(Branch(**(row | files)))
        return cls(root, branches, names=names, identity=identity)

    def table(self) -> pa.Table:
        """As a table of the schema `TREE`, once every leaf is written."""
        rows: list[dict[str, Any]] = []
        for branch in self.branches:
            row: dict[str, Any] = {name: getattr(branch, name) for name in ('number', 'blocks', 'shards', 'rows')}
            for kind in ('list', 'keys', 'rowids'):
                named: Named = getattr(branch, kind)
                row |= {f'{kind}_bytes': named.bytes, f'{kind}_sha256': bytes.fromhex(named.sha256)}
            rows.append(row)
        return pa.Table.from_pylist(rows, schema=TREE)

    def __len__(self) -> int:
        return int(self._shard_starts[-1])

    @overload
    def __getitem__(self, at: int) -> Shard: ...
    @overload
    def __getitem__(self, at: slice) -> list[Shard]: ...
    def __getitem__(self, at: int | slice) -> Shard | list[Shard]:
        if isinstance(at, slice):
            return [self[i] for i in range(*at.indices(len(self)))]
        place = at + len(self) if at < 0 else at
        if not 0 <= place < len(self):
            raise IndexError(f'shard {at} of {len(self)}')
        number = int(np.searchsorted(self._shard_starts, place, side='right')) - 1
        return self.leaf(number)[place - int(self._shard_starts[number])]

    def __iter__(self) -> Iterator[Shard]:
        for number in range(len(self.branches)):
            leaf = self.leaf(number)
            for at in range(len(leaf)):
                yield leaf[at]

    def __repr__(self) -> str:
        return f'<{len(self)} shards in {len(self.branches)} leaves>'

    def leaf(self, at: int) -> Leaf:
        """A leaf by its place among the branches.

        Raises:
            ShardError: its file is missing, damaged, or lists a block that is not whole.
        """
        leaf = self._leaves.get(at)
        if leaf is None:
            with self._lock:
                leaf = self._leaves.get(at)
                if leaf is None:
                    self._read_leaves([at])
                    leaf = self._leaves[at]
        return leaf

    def _read_leaves(self, places: Sequence[int]) -> None:
        missing = [at for at in places if at not in self._leaves]
        stored = [at for at in missing if self.branches[at].leaf is None]
        tables = dict(zip(stored, self._tables(stored, 'list'), strict=True))
        for at in missing:
            leaf = self.branches[at].leaf
            if leaf is None:
                leaf = Leaf.read(tables[at])
                leaf.check(self.names, self.identity)
                self.leaves_read.append(self.branches[at].number)
            self._leaves[at] = leaf

    def _tables(self, places: Sequence[int], kind: str) -> list[pa.Table]:
        files: list[Named] = [getattr(self.branches[at], kind) for at in places]
        if not self.root.remote or len(files) < 2:
            return [read_table(self.root, named) for named in files]
        with ThreadPoolExecutor(min(THREADS, len(files))) as pool:
            return list(pool.map(lambda named: read_table(self.root, named), files))

    @property
    def rows(self) -> int:
        """Rows of all blocks, masked ones included."""
        return int(self._row_starts[-1])

    @property
    def blocks(self) -> int:
        """How many blocks there are."""
        return int(self._block_starts[-1])

    @property
    def end(self) -> int:
        """A number behind that of every block."""
        return 1 + int(self.leaf(len(self.branches) - 1).block[-1]) if len(self) else 0

    def of_block(self, block: int) -> list[Shard]:
        """The shards of a block; none where there is no such block."""
        at = self.leaf_of(block)
        if at is None:
            return []
        leaf = self.leaf(at)
        return [leaf[i] for i in range(*leaf.span(block))]

    def leaf_of(self, block: int) -> int | None:
        """The place of the leaf that a block lies in, or would; None where there is none."""
        if self.flat:
            return 0 if len(self.branches) else None
        at = int(np.searchsorted(self._numbers, block // LEAF_BLOCKS))
        return at if at < len(self._numbers) and self._numbers[at] == block // LEAF_BLOCKS else None

    # Rows, numbered through all blocks.

    @cached_property
    def _anchors(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Number and first row of each block, and whether its leaf was looked at: others start where the leaf does."""
        counts = np.diff(self._block_starts)
        starts = np.repeat(self._row_starts[:-1], counts)
        return np.zeros(len(starts), dtype=np.int64), starts, np.zeros(len(counts), dtype=bool)

    def _look(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and first rows of blocks, true of the leaves that are named."""
        blocks, starts, looked = self._anchors
        if not looked[places].all():
            with self._lock:
                missing = places[~looked[places]].tolist()
                self._read_leaves(missing)
                for at in missing:
                    leaf = self._leaves[at]
                    here = slice(int(self._block_starts[at]), int(self._block_starts[at + 1]))
                    rows = leaf.rows[leaf.anchors]
                    blocks[here] = leaf.block[leaf.anchors]
                    starts[here] = self._row_starts[at] + np.cumsum(rows) - rows
                    looked[at] = True
        return blocks, starts

    def places(self, rows: np.ndarray) -> np.ndarray:
        """Where some rows lie.

        Args:
            rows: int64 `[n]`, their numbers through all blocks.

        Returns:
            int64 `[n, 2]` of block and row in it.
        """
        if not len(rows):
            return np.zeros((0, 2), dtype=np.int64)
        blocks, starts = self._look(self._leaves_of(rows))
        at = np.searchsorted(starts, rows, side='right') - 1
        return np.stack([blocks[at], rows - starts[at]], axis=1)

    def _leaves_of(self, rows: np.ndarray) -> np.ndarray:
        if len(self.branches) == 1:
            return np.zeros(1, dtype=np.int64)
        return np.unique(np.searchsorted(self._row_starts, rows, side='right') - 1)

    def numbers(self, places: np.ndarray) -> np.ndarray:
        """The other way round: numbers through all blocks of int64 `[n, 2]` of block and row in it; int64 `[n]`."""
        if not len(places) or not len(self):
            return np.zeros(0, dtype=np.int64)
        out = np.empty(len(places), dtype=np.int64)
        for at, where in by_group(self._leaves_of_blocks(places[:, 0])):
            blocks, starts = self._look(np.array([at]))
            here = slice(int(self._block_starts[at]), int(self._block_starts[at + 1]))
            out[where] = starts[here][np.searchsorted(blocks[here], places[where, 0])] + places[where, 1]
        return out

    def rows_of(self, wanted: np.ndarray) -> np.ndarray:
        """Numbers of all rows of some blocks that there are: int64, in order."""
        wanted = np.unique(np.asarray(wanted, dtype=np.int64))
        found = [np.zeros(0, dtype=np.int64)]
        for at, where in by_group(self._leaves_of_blocks(wanted)):
            blocks, starts = self._look(np.array([at]))
            here = slice(int(self._block_starts[at]), int(self._block_starts[at + 1]))
            mine = np.searchsorted(blocks[here], wanted[where])
            leaf = self.leaf(at)
            counts = leaf.rows[leaf.anchors][mine]
            inside = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
            found.append(np.repeat(starts[here][mine], counts) + inside)
        return np.concatenate(found)

    def _leaves_of_blocks(self, blocks: np.ndarray) -> np.ndarray:
        if self.flat:
            return np.zeros(len(blocks), dtype=np.int64)
        return np.searchsorted(self._numbers, blocks // LEAF_BLOCKS)

    def hashes(self, rows: np.ndarray, name: str = '_hash') -> np.ndarray:
        """From the index: `_hash` of the keys of rows, or `_rowid` of the store's names; uint64 `[n]`."""
        out = np.empty(len(rows), dtype=np.uint64)
        for table, where, local in self._index(rows, 'keys' if name == '_hash' else 'rowids'):
            out[where] = numbers(table[name])[local]
        return out

    def splits(self, rows: np.ndarray) -> tuple[np.ndarray, list[str]]:
        """From the index: codes `[n]` of the splits of rows, and their names."""
        out = np.empty(len(rows), dtype=np.int32)
        names: dict[str, int] = {}
        for table, where, local in self._index(rows, 'keys'):
            column = table.column('_split').chunk(0)
            codes = np.array([names.setdefault(name, len(names)) for name in column.dictionary.to_pylist()], np.int32)
            out[where] = codes[numbers(column.indices)[local]]
        return out, list(names)

    def _index(self, rows: np.ndarray, kind: str) -> Iterator[tuple[pa.Table, Any, np.ndarray]]:
        """Files of an index with the positions of the rows that each holds, and their places in it."""
        if not len(rows):
            return
        if (rows[1:] >= rows[:-1]).all():  # as most selections are: no position is made for each
            cuts = np.searchsorted(rows, self._row_starts)
            groups: list[tuple[int, Any]] = [(at, slice(int(a), int(b))) for at, (a, b) in
                                             enumerate(pairwise(cuts)) if b > a]  # fmt: skip
        else:
            groups = list(by_group(np.searchsorted(self._row_starts, rows, side='right') - 1))
        for start in range(0, len(groups), THREADS):  # several at once, and not all of them
            some = groups[start : start + THREADS]
            tables = self._tables([at for at, _ in some], kind)
            for (at, where), table in zip(some, tables, strict=True):
                if len(table) != self.branches[at].rows:
                    raise ShardError(
                        f"an index of snapshot '{self.identity}' holds {len(table)} rows, and its list "
                        f'{self.branches[at].rows}. Open an older snapshot by id, or write it again into a new root.'
                    )
                yield table, where, rows[where] - self._row_starts[at]

    def revised(
        self,
        listed: Callable[[Shard], tuple[str, ...]],
        *,
        blocks: Collection[int] | None,
        gone: Collection[int] = (),
        new: Iterable[Shard] = (),
        names: Collection[str] | None = None,
    ) -> ShardList:
        """The list of a snapshot that extends this one. Leaves in which nothing differs are not read.

        Args:
            listed: what a shard lists now; one that lists nothing is left out.
            blocks: those of which some shard may list something else; None for all.
            gone: blocks that are left out.
            new: shards that come in.
            names: fields of every block; those of this list when None.
        """
        names = self.names if names is None else tuple(names)
        coming: dict[int, list[Shard]] = {}
        for shard in new:
            coming.setdefault(shard.block // LEAF_BLOCKS, []).append(shard)
        if self.flat or blocks is None:
            there: Iterable[int] = range(len(self.branches))
        else:
            touched = {block // LEAF_BLOCKS for block in (*blocks, *gone)}
            there = [at for at, branch in enumerate(self.branches) if branch.number in touched | coming.keys()]
        gone = frozenset(gone)
        made: dict[int, list[Shard]] = {}
        for at in there:
            leaf = self.leaf(at)
            for shard in (leaf[i] for i in range(len(leaf))):
                fields = shard.fields if blocks is not None and shard.block not in blocks else listed(shard)
                if fields and shard.block not in gone:
                    kept = shard if fields == shard.fields else _relisted(shard, fields)
                    made.setdefault(shard.block // LEAF_BLOCKS, []).append(kept)
        for number, shards in coming.items():
            made.setdefault(number, []).extend(shards)
        taken = {self.branches[at].number: self.branches[at] for at in there}
        branches = {branch.number: branch for branch in self.branches if branch.number not in taken and not self.flat}
        for number, shards in made.items():
            leaf = Leaf.of(sorted(shards, key=lambda shard: (shard.block, shard.path)))
            branches[number] = Branch.of(number, leaf, None if self.flat else taken.get(number))
        return ShardList(
            self.root, [branches[number] for number in sorted(branches)], names=names, identity=self.identity
        )


def _relisted(shard: Shard, fields: tuple[str, ...]) -> Shard:
    return Shard(
        block=shard.block, path=shard.path, fields=fields, rows=shard.rows, bytes=shard.bytes, sha256=shard.sha256
    )

"""Open a snapshot, and map its files where they are read."""

from __future__ import annotations

import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa

from mmpipe.errors import ConfigError, DataError, ShardError
from mmpipe.shards import manifest as manifests
from mmpipe.shards.column import one_array, pick
from mmpipe.shards.field import Column, Field
from mmpipe.shards.gather import BlockColumn
from mmpipe.shards.leaf import Shard
from mmpipe.shards.manifest import Manifest
from mmpipe.shards.parts import KEYS, Parts
from mmpipe.shards.root import Root, root_of
from mmpipe.shards.rows import Rows
from mmpipe.shards.tree import ShardList
from mmpipe.stores import what

if TYPE_CHECKING:
    from mmpipe.shards.history import SnapshotDiff

MAPPED_FILES = 256  # copies of remote shards that a snapshot holds at most, each with a descriptor
LOCAL_FILES = 1 << 14  # shards of a directory that are mapped at most: Linux gives a process 65,530 maps, and each
# keeps 10 KB of descriptions
KEPT_BLOCKS = 1 << 15  # whose shards are known by name


def open_snapshot(
    root: str | Path | Root, id: str | None = None, *, verify: Literal['first use'] | None = None
) -> Snapshot:
    """Open a training snapshot. Needs no database: only the shards are read.

    Args:
        root: the directory or URL given to `mm.snapshot`. Of an object store only the manifest is read here; a shard
            is fetched when something in it is read first, and kept in the project's `.mmpipe/cache/shards`.
        id: snapshot id; the latest when None.
        verify: 'first use' to compare each shard of a directory with its digest when this process reads something in it
            first: some 0.05 s per 64 MB shard that is in memory, as long as reading it where it is not. Sizes are
            compared in any case, of more than 2,048 shards when each is mapped; and what is fetched from an object
            store is always compared.

    Returns:
        The snapshot; it can be pickled, and maps its files on first use in whichever process that is.

    Raises:
        ConfigError: another `verify`.
        ShardError: no snapshot there, damaged files, or a store that cannot be read.
        MissingExtraError: the package that speaks to the store is not installed.

    >>> from mmpipe.shards import Block, write_snapshot
    >>> fields = [Field(name='price', kind='scalar', dtype='float32')]
    >>> block = Block(keys=['a', 'b'], columns={'price': [1.5, 2.0]}, splits=['train', 'val'])
    >>> import tempfile; root = tempfile.mkdtemp(); _ = write_snapshot(root, fields, block)
    >>> open_snapshot(root).split('train').read('price')
    (array([1.5], dtype=float32), array([ True]))
    >>> open_snapshot('nowhere')
    Traceback (most recent call last):
    ...
    mmpipe.errors.ShardError: no snapshot in 'nowhere'. Write one with mm.snapshot(...) or `mmpipe snapshot PIPELINE`.
    """
    root = root_of(root)
    if verify not in (None, 'first use'):
        raise ConfigError(f"open_snapshot(verify={verify!r}): 'first use', or leave it out and call Snapshot.verify().")
    return Snapshot(root, manifests.load(root, id), verify=verify)


def _reopened(root: str, id: str, verify: Literal['first use'] | None) -> Snapshot:
    return open_snapshot(root, id, verify=verify)


class Snapshot:
    """An immutable set of rows, named by its content.

    Args:
        root: where the shards are.
        manifest: what `mmpipe.shards.manifest.load` read there.
        verify: as in `open_snapshot`.

    Attributes:
        root: directory or URL of the shards.
        id: 16 hex digits, a digest of the content.
        fields: the fields by name.
        splits: rows per split.
        versions: {table path: [[table id, version, time of creation], ...]} of the tables it is pinned to, nearest
            first; the newest versions known to hold what it holds, and empty for rows that came from no table.
    """

    def __init__(self, root: Root, manifest: Manifest, *, verify: Literal['first use'] | None = None) -> None:
        self.place = root
        self._verify = verify
        self._verified: set[str] = set()
        self.root = root.text
        self.manifest = manifest
        self.id = manifest.id
        self.fields: dict[str, Field] = {item.name: item for item in manifest.fields}
        self.splits = manifest.splits
        self.versions = manifest.versions
        self._tables: dict[str, pa.Table] = {}
        self._bytes: dict[str, int] = {}
        self._letting_go = threading.Lock()
        self._parts = Parts(root, manifest.splits) if root.remote else None
        self._columns: dict[tuple[int, str], BlockColumn] = {}
        self._known: dict[int, tuple[dict[str, Shard], dict[str, Shard]]] = {}
        found = manifest.shards
        self.shards = (
            found if isinstance(found, ShardList) else ShardList.of(root, found, names=self.fields, identity=self.id)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopened, (self.place.absolute(), self.id, self._verify)

    def __len__(self) -> int:
        return self.shards.rows - len(self._masked)

    def __repr__(self) -> str:
        splits = ', '.join(f'{name or "(no split)"} {count}' for name, count in self.splits.items())
        return f"<Snapshot {self.id} in '{self.root}': {len(self)} rows ({splits}), fields {', '.join(self.fields)}>"

    @property
    def indexed(self) -> bool:
        """Whether rows are ordered, split and found by an index beside the manifest, without opening shards."""
        return self.shards.indexed

    @cached_property
    def _masked(self) -> np.ndarray:
        """Numbers of the dropped rows among the rows of all blocks, in order: int64."""
        return np.unique(self.shards.numbers(self.manifest.dropped))

    def numbers(self, index: np.ndarray) -> np.ndarray:
        """Numbers of live rows among the rows of all blocks.

        Args:
            index: int64 positions among the live rows.
        """
        if not len(self._masked):
            return index
        return index + np.searchsorted(self._masked - np.arange(len(self._masked)), index, side='right')

    def rows_in(self, blocks: np.ndarray) -> Rows:
        """The live rows of some blocks, in order."""
        numbers = self.shards.rows_of(blocks)
        before = np.searchsorted(self._masked, numbers)
        masked = np.isin(numbers, self._masked, assume_unique=True)
        return Rows(self, (numbers - before)[~masked])

    def mapped(self, shard: Shard) -> pa.NativeFile:
        """A shard as a mapped file; of an object store a copy, fetched where there is none.

        Raises:
            ShardError: it is missing or damaged.
        """
        if self._verify is not None and not self.place.remote and shard.path not in self._verified:
            self._check(shard)
            self._verified.add(shard.path)
        try:
            found = self.place.mapped(shard.path, size=shard.bytes, sha256=shard.sha256)
        except FileNotFoundError:
            raise self._damaged(shard, 'is missing') from None
        if self.indexed and not self.place.remote and found.size() != shard.bytes:  # of few, it was found at once
            raise self._damaged(shard, f'has not its {shard.bytes} bytes')
        return found

    def _damaged(self, shard: Shard, how: str) -> ShardError:
        return ShardError(
            f"shard '{self.place.at(shard.path)}' of snapshot {self.id} {how}. Restore it, or write the snapshot again "
            f'into a new root.'
        )

    def _check(self, shard: Shard) -> None:
        try:
            found = self.place.digest(shard.path)
        except FileNotFoundError:
            raise self._damaged(shard, 'is missing') from None
        if found != shard.sha256:
            raise self._damaged(shard, 'does not match its digest')

    def _table(self, shard: Shard) -> pa.Table:
        table = self._tables.get(shard.path)
        if table is None:
            try:
                table = self._tables[shard.path] = pa.ipc.open_file(self.mapped(shard)).read_all()
            except (pa.ArrowException, OSError) as error:
                raise self._damaged(shard, f'cannot be read ({what(error)})') from error
            if self.place.remote:
                self._bytes[shard.path] = shard.bytes
                self._let_go()
            elif len(self._tables) > LOCAL_FILES:
                self._let_half_go()
        return table

    def _let_go(self) -> None:
        """Let go of the copies mapped first, where many are: what nobody holds can make room for others."""
        with self._letting_go:
            over = sum(self._bytes[path] for path in list(self._tables)) - self._mapped_bytes
            for path in list(self._tables)[:-1]:
                if over <= 0 and len(self._tables) <= MAPPED_FILES:
                    break
                over -= self._bytes[path]
                self._tables.pop(path, None)
            for key in list(self._columns):
                if any(shard.path not in self._tables for shard in self.shards_of(*key)):
                    self._columns.pop(key, None)

    def _let_half_go(self) -> None:
        """Let go of the files mapped first, many at a time, so that it costs little for each."""
        with self._letting_go:
            for path in list(self._tables)[: len(self._tables) - LOCAL_FILES // 2]:
                self._tables.pop(path, None)
            self._columns.clear()

    @cached_property
    def _mapped_bytes(self) -> int:
        """Of copies that are held at once; a few processes may hold others in the same cache."""
        from mmpipe.shards.copies import cache_limit

        return cache_limit() // 4

    def forget(self) -> None:
        """Let go of the files mapped so far; they are mapped again where they are needed."""
        self._tables.clear()
        self._columns.clear()

    def shards_of(self, block: int, name: str) -> list[Shard]:
        """The files that hold a column of a block: its shard, and its patch where there is one."""
        whole, patches = self._of_block(block)
        patch = patches.get(_anchor(name))
        return [whole[_anchor(name)], *([] if patch is None else [patch])]

    def _of_block(self, block: int) -> tuple[dict[str, Shard], dict[str, Shard]]:
        """The shard of each field of a block, and its patches."""
        found = self._known.get(block)
        if found is None:
            found = {}, {}
            for shard in self.shards.of_block(block):
                patch = '_row' in shard.fields
                found[patch].update(dict.fromkeys(shard.fields[patch:], shard))
            if len(self._known) >= KEPT_BLOCKS:
                self._known.clear()
            self._known[block] = found
        return found

    def unpatched(self, block: int, name: str) -> pa.ChunkedArray:
        """A column of a block as its whole shard holds it, masked rows and system columns (`Rows.system`) included."""
        shard = self._of_block(block)[0][_anchor(name)]
        if self._parts is not None and name in KEYS and (keys := self._parts.keys(shard)) is not None:
            return keys[name]
        return self._table(shard)[name]

    def bring_keys(self, blocks: np.ndarray, name: str) -> None:
        """Read a system column of some blocks of an object store, without the rest of their shards where that is less.

        Raises:
            ShardError: a shard is missing or damaged, or the store cannot be read.
        """
        if self._parts is not None and name in KEYS:
            self._parts.bring_keys(self._of_block(block)[0]['_key'] for block in np.unique(blocks).tolist())

    def few(self, name: str, places: np.ndarray) -> dict[int, BlockColumn]:
        """Those blocks of an object store of which few rows are read: their rows, without the rest of the shards.

        Args:
            name: field name.
            places: int64 `[n, 2]` of block and row.
        """
        if self._parts is None:
            return {}
        shards = {block: self.shards_of(block, name) for block in np.unique(places[:, 0]).tolist()}
        alone = {block: found[0] for block, found in shards.items()
                 if len(found) == 1 and found[0].path not in self._tables}  # fmt: skip
        return self._parts.few(self.fields[name], alone, places)

    def patch(self, block: int, name: str) -> tuple[np.ndarray, pa.Array] | None:
        """The rows of a block whose values lie in a patch of that column, in rising order, and the values."""
        shard = self._of_block(block)[1].get(_anchor(name))
        if shard is None:
            return None
        table = self._table(shard)
        return table['_row'].to_numpy(), one_array(table[name])

    def stored(self, block: int, name: str, start: int = 0, stop: int | None = None) -> pa.Array:
        """A column of the rows from `start` to `stop` of a block, masked rows and system columns included."""
        column = one_array(self.unpatched(block, name).slice(start, None if stop is None else stop - start))
        patch = self.patch(block, name)
        if patch is None:
            return column
        first, last = np.searchsorted(patch[0], [start, start + len(column)])
        index = np.arange(len(column))
        index[patch[0][first:last] - start] = len(column) + np.arange(last - first)
        return pick([column, patch[1].slice(first, last - first)], index)

    def column(self, block: int, name: str) -> BlockColumn:
        """A field of a block, mapped."""
        found = self._columns.get((block, name))
        if found is None:
            patch = self.patch(block, name)
            chunks = [*self.unpatched(block, name).chunks, *([] if patch is None else [patch[1]])]
            columns = [Column(self.fields[name], chunk) for chunk in chunks]
            found = self._columns[block, name] = BlockColumn(columns, None if patch is None else patch[0])
        return found

    def rows(self) -> Rows:
        """All rows."""
        return Rows(self, np.arange(len(self)))

    def split(self, name: str) -> Rows:
        """The rows of one split.

        Raises:
            DataError: the snapshot has no such split.
        """
        if name not in self.splits:
            have = ', '.join(repr(split) for split in self.splits) or 'none'
            raise DataError(
                f"snapshot {self.id} in '{self.root}' has no split '{name}'; it has {have}. Name one of these."
            )
        rows = self.rows()
        if self.indexed:
            codes, names = self.shards.splits(self.numbers(rows.index))
            return rows.take(np.flatnonzero(codes == names.index(name) if name in names else []))
        return rows.take(np.flatnonzero(rows.system('_split') == name))

    def diff(self, before: Snapshot) -> SnapshotDiff:
        """What this snapshot holds that an earlier one does not, and the other way round; see `SnapshotDiff`.

        Args:
            before: any snapshot, such as `open_snapshot(root, id)`; it may lie in another root.

        >>> import tempfile
        >>> from mmpipe.shards import Block, write_snapshot
        >>> fields, root = [Field(name='price', kind='scalar', dtype='float32')], tempfile.mkdtemp()
        >>> old = write_snapshot(root, fields, Block(keys=['a', 'b', 'c'], columns={'price': [1.0, 2.0, 3.0]}))
        >>> new = write_snapshot(root, fields, Block(keys=['b', 'c', 'd'], columns={'price': [2.0, 4.0, 5.0]}))
        >>> found = new.diff(old)
        >>> found.added, found.removed, found.changed
        (('d',), ('a',), {'price': ('c',)})
        """
        from mmpipe.shards.history import diff

        return diff(before, self)

    def verify(self) -> None:
        """Re-read every shard and compare its digest.

        Raises:
            ShardError: a shard's bytes changed since it was written.
        """
        for shard in self.shards:
            self._check(shard)


def _anchor(name: str) -> str:
    """What the shard that holds a column lists: its field, or `_key` for the system columns."""
    field = name.removeprefix('_digest.')
    return '_key' if field.startswith('_') else field

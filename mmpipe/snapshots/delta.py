"""What a new snapshot changes in the one before it: rows to write, columns to write again, rows to mask.

    a new row, or one with another key or split, or no field as it was    a row of a new block; the old one is masked
    a row of which some fields changed                                    those fields of it, a patch of the block each
    many such rows in a block                                             those fields of the block, a new shard each
    a field that is new, or has another form                              a new shard in every block

So no byte of an unchanged field is written again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from mmpipe.shards import Block, Field, Snapshot, write_block
from mmpipe.shards.column import ColumnWriter
from mmpipe.shards.field import content_digest
from mmpipe.shards.leaf import Shard
from mmpipe.shards.root import Root
from mmpipe.shards.tree import ShardList
from mmpipe.shards.writer import BLOCK_BYTES, NO_ROWS_DROPPED
from mmpipe.snapshots.read import PageRow, size_of
from mmpipe.store import Rowid


def text_of(rowid: Rowid) -> str:
    """The store's name of a row as shards hold it.

    >>> text_of((7, 2))
    '7/2'
    """
    return '/'.join(str(part) for part in rowid)


class Old:
    """Rows of the snapshot that is extended, found by the store's name for them.

    Args:
        snapshot: the one before; None when there is none.
        wanted: which rows are looked for; all when None. For none, nothing is read.
    """

    def __init__(self, snapshot: Snapshot | None, wanted: list[str] | None) -> None:
        rows = None if snapshot is None or wanted == [] else snapshot.rows()
        if rows is not None and wanted is not None:
            rows = rows.take(rows.among('_rowid', wanted))
        self.snapshot = snapshot
        self.rows = rows
        self.position = {} if rows is None else {rowid: i for i, rowid in enumerate(rows.system('_rowid'))}
        self._columns: dict[str, np.ndarray] = {}

    def value(self, rowid: str, column: str) -> object:
        """One system column (`_key`, `_split`, `_digest.<field>`) of a row."""
        assert self.rows is not None
        if column not in self._columns:
            self._columns[column] = self.rows.system(column)
        return self._columns[column][self.position[rowid]]

    def place(self, rowid: str) -> tuple[int, int]:
        """Block and row of a row."""
        block, row = self._places[self.position[rowid]].tolist()
        return block, row

    def in_order(self, rowids: Sequence[Rowid]) -> list[Rowid]:
        """Rowids in the order in which their rows lie here, those that do not behind them."""
        behind = len(self.position)
        return sorted(rowids, key=lambda rowid: (self.position.get(text_of(rowid), behind), rowid))

    @cached_property
    def _places(self) -> np.ndarray:
        assert self.rows is not None
        return self.rows.places


@dataclass
class Delta:
    """A snapshot in the making.

    Args:
        root: where it is written.
        fields: its fields.
        old: rows of the snapshot it extends; those that are taken come in the order in which they lie there.
        anew: names of the fields that the old snapshot has not, or has in another form.
    """

    root: Root
    fields: list[Field]
    old: Old
    anew: frozenset[str] = frozenset()
    masks: list[tuple[int, int]] = field(default_factory=list)
    splits: dict[str, int] = field(default_factory=dict)
    inserted: int = 0
    updated: int = 0
    masked: int = 0
    compared: int = 0
    bytes_written: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    cells: dict[str, int] = field(default_factory=dict)
    _there: ShardList | None = None
    _dropped: np.ndarray = field(default_factory=lambda: NO_ROWS_DROPPED)
    _new: list[Shard] = field(default_factory=list)
    _pending: list[tuple[str, PageRow, dict[str, bytes]]] = field(default_factory=list)
    _pending_bytes: int = 0
    _block: int = -1
    _columns: dict[str, ColumnWriter] = field(default_factory=dict)
    _replaced: defaultdict[int, set[str]] = field(default_factory=lambda: defaultdict(set))
    _patched: defaultdict[int, set[str]] = field(default_factory=lambda: defaultdict(set))

    def __post_init__(self) -> None:
        if self.old.snapshot is not None:
            manifest = self.old.snapshot.manifest
            self._there = self.old.snapshot.shards
            self._dropped = manifest.dropped
            self.splits |= manifest.splits
        self._next = 0 if self._there is None else self._there.end

    @property
    def dropped(self) -> np.ndarray:
        """Rows of its blocks that are no part of it: int64 `[n, 2]` of block and row."""
        return np.concatenate([self._dropped, np.array(self.masks, dtype=np.int64).reshape(-1, 2)])

    def stays(self, rowid: str, row: PageRow) -> bool:
        """Whether a row lies in the old snapshot under its key and split, so that some of its values are enough."""
        return rowid in self.old.position and not self._moved(rowid, row)

    def take(self, rowid: str, row: PageRow) -> None:
        """Write what the old snapshot has not: the row, some fields of it, or nothing.

        Args:
            rowid: the store's name of the row; they come in the order of the old snapshot.
            row: its values; of a row that stays, those of some fields are enough.
        """
        read = [item for item in self.fields if item.name in row.values]
        digests = {item.name: content_digest(item, row.values[item.name]) for item in read}
        if rowid not in self.old.position:
            self.inserted += 1
            self._append(rowid, row, digests)
            return
        stale = {item.name for item in read if item.name in self.anew
                 or self.old.value(rowid, f'_digest.{item.name}') != digests[item.name]}  # fmt: skip
        moved = self._moved(rowid, row)
        if not stale and not moved:
            self.compared += 1
            return
        self.updated += 1
        if moved or len(stale) == len(self.fields):
            self._mask(rowid)
            self._append(rowid, row, digests)
        else:
            self._put(rowid, row, {name: digests[name] for name in stale})

    def drop(self, rowid: str) -> None:
        """Mask a row that was deleted or left the filter."""
        self._mask(rowid)
        self.masked += 1

    def finish(self) -> Sequence[Shard]:
        """Write what is still in memory.

        Returns:
            All shards of the new snapshot, old and new. Blocks without a row that is left are no longer among them.
        """
        self._close_columns()
        self._write_block()
        if self._there is None:
            return self._new
        dropped = self.dropped
        gone = set()
        for block in {block for block, _ in self.masks}:
            if np.count_nonzero(dropped[:, 0] == block) == self._rows_of(block):
                gone.add(block)
        if gone:
            self._dropped = dropped[~np.isin(dropped[:, 0], list(gone))]
            self.masks = []
        names = {item.name for item in self.fields} - self.anew | {'_key'}
        same = {item.name for item in self.fields} >= set(self._there.names) and not self.anew & set(self._there.names)
        return self._there.revised(
            lambda shard: self._still_listed(shard, names),
            blocks=self._replaced.keys() | self._patched.keys() if same else None,
            gone=gone,
            new=self._new,
            names=[item.name for item in self.fields],
        )

    def _rows_of(self, block: int) -> int:
        assert self._there is not None
        return next(shard.rows for shard in self._there.of_block(block) if '_key' in shard.fields)

    def _still_listed(self, shard: Shard, names: Collection[str]) -> tuple[str, ...]:
        gone = set(self._replaced[shard.block])
        if '_row' not in shard.fields:
            return tuple(name for name in shard.fields if name in names and name not in gone)
        gone |= self._patched[shard.block]
        fields = tuple(name for name in shard.fields[1:] if name in names and name not in gone)
        return ('_row', *fields) if fields else ()

    def changes(self) -> dict[str, Any]:
        """What it changes, as counts, for the log of the root."""
        before = self.old.snapshot.fields if self.old.snapshot is not None else {}
        now = [item.name for item in self.fields]
        return {
            'inserted': self.inserted,
            'updated': self.updated,
            'dropped': self.masked,
            'cells': self.cells,
            'fields_added': [name for name in now if before and name not in before],
            'fields_removed': [name for name in before if name not in now],
        }

    def abandon(self) -> None:
        """Leave no file half-written behind."""
        for writer in self._columns.values():
            writer.abandon()

    def _moved(self, rowid: str, row: PageRow) -> bool:
        return (self.old.value(rowid, '_key'), self.old.value(rowid, '_split')) != (row.key, row.split)

    def _mask(self, rowid: str) -> None:
        self.masks.append(self.old.place(rowid))
        self.splits[str(self.old.value(rowid, '_split'))] -= 1

    def _append(self, rowid: str, row: PageRow, digests: dict[str, bytes]) -> None:
        self._count_failed(row, digests)
        self.splits[row.split] = self.splits.get(row.split, 0) + 1
        self._pending.append((rowid, row, digests))
        self._pending_bytes += row.bytes
        if self._pending_bytes >= BLOCK_BYTES:
            self._write_block()

    def _put(self, rowid: str, row: PageRow, digests: dict[str, bytes]) -> None:
        self._count_failed(row, digests)
        block, number = self.old.place(rowid)
        if block != self._block:
            self._close_columns()
            self._block = block
        for item in self.fields:
            if item.name not in digests:
                continue
            if item.name not in self._columns:
                old = None if item.name in self.anew else self.old.snapshot
                rows = self._rows_of(block)
                self._columns[item.name] = ColumnWriter(self.root, item, block=block, rows=rows, old=old)
            value, digest = row.values[item.name], digests[item.name]
            self._columns[item.name].put(number, value, digest, key=row.key, size=size_of(value))
            self.cells[item.name] = self.cells.get(item.name, 0) + 1

    def _count_failed(self, row: PageRow, written: Collection[str]) -> None:
        for name in row.failed:
            if name in written:
                self.failed[name] = self.failed.get(name, 0) + 1

    def _close_columns(self) -> None:
        for name, writer in self._columns.items():
            shard = writer.close()
            self._keep(shard)
            (self._patched if '_row' in shard.fields else self._replaced)[self._block].add(name)
        self._columns.clear()

    def _write_block(self) -> None:
        if not self._pending:
            return
        rows = [row for _, row, _ in self._pending]
        block = Block(
            keys=[row.key for row in rows],
            columns={item.name: [row.values[item.name] for row in rows] for item in self.fields},
            splits=[row.split for row in rows],
            rowids=[rowid for rowid, _, _ in self._pending],
            digests={item.name: [digests[item.name] for _, _, digests in self._pending] for item in self.fields},
        )
        self._keep(write_block(self.root, self.fields, block, index=self._next))
        self._next += 1
        self._pending.clear()
        self._pending_bytes = 0

    def _keep(self, shard: Shard) -> None:
        self._new.append(shard)
        self.bytes_written += shard.bytes

"""What a new snapshot changes in the one before it: rows to write, rows to mask."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from mmpipe.shards import Block, Field, Snapshot, write_block
from mmpipe.shards.field import content_digest
from mmpipe.shards.manifest import Shard
from mmpipe.snapshots.read import PageRow

BLOCK_BYTES = 64 << 20  # rows gathered in memory before they are written as one shard


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

    @cached_property
    def _places(self) -> np.ndarray:
        assert self.rows is not None
        return self.rows.places


@dataclass
class Delta:
    """A snapshot in the making.

    Args:
        fields: its fields.
        old: rows of the snapshot it extends.
        shards: all its shards, old and new.
        dropped: (block, row) of all masked rows.
        splits: live rows per split.
    """

    fields: list[Field]
    old: Old
    shards: list[Shard] = field(default_factory=list)
    dropped: list[tuple[int, int]] = field(default_factory=list)
    splits: dict[str, int] = field(default_factory=dict)
    inserted: int = 0
    updated: int = 0
    masked: int = 0
    compared: int = 0
    bytes_written: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    _pending: list[tuple[str, PageRow, dict[str, bytes]]] = field(default_factory=list)
    _pending_bytes: int = 0

    def take(self, rowid: str, row: PageRow, root: Path) -> None:
        """Write a row, unless the old snapshot has it with the same key, split and contents."""
        digests = {item.name: content_digest(item, row.values[item.name]) for item in self.fields}
        if rowid in self.old.position:
            known = {'_key': row.key, '_split': row.split, **{f'_digest.{name}': d for name, d in digests.items()}}
            if all(self.old.value(rowid, column) == value for column, value in known.items()):
                self.compared += 1
                return
            self._mask(rowid)
            self.updated += 1
        else:
            self.inserted += 1
        for name in row.failed:
            self.failed[name] = self.failed.get(name, 0) + 1
        self.splits[row.split] = self.splits.get(row.split, 0) + 1
        self._pending.append((rowid, row, digests))
        self._pending_bytes += row.bytes
        if self._pending_bytes >= BLOCK_BYTES:
            self.flush(root)

    def drop(self, rowid: str) -> None:
        """Mask a row that was deleted or left the filter."""
        self._mask(rowid)
        self.masked += 1

    def _mask(self, rowid: str) -> None:
        self.dropped.append(self.old.place(rowid))
        self.splits[str(self.old.value(rowid, '_split'))] -= 1

    def flush(self, root: Path) -> None:
        """Write the rows taken so far as one shard."""
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
        shard = write_block(root, self.fields, block, index=1 + max((s.block for s in self.shards), default=-1))
        self.shards.append(shard)
        self.bytes_written += shard.bytes
        self._pending.clear()
        self._pending_bytes = 0

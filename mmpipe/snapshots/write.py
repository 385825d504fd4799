"""Freeze a training view as shards: write the rows that no shard holds, mask those that are gone, move the pointer."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mmpipe.errors import ConfigError, FieldError, LabelError, SnapshotError, StoreError
from mmpipe.shards import Snapshot, commit, open_snapshot
from mmpipe.shards.manifest import latest_id
from mmpipe.snapshots.delta import Delta, Old
from mmpipe.snapshots.describe import describe, grow_vocabularies, same_layout
from mmpipe.snapshots.read import read_page
from mmpipe.snapshots.view import TrainingView, training_view
from mmpipe.store import Rowid, pages, path_of, writer_lock

ATTEMPTS = 3
Progress = Callable[[str, int, int | None, str], None]


@dataclass(frozen=True, kw_only=True)
class SnapshotReport:
    """What writing a snapshot did.

    Args:
        snapshot: the snapshot, open.
        table: path of the table or view it freezes.
        inserted: rows written that no earlier snapshot of this root held.
        updated: rows written again because a field or the split changed.
        dropped: rows masked because they were deleted or left the filter.
        compared: candidates whose content had not changed, so that nothing was written.
        bytes_written: size of the new shards.
        whole: why every row was looked at; '' when only changes were.
        failed_cells: field to number of written rows whose computed cell holds an error; they are null.
    """

    snapshot: Snapshot
    table: str
    inserted: int = 0
    updated: int = 0
    dropped: int = 0
    compared: int = 0
    bytes_written: int = 0
    whole: str = ''
    failed_cells: Mapping[str, int] = field(default_factory=dict)

    @property
    def written(self) -> int:
        """Rows written or masked; 0 when nothing changed."""
        return self.inserted + self.updated + self.dropped

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {
            'snapshot': self.snapshot.id,
            'root': self.snapshot.root,
            'table': self.table,
            'rows': len(self.snapshot),
            'splits': dict(self.snapshot.splits),
            'inserted': self.inserted,
            'updated': self.updated,
            'dropped': self.dropped,
            'compared': self.compared,
            'written': self.written,
            'bytes_written': self.bytes_written,
            'whole': self.whole,
            'failed_cells': dict(self.failed_cells),
        }

    def __str__(self) -> str:
        splits = ', '.join(f'{name or "no split"} {count}' for name, count in self.snapshot.splits.items())
        line = (
            f'{self.table} -> {self.snapshot.id}: {len(self.snapshot)} rows ({splits}); {self.inserted} new, '
            f'{self.updated} changed, {self.dropped} dropped, {self.bytes_written / 1e6:.1f} MB written'
        )
        failed = ', '.join(f'{name} {count}' for name, count in self.failed_cells.items())
        return line + (f'\n  cells that failed and are null: {failed}' if failed else '')


def snapshot(
    query: Any,
    *,
    root: str | Path,
    fields: Mapping[str, Any],
    split: Any = None,
    full: bool = False,
    page_rows: int = 256,
    progress: Progress | None = None,
) -> SnapshotReport:
    """Freeze a table, a view or a filtered one for training, pinned to its Pixeltable versions.

    When the root holds a snapshot of the same view and fields, the change feed gives the rows that may differ, their
    content digests say which do, and only those are written. Everything stored stays; the commit is one pointer write,
    so a crash leaves the old snapshot.

    Args:
        query: bound table class, table, view, or `.where(...)` of one.
        root: local directory of the shards, one per training view.
        fields: field name to Pixeltable expression or `mm.field` declaration.
        split: string expression with each row's split; the column `split` when there is one.
        full: look at every row, whatever the feed says, and take a changed definition as a new start.
        page_rows: rows read from Pixeltable at a time.
        progress: called as `progress('snapshot', done, total, 'rows')`.

    Returns:
        The open snapshot, and counts of what was written.

    Raises:
        SchemaError: a class that is not bound, or a query with more than a filter.
        FieldError: a field whose type needs a choice, or whose rows differ in shape; names field and row.
        LabelError: a label outside a declared vocabulary; names field, row and word.
        SourceChangedError: a file was overwritten or removed since it was ingested; names rows and files.
        SnapshotError: no rows, or a table that others keep writing.
        BusyError: another process is writing this root.
    """
    if '://' in str(root):
        raise ConfigError(
            f"root='{root}': this version writes snapshots to local directories only; sync the directory after"
        )
    view = training_view(query, fields, split)
    with writer_lock(f'snapshot:{Path(root).resolve()}'):
        for _ in range(ATTEMPTS):
            before = view.vectors()
            try:
                report = _attempt(view, before, Path(root), full, page_rows, progress)
            except (FieldError, LabelError) as error:
                raise type(error)(f"'{path_of(view.table)}': {error}") from error
            if report is not None:
                return report
    raise SnapshotError(
        f"'{path_of(view.table)}' changed during each of {ATTEMPTS} attempts to read it. Pause the writer, then retry."
    )


def _attempt(
    view: TrainingView, vectors: Mapping[str, Any], root: Path, full: bool, page_rows: int, progress: Progress | None
) -> SnapshotReport | None:
    """Write what changed; None when the tables moved meanwhile, so that the rows read may be of two versions."""
    definition = {**view.definition(), 'vectors': {path: [list(v) for v in vector] for path, vector in vectors.items()}}
    previous = open_snapshot(root) if latest_id(root) is not None else None
    specs, described = describe(view, previous)
    whole, since = _since(view, definition, previous, full)
    if previous is not None and not same_layout(previous, described):
        previous, whole, since = None, 'the fields have another form', None
    try:
        upserts, gone = view.candidates(since)
    except StoreError as error:
        whole = str(error)
        upserts, gone = view.candidates(None)
    if not upserts and previous is None:
        raise SnapshotError(
            f"'{path_of(view.table)}' has no rows to freeze. Run `mmpipe ingest` first, or widen the filter."
        )
    described = grow_vocabularies(view, specs, described, upserts, page_rows)
    old = Old(previous, None if gone is None else [_text(rowid) for rowid in (*upserts, *gone)])
    delta = Delta(fields=described, old=old)
    if previous is not None:
        delta.shards += previous.manifest.shards
        delta.dropped += [(block, row) for block, row in previous.manifest.dropped.tolist()]
        delta.splits |= previous.splits
    kept: set[str] = set()
    done = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for page in pages(upserts, page_rows):
            for rowid, row in sorted(read_page(view, specs, page, pool).items()):
                delta.take(_text(rowid), row, root)
                kept.add(_text(rowid))
            done += len(page)
            if progress is not None:
                progress('snapshot', done, len(upserts), 'rows')
    delta.flush(root)
    for name in old.position.keys() - kept:
        delta.drop(name)
    if view.vectors() != vectors:
        return None
    if not any(delta.splits.values()):
        raise SnapshotError(
            f"no row of '{path_of(view.table)}' is left in the filter. Widen it, or ingest rows that fit."
        )
    made = commit(
        root,
        delta.fields,
        delta.shards,
        dropped=np.array(delta.dropped, dtype=np.int64).reshape(-1, 2),
        source=definition,
        splits={name: count for name, count in delta.splits.items() if count},
        parent=previous.id if previous is not None else None,
    )
    return SnapshotReport(
        snapshot=made, table=path_of(view.table), inserted=delta.inserted, updated=delta.updated, dropped=delta.masked,
        compared=delta.compared, bytes_written=delta.bytes_written, whole=whole, failed_cells=delta.failed,
    )  # fmt: skip


def _since(
    view: TrainingView, definition: Mapping[str, Any], previous: Snapshot | None, full: bool
) -> tuple[str, dict[str, Any] | None]:
    """Why every row is looked at, or the version vectors to start from."""
    if full:
        return 'full=True', None
    if previous is None:
        return 'first snapshot', None
    before = dict(previous.manifest.source)
    vectors = before.pop('vectors', None)
    now = {name: value for name, value in definition.items() if name != 'vectors'}
    changed = [name for name in now if now[name] != before.get(name)]
    if vectors is None or changed:
        what = changed or ['source']
        if changed == ['fields']:
            what = [name for name in now['fields'] if now['fields'][name] != before['fields'].get(name)] or what
        return f'changed: {", ".join(what)}', None
    return '', {path: tuple(tuple(entry) for entry in vector) for path, vector in vectors.items()}


def _text(rowid: Rowid) -> str:
    return '/'.join(str(part) for part in rowid)

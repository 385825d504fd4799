"""Freeze a training view as shards: write what no shard holds, mask the rows that are gone, move the pointer."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmpipe.cores import cores
from mmpipe.errors import BusyError, FieldError, LabelError, SnapshotError, StoreError
from mmpipe.ledger import refuse_stale
from mmpipe.shards import Snapshot, commit, open_snapshot
from mmpipe.shards.root import Moved, Root, place_of, root_of
from mmpipe.snapshots.delta import Delta, Old, text_of
from mmpipe.snapshots.describe import describe, grow_vocabularies, written_anew
from mmpipe.snapshots.field import FieldSpec
from mmpipe.snapshots.predicted import refuse_predictions
from mmpipe.snapshots.read import PageRow, read_page
from mmpipe.snapshots.view import Candidates, TrainingView, training_view
from mmpipe.store import Rowid, Vector, check_locks, pages, told_plainly, writer_lock

ATTEMPTS = 3
Progress = Callable[[str, int, int | None, str], None]


@dataclass(frozen=True, kw_only=True)
class SnapshotReport:
    """What writing a snapshot did.

    Args:
        snapshot: the snapshot, open.
        table: path of the table or view it freezes.
        inserted: rows written that no earlier snapshot of this root held.
        updated: rows of which a field, the key or the split changed.
        dropped: rows masked because they were deleted or left the filter.
        compared: candidates whose content had not changed, so that they were not written.
        cells: field to number of values written of rows that stayed where they are: only some of their fields changed.
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
    cells: Mapping[str, int] = field(default_factory=dict)
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
            'cells': dict(self.cells),
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
        if self.cells:
            line += '\n  of changed rows only: ' + ', '.join(f'{name} {count}' for name, count in self.cells.items())
        failed = ', '.join(f'{name} {count}' for name, count in self.failed_cells.items())
        return line + (f'\n  cells that failed and are null: {failed}' if failed else '')


@told_plainly()
def snapshot(
    query: Any,
    *,
    root: str | Path,
    fields: Mapping[str, Any],
    split: Any = None,
    full: bool = False,
    allow_stale: bool = False,
    allow_predictions: bool = False,
    page_rows: int = 256,
    wait_s: float = 60.0,
    progress: Progress | None = None,
) -> SnapshotReport:
    """Freeze a table, a view or a filtered one for training, pinned to its Pixeltable versions.

    When the root holds a snapshot of the same view and fields, the change feed gives the rows that may differ, their
    content digests say which do, and only those are written: new rows in blocks of their own, a field that changed or
    was added beside the other fields of its rows. Everything stored stays; the commit is one pointer write, so a crash
    leaves the old snapshot. Where no content differs, the old snapshot is what comes back, and no shard is
    read where no row is a candidate.

    Args:
        query: bound table class, table, view, or a Pixeltable query of rows of one: `.where(...)`, and `.join(...)` of
            other tables by columns that are equal, inner or left. Where the columns hold the joined table's primary
            key, its columns are fields like others; else its rows are aggregated by pooled fields. A change on either
            side costs the rows it is joined to.
        root: directory of the shards, or URL of a folder in an object store (`s3://bucket/shop`); one per training
            view.
        fields: field name to Pixeltable expression or `mm.field` declaration.
        split: string expression with each row's split; the column `split` when there is one.
        full: compare every row with what is stored, whatever the feed says; still only those that differ are written.
            It repairs after changes that Pixeltable does not record, and queries with `order_by`, `limit` or `sample`
            need it, since whether a row is in them depends on others.
        allow_stale: take computed columns with rows that other code made, too.
        allow_predictions: take fields that come from a column of `mm.functions.predict`, too.
        page_rows: rows read from Pixeltable at a time.
        wait_s: how long to wait for another writer of this root, in seconds.
        progress: called as `progress('snapshot', done, total, 'rows')`.

    Returns:
        The open snapshot, and counts of what was written.

    Raises:
        SchemaError: a class that is not bound, or a query through which changes cannot be followed.
        FieldError: a field whose type needs a choice, or whose rows differ in shape; names field and row.
        LabelError: a label outside a declared vocabulary; names field, row and word.
        StaleColumnError: a column that a field, the filter or the split reads holds rows that other code, parameters,
            weights or inputs made; names table, column, rows and the command.
        SourceChangedError: a file was overwritten or removed since it was ingested; names rows and files.
        SnapshotError: no rows, a table that others keep writing, or a field that a model of ours wrote.
        BusyError: another process is writing this root, for longer than `wait_s`, or others keep committing to it.
        ConfigError: a store that cannot keep two writers apart.
        ShardError: a store that cannot be read or written.

    >>> fields = {'price': Products.price, 'kind': mm.field.label(Products.kind)}  # doctest: +SKIP
    >>> report = mm.snapshot(Products.where(Products.price > 1), root='shards', fields=fields)  # doctest: +SKIP
    >>> report.inserted, report.snapshot.fields['kind'].vocabulary  # doctest: +SKIP
    (2, ('jar', 'mug'))
    >>> mm.snapshot(Products.where(Products.price > 1), root='shards', fields=fields).written  # doctest: +SKIP
    0
    """
    place = root_of(root)
    place.make_writable()
    moved = False
    view = training_view(query, fields, split, whole=full)
    if not allow_stale:
        for table, columns in view.columns():
            refuse_stale(table, columns)
    if not allow_predictions:
        refuse_predictions(view)
    with root_lock(place, wait_s=wait_s):
        for _ in range(ATTEMPTS):
            before = view.vectors()
            try:
                report = _attempt(view, before, place, full, page_rows, progress)
            except (FieldError, LabelError) as error:
                raise type(error)(f"'{view.path}': {error}") from error
            except Moved:  # a writer that shares no lock with this one was first: again, on top of its snapshot
                moved = True
                continue
            if report is not None:
                return report
    if moved:
        raise BusyError(
            f"'{place.text}' got snapshots of other writers during {ATTEMPTS} attempts to write one. Run it again, or "
            f'let one of them write at a time.'
        )
    raise SnapshotError(
        f"'{view.path}' changed during each of {ATTEMPTS} attempts to read it. Pause the writer, then retry."
    )


def root_lock(root: str | Path | Root, *, wait_s: float = 60.0) -> AbstractContextManager[None]:
    """What holds off other writers of a root while a `with` block runs.

    Args:
        root: directory or URL of the shards.
        wait_s: how long to wait for another writer, in seconds.

    Raises:
        BusyError: another process is writing this root, for longer than `wait_s`.
    """
    return writer_lock(f'snapshot:{place_of(root)}', wait_s=wait_s)


def _attempt(
    view: TrainingView, vectors: Mapping[str, Vector], root: Root, full: bool, page_rows: int, progress: Progress | None
) -> SnapshotReport | None:
    """Write what changed; None when the tables moved meanwhile, so that the rows read may be of two versions."""
    definition = view.definition()
    pointer = root.latest()
    previous = open_snapshot(root, pointer.id) if pointer is not None else None
    whole, redeclared = _why_whole(definition, previous, full)
    found, lost = _candidates(view, None if whole and redeclared is None else previous, redeclared or ())
    whole = whole or lost
    if previous is not None and not whole and not found:
        return SnapshotReport(snapshot=previous, table=view.path)
    specs, described = describe(view, previous)
    anew = written_anew(previous, described)
    if found.gone is not None and not anew <= found.fields:  # the same declarations, and values of another form
        whole = whole or f'the form of {", ".join(sorted(anew))}'
        found, _ = _candidates(view, previous, {*(redeclared or ()), *anew})
    if not found.rows and previous is None:
        raise SnapshotError(
            f"'{view.path}' has no rows to freeze. Ingest rows first (`mmpipe ingest PIPELINE FOLDER`), or "
            f'widen the filter.'
        )
    described = grow_vocabularies(view, specs, described, [(found.rows, specs), (found.some, found.fields)], page_rows)
    looked = None if found.gone is None else [text_of(rowid) for rowid in (*found.rows, *found.some, *found.gone)]
    old = Old(previous, looked)
    delta = Delta(root=root, fields=described, old=old, anew=anew)
    try:
        kept = _take(delta, view, specs, found, page_rows, progress)
        for name in old.position.keys() - kept:
            delta.drop(name)
        shards = delta.finish()
    finally:
        delta.abandon()
    if view.vectors() != vectors:
        return None
    if not any(delta.splits.values()):
        raise SnapshotError(f"no row of '{view.path}' is left in the filter. Widen it, or ingest rows that fit.")
    check_locks()
    made = commit(
        root,
        delta.fields,
        shards,
        dropped=delta.dropped,
        source=definition,
        splits={name: count for name, count in delta.splits.items() if count},
        parent=previous.id if previous is not None else None,
        versions={path: [list(entry) for entry in vector] for path, vector in vectors.items()},
        changes=delta.changes(),
        after=pointer,
    )
    return SnapshotReport(
        snapshot=made, table=view.path, inserted=delta.inserted, updated=delta.updated, dropped=delta.masked,
        compared=delta.compared, cells=delta.cells, bytes_written=delta.bytes_written, whole=whole,
        failed_cells=delta.failed,
    )  # fmt: skip


def _take(
    delta: Delta,
    view: TrainingView,
    specs: Mapping[str, FieldSpec],
    candidates: Candidates,
    page_rows: int,
    progress: Progress | None,
) -> set[str]:
    """Read the candidates page by page into a delta; returns the names of those that the filter lets through."""
    kept: set[str] = set()
    done = 0
    some, part = frozenset(candidates.some), view.only(candidates.fields)
    few = {name: spec for name, spec in specs.items() if name in candidates.fields}
    every = [*candidates.rows, *candidates.some]
    with ThreadPoolExecutor(cores()) as pool:
        for page in pages(delta.old.in_order(every), page_rows):
            found: dict[Rowid, PageRow] = {}
            mine = [rowid for rowid in page if rowid in some]
            if mine:
                partly = read_page(part, few, mine, pool)
                found = {rowid: row for rowid, row in partly.items() if delta.stays(text_of(rowid), row)}
            rest = [rowid for rowid in page if rowid not in found]
            if rest:
                found |= read_page(view, specs, rest, pool)
            for rowid in page:
                if rowid in found:
                    delta.take(text_of(rowid), found[rowid])
                    kept.add(text_of(rowid))
            done += len(page)
            if progress is not None:
                progress('snapshot', done, len(every), 'rows')
    return kept


def _candidates(view: TrainingView, previous: Snapshot | None, anew: Collection[str] = ()) -> tuple[Candidates, str]:
    """Rows to look at for a snapshot behind another, and why it is every row if it is."""
    if previous is None:
        return view.candidates(None), ''
    if not previous.versions:
        return view.candidates(None), f'the versions that snapshot {previous.id} is pinned to are lost'
    since = {path: tuple(tuple(entry) for entry in vector) for path, vector in previous.versions.items()}
    try:
        return view.candidates(since, anew), ''
    except StoreError as error:
        return view.candidates(None), str(error)


def _why_whole(
    definition: Mapping[str, Any], previous: Snapshot | None, full: bool
) -> tuple[str, Collection[str] | None]:
    """Why every row has to be looked at, '' when the change feed tells which; and the fields for which, if not all."""
    if full:
        return 'full=True', None
    if previous is None:
        return 'first snapshot', None
    before = previous.manifest.source
    changed = [name for name in {**before, **definition} if definition.get(name) != before.get(name)]
    if changed == ['fields']:
        fields, old = definition['fields'], before.get('fields') or {}
        names = [name for name in fields if fields[name] != old.get(name)]
        return f'changed: {", ".join(names or changed)}', names
    return (f'changed: {", ".join(changed)}', None) if changed else ('', None)

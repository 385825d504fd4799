"""Freeze a training view as shards: write the rows that no shard holds yet, mask the ones that are gone, move the pointer."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmpipe.errors import ConfigError, LabelError, SnapshotError, StoreError
from mmpipe.shards import Block, Field, Snapshot, commit, open_snapshot, write_block
from mmpipe.shards.field import content_digest
from mmpipe.shards.manifest import Shard, latest_id
from mmpipe.snapshots.field import FieldSpec, encode_value, resolve
from mmpipe.snapshots.view import TrainingView, check_sources, has_origin, key_names, pooled_path, training_view
from mmpipe.sources.ingest import ORIGIN
from mmpipe.store import Rowid, base_of, computed_columns, pages, path_of, select_rows, writer_lock

BLOCK_BYTES = 64 << 20  # rows gathered in memory before they are written as one shard
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
            f'{self.table} -> {self.snapshot.id}: {len(self.snapshot)} rows ({splits}); {self.inserted} new, {self.updated} '
            f'changed, {self.dropped} dropped, {self.bytes_written / 1e6:.1f} MB written'
        )
        failed = ', '.join(f'{name} {count}' for name, count in self.failed_cells.items())
        return line + (f'\n  cells that failed and are null: {failed}' if failed else '')


@dataclass
class _Delta:
    """What has been found and written so far."""

    fields: list[Field]
    shards: list[Shard]
    dropped: list[tuple[int, int]]
    splits: dict[str, int]
    inserted: int = 0
    updated: int = 0
    masked: int = 0
    compared: int = 0
    bytes_written: int = 0
    failed: dict[str, int] = field(default_factory=dict)


@dataclass
class _Old:
    """The rows of the snapshot that is extended."""

    snapshot: Snapshot | None
    place: dict[str, int]
    live: np.ndarray
    splits: np.ndarray
    digests: dict[str, np.ndarray]


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
        raise ConfigError(f"root='{root}': this version writes snapshots to local directories only; sync the directory after")
    view = training_view(query, fields, split)
    with writer_lock(f'snapshot:{Path(root).resolve()}'):
        for _ in range(ATTEMPTS):
            before = view.vectors()
            report = _attempt(view, before, Path(root), full, page_rows, progress)
            if report is not None:
                return report
    raise SnapshotError(
        f"'{path_of(view.table)}' changed during each of {ATTEMPTS} attempts to read it. Pause the writer, and run it again."
    )


def _attempt(
    view: TrainingView, vectors: Mapping[str, Any], root: Path, full: bool, page_rows: int, progress: Progress | None
) -> SnapshotReport | None:
    """Write what changed; None when the tables moved meanwhile, so that the rows read may be of two versions."""
    definition = {**view.definition(), 'vectors': {path: [list(v) for v in vector] for path, vector in vectors.items()}}
    previous = open_snapshot(root) if latest_id(root) is not None else None
    specs, described = _describe(view, previous)
    whole, since = _since(view, definition, previous, full)
    if previous is not None and not _same_layout(previous, described):
        previous, whole, since = None, 'the fields have another form', None
    try:
        upserts, gone = view.candidates(since)
    except StoreError as error:
        whole = str(error)
        upserts, gone = view.candidates(None)
    old = _open_old(previous, described, upserts if gone is not None else None)
    if not upserts and previous is None:
        raise SnapshotError(f"'{path_of(view.table)}' has no rows to freeze. Run `mmpipe ingest` first, or widen the filter.")
    described = _grow_vocabularies(view, specs, described, upserts, page_rows)
    delta = _Delta(
        fields=described,
        shards=list(previous.manifest.shards) if previous is not None else [],
        dropped=[tuple(pair) for pair in previous.manifest.dropped.tolist()] if previous is not None else [],
        splits=dict(previous.splits) if previous is not None else {},
    )
    kept = _write_pages(view, specs, delta, old, root, upserts, page_rows, progress)
    missing = [rowid for rowid in old.place if rowid not in kept] if gone is None else [_text(rowid) for rowid in gone]
    for rowid in missing:
        if rowid in old.place:
            _drop(delta, old, rowid)
            delta.masked += 1
    if view.vectors() != vectors:
        return None
    if not any(delta.splits.values()):
        raise SnapshotError(f"no row of '{path_of(view.table)}' is left in the filter. Widen it, or ingest rows that fit.")
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


def _describe(view: TrainingView, previous: Snapshot | None) -> tuple[dict[str, FieldSpec], list[Field]]:
    """Settle each field's kind, shape and dtype, from its type or from the first value there is."""
    specs, described = {}, []
    for name, spec in view.specs.items():
        example = None
        kind = spec.expression.col_type
        if kind.is_array_type() and (kind.shape is None or any(n is None for n in kind.shape)):
            over = view.pooled[pooled_path(view.pooled, spec)] if spec.pooled else view.query
            inner = spec.expression.components[0] if spec.pooled else spec.expression
            found = over.where(inner != None).select(value=inner).limit(1).collect()
            example = found[0]['value'] if len(found) else None
        if example is None and previous is not None and name in previous.fields:
            example = np.zeros(previous.fields[name].shape, dtype=previous.fields[name].dtype) \
                if previous.fields[name].kind == 'tensor' else None  # fmt: skip
        specs[name], item = resolve(name, spec, example)
        before = previous.fields.get(name) if previous is not None else None
        if before is not None and item.vocabulary is not None and before.vocabulary is not None and spec.vocabulary is None:
            item = replace(item, vocabulary=before.vocabulary)
        described.append(item)
    return specs, described


def _same_layout(previous: Snapshot, described: Sequence[Field]) -> bool:
    """Whether new rows can stand beside the old ones: same fields; a vocabulary may have grown at its end."""
    if list(previous.fields) != [item.name for item in described]:
        return False
    for item in described:
        old = previous.fields[item.name]
        if (old.kind, old.dtype, old.shape) != (item.kind, item.dtype, item.shape):
            return False
        if old.vocabulary is not None and (item.vocabulary or ())[: len(old.vocabulary)] != old.vocabulary:
            return False
    return True


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


def _open_old(previous: Snapshot | None, described: Sequence[Field], wanted: Sequence[Rowid] | None) -> _Old:
    if previous is None:
        return _Old(None, {}, np.zeros((0, 2), dtype=np.int64), np.zeros(0, dtype=object), {})
    rows = previous.rows()
    rowids = rows.system('_rowid')
    digests = {} if wanted is not None and not wanted else {f.name: rows.system(f'_digest.{f.name}') for f in described}
    return _Old(previous, {r: i for i, r in enumerate(rowids)}, previous._live, rows.system('_split'), digests)


def _grow_vocabularies(
    view: TrainingView, specs: Mapping[str, FieldSpec], described: list[Field], upserts: Sequence[Rowid], page_rows: int
) -> list[Field]:
    """Append the words that new rows bring: those of the training split first, each group in alphabetical order."""
    open_fields = [f for f in described if f.vocabulary is not None and specs[f.name].vocabulary is None]
    if not open_fields or not upserts:
        return described
    seen: dict[str, dict[bool, set[str]]] = {f.name: {True: set(), False: set()} for f in open_fields}
    expressions = {f'v{i}': specs[f.name].expression for i, f in enumerate(open_fields)}
    if view.split is not None:
        expressions['mmpipe_split'] = view.split
    for page in pages(upserts, page_rows * 16):
        for row in select_rows(view.query, view.table, page, expressions).values():
            for i, item in enumerate(open_fields):
                value = row[f'v{i}']
                words = [] if value is None else [value] if item.kind == 'label' else value
                if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                    raise LabelError(f"field '{item.name}' holds {value!r:.60}, and labels are strings: correct the row")
                seen[item.name][row.get('mmpipe_split') == 'train'].update(words)
    return [
        f.grown(sorted(seen[f.name][True])).grown(sorted(seen[f.name][False])) if f.name in seen else f for f in described
    ]


def _write_pages(
    view: TrainingView, specs: Mapping[str, FieldSpec], delta: _Delta, old: _Old, root: Path, upserts: Sequence[Rowid],
    page_rows: int, progress: Progress | None,
) -> set[str]:  # fmt: skip
    """Read the candidates, compare them with what is stored, write the ones that differ.

    Returns:
        Rowids that are in the filter now.
    """
    kept: set[str] = set()
    pending: list[dict[str, Any]] = []
    size = done = 0
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for page in pages(upserts, page_rows):
            rows = _read_page(view, specs, page, pool)
            for rowid in page:
                name = _text(rowid)
                row = rows.get(rowid)
                if row is None:
                    if name in old.place:
                        _drop(delta, old, name)
                        delta.masked += 1
                    continue
                kept.add(name)
                if _unchanged(row, old, name, delta.fields):
                    delta.compared += 1
                    continue
                if name in old.place:
                    _drop(delta, old, name)
                    delta.updated += 1
                else:
                    delta.inserted += 1
                for field_name in row['failed']:
                    delta.failed[field_name] = delta.failed.get(field_name, 0) + 1
                delta.splits[row['split']] = delta.splits.get(row['split'], 0) + 1
                pending.append({**row, 'rowid': name})
                size += row['bytes']
                if size >= BLOCK_BYTES:
                    _flush(delta, root, pending)
                    size = 0
            done += len(page)
            if progress is not None:
                progress('snapshot', done, len(upserts), 'rows')
        _flush(delta, root, pending)
    return kept


def _read_page(
    view: TrainingView, specs: Mapping[str, FieldSpec], page: Sequence[Rowid], pool: ThreadPoolExecutor
) -> dict[Rowid, dict[str, Any]]:
    """One page of rows: key, split, values as they are stored, digests."""
    names = list(specs)
    plain = {name: f'f{i}' for i, name in enumerate(names) if not specs[name].pooled}
    failing = set(computed_columns(view.table)) | set(computed_columns(base_of(view.table)))
    expressions: dict[str, Any] = {}
    for name, column in plain.items():
        spec = specs[name]
        expressions[column] = spec.expression.localpath if spec.is_file else spec.expression
        if spec.expression.is_column_ref and spec.expression.col_md.name in failing:
            expressions[f'e{column}'] = spec.expression.errortype
    keys = key_names(view)
    expressions |= {f'k{i}': getattr(view.table, name) for i, name in enumerate(keys)}
    if view.split is not None:
        expressions['mmpipe_split'] = view.split
    if has_origin(view):
        expressions['mmpipe_origin'] = getattr(view.table, ORIGIN)
    found = select_rows(view.query, view.table, page, expressions)
    pooled: dict[str, dict[Rowid, dict[str, Any]]] = {}
    bases = sorted({rowid[:1] for rowid in found})
    for path, table in view.pooled.items():
        mine = {f'f{i}': specs[n].expression for i, n in enumerate(names) if pooled_of(view, specs[n]) == path}
        for rowid, values in select_rows(table, table, bases, mine, pooled=True).items():
            pooled.setdefault(path, {})[rowid] = values
    result = {}
    for rowid, row in found.items():
        key = '/'.join(str(row[f'k{i}']) for i in range(len(keys))) or _text(rowid)
        if len(rowid) > 1 and keys:
            key += '/' + '/'.join(str(part) for part in rowid[1:])
        values = {}
        for i, name in enumerate(names):
            spec = specs[name]
            source = row if not spec.pooled else pooled.get(pooled_path(view.pooled, spec), {}).get(rowid[:1], {})
            values[name] = source.get(f'f{i}')
        failed = [name for name, column in plain.items() if row.get(f'e{column}') is not None]
        result[rowid] = {
            'key': key, 'split': row.get('mmpipe_split') or '', 'values': values, 'failed': failed,
            'origin': row.get('mmpipe_origin'),
        }  # fmt: skip
    if has_origin(view) and view.media:
        check_sources(view, {row['key']: row['origin'] for row in result.values()})
    jobs = [(row, name) for row in result.values() for name in names]
    for (row, name), value in zip(jobs, pool.map(lambda job: _encoded(specs[job[1]], *job), jobs), strict=True):
        row['values'][name] = value
    return result


def pooled_of(view: TrainingView, spec: FieldSpec) -> str | None:
    """Path of the component view a field is pooled from; None for a plain field."""
    return pooled_path(view.pooled, spec) if spec.pooled else None


def _encoded(spec: FieldSpec, row: Mapping[str, Any], name: str) -> Any:
    try:
        return encode_value(spec, row['values'][name])
    except Exception as error:
        raise SnapshotError(
            f"field '{name}' of row '{row['key']}' cannot be encoded ({type(error).__name__}: {error}). "
            f'Mend the file and run `mmpipe ingest`, or filter the row out.'
        ) from error


def _unchanged(row: dict[str, Any], old: _Old, name: str, fields: Sequence[Field]) -> bool:
    """Fill in the row's digests; True when the stored row has the same ones and the same split."""
    row['digests'] = {f.name: content_digest(f, row['values'][f.name]) for f in fields}
    row['bytes'] = sum(_size(value) for value in row['values'].values())
    if name not in old.place or not old.digests:
        return False
    at = old.place[name]
    return old.splits[at] == row['split'] and all(old.digests[f.name][at] == row['digests'][f.name] for f in fields)


def _size(value: Any) -> int:
    if isinstance(value, np.ndarray):
        return value.nbytes
    return len(value) if isinstance(value, (str, bytes, list)) else 8


def _drop(delta: _Delta, old: _Old, name: str) -> None:
    at = old.place[name]
    block, row = old.live[at]
    delta.dropped.append((int(block), int(row)))
    delta.splits[old.splits[at]] -= 1


def _flush(delta: _Delta, root: Path, pending: list[dict[str, Any]]) -> None:
    if not pending:
        return
    names = [f.name for f in delta.fields]
    block = Block(
        keys=[row['key'] for row in pending],
        columns={name: [row['values'][name] for row in pending] for name in names},
        splits=[row['split'] for row in pending],
        rowids=[row['rowid'] for row in pending],
        digests={name: [row['digests'][name] for row in pending] for name in names},
    )
    index = 1 + max((shard.block for shard in delta.shards), default=-1)
    shard = write_block(root, delta.fields, block, index=index)
    delta.shards.append(shard)
    delta.bytes_written += shard.bytes
    pending.clear()


def _text(rowid: Rowid) -> str:
    return '/'.join(str(part) for part in rowid)

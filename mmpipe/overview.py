"""What a pipeline's tables, snapshots and runs hold now. Reads only; imports no torch."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mmpipe.errors import StoreError
from mmpipe.home import shards_dir
from mmpipe.ledger import Book, ColumnState
from mmpipe.pipeline import runs_of
from mmpipe.shards import open_snapshot
from mmpipe.shards.manifest import latest_id
from mmpipe.shards.root import root_of
from mmpipe.sources import quarantined
from mmpipe.store import base_of, cell_errors, path_of, tables_in, told_plainly
from mmpipe.wording import how_many


@dataclass(frozen=True, kw_only=True)
class TableStatus:
    """One table or view.

    Args:
        path: catalog path.
        kind: 'table' or 'view'.
        rows: rows in it.
        version: its Pixeltable version.
        failed: computed column to number of cells whose function raised.
        stale: computed column to number of rows made by other code, parameters, weights or inputs than now.
        unrecorded: computed column to number of rows that mmpipe did not write.
        quarantined: rows of its sources that could not be taken.
    """

    path: str
    kind: str
    rows: int
    version: int
    failed: dict[str, int]
    quarantined: int
    stale: dict[str, int]
    unrecorded: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Status:
    """What `mmpipe status` prints.

    Args:
        directory: catalog directory.
        tables: its tables and views.
        snapshot: id, rows and splits of the current snapshot; None when there is none.
        runs: the runs trained on its snapshots, oldest first: id, status, snapshot, metrics.
        unknown: why it cannot be told of some tables what is stale.
    """

    directory: str
    tables: tuple[TableStatus, ...]
    snapshot: dict[str, Any] | None
    runs: tuple[dict[str, Any], ...]
    unknown: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f'{self.directory}:' if self.tables else f'{self.directory}: no tables']
        for table in self.tables:
            cells = [f'{name}: {how_many(count, "cell")} failed' for name, count in table.failed.items()]
            cells += [f'{name}: {count:,} stale' for name, count in table.stale.items()]
            cells += [f'{name}: {count:,} unrecorded' for name, count in table.unrecorded.items()]
            bad = f', {table.quarantined} in quarantine' if table.quarantined else ''
            rows = f'{table.rows:>9,} {"row " if table.rows == 1 else "rows"}'
            tail = ''.join(f', {text}' for text in cells)
            lines.append(f'  {table.kind:<6} {table.path:<28} {rows}  version {table.version}{bad}{tail}')
        lines += [f'  what is stale cannot be told: {text}' for text in self.unknown]
        if self.snapshot is None:
            lines.append('  no snapshot')
        else:
            splits = ', '.join(f'{name or "no split"} {count}' for name, count in self.snapshot['splits'].items())
            lines.append(f'  snapshot {self.snapshot["id"]}: {how_many(self.snapshot["rows"], "row")} ({splits})')
        for run in self.runs:
            lines.append(f'  run {run["id"]}: {run["status"]}, snapshot {run["snapshot"]}')
        return '\n'.join(lines)


@told_plainly()
def status(directory: str, *, root: str | Path | None = None) -> Status:
    """Rows, failed cells and quarantine of each table, the current snapshot, and the runs.

    Args:
        directory: catalog directory of a pipeline.
        root: directory of its snapshots; `.mmpipe/shards/<directory>` when None.

    Returns:
        A value that prints well. A directory that does not exist has no tables.

    >>> [(table.path, table.rows, table.quarantined) for table in mm.status('shop').tables]  # doctest: +SKIP
    [('shop/products', 2, 1)]
    """
    bad = quarantined()
    tables = []
    states: list[ColumnState] = []
    unknown: list[str] = []
    for table in tables_in(directory):
        if base_of(table) is table:
            try:
                book = Book(table)
            except StoreError as error:
                unknown.append(str(error))
                continue
            book.settle()
            states += book.states()
    for table in tables_in(directory):
        path = path_of(table)
        metadata = table.get_metadata()
        tables.append(
            TableStatus(
                path=path,
                kind=metadata['kind'],
                rows=table.count(),
                version=metadata['version'],
                failed={column: count for column, (count, _) in cell_errors(table).items()},
                quarantined=sum(entry['table_path'] == path for entry in bad),
                stale={state.column: state.stale for state in states if state.table == path and state.stale},
                unrecorded={
                    state.column: state.unrecorded
                    for state in states
                    if state.table == path and state.column and state.unrecorded
                },
            )
        )
    place = root_of(root or shards_dir(directory))
    current = None
    if latest_id(place) is not None:
        snapshot = open_snapshot(place)
        current = {'id': snapshot.id, 'root': place.text, 'rows': len(snapshot), 'splits': dict(snapshot.splits)}
    runs = tuple(
        {'id': run.id, 'status': run.status, 'snapshot': run.snapshot['id'], 'metrics': run.metrics}
        for run in runs_of(place.text)
    )
    return Status(directory=directory, tables=tuple(tables), snapshot=current, runs=runs, unknown=tuple(unknown))

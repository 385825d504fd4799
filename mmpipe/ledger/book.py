"""The ledger of a base table and its views: kept in a Pixeltable table, read and written whole.

    column ─► prints it was ever made with ─► spans of base row ids, each with the number of its print

A row that mmpipe did not write has no span, and is *unrecorded*: never taken for fresh. So has one whose write was
committed when the process died before this did. What others wrote is found by the versions of rows, at O(change).
An iterator alone counts as run by the code that finds its rows: it cannot be run again for some of them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from mmpipe.errors import StaleColumnError, StoreError
from mmpipe.ledger.prints import UNFILLED, UNKNOWN, ColumnName, Print, column_prints
from mmpipe.ledger.spans import Spans
from mmpipe.settings import counted_packages
from mmpipe.store import (
    Recomputed,
    Vector,
    Written,
    base_of,
    changes_since,
    id_of,
    live_by_span,
    live_rows,
    path_of,
    replace_rows,
    start,
    tree_of,
    version_vector,
    written_since,
)

DIRECTORY = 'mmpipe'
TABLE = f'{DIRECTORY}/ledger'
RECOMPUTED = 64  # runs of versions that are remembered; rows of forgotten ones are looked at whole
RATE_ROWS = 32  # a rate of fewer rows is mostly of what is loaded before the first


@dataclass(frozen=True, kw_only=True)
class ColumnState:
    """Rows of a stored computed column by how they were made.

    Args:
        table: path of the table or view.
        column: its name; '' for the iterator that makes the rows of a component view.
        fresh: rows made as the code is now.
        stale: rows made otherwise.
        unrecorded: rows that mmpipe did not write; none for an iterator.
        why: what has changed since the stale ones were made.
    """

    table: str
    column: str
    fresh: int = 0
    stale: int = 0
    unrecorded: int = 0
    why: str = ''


@dataclass
class _Column:
    prints: list[Print] = field(default_factory=list)
    spans: Spans = field(default_factory=Spans)

    def number(self, made: Print) -> int:
        """The number of a print, which is added when it is new."""
        for number, each in enumerate(self.prints):
            if each.fresh(made, '*'):
                return number
        self.prints.append(made)
        return len(self.prints) - 1

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; prints that no row has any more are left out."""
        used = sorted({label for _, _, label in self.spans})
        renumbered = {label: i for i, label in enumerate(used)}
        return {
            'prints': [self.prints[label].to_json() for label in used],
            'spans': [[first, last, renumbered[label]] for first, last, label in self.spans],
        }


class Book:
    """What is recorded of a base table and its views.

    Args:
        table: any table or view of the tree.
    """

    def __init__(self, table: Any) -> None:
        self.tables = {path_of(each): each for each in tree_of(table)}
        self.base = base_of(table)
        self.prints = column_prints(self.base)
        self._counted = counted_packages()
        self._columns: dict[tuple[str, str], _Column] = {}  # by table id and column
        self._vectors: dict[str, Vector] = {}  # by table id
        self._ours: dict[str, list[range]] = {}
        self._rates: dict[str, list[float]] = {}  # rows and their seconds in the last run, by table id and column
        self._ids = {path: id_of(each) for path, each in self.tables.items()}
        self._stored = _read(self._ids[path_of(self.base)])
        for name, content in self._stored.get('columns', {}).items():
            table_id, _, column = name.partition('.')
            prints = [Print.from_json(each) for each in content['prints']]
            self._columns[table_id, column] = _Column(prints, Spans(content['spans']))
        for table_id, vector in self._stored.get('vectors', {}).items():
            self._vectors[table_id] = tuple(tuple(entry) for entry in vector)
        self._rates |= self._stored.get('rates', {})
        self._recomputed = _recomputed(self._stored)

    def settle(self) -> None:
        """Take the record from rows that others wrote since the last time, all columns of such a row alike."""
        others: dict[str, Collection[int]] = {}
        for path, table in self.tables.items():
            table_id = self._ids[path]
            since = self._vectors.get(table_id)
            ours = self._ours.pop(table_id, [])
            if since is None:
                self._vectors[table_id] = version_vector(table)
                others[path] = live_rows(table, 0, 2**62)
                continue
            try:
                rows, now = written_since(table, since, ours)
            except StoreError:  # reverted: whatever is recorded may be of rows that are gone
                rows, now = None, version_vector(table)
            for (owner, name), column in self._columns.items():
                if owner == table_id and rows is None:
                    column.spans = Spans()
                elif owner == table_id and rows and name:
                    column.spans.remove(rows)
            others[path] = live_rows(table, 0, 2**62) if rows is None else rows
            self._vectors[table_id] = now
        for path, table in self.tables.items():
            if (path, '') in self.prints:  # an iterator ran for rows of what it is over, whether or not it gave any
                self._suppose((path, ''), {*others[path], *others[path_of(table.get_base_table())]})

    def _suppose(self, name: ColumnName, rows: Collection[int]) -> None:
        """Take rows that others brought into a component view for made by the iterator of now.

        It cannot be run again for some rows alone, so that no plan could make them while they are unrecorded, and an
        edit of it would never be noticed. Where another iterator is recorded, nobody knows which of the two ran.
        """
        if not rows:
            return
        column, now = self._column(name), self.prints[name]
        older = {label for label, each in enumerate(column.prints) if not self._fresh(now, each)}
        either = [row for row in rows if column.spans.label(row) in older]
        if len(either) < len(rows):
            column.spans.put(set(rows) - set(either), column.number(now))
        if either:
            column.spans.put(either, column.number(UNKNOWN))

    def record(self, written: Written) -> None:
        """Note what a write of ours made: new rows as the code is now, and what was computed again for old ones."""
        for table_id, versions in written.writing.versions.items():
            if versions:
                self._ours.setdefault(table_id, []).append(versions)
                if written.recomputed:
                    self._remember(
                        Recomputed(
                            table=table_id, first=versions[0], last=versions[-1],
                            created=written.writing.created[table_id], columns=tuple(sorted(written.made)),
                        )
                    )  # fmt: skip
        for name in self.prints:
            self._record(name, written.writing.inserted)
        if not written.updated:
            return
        made = {tuple(name.rsplit('.', 1)) for name in written.made}
        base = path_of(self.base)
        entered: dict[str, set[int]] = {}
        for path, column in self.prints:
            table = path.rsplit('/', 1)[-1]
            # What was made and is no computed column is made by the iterator.
            computed = {other for each, other in self.prints if each == path}
            again = any(owner == table and other not in computed for owner, other in made)
            if (table, column) in made or (not column and again):
                self._record((path, column), written.updated)
            elif written.writing.versions.get(self._ids[path]) and path != base:
                if path not in entered:
                    entered[path] = self._entered(path) & set(written.updated)
                self._record((path, column), entered[path])

    def _remember(self, run: Recomputed) -> None:
        """Keep a run of versions in which columns were computed again, with the one before it where it goes on."""
        for i, before in enumerate(self._recomputed):
            if (before.table, before.columns, before.last + 1) == (run.table, run.columns, run.first):
                self._recomputed[i] = replace(run, first=before.first)
                return
        self._recomputed = [*self._recomputed, run][-RECOMPUTED:]

    def _entered(self, path: str) -> set[int]:
        """Base rows that were there at the last settling and came into a view since: all its columns were made then."""
        since = self._vectors.get(self._ids[path])
        if since is None:
            return set()
        came = {rowid[0] for rowid in changes_since(self.tables[path], since).inserted}
        return came - {rowid[0] for rowid in changes_since(self.base, since[-1:]).inserted}

    def restart(self) -> None:
        """Take the versions of now as ours, after a change of the schema."""
        self._vectors = {self._ids[path]: version_vector(table) for path, table in self.tables.items()}

    def filled(self, columns: Iterable[ColumnName], until: int) -> None:
        """Columns were made for all base rows below a row id."""
        for name in columns:
            self._record(name, range(until))

    def unfilled(self, columns: Iterable[tuple[str, str]], until: int) -> None:
        """Columns are about to be added, empty for all base rows below a row id.

        Args:
            columns: (path, name) of each.
            until: the row id.
        """
        for name in columns:
            column = self._column(name)
            column.spans.put(range(until), column.number(UNFILLED))

    def took(self, path: str, column: str, rows: int, seconds: float) -> None:
        """Note what rows cost: those of a column computed again, or, without a column, rows with all of theirs."""
        name = f'{self._ids[path]}.{column}'
        if rows >= RATE_ROWS or (rows and name not in self._rates):
            self._rates[name] = [rows, round(seconds, 3)]

    def seconds(self, path: str, column: str, rows: int) -> tuple[float | None, bool]:
        """Seconds that rows of a column may take by the last run's rate, and whether it is of all columns together."""
        for name in (column, ''):
            known = self._rates.get(f'{self._ids[path if name else path_of(self.base)]}.{name}')
            if known is not None:
                return rows * known[1] / known[0], not name
        return None, False

    def trust(self, columns: Iterable[ColumnName], until: int) -> None:
        """Take rows below a row id that nobody recorded for made as the code is now."""
        for name in columns:
            column = self._column(name)
            column.spans.fill(range(until), column.number(self.prints[name]))

    def states(self) -> Iterator[ColumnState]:
        """Every stored computed column of the tree with its rows by how they were made."""
        for (path, name), now in self.prints.items():
            column = self._column((path, name))
            spans = list(column.spans)
            bounds = [bound for first, last, _ in spans for bound in (first, last + 1)]
            counts = live_by_span(self._held_by(path, name), _ascending(bounds))
            held = dict(zip(_ascending(bounds), counts[1:], strict=True))
            fresh = stale = 0
            older: list[Print] = []
            for first, _, label in spans:
                if self._fresh(now, column.prints[label]):
                    fresh += held[first]
                elif held[first]:
                    stale += held[first]
                    older.append(column.prints[label])
            unrecorded = sum(counts) - fresh - stale
            why = now.why(older[-1]) if older else ''
            yield ColumnState(table=path, column=name, fresh=fresh, stale=stale, unrecorded=unrecorded, why=why)

    def _held_by(self, path: str, column: str) -> Any:
        """The table whose rows a column is made for: an iterator's is what its view is over."""
        table = self.tables[path]
        return table if column else table.get_base_table()

    def rows_to_make(self, path: str, column: str) -> list[int]:
        """Base row ids of a column's live rows that are not fresh."""
        held = self._column((path, column))
        now = self.prints[path, column]
        fresh = [(first, last) for first, last, label in held.spans if self._fresh(now, held.prints[label])]
        gaps, at = [], 0
        for first, last in fresh:
            gaps.append((at, first - 1))
            at = last + 1
        gaps.append((at, 2**62))
        return [row for first, last in gaps if first <= last for row in live_rows(self.tables[path], first, last)]

    def keep(self) -> None:
        """Settle and store it, behind each chunk of a write.

        A row that is not recorded when the process dies is so in all its columns, and one that was not even touched may
        be the dear one.
        """
        self.settle()
        self.save()

    def save(self) -> bool:
        """Store it, in one transaction; True when anything had changed."""
        content = self._content()
        if content == self._stored:
            return False
        store = _table(create=True)
        key = self._ids[path_of(self.base)]
        row = {'id': key, 'table_path': path_of(self.base), 'content': content}
        replace_rows(store, [row], [(key,)] if self._stored else [])
        self._stored = content
        return True

    def _content(self) -> dict[str, Any]:
        known = set(self._ids.values())
        columns = {
            f'{table_id}.{name}': column.to_json()
            for (table_id, name), column in sorted(self._columns.items())
            if table_id in known and column.prints
        }
        vectors = {
            key: [list(entry) for entry in vector] for key, vector in sorted(self._vectors.items()) if key in known
        }
        recomputed = [{**asdict(run), 'columns': list(run.columns)} for run in self._recomputed]
        return {'columns': columns, 'vectors': vectors, 'rates': dict(self._rates), 'recomputed': recomputed}

    def _fresh(self, now: Print, older: Print) -> bool:
        return now.fresh(older, self._counted)

    def _column(self, name: ColumnName) -> _Column:
        return self._columns.setdefault((self._ids[name[0]], name[1]), _Column())

    def _record(self, name: ColumnName, rows: Iterable[int]) -> None:
        column = self._column(name)
        column.spans.put(rows, column.number(self.prints[name]))


@contextmanager
def keeping(table: Any) -> Iterator[Book]:
    """The book of a table while we write to it: what others wrote is settled first, and all is stored at the end.

    The caller holds the writer lock of the table.

    Args:
        table: any table or view of the tree.
    """
    book = Book(table)
    book.settle()
    try:
        yield book
    finally:
        book.keep()


def refuse_stale(table: Any, columns: Collection[tuple[str, str]]) -> None:
    """Refuse columns with rows that were made otherwise than the code would make them now.

    Args:
        table: any table or view of the tree.
        columns: (name of the table or view, column) to look at.

    Raises:
        StaleColumnError: one has; names table, column, rows, the reason and the command. Or nobody can tell, since the
            code of a column cannot be imported here.
    """
    wanted = {*columns, *((owner, '') for owner, _ in columns)}
    try:
        book = Book(table)
    except StoreError as error:
        raise StaleColumnError(f'{error} Or pass allow_stale=True, to take the columns as they are.') from error
    book.settle()
    for state in book.states():
        if state.stale and (state.table.rsplit('/', 1)[-1], state.column) in wanted:
            what = f'{state.table}.{state.column}' if state.column else state.table
            raise StaleColumnError(
                f"'{what}' holds {state.stale:,} rows made otherwise than the code would make them now ({state.why}). "
                f'Run `mmpipe apply PIPELINE` to make them again, or pass allow_stale=True to take them as they are.'
            )


def recomputed(table: Any) -> list[Recomputed]:
    """The versions of a base table and its views in which mmpipe computed columns again and changed nothing else.

    Args:
        table: any table or view of the tree.
    """
    return _recomputed(_read(id_of(base_of(table))))


def _recomputed(stored: Mapping[str, Any]) -> list[Recomputed]:
    return [Recomputed(**{**run, 'columns': tuple(run['columns'])}) for run in stored.get('recomputed', ())]


def _ascending(bounds: Iterable[int]) -> list[int]:
    return sorted(set(bounds))


def _table(*, create: bool) -> Any:
    pxt = start()
    table = pxt.get_table(TABLE, if_not_exists='ignore')
    if table is None and create:
        pxt.create_dir(DIRECTORY, if_exists='ignore')
        schema = {'id': {'type': pxt.String, 'primary_key': True}, 'table_path': pxt.String, 'content': pxt.Json}
        table = pxt.create_table(TABLE, schema, if_exists='ignore')
    return table


def _read(table_id: str) -> Mapping[str, Any]:
    store = _table(create=False)
    if store is None:
        return {}
    rows = store.where(store.id == table_id).select(content=store.content).collect()
    return rows[0]['content'] if len(rows) else {}

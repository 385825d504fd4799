"""The training view behind a snapshot: which table, which filter, which rows are candidates for a change."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from mmpipe.errors import SnapshotError
from mmpipe.ledger import recomputed
from mmpipe.snapshots.field import FieldSpec, as_spec
from mmpipe.sources.origin import ORIGIN
from mmpipe.store import (
    Changes,
    Join,
    Rowid,
    Vector,
    base_of,
    changed_otherwise,
    changes_since,
    column_types,
    computed_columns,
    joins_of,
    lineage,
    media_columns,
    path_of,
    rowid_width,
    rowids_of,
    rows_with,
    values_since,
    version_vector,
    views_of,
)
from mmpipe.store.expressions import (
    chosen_by,
    columns_in_scope,
    filter_of,
    id_of,
    is_expression,
    owners_of,
    source_of,
    tables_behind,
)

Behind = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""Path of a table to its columns that an expression reads, directly or not, with Pixeltable's metadata of each."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """Rows that a new snapshot has to look at.

    Args:
        rows: rows that may be new, or changed in anything.
        some: rows of which some fields may have changed, and nothing else.
        fields: these fields.
        gone: rows that are gone; None for every row that is not looked at.
    """

    rows: tuple[Rowid, ...]
    some: tuple[Rowid, ...] = ()
    fields: frozenset[str] = frozenset()
    gone: tuple[Rowid, ...] | None = None

    def __bool__(self) -> bool:
        return bool(self.rows or self.some or self.gone is None or self.gone)


@dataclass(frozen=True, kw_only=True)
class TrainingView:
    """A query, its fields, and the tables they read.

    Args:
        table: the table or view the query is over.
        query: what rows are read from: the query with its filter, and the joins that give a row one partner; or the
            table.
        specs: the fields.
        split: expression that gives each row's split; None for no splits.
        joins: the tables that are joined to it.
        pooled: tables whose rows pooled fields aggregate, by path: component views, and joined tables.
        behind: what each field reads.
        choices: what the filter, the split and each join read, by these names and numbers.
        files: recorded media columns by the path of the table or view that reads them, with the path of the table
            whose `origin` names their files; none of a table that `mm.ingest` did not fill.
        computed: (id of the table, name) of the stored computed columns that fields may be.
        chosen: the query as given, when its rows depend on each other.
    """

    table: Any
    query: Any
    specs: Mapping[str, FieldSpec]
    split: Any
    joins: tuple[Join, ...]
    pooled: Mapping[str, Any]
    behind: Mapping[str, Behind]
    choices: Mapping[str, Behind]
    files: Mapping[str, tuple[str, frozenset[str]]]
    computed: frozenset[tuple[str, str]] = frozenset()
    chosen: Any = None

    @cached_property
    def media(self) -> dict[str, frozenset[str]]:
        """Media columns that some field reads, and whose files are recorded, by the path of the table with `origin`."""
        found: dict[str, frozenset[str]] = {}
        for each in self.behind.values():
            for path, columns in each.items():
                over, media = self.files.get(path, (path, frozenset()))
                if media & columns.keys():
                    found[over] = found.get(over, frozenset()) | (media & columns.keys())
        return found

    def only(self, names: Collection[str]) -> TrainingView:
        """The same rows with some of the fields."""
        specs = {name: spec for name, spec in self.specs.items() if name in names}
        pooled = {pooled_path(self.pooled, spec) for spec in specs.values() if spec.pooled}
        return replace(
            self, specs=specs, behind={name: self.behind[name] for name in specs},
            pooled={path: table for path, table in self.pooled.items() if path in pooled},
        )  # fmt: skip

    @cached_property
    def path(self) -> str:
        """Path of the table; asking Pixeltable is a query each time."""
        return path_of(self.table)

    @cached_property
    def sources(self) -> dict[str, Any]:
        """Every table and view that is read, by path."""
        joined = {path_of(join.table): join.table for join in self.joins}
        return {self.path: self.table, **joined, **self.pooled}

    def vectors(self) -> dict[str, Vector]:
        """Version vectors of every table read, by path."""
        return {path: version_vector(table) for path, table in self.sources.items()}

    def definition(self) -> dict[str, Any]:
        """What defines the snapshot besides data, as JSON values: an old one can be extended while it is the same."""
        own = self.path
        fields = {
            name: {
                **spec.identity(),
                'columns': _versions(self.behind[name], pooled_path(self.pooled, spec) if spec.pooled else own),
            }
            for name, spec in self.specs.items()
        }
        found: dict[str, Any] = {'table': own}
        for name, choice in (('filter', filter_of(self.query)), ('split', self.split)):
            columns = None if choice is None else _versions(self.choices[name], own)
            found[name] = None if choice is None else {'expression': str(choice), 'columns': columns}
        if self.joins:
            found['joins'] = [
                {
                    'table': path_of(join.table),
                    'how': join.how,
                    'on': str(join),
                    'columns': _versions(self.choices[str(i)], own),
                }
                for i, join in enumerate(self.joins)
            ]
        if self.chosen is not None:
            found['rows'] = chosen_by(self.chosen)
        return {**found, 'fields': fields}

    def columns(self) -> list[tuple[Any, set[tuple[str, str]]]]:
        """(table or view, column) of every column that is read, directly or not, with the base table of each tree."""
        tables = self.sources
        found: dict[str, tuple[Any, set[tuple[str, str]]]] = {}
        for each in (*self.behind.values(), *self.choices.values()):
            for path, columns in each.items():
                base = base_of(tables[path])
                read = {(md['defined_in'], name) for name, md in columns.items()}
                found.setdefault(path_of(base), (base, set()))[1].update(read)
        return list(found.values())

    def candidates(self, since: Mapping[str, Vector] | None, anew: Collection[str] = ()) -> Candidates:
        """Rows that may be new or changed, and rows that are gone.

        Args:
            since: version vectors of an earlier snapshot; None to take every row.
            anew: fields of which every row has to be looked at.

        Raises:
            StoreError: the tables were reverted or made again since.
        """
        if self.chosen is not None:
            return Candidates(rows=tuple(rowids_of(self.chosen, self.table)))
        if since is None:
            return Candidates(rows=changes_since(self.table, None).inserted)
        changes = changes_since(self.table, since[self.path])
        rows, some = set(changes.inserted), set(changes.updated)
        parts = {}
        joined = {path_of(join.table) for join in self.joins}
        for path, table in self.pooled.items():
            if path not in joined:
                parts[path] = changes_since(table, since[path])
                rows |= {rowid[:1] for kind in (parts[path].inserted, parts[path].deleted) for rowid in kind}
                some |= {rowid[:1] for rowid in parts[path].updated}
        for join in self.joins:
            then = since[path_of(join.table)]
            touched = _touched(join.table, then)
            if touched:
                rows |= rows_with(join, self.table, values_since(join.table, join.right, sorted(touched), then))
        fields: set[str] = set(anew)
        if some:
            otherwise, columns = self._changed_otherwise(changes, parts, since)
            if self._reads(self.choices, columns):
                otherwise = some
            rows |= otherwise & some
            fields |= {name for name, each in self.behind.items() if self._reads({name: each}, columns)}
        gone = set(changes.deleted)
        rows -= gone
        if anew:
            some = set(changes_since(self.table, None).inserted)
        some = some - rows - gone if fields else set()
        return Candidates(
            rows=tuple(sorted(rows)), some=tuple(sorted(some)), fields=frozenset(fields), gone=tuple(sorted(gone))
        )

    def pooled_join(self, spec: FieldSpec) -> Join | None:
        """The join whose rows a pooled field aggregates; None where it aggregates a component view."""
        path = pooled_path(self.pooled, spec)
        return next((join for join in self.joins if path_of(join.table) == path), None)

    def _changed_otherwise(
        self, changes: Changes, parts: Mapping[str, Changes], since: Mapping[str, Vector]
    ) -> tuple[set[Rowid], set[str]]:
        """Updated rows of which more changed than columns that mmpipe computed again, and the columns it did."""
        known = recomputed(self.table)
        own = self.path
        otherwise, columns = changed_otherwise(self.table, changes.updated, since[own], known)
        for path, part in parts.items():
            more, others = changed_otherwise(self.pooled[path], part.updated, since[path], known)
            otherwise |= {rowid[:1] for rowid in more}
            columns |= others
        return otherwise, columns

    def _reads(self, behind: Mapping[str, Behind], columns: Collection[str]) -> bool:
        return any(
            f'{md["defined_in"]}.{name}' in columns
            for each in behind.values()
            for read in each.values()
            for name, md in read.items()
        )


def _versions(behind: Behind, own: str) -> dict[str, list[Any]]:
    """The columns behind an expression: a column added in place leaves no mark on the rows, only here."""
    return {
        column if path == own else f'{path}.{column}': [
            md[name] for name in ('defined_in', 'computed_with', 'version_added')
        ]
        for path, columns in behind.items()
        for column, md in sorted(columns.items())
    }


def _touched(table: Any, since: Vector) -> set[Rowid]:
    changes = changes_since(table, since)
    return {*changes.inserted, *changes.updated, *changes.deleted}


def training_view(query: Any, fields: Mapping[str, Any], split: Any, *, whole: bool = False) -> TrainingView:
    """Check a query and its fields.

    Args:
        query: as `mm.snapshot` takes it.
        fields: as `mm.snapshot` takes them.
        split: as `mm.snapshot` takes it.
        whole: take a query whose rows depend on each other, too.

    Raises:
        SchemaError: a class that is not bound, or a query that changes cannot be followed through.
        SnapshotError: a field over another table.
    """
    table, query = source_of(query, whole=whole)
    chosen = query if chosen_by(query) else None
    joins, query = joins_of(query)
    if chosen is not None and not all(join.unique for join in joins):
        raise SnapshotError(
            f"'{path_of(table)}' is joined to several rows a row, and the query is one of {chosen_by(chosen)}: choose "
            f'rows of the table alone'
        )
    if not fields:
        raise SnapshotError(
            f"a snapshot of '{path_of(table)}' without fields holds nothing: "
            f'fields={{"photo": mm.field.image(Items.photo, size=128)}}'
        )
    specs = {name: as_spec(name, value) for name, value in fields.items()}
    partners = [table, *(join.table for join in joins if join.unique)]
    visible = {entry[0] for each in partners for entry in version_vector(each)}
    pooled: dict[str, Any] = {}
    known: dict[int, Any] = {}
    behind: dict[str, Behind] = {}
    for name, spec in specs.items():
        if not is_expression(spec.expression):
            raise SnapshotError(
                f"field '{name}' is {spec.expression!r:.60}, not a Pixeltable expression over bound tables: name a "
                f'column, as in Items.photo'
            )
        over = partners
        if spec.pooled:
            over = [_pooled_over(name, spec, table, joins)]
            pooled[path_of(over[0])] = over[0]
        elif not owners_of(spec.expression) <= visible:
            raise SnapshotError(_not_visible(name, spec, table, joins))
        behind[name] = {path_of(each): lineage(each, spec.expression, known) for each in over}
    if split is None and 'split' in columns_in_scope(table):
        split = table.split
    if split is not None and not (is_expression(split) and split.col_type.is_string_type()):
        kind = split.col_type if is_expression(split) else type(split).__name__
        raise SnapshotError(
            f"the split of '{path_of(table)}' is {kind}, and it wants a string expression: split=split_of(...)"
        )
    every = [table, *(join.table for join in joins)]
    choices: dict[str, Behind] = {}
    for label, sides in (
        ('filter', [filter_of(query)]), ('split', [split]),
        *((str(i), [*join.left, *join.right]) for i, join in enumerate(joins)),
    ):  # fmt: skip
        read: dict[str, dict[str, Any]] = {path_of(each): {} for each in every}
        for side in sides:
            for each in every if side is not None else ():
                read[path_of(each)].update(lineage(each, side, known))
        choices[label] = read
    tables = {path_of(each): each for each in (*every, *pooled.values())}
    return TrainingView(
        table=table, query=query, specs=specs, split=split, joins=tuple(joins), pooled=pooled, behind=behind,
        choices=choices, files=_files(table, tables), chosen=chosen,
        computed=frozenset(pair for each in partners for pair in _computed(each)),
    )  # fmt: skip


def _not_visible(name: str, spec: FieldSpec, table: Any, joins: Sequence[Join]) -> str:
    for join in joins:
        if not join.unique and owners_of(spec.expression) & {entry[0] for entry in version_vector(join.table)}:
            return (
                f"field '{name}' ({spec.expression}) reads '{path_of(join.table)}', of which several rows may have one "
                f'{join.right[0]}: aggregate them, as in mm.field.pooled(mean({spec.expression})), or join by its '
                f'primary key.'
            )
    return (
        f"field '{name}' ({spec.expression}) is not a column of '{path_of(table)}'. Rows of a component view "
        f'come in with mm.field.pooled(mean_pool(...)), those of another table with .join(...).'
    )


def _computed(table: Any) -> Iterator[tuple[str, str]]:
    while table is not None:
        yield from ((id_of(table), column) for column in computed_columns(table))
        table = table.get_base_table()


def _files(table: Any, tables: Mapping[str, Any]) -> dict[str, tuple[str, frozenset[str]]]:
    """Media columns of each table whose files `mm.ingest` recorded, and the path of the table to ask for `origin`.

    Component views share the files of the base of the view's table, and are looked at with its rows.
    """
    found = {}
    for path, each in tables.items():
        base = base_of(each)
        types = column_types(base)
        if ORIGIN in types and types[ORIGIN].is_json_type():
            own = path_of(base) == path_of(base_of(table))
            found[path] = path_of(table) if own else path, frozenset(media_columns(base))
    return found


def _pooled_over(name: str, spec: FieldSpec, table: Any, joins: Sequence[Join]) -> Any:
    """The component view or joined table whose rows a pooled field aggregates."""
    for join in joins:
        if owners_of(spec.expression) & {entry[0] for entry in version_vector(join.table)}:
            return join.table
    return _component_view(name, spec, table)


def _component_view(name: str, spec: FieldSpec, table: Any) -> Any:
    """The view whose rows a pooled field aggregates."""
    base, behind = base_of(table), tables_behind(spec.expression)
    for view in views_of(base):
        if id_of(view) in behind and rowid_width(view) > 1:
            break
    else:
        raise SnapshotError(
            f"field '{name}' is pooled, but its columns are not of a view with an iterator over '{path_of(base)}', "
            f'nor of a joined table. Pool over such a view, or use a plain expression.'
        )
    if rowid_width(table) != 1:
        raise SnapshotError(f"field '{name}': rows can be pooled into '{path_of(base)}' or a filter view of it, "
                            f"and '{path_of(table)}' is itself made by an iterator: leave the field out")  # fmt: skip
    return view


def pooled_path(pooled: Mapping[str, Any], spec: FieldSpec) -> str:
    """Path of the component view or joined table a pooled field reads."""
    behind = tables_behind(spec.expression)
    found = [path for path, table in pooled.items() if id_of(table) in behind]
    if not found:  # columns of a base, of which a view is joined
        owners = owners_of(spec.expression)
        found = [path for path, table in pooled.items() if owners & {entry[0] for entry in version_vector(table)}]
    return found[0]

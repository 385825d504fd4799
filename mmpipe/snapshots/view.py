"""The training view behind a snapshot: which table, which filter, which rows are candidates for a change."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmpipe.errors import SnapshotError
from mmpipe.snapshots.field import FieldSpec, as_spec
from mmpipe.sources.origin import ORIGIN
from mmpipe.store import (
    Join,
    Rowid,
    Vector,
    base_of,
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
        media: base media columns that some field reads, directly or through computed columns, and whose files are
            recorded, by the path of the table or view; none for a table that `mm.ingest` did not fill.
        computed: (id of the table, name) of the stored computed columns that fields may be.
        chosen: the query as given, when its rows depend on each other.
    """

    table: Any
    query: Any
    specs: Mapping[str, FieldSpec]
    split: Any
    joins: tuple[Join, ...]
    pooled: Mapping[str, Any]
    media: Mapping[str, tuple[str, ...]]
    computed: frozenset[tuple[str, str]] = frozenset()
    chosen: Any = None

    def sources(self) -> dict[str, Any]:
        """Every table and view that is read, by path."""
        tables = (self.table, *(join.table for join in self.joins), *self.pooled.values())
        return {path_of(table): table for table in tables}

    def vectors(self) -> dict[str, Vector]:
        """Version vectors of every table read, by path."""
        return {path: version_vector(table) for path, table in self.sources().items()}

    def definition(self) -> dict[str, Any]:
        """What defines the snapshot besides data, as JSON values: an old one can be extended while it is the same."""
        known: dict[int, Any] = {}
        fields = {
            name: {**spec.identity(), 'columns': self._columns(self._over(spec), spec.expression, known)}
            for name, spec in self.specs.items()
        }
        found: dict[str, Any] = {'table': path_of(self.table)}
        for name, choice in (('filter', filter_of(self.query)), ('split', self.split)):
            columns = None if choice is None else self._columns(self.table, choice, known)
            found[name] = None if choice is None else {'expression': str(choice), 'columns': columns}
        if self.joins:
            found['joins'] = [
                {
                    'table': path_of(join.table),
                    'how': join.how,
                    'on': str(join),
                    'columns': [self._columns(self.table, side, known) for side in (*join.left, *join.right)],
                }
                for join in self.joins
            ]
        if self.chosen is not None:
            found['rows'] = chosen_by(self.chosen)
        return {**found, 'fields': fields}

    def columns(self) -> list[tuple[Any, set[tuple[str, str]]]]:
        """(table or view, column) of every column that is read, directly or not, with the base table of each tree."""
        known: dict[int, Any] = {}
        sides = [side for join in self.joins for side in (*join.left, *join.right)]
        read = [(self.table, each) for each in (filter_of(self.query), self.split, *sides) if each is not None]
        read += [(self._over(spec), spec.expression) for spec in self.specs.values()]
        found: dict[str, tuple[Any, set[tuple[str, str]]]] = {}
        for table, expression in read:
            for each in self._behind(table).values():
                base = base_of(each)
                behind = lineage(each, expression, known)
                found.setdefault(path_of(base), (base, set()))[1].update(
                    (md['defined_in'], n) for n, md in behind.items()
                )
        return list(found.values())

    def candidates(self, since: Mapping[str, Vector] | None) -> tuple[list[Rowid], list[Rowid] | None]:
        """Rows that may be new or changed, and rows that are gone; None for "every row that is not a candidate".

        Args:
            since: version vectors of an earlier snapshot; None to take every row.

        Raises:
            StoreError: the tables were reverted or made again since.
        """
        if self.chosen is not None:
            return rowids_of(self.chosen, self.table), None
        if since is None:
            return list(changes_since(self.table, None).inserted), None
        changes = changes_since(self.table, since[path_of(self.table)])
        upserts = set(changes.inserted) | set(changes.updated)
        joined = {path_of(join.table) for join in self.joins}
        for path, table in self.pooled.items():
            if path not in joined:
                upserts |= {rowid[:1] for rowid in _touched(table, since[path])}
        for join in self.joins:
            then = since[path_of(join.table)]
            touched = _touched(join.table, then)
            if touched:
                upserts |= rows_with(join, self.table, values_since(join.table, join.right, sorted(touched), then))
        gone = set(changes.deleted)
        return sorted(upserts - gone), sorted(gone)

    def pooled_join(self, spec: FieldSpec) -> Join | None:
        """The join whose rows a pooled field aggregates; None where it aggregates a component view."""
        path = pooled_path(self.pooled, spec)
        return next((join for join in self.joins if path_of(join.table) == path), None)

    def _over(self, spec: FieldSpec) -> Any:
        return self.pooled[pooled_path(self.pooled, spec)] if spec.pooled else self.table

    def _behind(self, table: Any) -> dict[str, Any]:
        """What an expression over a table may read, by path: with the table of the view, what is joined to it."""
        if table is not self.table:
            return {path_of(table): table}
        return {path_of(each): each for each in (table, *(join.table for join in self.joins))}

    def _columns(self, table: Any, expression: Any, known: dict[int, Any]) -> dict[str, list[Any]]:
        """The columns behind an expression: a column added in place leaves no mark on the rows, only here."""
        return {
            column if each is table else f'{path}.{column}': [
                md[name] for name in ('defined_in', 'computed_with', 'version_added')
            ]
            for path, each in self._behind(table).items()
            for column, md in sorted(lineage(each, expression, known).items())
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
    media: dict[str, set[str]] = {}
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
        for each in over:
            media.setdefault(path_of(each), set()).update(lineage(each, spec.expression, known))
    if split is None and 'split' in columns_in_scope(table):
        split = table.split
    if split is not None and not (is_expression(split) and split.col_type.is_string_type()):
        kind = split.col_type if is_expression(split) else type(split).__name__
        raise SnapshotError(
            f"the split of '{path_of(table)}' is {kind}, and it wants a string expression: split=split_of(...)"
        )
    view = TrainingView(
        table=table, query=query, specs=specs, split=split, joins=tuple(joins), pooled=pooled, media={},
        computed=frozenset(pair for each in partners for pair in _computed(each)), chosen=chosen,
    )  # fmt: skip
    return replace(view, media=_recorded_media(view, media))


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


def _recorded_media(view: TrainingView, read: Mapping[str, Collection[str]]) -> dict[str, tuple[str, ...]]:
    """Media columns of each base table that are read, where `mm.ingest` recorded their files.

    Component views share the files of the base of the view's table, and are looked at with its rows.
    """
    found: dict[str, set[str]] = {}
    for path, table in view.sources().items():
        base = base_of(table)
        types = column_types(base)
        if path in read and ORIGIN in types and types[ORIGIN].is_json_type():
            own = path_of(base) == path_of(base_of(view.table))
            found.setdefault(path_of(view.table) if own else path, set()).update(
                set(read[path]) & set(media_columns(base))
            )
    return {path: tuple(sorted(columns)) for path, columns in found.items() if columns}


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

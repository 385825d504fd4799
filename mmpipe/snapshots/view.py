"""The training view behind a snapshot: which table, which filter, which rows are candidates for a change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmpipe.errors import SnapshotError
from mmpipe.snapshots.field import FieldSpec, as_spec
from mmpipe.sources.origin import ORIGIN
from mmpipe.store import (
    Rowid,
    Vector,
    base_of,
    changes_since,
    column_types,
    computed_columns,
    lineage,
    media_columns,
    path_of,
    rowid_width,
    version_vector,
    views_of,
)
from mmpipe.store.expressions import (
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
        query: `pxt.Query` with nothing but a filter, or the table.
        specs: the fields.
        split: expression that gives each row's split; None for no splits.
        pooled: component views whose rows pooled fields aggregate, by path.
        media: base media columns that some field reads, directly or through computed columns, and whose files are
            recorded; none for a table that `mm.ingest` did not fill.
        computed: names of the stored computed columns of the table and its bases.
    """

    table: Any
    query: Any
    specs: Mapping[str, FieldSpec]
    split: Any
    pooled: Mapping[str, Any]
    media: tuple[str, ...]
    computed: frozenset[str] = frozenset()

    def vectors(self) -> dict[str, Vector]:
        """Version vectors of every table read, by path."""
        return {path_of(table): version_vector(table) for table in (self.table, *self.pooled.values())}

    def definition(self) -> dict[str, Any]:
        """What defines the snapshot besides data, as JSON values: an old one can be extended while it is the same."""
        fields: dict[str, Any] = {}
        choices: dict[str, Any] = {}
        known: dict[int, Any] = {}
        for name, spec in self.specs.items():
            over = self.pooled[pooled_path(self.pooled, spec)] if spec.pooled else self.table
            fields[name] = {**spec.identity(), 'columns': _columns(over, spec.expression, known)}
        for name, choice in (('filter', filter_of(self.query)), ('split', self.split)):
            columns = None if choice is None else _columns(self.table, choice, known)
            choices[name] = None if choice is None else {'expression': str(choice), 'columns': columns}
        return {'table': path_of(self.table), **choices, 'fields': fields}

    def columns(self) -> set[tuple[str, str]]:
        """(table or view, column) of every column that a field, the filter or the split reads, directly or not."""
        definition = self.definition()
        read = [*definition['fields'].values(), *(definition[name] for name in ('filter', 'split') if definition[name])]
        return {(owner, column) for each in read for column, (owner, *_) in each['columns'].items()}

    def candidates(self, since: Mapping[str, Vector] | None) -> tuple[list[Rowid], list[Rowid] | None]:
        """Rows that may be new or changed, and rows that are gone; None for "every row that is not a candidate".

        Args:
            since: version vectors of an earlier snapshot; None to take every row.

        Raises:
            StoreError: the tables were reverted or made again since.
        """
        path = path_of(self.table)
        if since is None:
            return list(changes_since(self.table, None).inserted), None
        changes = changes_since(self.table, since[path])
        upserts = set(changes.inserted) | set(changes.updated)
        for pooled_table_path, table in self.pooled.items():
            parts = changes_since(table, since[pooled_table_path])
            upserts |= {rowid[:1] for kind in (parts.inserted, parts.updated, parts.deleted) for rowid in kind}
        return sorted(upserts), sorted(set(changes.deleted) - upserts)


def _columns(table: Any, expression: Any, known: dict[int, Any]) -> dict[str, list[Any]]:
    """The columns behind an expression: a column added in place leaves no mark on the rows, only here."""
    return {
        column: [md['defined_in'], md['computed_with'], md['version_added']]
        for column, md in sorted(lineage(table, expression, known).items())
    }


def training_view(query: Any, fields: Mapping[str, Any], split: Any) -> TrainingView:
    """Check a query and its fields.

    Raises:
        SchemaError: a class that is not bound, or a query with more than a filter.
        SnapshotError: a field over another table.
    """
    table, query = source_of(query)
    if not fields:
        raise SnapshotError(
            f"a snapshot of '{path_of(table)}' without fields holds nothing: "
            f'fields={{"photo": mm.field.image(Items.photo, size=128)}}'
        )
    specs = {name: as_spec(name, value) for name, value in fields.items()}
    visible = {entry[0] for entry in version_vector(table)}
    pooled: dict[str, Any] = {}
    own_media = set(media_columns(base_of(table)))
    known: dict[int, Any] = {}
    media: set[str] = set()
    for name, spec in specs.items():
        if not is_expression(spec.expression):
            raise SnapshotError(
                f"field '{name}' is {spec.expression!r:.60}, not a Pixeltable expression over bound tables: name a "
                f'column, as in Items.photo'
            )
        over = table
        if spec.pooled:
            over = _component_view(name, spec, table)
            pooled[path_of(over)] = over
        elif not owners_of(spec.expression) <= visible:
            raise SnapshotError(
                f"field '{name}' ({spec.expression}) is not a column of '{path_of(table)}'. Rows of a component view "
                f'come in with mm.field.pooled(mean_pool(...)).'
            )
        media |= set(lineage(over, spec.expression, known)) & own_media
    if split is None and 'split' in columns_in_scope(table):
        split = table.split
    if split is not None and not (is_expression(split) and split.col_type.is_string_type()):
        kind = split.col_type if is_expression(split) else type(split).__name__
        raise SnapshotError(
            f"the split of '{path_of(table)}' is {kind}, and it wants a string expression: split=split_of(...)"
        )
    base, types = base_of(table), column_types(base_of(table))
    filled = ORIGIN in types and types[ORIGIN].is_json_type()
    failing, each = set(computed_columns(base)), table
    while each is not None:
        failing |= set(computed_columns(each))
        each = each.get_base_table()
    return TrainingView(
        table=table, query=query, specs=specs, split=split, pooled=pooled, media=tuple(sorted(media)) if filled else (),
        computed=frozenset(failing),
    )  # fmt: skip


def _component_view(name: str, spec: FieldSpec, table: Any) -> Any:
    """The view whose rows a pooled field aggregates."""
    base, behind = base_of(table), tables_behind(spec.expression)
    for view in views_of(base):
        if id_of(view) in behind and rowid_width(view) > 1:
            break
    else:
        raise SnapshotError(
            f"field '{name}' is pooled, but its columns are not of a view with an iterator over '{path_of(base)}'. "
            f'Pool over such a view, or use a plain expression.'
        )
    if rowid_width(table) != 1:
        raise SnapshotError(f"field '{name}': rows can be pooled into '{path_of(base)}' or a filter view of it, "
                            f"and '{path_of(table)}' is itself made by an iterator: leave the field out")  # fmt: skip
    return view


def pooled_path(pooled: Mapping[str, Any], spec: FieldSpec) -> str:
    """Path of the component view a pooled field reads."""
    behind = tables_behind(spec.expression)
    return next(path for path, table in pooled.items() if id_of(table) in behind)

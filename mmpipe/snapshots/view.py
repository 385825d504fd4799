"""The training view behind a snapshot: which table, which filter, which rows are candidates for a change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpipe.errors import SchemaError, SnapshotError, SourceChangedError
from mmpipe.snapshots.field import FieldSpec, as_spec
from mmpipe.sources.ingest import ORIGIN
from mmpipe.sources.media import digest_file, stamp
from mmpipe.store import (
    Rowid,
    Vector,
    base_of,
    changes_since,
    column_types,
    lineage,
    media_columns,
    path_of,
    primary_key,
    rowid_width,
    start,
    table_of,
    table_of_query,
    version_vector,
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
        media: base media columns that some field reads, directly or through computed columns.
    """

    table: Any
    query: Any
    specs: Mapping[str, FieldSpec]
    split: Any
    pooled: Mapping[str, Any]
    media: tuple[str, ...]

    def vectors(self) -> dict[str, Vector]:
        """Version vectors of every table read, by path."""
        return {path_of(table): version_vector(table) for table in (self.table, *self.pooled.values())}

    def definition(self) -> dict[str, Any]:
        """What defines the snapshot besides data, as JSON values: compared to know whether an old one can be extended."""
        fields = {}
        for name, spec in self.specs.items():
            over = self.pooled[pooled_path(self.pooled, spec)] if spec.pooled else self.table
            columns = {
                column: [md['defined_in'], md['computed_with'], md['version_added']]
                for column, md in sorted(lineage(over, spec.expression).items())
            }
            fields[name] = {**spec.identity(), 'columns': columns}
        where = getattr(self.query, 'where_clause', None)
        return {
            'table': path_of(self.table),
            'filter': None if where is None else str(where),
            'split': None if self.split is None else str(self.split),
            'fields': fields,
        }

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


def training_view(query: Any, fields: Mapping[str, Any], split: Any) -> TrainingView:
    """Check a query and its fields.

    Raises:
        SchemaError: a class that is not bound, or a query with more than a filter.
        SnapshotError: a field over another table.
    """
    pxt = start()
    from pixeltable.catalog.model.query import ModelQuery
    from pixeltable.exprs import ColumnRef, Expr

    if isinstance(query, ModelQuery):
        table_of(query.model_cls)  # raises for a class that is not bound
        raise SchemaError(f'this query was made before {query.model_cls.__name__} was bound to its table: make it after mm.apply')
    if isinstance(query, pxt.Query):
        clauses = ('select_list', 'group_by_clause', 'order_by_clause', 'limit_val', 'offset_val', 'sample_clause')
        used = [clause for clause in clauses if getattr(query, clause) is not None]
        if used or len(query._from_clause.tbls) != 1 or query._from_clause.join_clauses:
            what = ', '.join(clause.rsplit('_', 1)[0] for clause in used) or 'join'
            raise SchemaError(f'a snapshot takes a table, a view or a `.where(...)` of one; this query has {what}. '
                              f'Name the fields in fields=, and put the rest into a view.')  # fmt: skip
        table = table_of_query(query)
    else:
        query = table = table_of(query)
    if not fields:
        raise SnapshotError('a snapshot without fields holds nothing: fields={"photo": mm.field.image(Items.photo, size=128)}')
    specs = {name: as_spec(name, value) for name, value in fields.items()}
    visible = {entry[0] for entry in version_vector(table)}
    pooled: dict[str, Any] = {}
    media: set[str] = set()
    for name, spec in specs.items():
        if not isinstance(spec.expression, Expr):
            raise SnapshotError(f"field '{name}' is {spec.expression!r:.60}, not a Pixeltable expression over bound tables")
        refs = list(spec.expression.subexprs(ColumnRef))
        over = table
        if spec.pooled:
            over = _component_view(name, refs, table)
            pooled[path_of(over)] = over
        elif not all(str(ref.col_md.qcolid.tbl_id) in visible for ref in refs):
            raise SnapshotError(
                f"field '{name}' ({spec.expression}) is not a column of '{path_of(table)}'. Rows of a component view come in "
                f'with mm.field.pooled(mean_pool(...)).'
            )
        media |= set(lineage(over, spec.expression)) & set(media_columns(base_of(table)))
    if split is None and 'split' in table._get_schema():
        split = table.split
    return TrainingView(table=table, query=query, specs=specs, split=split, pooled=pooled, media=tuple(sorted(media)))


def _component_view(name: str, refs: list[Any], table: Any) -> Any:
    """The view whose rows a pooled field aggregates."""
    pxt = start()
    base = base_of(table)
    owners = {str(ref.col_md.tbl_id) for ref in refs}
    for path in base.list_views(recursive=True):
        view = pxt.get_table(path)
        if str(view._tbl_path.tbl_id) in owners and rowid_width(view) > 1:
            break
    else:
        raise SnapshotError(
            f"field '{name}' is pooled, but its columns are not of a view with an iterator over '{path_of(base)}'. "
            f'Pool over such a view, or use a plain expression.'
        )
    if rowid_width(table) != 1:
        raise SnapshotError(f"field '{name}': rows can be pooled into '{path_of(base)}' or a filter view of it, "
                            f"and '{path_of(table)}' is itself made by an iterator")  # fmt: skip
    return view


def pooled_path(pooled: Mapping[str, Any], spec: FieldSpec) -> str:
    """Path of the component view a pooled field reads."""
    from pixeltable.exprs import ColumnRef

    owners = {str(ref.col_md.tbl_id) for ref in spec.expression.subexprs(ColumnRef)}
    return next(path for path, table in pooled.items() if str(table._tbl_path.tbl_id) in owners)


def check_sources(view: TrainingView, rows: Mapping[str, Mapping[str, Any] | None]) -> None:
    """Refuse rows whose files are not what was ingested.

    Args:
        view: the training view.
        rows: row key to the row's `origin`.

    Raises:
        SourceChangedError: a file is gone or holds other bytes; names the rows and files.
    """
    changed = []
    for key, origin in rows.items():
        for column, item in ((origin or {}).get('media') or {}).items():
            if column not in view.media:
                continue
            path = Path(item['path'])
            if not path.exists():
                changed.append(f"row '{key}', column {column}: '{path}' is gone")
            elif stamp(path) != item['stamp'] and digest_file(path) != item['digest']:
                changed.append(f"row '{key}', column {column}: '{path}' has other content than when it was ingested")
    if changed:
        more = f' and {len(changed) - 3} more' if len(changed) > 3 else ''
        raise SourceChangedError(
            f"'{path_of(view.table)}': {'; '.join(changed[:3])}{more}. Run `mmpipe ingest` again, then the snapshot."
        )


def has_origin(view: TrainingView) -> bool:
    """Whether rows record their files, which only tables filled by `mm.ingest` do."""
    return ORIGIN in column_types(base_of(view.table))


def key_names(view: TrainingView) -> list[str]:
    """Primary key columns of the base table."""
    return primary_key(view.table)


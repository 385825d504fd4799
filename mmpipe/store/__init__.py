"""The one place that touches Pixeltable's private parts: version vectors, change feed, paged reads, the writer lock."""

from mmpipe.store.declared import (
    carry_out_column,
    column_functions,
    declared_models,
    file_of,
    refusal,
    refused_addition,
)
from mmpipe.store.engine import default_time_zone, start, stop_postgres
from mmpipe.store.expressions import id_of
from mmpipe.store.failure import machine_failure, told_plainly
from mmpipe.store.feed import (
    Changes,
    Recomputed,
    Rowid,
    Vector,
    changed_otherwise,
    changes_since,
    live_by_span,
    live_rows,
    rowid_width,
    values_since,
    version_vector,
    written_since,
)
from mmpipe.store.joins import Join, joins_of, rows_with, select_joined
from mmpipe.store.known import keys_where
from mmpipe.store.lock import check_locks, writer_lock
from mmpipe.store.made import Made, made_columns, next_row_id, tree_of
from mmpipe.store.rows import failed_rows, narrowed, pages, rowid_expressions, rowids_of, rows_where, select_rows
from mmpipe.store.tables import (
    base_of,
    cell_errors,
    column_types,
    computed_columns,
    failed_cells,
    lineage,
    media_columns,
    path_of,
    primary_key,
    table_of,
    tables_in,
    views_of,
)
from mmpipe.store.write import Written, delete_rows, recompute_rows, replace_rows, rows_with_keys, update_rows
from mmpipe.store.writing import Writing, writing

__all__ = [
    'Changes', 'Join', 'Made', 'Recomputed', 'Rowid', 'Vector', 'Writing', 'Written', 'base_of', 'carry_out_column',
    'cell_errors', 'changed_otherwise', 'changes_since', 'check_locks', 'column_functions', 'column_types',
    'computed_columns',
    'declared_models', 'default_time_zone', 'delete_rows', 'failed_cells', 'failed_rows', 'file_of', 'id_of',
    'joins_of', 'keys_where', 'lineage', 'live_by_span', 'live_rows', 'machine_failure', 'made_columns',
    'media_columns', 'narrowed', 'next_row_id', 'pages', 'path_of', 'primary_key', 'recompute_rows', 'refusal',
    'refused_addition', 'replace_rows', 'rowid_expressions', 'rowid_width', 'rowids_of', 'rows_where', 'rows_with',
    'rows_with_keys', 'select_joined', 'select_rows', 'start', 'stop_postgres', 'table_of', 'tables_in',
    'told_plainly', 'tree_of',
    'update_rows', 'values_since', 'version_vector', 'views_of', 'writer_lock', 'writing', 'written_since',
]  # fmt: skip

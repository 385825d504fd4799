"""The one place that touches Pixeltable's private parts: version vectors, change feed, paged reads, the writer lock."""

from mmpipe.store.declared import carry_out_column, column_functions, declared_models
from mmpipe.store.engine import default_time_zone, start, stop_postgres
from mmpipe.store.failure import machine_failure
from mmpipe.store.feed import Changes, Rowid, Vector, changes_since, rowid_width, version_vector
from mmpipe.store.lock import writer_lock
from mmpipe.store.rows import narrowed, pages, rowid_expressions, select_rows
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
    table_of_query,
    tables_in,
    views_of,
)
from mmpipe.store.write import Written, delete_rows, replace_rows, rows_with_keys, update_rows

__all__ = [
    'Changes', 'Rowid', 'Vector', 'Written', 'base_of', 'carry_out_column', 'cell_errors', 'changes_since',
    'column_functions', 'column_types', 'computed_columns', 'declared_models', 'default_time_zone', 'delete_rows',
    'failed_cells', 'lineage', 'machine_failure', 'media_columns', 'narrowed', 'pages', 'path_of', 'primary_key',
    'replace_rows', 'rowid_expressions', 'rowid_width', 'rows_with_keys', 'select_rows', 'start', 'stop_postgres',
    'table_of', 'table_of_query', 'tables_in', 'update_rows', 'version_vector', 'views_of', 'writer_lock',
]  # fmt: skip

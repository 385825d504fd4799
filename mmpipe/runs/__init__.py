"""Run records: what was trained, from which rows, by which code. Needs neither torch nor Pixeltable.

`mm.runs.table()` lists runs, `mm.runs.compare(...)` shows what differs between them; `mm.lineage`
names the rows, code and weights behind one, and the runs behind which a row lies.
"""

from mmpipe.runs.behind import RowLineage, RunLineage, lineage
from mmpipe.runs.compare import Comparison, compare
from mmpipe.runs.factory import ChangedSourceWarning, describe_factory, find_factory, source_fingerprint
from mmpipe.runs.record import Run, create_run, list_runs, open_run, update_run
from mmpipe.runs.table import RunTable, table

__all__ = [
    'ChangedSourceWarning',
    'Comparison',
    'RowLineage',
    'Run',
    'RunLineage',
    'RunTable',
    'compare',
    'create_run',
    'describe_factory',
    'find_factory',
    'lineage',
    'list_runs',
    'open_run',
    'source_fingerprint',
    'table',
    'update_run',
]

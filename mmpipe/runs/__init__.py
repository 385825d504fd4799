"""Run records: what was trained, from which rows, by which code. Needs neither torch nor Pixeltable."""

from mmpipe.runs.factory import ChangedSourceWarning, describe_factory, find_factory, source_fingerprint
from mmpipe.runs.record import Run, create_run, list_runs, open_run, update_run

__all__ = [
    'ChangedSourceWarning',
    'Run',
    'create_run',
    'describe_factory',
    'find_factory',
    'list_runs',
    'open_run',
    'source_fingerprint',
    'update_run',
]

"""Training snapshots: a view pinned to its Pixeltable versions, encoded and appended as shards. Imports no torch."""

from mmpipe.snapshots.field import FieldSpec
from mmpipe.snapshots.write import SnapshotReport, root_lock, snapshot

__all__ = ['FieldSpec', 'SnapshotReport', 'root_lock', 'snapshot']

"""The shard format: Arrow IPC files and a checksummed manifest. Imports neither Pixeltable nor torch."""

from mmpipe.shards.collect import Collected, collect
from mmpipe.shards.compact import compact
from mmpipe.shards.field import Field
from mmpipe.shards.history import LogEntry, SnapshotDiff, log
from mmpipe.shards.reader import Snapshot, open_snapshot
from mmpipe.shards.rows import Rows
from mmpipe.shards.writer import Block, commit, key_hash, write_block, write_snapshot

__all__ = [
    'Block', 'Collected', 'Field', 'LogEntry', 'Rows', 'Snapshot', 'SnapshotDiff', 'collect', 'commit', 'compact',
    'key_hash', 'log', 'open_snapshot', 'write_block', 'write_snapshot',
]  # fmt: skip

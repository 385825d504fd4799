"""Write masked, small and partly replaced blocks of a snapshot again, as full ones in the same order of rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow as pa

from mmpipe.errors import ShardError
from mmpipe.shards import files
from mmpipe.shards.column import pick
from mmpipe.shards.leaf import Shard
from mmpipe.shards.reader import Snapshot, open_snapshot
from mmpipe.shards.root import Moved, Root, root_of
from mmpipe.shards.writer import BLOCK_BYTES, commit

SYSTEM = ('_key', '_hash', '_split', '_rowid')


def compact(root: str | Path | Root, *, block_bytes: int = BLOCK_BYTES) -> Snapshot:
    """Make one snapshot of full blocks out of the current one: same rows, same values, same order.

    Rows that were masked and values that were replaced take no more room in it; `collect` removes the old shards once
    no kept snapshot needs them. The next `mm.snapshot` goes on from it. Needs memory for a few times `block_bytes`.

    Args:
        root: directory or URL of the snapshots. Hold off whoever else writes it, as `mmpipe gc --compact` does.
        block_bytes: size of a full block. Blocks of half of it and more stay as they are, unless something in them is
            masked or replaced.

    Returns:
        The new snapshot, whose parent is the old one; the old one where nothing was to be done.

    Raises:
        ShardError: no snapshot, damaged files, or another snapshot was committed meanwhile.

    >>> import tempfile; import numpy as np
    >>> from mmpipe.shards import Block, Field, commit, write_block
    >>> fields, root = [Field(name='price', kind='scalar', dtype='float32')], tempfile.mkdtemp()
    >>> blocks = [Block(keys=[key], columns={'price': [1.0]}) for key in 'abc']
    >>> shards = [write_block(root, fields, block, index=i) for i, block in enumerate(blocks)]
    >>> _ = commit(root, fields, shards, dropped=np.array([[1, 0]]), splits={'': 2})
    >>> snapshot = compact(root)
    >>> snapshot.rows().keys.tolist(), len(snapshot.manifest.shards), len(snapshot.manifest.dropped)
    (['a', 'c'], 1, 0)
    """
    root = root_of(root)
    root.make_writable()
    pointer = root.latest()
    old = open_snapshot(root, None if pointer is None else pointer.id)
    there: dict[int, list[Shard]] = {}
    for shard in old.manifest.shards:
        there.setdefault(shard.block, []).append(shard)
    tidy = {block for block, shards in there.items() if _tidy(old, shards)}
    work = _Blocks(old, root, block_bytes)
    shards: list[Shard] = []
    for group in _groups(there, tidy, block_bytes):
        index = 1 + max((shard.block for shard in shards), default=-1)
        if len(group) == 1 and group[0] in tidy:
            shards += [replace(shard, block=index) for shard in there[group[0]]]
        else:
            shards += work.write(group, index)
    if {shard.path for shard in shards} == {shard.path for shard in old.manifest.shards}:
        return old
    blocks = 1 + max((shard.block for shard in shards), default=-1)
    said = f'{len(there)} blocks into {blocks}, without {len(old.manifest.dropped)} masked rows'
    try:
        return commit(
            root,
            old.manifest.fields,
            shards,
            source=old.manifest.source,
            splits=old.splits,
            parent=old.id,
            versions=old.versions,
            changes={'compacted': said},
            after=pointer,
        )
    except Moved:
        raise ShardError(
            f"'{root.text}' got another snapshot than {old.id} while that was compacted: compact again"
        ) from None


def _groups(there: Mapping[int, Sequence[Shard]], tidy: Collection[int], block_bytes: int) -> list[list[int]]:
    """Neighbouring blocks that are written together; a full and tidy one stands alone."""
    groups: list[list[int]] = [[]]
    for block, shards in sorted(there.items()):
        if block in tidy and sum(shard.bytes for shard in shards) >= block_bytes // 2:
            groups += [[block], []]
        else:
            groups[-1].append(block)
    return [group for group in groups if group]


def _tidy(old: Snapshot, shards: Sequence[Shard]) -> bool:
    """Whether every row of a block is live, no value is patched, and every column in its files is listed."""
    if (old.manifest.dropped[:, 0] == shards[0].block).any() or any('_row' in shard.fields for shard in shards):
        return False
    for shard in shards:
        listed = {name for field in shard.fields if field != '_key' for name in (field, f'_digest.{field}')}
        with old.mapped(shard) as source:
            if set(pa.ipc.open_file(source).schema.names) != listed | ({*SYSTEM} if '_key' in shard.fields else set()):
                return False
    return True


class _Blocks:
    """Writes live rows of old blocks as new ones, one block in memory at a time."""

    def __init__(self, old: Snapshot, root: Root, block_bytes: int) -> None:
        self.old, self.root, self.block_bytes = old, root, block_bytes
        self.names = [*SYSTEM, *(name for field in old.fields for name in (field, f'_digest.{field}'))]
        self.live = old.rows().places

    def write(self, blocks: Sequence[int], index: int) -> list[Shard]:
        """The live rows of some blocks as shards, whose blocks are numbered from `index` on."""
        made: list[Shard] = []
        parts: dict[str, list[pa.Array]] = {name: [] for name in self.names}
        size = 0
        for block in blocks:
            nbytes = sum(self.old.unpatched(block, name).nbytes for name in self.names)
            count = len(self.old.unpatched(block, '_key'))
            per_row = max(1, nbytes // max(1, count))
            live = self.live[self.live[:, 0] == block, 1]
            start = 0
            while start < count:
                stop = min(count, start + max(1, (self.block_bytes - size) // per_row))
                rows = live[(live >= start) & (live < stop)] - start
                if len(rows):
                    for name in self.names:
                        parts[name].append(pick([self.old.stored(block, name, start, stop)], rows))
                size += per_row * len(rows)
                start = stop
                if size >= self.block_bytes:
                    made.append(self._shard(parts, index + len(made)))
                    size = 0
            self.old.forget()
        if size:
            made.append(self._shard(parts, index + len(made)))
        return made

    def _shard(self, parts: dict[str, list[pa.Array]], index: int) -> Shard:
        table = pa.table({name: pa.chunked_array(arrays) for name, arrays in parts.items()})
        for arrays in parts.values():
            arrays.clear()
        data = files.table_bytes(table)
        path, sha = files.put(self.root, 'shards', data, '.arrow')
        fields = ('_key', *self.old.fields)
        return Shard(block=index, path=path, fields=fields, rows=table.num_rows, bytes=data.size, sha256=sha)

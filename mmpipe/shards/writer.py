"""Write blocks of rows as shards, and commit them as a snapshot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from mmpipe.errors import FieldError
from mmpipe.shards import files
from mmpipe.shards import manifest as manifests
from mmpipe.shards.field import DIGEST_BYTES, Field, content_digest, encode
from mmpipe.shards.index import key_hash
from mmpipe.shards.leaf import Shard
from mmpipe.shards.manifest import Manifest
from mmpipe.shards.reader import Snapshot, open_snapshot
from mmpipe.shards.root import Pointer, Root, root_of
from mmpipe.shards.tree import ShardList

BLOCK_BYTES = 64 << 20  # rows gathered in memory before they are written as one shard
NO_ROWS_DROPPED = np.zeros((0, 2), dtype=np.int64)


@dataclass(frozen=True, kw_only=True)
class Block:
    """Rows to write together: one value per row for every field.

    Args:
        keys: the rows' names, unique in a snapshot; order and splits depend on them alone.
        columns: field name to values, None for null.
        splits: split of each row; '' where the view declares none.
        rowids: the store's name of each row, by which a later snapshot finds it again.
        digests: field name to `content_digest` of each value, when they are known already.
    """

    keys: Sequence[str]
    columns: Mapping[str, Sequence[Any]]
    splits: Sequence[str] | None = None
    rowids: Sequence[str] | None = None
    digests: Mapping[str, Sequence[bytes]] | None = None


def write_block(root: str | Path | Root, fields: Sequence[Field], block: Block, *, index: int) -> Shard:
    """Write one block of rows as one shard.

    Args:
        root: snapshot root: a directory, or a URL of an object store.
        fields: what the columns hold.
        block: the rows.
        index: number of the block in the snapshot.

    Returns:
        The shard for the manifest. Nothing refers to it until `commit`.

    Raises:
        FieldError: values that do not fit their field, or a row count that differs between columns.
    """
    count = len(block.keys)
    names = {
        '_key': pa.array(block.keys, type=pa.large_string()),
        '_hash': pa.array([key_hash(key) for key in block.keys], type=pa.uint64()),
        '_split': pa.array(block.splits if block.splits is not None else [''] * count, type=pa.string()),
        '_rowid': pa.array(block.rowids if block.rowids is not None else block.keys, type=pa.large_string()),
    }
    for field in fields:
        values = block.columns[field.name]
        if len(values) != count:
            raise FieldError(
                f"field '{field.name}' has {len(values)} values for {count} rows. Give one per key; None is a null."
            )
        names[field.name] = encode(field, values, keys=block.keys)
        digests = (block.digests or {}).get(field.name) or [content_digest(field, value) for value in values]
        names[f'_digest.{field.name}'] = pa.array(digests, type=pa.binary(DIGEST_BYTES))
    data = files.table_bytes(pa.table(names))
    path, sha = files.put(root, 'shards', data, '.arrow')
    listed = ('_key', *(field.name for field in fields))
    return Shard(block=index, path=path, fields=listed, rows=count, bytes=data.size, sha256=sha)


def commit(
    root: str | Path | Root,
    fields: Sequence[Field],
    shards: Sequence[Shard],
    *,
    dropped: np.ndarray = NO_ROWS_DROPPED,
    source: Mapping[str, Any] | None = None,
    splits: Mapping[str, int] | None = None,
    parent: str | None = None,
    versions: Mapping[str, Any] | None = None,
    changes: Mapping[str, Any] | None = None,
    after: Pointer | Literal['any'] | None = 'any',
) -> Snapshot:
    """Make the given shards the current snapshot of a root, in one pointer write.

    Args:
        root: snapshot root.
        fields: the fields of every block.
        shards: all shards, old and new; of very many, what `ShardList.revised` made of those of a snapshot, so that
            only what differs is written.
        dropped: `[k, 2]` (block, row) pairs that are no longer part of it.
        source: where the rows came from, as JSON values.
        splits: live rows per split.
        parent: id of the snapshot this one extends.
        versions: versions of the tables the rows were read at, as JSON values; no part of the content.
        changes: counts for `mm.log`, as JSON values; no part of the content.
        after: the pointer of the root as it was when the snapshot was begun, to commit only on top of that; 'any' to
            commit on top of whatever is there.

    Returns:
        The snapshot. Committing the same content again gives the same id, and writes nothing but other versions.

    Raises:
        ShardError: a shard is missing; `mmpipe.shards.root.Moved` when the pointer is another one than `after` by now.
    """
    order = np.lexsort((dropped[:, 1], dropped[:, 0]))
    root = root_of(root)
    identity = manifests.save(
        root,
        Manifest(
            fields=tuple(fields),
            shards=shards if isinstance(shards, ShardList) else sorted(shards, key=lambda s: (s.block, s.path)),
            dropped=dropped[order],
            source=dict(source or {}),
            splits=dict(sorted((splits or {}).items())),
            parent=parent,
            created=datetime.now(UTC).isoformat(timespec='milliseconds'),
            changes=dict(changes or {}),
            versions=dict(versions or {}),
        ),
        after,
    )
    return open_snapshot(root, identity)


def write_snapshot(
    root: str | Path, fields: Sequence[Field], block: Block, *, source: Mapping[str, Any] | None = None
) -> Snapshot:
    """Write rows that are at hand as a snapshot of one block: for data that lies in no table, and for tests.

    Raises:
        FieldError: two rows with one key, or values that do not fit their field.

    >>> import tempfile
    >>> fields = [Field(name='price', kind='scalar', dtype='float32')]
    >>> snapshot = write_snapshot(tempfile.mkdtemp(), fields, Block(keys=['a', 'b'], columns={'price': [1.5, None]}))
    >>> values, valid = snapshot.rows().read('price')
    >>> values.tolist(), valid.tolist()
    ([1.5, 0.0], [True, False])
    """
    if len(set(block.keys)) != len(block.keys):
        twice = next(key for key in block.keys if list(block.keys).count(key) > 1)
        raise FieldError(f"two rows have the key '{twice}', and keys are unique in a snapshot: leave one of them out")
    splits = list(block.splits) if block.splits is not None else [''] * len(block.keys)
    shard = write_block(root, fields, block, index=0)
    counts = {name: splits.count(name) for name in set(splits)}
    return commit(root, fields, [shard], source=source, splits=counts, changes={'inserted': len(block.keys)})

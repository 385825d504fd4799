"""What changed between two snapshots, and the snapshots of a root in order of time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpipe.shards import manifest as manifests
from mmpipe.shards.gather import by_group
from mmpipe.shards.reader import Snapshot
from mmpipe.shards.root import Root, root_of
from mmpipe.shards.rows import Rows


@dataclass(frozen=True, kw_only=True)
class SnapshotDiff:
    """What a snapshot holds that an earlier one does not, and the other way round. Rows are told by their keys.

    Args:
        before: id of the earlier snapshot.
        after: id of the later one.
        added: keys of the rows that only the later one has, in its order.
        removed: keys of the rows that only the earlier one has, in its order.
        changed: field to the keys of the rows in both whose value of it differs; no field without such rows.
        resplit: keys of the rows in both that are in another split now.
        fields_added: fields that only the later one has.
        fields_removed: fields that only the earlier one has.
        fields_reformed: fields of both that are stored in another form: kind, dtype, shape or vocabulary.
    """

    before: str
    after: str
    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: Mapping[str, tuple[str, ...]]
    resplit: tuple[str, ...] = ()
    fields_added: tuple[str, ...] = ()
    fields_removed: tuple[str, ...] = ()
    fields_reformed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return any(value for name, value in vars(self).items() if name not in ('before', 'after'))

    @property
    def rows_changed(self) -> tuple[str, ...]:
        """Keys of the rows in both of which a field or the split differs, each once."""
        return tuple(dict.fromkeys(key for keys in (*self.changed.values(), self.resplit) for key in keys))

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values: counts of rows, names of fields."""
        return {
            'before': self.before,
            'after': self.after,
            'added': len(self.added),
            'removed': len(self.removed),
            'changed': {name: len(keys) for name, keys in self.changed.items()},
            'rows_changed': len(self.rows_changed),
            'resplit': len(self.resplit),
            'fields_added': list(self.fields_added),
            'fields_removed': list(self.fields_removed),
            'fields_reformed': list(self.fields_reformed),
        }

    def __str__(self) -> str:
        lines = [
            f'{self.before} -> {self.after}: {len(self.added):,} rows added, {len(self.removed):,} removed, '
            f'{len(self.rows_changed):,} changed'
        ]
        lines += [f'  field {name}: {len(keys):,} changed, {_few(keys)}' for name, keys in self.changed.items()]
        rows = {'added': self.added, 'removed': self.removed, 'in another split': self.resplit}
        lines += [f'  rows {what}: {_few(keys)}' for what, keys in rows.items() if keys]
        fields = {
            'added': self.fields_added, 'removed': self.fields_removed, 'in another form': self.fields_reformed,
        }  # fmt: skip
        lines += [f'  fields {what}: {", ".join(names)}' for what, names in fields.items() if names]
        return '\n'.join(lines)


def _few(keys: tuple[str, ...]) -> str:
    return ', '.join(keys[:3]) + (f' and {len(keys) - 3:,} more' if len(keys) > 3 else '')


def diff(before: Snapshot, after: Snapshot) -> SnapshotDiff:
    """Compare two snapshots by their stored digests; no value is decoded, and no block is opened that both hold."""
    old, new = _apart(before, after)
    place = _positions(new.keys, old.keys)
    there = place >= 0
    kept, was = new.take(np.flatnonzero(there)), old.take(place[there])
    keys = kept.keys
    shared = [name for name in after.fields if name in before.fields]
    changed = {name: _differing(keys, kept.system(digest), was.system(digest))
               for name, digest in ((name, f'_digest.{name}') for name in shared)}  # fmt: skip
    left = np.ones(len(old), dtype=bool)
    left[place[there]] = False
    return SnapshotDiff(
        before=before.id,
        after=after.id,
        added=tuple(new.keys[~there]),
        removed=tuple(old.keys[left]),
        changed={name: found for name, found in changed.items() if found},
        resplit=_differing(keys, kept.system('_split'), was.system('_split')),
        fields_added=tuple(name for name in after.fields if name not in before.fields),
        fields_removed=tuple(name for name in before.fields if name not in after.fields),
        fields_reformed=tuple(name for name in shared if after.fields[name] != before.fields[name]),
    )


def _apart(before: Snapshot, after: Snapshot) -> tuple[Rows, Rows]:
    """The rows of each that lie in blocks which the other has not; all others are in both, as they are.

    A key lies in one block of a snapshot, so a row that moved lies in such blocks on both sides.
    """
    was, now = _masks(before), _masks(after)
    moved = {block for block in was.keys() | now.keys() if was.get(block) != now.get(block)}
    one, two = _unshared(before, after, moved), _unshared(after, before, moved)
    sides = []
    for snapshot, leaves, masks in ((before, one, was), (after, two, now)):
        each = (pair for at in leaves for pair in snapshot.shards.leaf(at).signatures())
        sides.append({block: (signature, masks.get(block)) for block, signature in each})
    old, new = sides
    there = set(new.values()), set(old.values())
    apart = [[block for block, held in side.items() if held not in other]
             for side, other in zip(sides, there, strict=True)]  # fmt: skip
    return before.rows_in(np.array(apart[0], dtype=np.int64)), after.rows_in(np.array(apart[1], dtype=np.int64))


def _unshared(snapshot: Snapshot, other: Snapshot, moved: set[int]) -> list[int]:
    """Leaves that the other snapshot has not, or of which it masks other rows."""
    theirs = {branch.list for branch in other.shards.branches}
    touched = {snapshot.shards.leaf_of(block) for block in moved}
    theirs.discard(None)
    return [at for at, branch in enumerate(snapshot.shards.branches) if branch.list not in theirs or at in touched]


def _masks(snapshot: Snapshot) -> dict[int, bytes]:
    dropped = snapshot.manifest.dropped
    return {block: np.unique(dropped[where, 1]).tobytes() for block, where in by_group(dropped[:, 0])}


def _positions(wanted: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Where each key lies among others: int64, -1 where it does not."""
    kind = pa.large_string()
    found = pc.index_in(pa.array(wanted, type=kind), value_set=pa.array(among, type=kind))
    return found.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)


def _differing(keys: np.ndarray, one: np.ndarray, two: np.ndarray) -> tuple[str, ...]:
    return tuple(keys[one != two])


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """One snapshot of a root.

    Args:
        id: 16 hex digits, for `mm.open_snapshot(root, id)`.
        created: ISO 8601 time of its first commit, UTC.
        parent: id of the snapshot it extends; None for a first one.
        rows: rows it holds.
        splits: rows per split.
        fields: names of its fields.
        changes: what it changed in its parent: rows inserted, updated and dropped, values written per field (`cells`),
            names of fields added and removed.
        latest: whether it is the one that is opened without an id.
    """

    id: str
    created: str
    parent: str | None
    rows: int
    splits: Mapping[str, int]
    fields: tuple[str, ...]
    changes: Mapping[str, Any]
    latest: bool

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)

    def __str__(self) -> str:
        said = []
        for name, value in self.changes.items():
            if isinstance(value, dict):
                said += [f'{name} ' + ', '.join(f'{key} {count:,}' for key, count in value.items())] if value else []
            elif isinstance(value, list):
                said += [f'{name.replace("_", " ")} {", ".join(value)}'] if value else []
            elif value:
                said.append(f'{value:,} {name}' if isinstance(value, int) else f'{name} {value}')
        mark = '*' if self.latest else ' '
        return f'{mark} {self.id}  {self.created[:19]}Z  {self.rows:>9,} rows  {"; ".join(said) or "no change"}'


def log(root: str | Path | Root) -> tuple[LogEntry, ...]:
    """The snapshots of a root, newest first. Reads only the heads of their manifests.

    Args:
        root: directory or URL of the snapshots.

    Returns:
        One entry per snapshot that can be opened by its id; none for a root without any.

    Raises:
        ShardError: a damaged manifest.

    >>> import tempfile
    >>> from mmpipe.shards import Block, Field, write_snapshot
    >>> fields, root = [Field(name='price', kind='scalar', dtype='float32')], tempfile.mkdtemp()
    >>> _ = write_snapshot(root, fields, Block(keys=['a'], columns={'price': [1.0]}))
    >>> _ = write_snapshot(root, fields, Block(keys=['a', 'b'], columns={'price': [1.0, 2.0]}))
    >>> [(entry.rows, entry.latest, dict(entry.changes)) for entry in log(root)]
    [(2, True, {'inserted': 2}), (1, False, {'inserted': 1})]
    """
    root = root_of(root)
    latest = manifests.latest_id(root)
    heads = manifests.load_heads(root)
    return tuple(
        LogEntry(
            id=identity,
            created=head['created'],
            parent=head['parent'],
            rows=sum(head['splits'].values()),
            splits=head['splits'],
            fields=tuple(item['name'] for item in head['fields']),
            changes=head.get('changes', {}),
            latest=identity == latest,
        )
        for identity, head in sorted(heads.items(), key=lambda item: item[1]['created'], reverse=True)
    )

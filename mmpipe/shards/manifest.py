"""The manifest of a snapshot: a small checksummed JSON head, and Arrow tables that list its shards.

    root/LATEST                    the id of the current snapshot
    root/manifests/<id>.json       head: fields, splits, definition, and the names and digests of the next two
    root/manifests/<sha>.arrow     shard list: block, path, fields, rows, bytes, sha256
    root/masks/<sha>.arrow         dropped rows: block, row
    root/shards/<sha>.arrow        the data
    root/versions/<id>.json        versions of the tables at which the snapshot's content was what it holds

A *block* is a run of rows; its fields may lie in several shards. One of them, the one that lists `_key`, holds the
system columns (`_key`, `_hash`, `_split`, `_rowid`); a field that was added or computed again later lies in a shard of
its own beside it. A shard that lists `_row` is a *patch*: it holds a field of a few rows of the block, which take the
place of theirs. A digest lies beside its value. A field counts only where it is listed: what else a file holds was
replaced. Sample order is block order, then row order. Everything but LATEST and versions/ is immutable and named by
its content; on an object store `latest/` takes the place of LATEST (`mmpipe.shards.objects`). Versions stand apart
because tables get new ones without any change of content; each state of such a file is true of its snapshot, so it is
written before the pointer, and losing it costs a look at every row.

A snapshot of more than `FLAT_SHARDS` shards has a tree in place of its list (format version 2; `mmpipe.shards.tree`):

    root/manifests/<sha>.arrow     tree: a row per leaf, with the digests of the next three
    root/manifests/<sha>.arrow     leaf: the shards of up to 2048 blocks
    root/manifests/<sha>.arrow     its index: hash of the key and split of each row
    root/manifests/<sha>.arrow     its index: hash of the store's name of each row

Its shards are not looked at before they are read, and a leaf not before one of its shards is asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from dataclasses import field as dataclass_field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from mmpipe.errors import ShardError
from mmpipe.shards.field import Field
from mmpipe.shards.files import put, sha256_of, table_bytes
from mmpipe.shards.grow import check_files, save_tree
from mmpipe.shards.leaf import LEAF_BLOCKS, SHARD_LIST, Leaf, Shard, numbers
from mmpipe.shards.root import Moved, Pointer, Root, root_of
from mmpipe.shards.tree import Branch, Named, ShardList

FORMAT = 'mmpipe-shards'
FLAT, TREE_OF_LEAVES = VERSIONS = 1, 2
FLAT_SHARDS = LEAF_BLOCKS  # shards of a snapshot whose list is one file
MOVES = 16  # of a pointer that is to be moved wherever it is, while others move it too

DROPPED_LIST = pa.schema([('block', pa.int64()), ('row', pa.int64())])


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Everything that defines a snapshot. Its id is a digest of all but parent, time, changes and versions.

    Args:
        fields: the fields, in declaration order.
        shards: the files, ordered by block; of one that was read, a `ShardList`.
        dropped: `[k, 2]` int64 array of (block, row) that are no longer part of the snapshot, sorted.
        source: where the rows came from: table, filter, field expressions. JSON values only.
        splits: live rows per split.
        parent: id of the snapshot this one extends.
        created: ISO 8601 time of the commit, UTC.
        changes: counts of what it changed in the one it extends, when it was committed first. JSON.
        versions: versions of the tables it is pinned to, the newest ones with this content; empty when not known. JSON.
    """

    fields: tuple[Field, ...]
    shards: Sequence[Shard]
    dropped: np.ndarray
    source: dict[str, Any]
    splits: dict[str, int]
    parent: str | None = None
    created: str = ''
    changes: dict[str, Any] = dataclass_field(default_factory=dict, compare=False)
    versions: dict[str, Any] = dataclass_field(default_factory=dict, compare=False)
    id: str = dataclass_field(default='', compare=False)


def save(root: Root, manifest: Manifest, after: Pointer | Literal['any'] | None = 'any') -> str:
    """Write a manifest and move the pointer to it: the commit. What is there already is not written again.

    Args:
        root: snapshot root.
        manifest: what to commit.
        after: the pointer as it was when the snapshot was begun; 'any' to move it wherever it is.

    Returns:
        The snapshot id, 16 hex digits.

    Raises:
        Moved: the pointer is another one than `after` by now, and not of this very snapshot.
    """
    names = [item.name for item in manifest.fields]
    if len(manifest.shards) <= FLAT_SHARDS:
        version, listed = FLAT, _save_list(root, list(manifest.shards), names)
    else:
        version, listed = TREE_OF_LEAVES, save_tree(root, _as_tree(root, manifest.shards, names), _latest_tree(root))
    dropped = pa.table({'block': manifest.dropped[:, 0], 'row': manifest.dropped[:, 1]}, schema=DROPPED_LIST)
    mask_path, mask_sha = put(root, 'masks', table_bytes(dropped), '.arrow')
    content = {
        'format': FORMAT,
        'version': version,
        'fields': [item.to_json() for item in manifest.fields],
        'shards': listed,
        'dropped': {'path': mask_path, 'sha256': mask_sha, 'rows': len(manifest.dropped)},
        'source': manifest.source,
        'splits': manifest.splits,
    }
    identity = _checksum(content)[:16]
    head_file = root.entry(head_path(identity))
    if head_file is not None:  # as it was committed first
        if not root.renew(head_path(identity), head_file.size):
            root.write(head_path(identity), root.read(head_path(identity)))
    else:
        about = {name: getattr(manifest, name) for name in ('parent', 'created', 'changes')}
        head = {'id': identity, **content, **about}
        head['checksum'] = _checksum(head)
        root.write(head_path(identity), json.dumps(head, indent=1).encode())
    if manifest.versions and manifest.versions != load_versions(root, identity):
        content = {'versions': manifest.versions, 'checksum': _checksum(manifest.versions)}
        root.write(versions_path(identity), (json.dumps(content, indent=2, allow_nan=False) + '\n').encode())
    _move(root, identity, after)
    return identity


def _save_list(root: Root, shards: Sequence[Shard], names: Sequence[str]) -> dict[str, Any]:
    """Write the list of few shards; returns what the head says of it."""
    Leaf.of(shards).check(names, 'to be written')
    check_files(root, shards, 'to be written')
    rows = {name: [getattr(shard, name) for shard in shards] for name in SHARD_LIST.names}
    rows['fields'] = [list(shard.fields) for shard in shards]
    path, sha = put(root, 'manifests', table_bytes(pa.table(rows, schema=SHARD_LIST)), '.arrow')
    return {'path': path, 'sha256': sha, 'files': len(shards)}


def _as_tree(root: Root, shards: Sequence[Shard], names: Sequence[str]) -> ShardList:
    """Shards in leaves; those of a snapshot of this root stay as they are written."""
    same = isinstance(shards, ShardList) and not shards.flat and shards.root.absolute() == root.absolute()
    if isinstance(shards, ShardList) and same and sorted(shards.names) == sorted(names):
        return shards
    return ShardList.of(root, shards, names=names, identity='to be written')


def _latest_tree(root: Root) -> ShardList | None:
    """The leaves of the current snapshot, which need not be written and looked through again."""
    identity = latest_id(root)
    try:
        found = None if identity is None else load(root, identity).shards
    except ShardError:  # a new snapshot needs nothing of a damaged one
        return None
    return found if isinstance(found, ShardList) and not found.flat else None


def _move(root: Root, identity: str, after: Pointer | Literal['any'] | None) -> None:
    for left in reversed(range(MOVES)):
        now = root.latest() if after == 'any' else after
        if now is not None and now.id == identity:
            return
        try:
            return root.move(identity, now)
        except Moved:
            now = root.latest()
            if now is not None and now.id == identity:  # two writers, one content
                return
            if after != 'any' or not left:
                raise


def load_versions(root: str | Path | Root, identity: str) -> dict[str, Any]:
    """Versions of the tables a snapshot is pinned to; empty where the file is missing or damaged."""
    try:
        found = json.loads(root_of(root).read(versions_path(identity)))
        return found['versions'] if _checksum(found['versions']) == found['checksum'] else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def versions_path(identity: str) -> str:
    """Path of the table versions of a snapshot, relative to the root."""
    return f'versions/{identity}.json'


def head_path(identity: str) -> str:
    """Path of a manifest's head, relative to the root."""
    return f'manifests/{identity}.json'


def files_of(root: str | Path | Root, identity: str) -> set[str]:
    """Paths of all files a snapshot needs, relative to the root.

    Raises:
        ShardError: no such snapshot, or damage that hides what it needs.
    """
    root = root_of(root)
    head = load_head(root, identity)
    listed = head['shards']
    found = {head_path(identity), versions_path(identity), listed['path'], head['dropped']['path']}
    if head['version'] == FLAT:
        found.update(_read_checked(root, listed)['path'].to_pylist())
        return found
    tree = _tree(root, head, _read_checked(root, listed))
    for at, branch in enumerate(tree.branches):
        found.update(named.path for named in (branch.list, branch.keys, branch.rowids) if named is not None)
        found.update(tree.leaf(at).paths())
    return found


def _tree(root: Root, head: Mapping[str, Any], table: pa.Table) -> ShardList:
    return ShardList.read(root, table, names=[item['name'] for item in head['fields']], identity=head['id'])


def _checksum(content: Any) -> str:
    return sha256_of(json.dumps(content, sort_keys=True).encode())


def latest_id(root: str | Path | Root) -> str | None:
    """Id of the current snapshot of a root; None when nothing was committed there."""
    pointer = root_of(root).latest()
    return None if pointer is None else pointer.id


def load_head(root: Root, identity: str) -> dict[str, Any]:
    """Read and check the head of a manifest: all but its lists of shards and of dropped rows.

    Raises:
        ShardError: no such snapshot, a checksum that does not match, or another format version.
    """
    try:
        content = root.read(head_path(identity))
    except FileNotFoundError:
        have = ', '.join(ids(root)) or 'none'
        raise ShardError(
            f"no snapshot '{identity}' in '{root.text}'; there: {have}. Open one of these, or the latest."
        ) from None
    return _head(root.at(head_path(identity)), content)


def load_heads(root: Root) -> dict[str, dict[str, Any]]:
    """The heads of all snapshots of a root, by their ids; as `load_head`."""
    found = root.read_many([head_path(identity) for identity in ids(root)])
    return {_id_of(name): _head(root.at(name), content) for name, content in found.items()}


def _head(path: str, content: bytes) -> dict[str, Any]:
    try:
        head = json.loads(content)
        checksum = head.pop('checksum')
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ShardError(
            f"'{path}' is not a manifest ({error}). Restore the file, or open an older snapshot by id."
        ) from None
    if _checksum(head) != checksum:
        raise ShardError(f"'{path}' does not match its checksum. Restore the file, or open an older snapshot by id.")
    if head['format'] != FORMAT or head['version'] not in VERSIONS:
        raise ShardError(
            f"'{path}' has format {head['format']} {head['version']}, this mmpipe reads {FORMAT} "
            f'{" and ".join(map(str, VERSIONS))}. '
            f'Install the mmpipe that wrote it, or write the snapshot again into a new root.'
        )
    return head


def ids(root: str | Path | Root) -> list[str]:
    """Ids of the snapshots of a root, in alphabetical order."""
    return sorted(_id_of(name) for name in root_of(root).entries('manifests') if name.endswith('.json'))


def _id_of(name: str) -> str:
    return name.rpartition('/')[2].removesuffix('.json')


def load(root: Root, identity: str | None = None) -> Manifest:
    """Read and check a manifest.

    Args:
        root: snapshot root.
        identity: snapshot id; the latest when None.

    Raises:
        ShardError: no such snapshot, a checksum that does not match, or another format version; of few shards in a
            directory a missing one too, which otherwise is found when it is read.
    """
    identity = identity or latest_id(root)
    if identity is None:
        raise ShardError(
            f"no snapshot in '{root.text}'. Write one with mm.snapshot(...) or `mmpipe snapshot PIPELINE`."
        )
    head = load_head(root, identity)
    parts = root.read_many([head['shards']['path'], head['dropped']['path']])
    listed = _checked(root, head['shards'], parts)
    dropped = _checked(root, head['dropped'], parts)
    fields = tuple(Field.from_json(item) for item in head['fields'])
    if head['version'] == TREE_OF_LEAVES:
        shards = _tree(root, head, listed)
    else:
        names, leaf = [item.name for item in fields], Leaf.read_flat(listed)
        leaf.check(names, identity)
        named = Named(head['shards']['sha256'], len(parts[head['shards']['path']]))
        branches = [replace(Branch.of(0, leaf), list=named)]
        shards = ShardList(root, branches, names=names, identity=identity, flat=True)
        if not root.remote:
            check_files(root, shards, identity)
    return Manifest(
        fields=fields,
        shards=shards,
        dropped=np.stack([numbers(dropped['block']), numbers(dropped['row'])], axis=1),
        source=head['source'],
        splits=head['splits'],
        parent=head['parent'],
        created=head['created'],
        changes=head.get('changes', {}),
        versions=load_versions(root, identity),
        id=identity,
    )


def _read_checked(root: Root, entry: dict[str, Any]) -> pa.Table:
    return _checked(root, entry, root.read_many([entry['path']]))


def _checked(root: Root, entry: dict[str, Any], parts: Mapping[str, bytes]) -> pa.Table:
    file, data = root.at(entry['path']), parts.get(entry['path'])
    if data is None:
        raise ShardError(f"'{file}' is missing. Restore it, or open an older snapshot by id.")
    if sha256_of(data) != entry['sha256']:
        raise ShardError(f"'{file}' does not match its digest. Restore it, or open an older snapshot by id.")
    return pa.ipc.open_file(pa.BufferReader(data)).read_all()

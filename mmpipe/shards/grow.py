"""Write the leaves of a tree that are not written yet, with the indexes of their rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from mmpipe.errors import ShardError
from mmpipe.shards.files import put, sha256_of, table_bytes
from mmpipe.shards.index import keys_table, read_system, rowids_table
from mmpipe.shards.leaf import Leaf, Shard
from mmpipe.shards.root import Root
from mmpipe.shards.tree import THREADS, Branch, Named, ShardList, read_table

FEW = 1000  # files that are looked at one by one: an object store lists so many in a request


def save_tree(root: Root, shards: ShardList, latest: ShardList | None) -> dict[str, Any]:
    """Write a tree, and those of its leaves that are new.

    Args:
        root: where.
        shards: what is to be listed.
        latest: the list of the current snapshot: leaves that it has are there, with their indexes.

    Returns:
        What the head says of it.

    Raises:
        ShardError: a shard or a leaf that is missing, or a block that is not whole.
    """
    there = {branch.number: branch for branch in latest.branches} if latest is not None else {}
    branches = []
    for at, branch in enumerate(shards.branches):
        before = there.get(branch.number)
        if branch.list is None:
            branch = _written(root, branch, shards.leaf(at), shards.names, branch.before or before)
        if before is None or before.list != branch.list:  # of an older snapshot, which may have been removed
            _check_branch(root, branch)
        branches.append(branch)
    whole = ShardList(root, branches, names=shards.names, identity=shards.identity)
    path, sha = put(root, 'manifests', table_bytes(whole.table()), '.arrow')
    return {'path': path, 'sha256': sha, 'files': len(whole), 'leaves': len(branches)}


def check_files(root: Root, shards: Iterable[Shard], identity: str, *, few: bool = False) -> None:
    """Look whether shards are there with their bytes.

    Args:
        root: where.
        shards: which.
        identity: id of their snapshot, for messages.
        few: whether they are a small part of those that are there.

    Raises:
        ShardError: one is not.
    """
    shards = list(shards)
    names = {shard.path for shard in shards}
    # Of many, listing all that a store holds takes fewer requests; of the few that are new among very many it does not.
    sizes = _sizes_of(root, names) if few and len(names) <= FEW else root.sizes(names)
    for shard in shards:
        if sizes.get(shard.path) != shard.bytes:
            raise ShardError(
                f"shard '{root.at(shard.path)}' of snapshot '{identity}' is missing or has not its "
                f'{shard.bytes} bytes. Restore it, or write the snapshot again into a new root.'
            )


def _sizes_of(root: Root, names: Iterable[str]) -> dict[str, int]:
    names = list(names)
    with ThreadPoolExecutor(THREADS) as pool:
        found = dict(zip(names, pool.map(root.entry, names), strict=True))
    return {name: entry.size for name, entry in found.items() if entry is not None}


def _written(root: Root, branch: Branch, leaf: Leaf, names: Sequence[str], before: Branch | None) -> Branch:
    leaf.check(names, 'to be written')
    data = table_bytes(leaf.table())
    if before is not None and before.list is not None and _name(data) == before.list:
        return before
    old = None
    if before is not None and before.list is not None:
        old = before.leaf or Leaf.read(read_table(root, before.list))
    known = set() if old is None else set(old.digests.tolist())
    fresh = [leaf[at] for at, digest in enumerate(leaf.digests.tolist()) if digest not in known]
    check_files(root, fresh, 'to be written', few=True)
    keys, rowids = _indexes(root, leaf, old, before)
    put(root, 'manifests', data, '.arrow')
    return replace(branch, list=_name(data), keys=_put(root, keys), rowids=_put(root, rowids), leaf=leaf, before=None)


def _indexes(root: Root, leaf: Leaf, old: Leaf | None, before: Branch | None) -> tuple[pa.Table, pa.Table]:
    """Of rows of shards that were there, from the index of before; of others, from the shards."""
    at: dict[bytes, tuple[int, int]] = {}
    if old is not None and before is not None and before.keys and before.rowids and before.rows:
        rows = old.rows[old.anchors]
        starts = np.cumsum(rows) - rows
        digests = old.digests[old.anchors].tolist()
        at = {digest: (int(a), int(n)) for digest, a, n in zip(digests, starts, rows, strict=True)}
        keys, rowids = read_table(root, before.keys), read_table(root, before.rowids)
        was = (keys['_hash'].chunk(0).to_numpy(), keys['_split'].chunk(0), rowids['_rowid'].chunk(0).to_numpy())
    anchors = [(i, leaf.digest(i)) for i in leaf.anchors.tolist()]
    unknown = [i for i, digest in anchors if digest not in at]
    read = dict(zip(unknown, read_system(root, [leaf[i] for i in unknown]), strict=True))
    hashes, splits, names = [], [], []
    for i, digest in anchors:
        if i in read:
            found = read[i]
        else:
            start, count = at[digest]
            part = slice(start, start + count)
            found = was[0][part], was[1][part].cast(pa.string()), was[2][part]
        hashes.append(found[0])
        splits.append(found[1])
        names.append(found[2])
    none = np.zeros(0, dtype=np.uint64)
    split = pa.concat_arrays(splits) if splits else pa.array([], type=pa.string())
    return keys_table(np.concatenate([none, *hashes]), split), rowids_table(np.concatenate([none, *names]))


def _put(root: Root, table: pa.Table) -> Named:
    data = table_bytes(table)
    put(root, 'manifests', data, '.arrow')
    return _name(data)


def _name(data: pa.Buffer) -> Named:
    return Named(sha256_of(data), data.size)


def _check_branch(root: Root, branch: Branch) -> None:
    for named in (branch.list, branch.keys, branch.rowids):
        found = None if named is None else root.entry(named.path)
        if named is not None and (found is None or found.size != named.bytes):
            raise ShardError(
                f"'{root.at(named.path)}' is missing or has not its {named.bytes} bytes: a collection removed the "
                f'snapshot that is extended. Begin again on top of the current one.'
            )

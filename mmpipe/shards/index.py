"""What every row needs to be put in order, split and found, of all rows of a leaf in two files.

    _hash  _split          `Rows.hashes` and splits: what a loader reads of all rows
    _rowid                 hash of the store's name of the row: what the next snapshot looks for

Rows lie as their blocks do, masked ones among them. So an epoch over 10^6 shards is ordered without opening one, and a
row is found by its key or name in the few blocks that may hold it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from mmpipe.errors import ShardError
from mmpipe.shards.column import one_array

if TYPE_CHECKING:
    from mmpipe.shards.leaf import Shard
    from mmpipe.shards.root import Root

THREADS = 16  # shards of an object store that are read at once


def key_hash(key: str) -> int:
    """64-bit BLAKE2b hash of a row key; the order of an epoch is made from it.

    >>> key_hash('cat-01') == key_hash('cat-01'), key_hash('cat-01') == key_hash('cat-02')
    (True, False)
    """
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), 'little')


def hashes_of(texts: Iterable[str]) -> np.ndarray:
    """`key_hash` of each: uint64 `[n]`."""
    return np.array([key_hash(text) for text in texts], dtype=np.uint64)


def keys_table(hashes: np.ndarray, splits: pa.Array) -> pa.Table:
    """The index that orders and splits rows.

    Args:
        hashes: uint64 `[n]`.
        splits: `[n]` strings, or such a dictionary.

    >>> keys_table(np.array([7], dtype=np.uint64), pa.array(['train'])).schema.field('_split').type
    DictionaryType(dictionary<values=string, indices=int8, ordered=0>)
    """
    found = splits if pa.types.is_dictionary(splits.type) else splits.dictionary_encode()
    names = found.dictionary.to_pylist()
    used = [names[code] for code in np.unique(found.indices.to_numpy(zero_copy_only=False)).tolist()]
    order = {name: code for code, name in enumerate(sorted(used))}  # not as they were met: equal rows, equal bytes
    place = np.array([order.get(name, 0) for name in names] or [0])
    codes = place[found.indices.to_numpy(zero_copy_only=False)]
    width = pa.int8() if len(order) < 128 else pa.int32()
    column = pa.DictionaryArray.from_arrays(pa.array(codes, type=width), pa.array(list(order), type=pa.string()))
    return pa.table({'_hash': pa.array(hashes, type=pa.uint64()), '_split': column})


def rowids_table(hashes: np.ndarray) -> pa.Table:
    """The index that finds rows by the store's names for them, of their hashes: uint64 `[n]`."""
    return pa.table({'_rowid': pa.array(hashes, type=pa.uint64())})


def read_system(root: Root, shards: Sequence[Shard]) -> list[tuple[np.ndarray, pa.Array, np.ndarray]]:
    """Hashes, splits and hashes of row names of some shards that hold the system columns.

    Raises:
        ShardError: one is missing or damaged, or the store cannot be read.
    """

    def read(shard: Shard) -> tuple[np.ndarray, pa.Array, np.ndarray]:
        table = _columns(root, shard)
        if not shard.rows:
            return np.zeros(0, dtype=np.uint64), pa.array([], type=pa.string()), np.zeros(0, dtype=np.uint64)
        hashes = one_array(table['_hash']).to_numpy(zero_copy_only=False)
        return hashes, one_array(table['_split']).cast(pa.string()), hashes_of(table['_rowid'].to_pylist())

    if not root.remote or len(shards) < 2:
        return [read(shard) for shard in shards]
    with ThreadPoolExecutor(min(THREADS, len(shards))) as pool:
        return list(pool.map(read, shards))


def _columns(root: Root, shard: Shard) -> pa.Table:
    names, where = ['_hash', '_split', '_rowid'], root.at(shard.path)
    try:
        if root.remote:
            from mmpipe.shards import copies
            from mmpipe.shards.parts import SMALLEST
            from mmpipe.shards.ranges import Ranges

            if shard.bytes >= SMALLEST and not copies.has(shard.sha256, shard.bytes):
                ranges = Ranges(lambda start, end: root.read_range(shard.path, start, end), shard.bytes, url=where)
                return pa.table({name: ranges.column(name) for name in names})
        table = (
            pa.ipc.open_file(root.mapped(shard.path, size=shard.bytes, sha256=shard.sha256)).read_all().select(names)
        )
    except FileNotFoundError:
        raise ShardError(
            f"shard '{where}' is missing. Restore it, or write the snapshot again into a new root."
        ) from None
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ShardError(
            f"shard '{where}' cannot be read ({error}). Restore it, or write the snapshot again into a new root."
        ) from error
    if len(table) != shard.rows:
        raise ShardError(
            f"shard '{where}' holds {len(table)} rows, and {shard.rows} are listed. Restore it, or write the snapshot "
            f'again into a new root.'
        )
    return table

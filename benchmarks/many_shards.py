"""A snapshot of very many shards, of which only those that are read need to be written.

Every entry of the manifest is true: digest, size and rows are those of the file that `shard_bytes` gives for its block,
byte for byte what `mmpipe.shards.write_block` writes. The file itself is made where `write_shards` is asked for it:
10^6 files take many minutes, and what is measured reads a few hundred of them. Which ones are there is up to who
measures, and is to be said beside the figures.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from mmpipe.shards import Block, Field, Snapshot, commit, write_block
from mmpipe.shards.files import put, sha256_of, table_bytes
from mmpipe.shards.index import keys_table, rowids_table
from mmpipe.shards.leaf import LEAF_BLOCKS, Leaf, path_of
from mmpipe.shards.root import LocalRoot
from mmpipe.shards.tree import Branch, Named, ShardList

FIELD = Field(name='pixels', kind='tensor', dtype='uint8', shape=(3, 8, 8))
FIELDS = [FIELD]
LISTED = ('_key', 'pixels')
KINDS = 16  # different values; keys, and so shards, are all different


def rows_of(block: int) -> int:
    """1 to 4."""
    return 1 + block % 4


def split_of(block: int) -> str:
    return 'val' if block % 10 == 3 else 'train'


def keys_of(block: int) -> list[str]:
    return [f'{block:08d}-{row}' for row in range(rows_of(block))]


def rows_block(block: int) -> Block:
    """What a shard holds, as a user would write it."""
    values = [np.full(FIELD.shape, block % KINDS * 4 + row, dtype=np.uint8) for row in range(rows_of(block))]
    return Block(keys=keys_of(block), columns={'pixels': values}, splits=[split_of(block)] * len(values))


@cache
def _template(count: int, split: str, kind: int) -> tuple[bytes, tuple[int, int, int]]:
    """The bytes of one such shard, and where keys, hashes and names of rows begin in it."""
    block = next(b for b in range(1000) if (rows_of(b), split_of(b), b % KINDS) == (count, split, kind))
    with tempfile.TemporaryDirectory() as folder:
        data = (Path(folder) / write_block(folder, FIELDS, rows_block(block), index=0).path).read_bytes()
    text = ''.join(keys_of(block)).encode()
    first = data.index(text)
    return data, (first, data.index(_hashes(block)), data.index(text, first + 1))


def _hashes(block: int) -> bytes:
    return b''.join(hashlib.blake2b(key.encode(), digest_size=8).digest() for key in keys_of(block))


def shard_bytes(block: int) -> bytes:
    """The file of a block."""
    data, (keys, hashes, rowids) = _template(rows_of(block), split_of(block), block % KINDS)
    text, numbers = ''.join(keys_of(block)).encode(), _hashes(block)
    out = bytearray(data)
    for start, part in ((keys, text), (hashes, numbers), (rowids, text)):
        out[start : start + len(part)] = part
    return bytes(out)


def write_shards(root: Path, blocks: Iterable[int]) -> None:
    """Make the files of some blocks."""
    (root / 'shards').mkdir(parents=True, exist_ok=True)
    for block in blocks:
        data = shard_bytes(block)
        (root / path_of(sha256_of(data))).write_bytes(data)


def write_manifest(root: Path, blocks: int) -> Snapshot:
    """A snapshot of so many blocks, of which no shard is there."""
    place, branches = LocalRoot(root), []
    for number in range(-(-blocks // LEAF_BLOCKS)):
        mine = range(number * LEAF_BLOCKS, min(blocks, (number + 1) * LEAF_BLOCKS))
        files = [shard_bytes(block) for block in mine]
        leaf = Leaf(
            block=np.array(mine, dtype=np.int64),
            rows=np.array([rows_of(block) for block in mine], dtype=np.int64),
            bytes=np.array([len(data) for data in files], dtype=np.int64),
            digests=np.frombuffer(b''.join(hashlib.sha256(data).digest() for data in files), dtype='V32'),
            layout=np.zeros(len(mine), dtype=np.int32),
            layouts=[LISTED],
        )
        hashes = np.frombuffer(b''.join(_hashes(block) for block in mine), dtype='<u8')
        splits = pa.array([split_of(block) for block in mine for _ in range(rows_of(block))])
        made = [leaf.table(), keys_table(hashes, splits), rowids_table(hashes)]
        names = [_put(place, table_bytes(table)) for table in made]
        rows = int(leaf.rows.sum())
        branches.append(
            Branch(
                number=number,
                blocks=len(mine),
                shards=len(mine),
                rows=rows,
                list=names[0],
                keys=names[1],
                rowids=names[2],
            )
        )
    counts = {'train': 0, 'val': 0}
    for block in range(blocks):
        counts[split_of(block)] += rows_of(block)
    return commit(place, FIELDS, ShardList(place, branches, names=['pixels']), splits=counts)


def _put(place: LocalRoot, data: pa.Buffer) -> Named:
    _, sha256 = put(place, 'manifests', data, '.arrow')
    return Named(sha256, data.size)

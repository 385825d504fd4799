"""A loader over shards of an object store: the batches of a directory, each shard fetched once and ahead of its use."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from object_roots import delete

import mmpipe as mm
from mmpipe.errors import ShardError
from mmpipe.shards import Block, Field, commit, copies, open_snapshot, write_block

PHOTO = Field(name='photo', kind='tensor', dtype='uint8', shape=(3, 112, 112))
KIND = Field(name='kind', kind='label', vocabulary=('cat', 'dog'))
BLOCKS, ROWS = 9, 40


def write(root):
    made = []
    for index in range(BLOCKS):
        draw = np.random.default_rng(index)
        photos = list(draw.integers(0, 256, (ROWS, 3, 112, 112), dtype=np.uint8))
        kinds = [None if i == 3 else ('cat', 'dog')[int(draw.integers(2))] for i in range(ROWS)]
        block = Block(keys=[f'{index}-{i}' for i in range(ROWS)], columns={'photo': photos, 'kind': kinds})
        made.append(write_block(root, [PHOTO, KIND], block, index=index))
    return commit(root, [PHOTO, KIND], made, splits={'': BLOCKS * ROWS})


@pytest.fixture
def store(front, request):
    front.reset()
    return f's3://shards/{re.sub(r"[^a-z0-9]", "-", request.node.name)}', front


def forget():
    for file in copies.shard_cache_dir().glob('**/*'):
        if file.is_file():
            file.unlink()


def batches(root, workers, sampler):
    rows = open_snapshot(root).rows()
    loader = mm.DataLoader(rows, batch_size=16, sampler=sampler, seed=4, device='cpu', num_workers=workers)
    return [(batch['_key'], batch['photo'], batch['kind'], batch['_mask']['kind']) for batch in loader]


@pytest.mark.parametrize('workers', [0, 2])
def test_batches_are_those_of_a_directory(tmp_path, store, workers):
    url, _ = store
    write(tmp_path)
    write(url)
    forget()
    for sampler in (mm.sampling.BlockShuffle(window=2), mm.sampling.Shuffle()):
        for ours, theirs in zip(batches(url, workers, sampler), batches(tmp_path, workers, sampler), strict=True):
            assert ours[0] == theirs[0]
            assert all(torch.equal(a, b) for a, b in zip(ours[1:], theirs[1:], strict=True))


def test_in_block_order_hardly_a_shard_is_fetched_twice_though_the_cache_holds_a_third_of_them(store, monkeypatch):
    url, front = store
    snapshot = write(url)
    size = sum(shard.bytes for shard in snapshot.manifest.shards)
    monkeypatch.setenv(copies.LIMIT_VARIABLE, str(size / 3 / 1e9))
    forget()
    front.sent.clear()
    found = batches(url, 2, mm.sampling.BlockShuffle(window=1))
    assert sorted(key for keys, *_ in found for key in keys) == sorted(snapshot.rows().keys)
    whole = [path for path, count in front.sent if count > size / BLOCKS / 2]
    # Two threads read at once: one may still look for a row of a block when the next blocks have taken its place.
    assert len(set(whole)) == BLOCKS <= len(whole) <= BLOCKS + 2
    assert front.bytes < 1.5 * size  # and of each its keys, before the order is known
    assert sum(file.stat().st_size for file in copies.shard_cache_dir().glob('*/*.arrow')) <= size / 3


@pytest.mark.parametrize('workers', [0, 2])
def test_a_shard_that_is_gone_is_an_error_that_names_it(store, workers):
    url, _ = store
    snapshot = write(url)
    gone = snapshot.manifest.shards[4]
    delete(url, gone.path)
    forget()
    with pytest.raises(ShardError, match=gone.path.rpartition('/')[2]):
        batches(url, workers, mm.sampling.Shuffle())

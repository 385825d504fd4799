"""Compaction: full blocks in the same order, in bounded memory. What it does to deltas is in tests/snapshots."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from memory import peak_memory
from snapshots import files

from mmpipe.cli import app
from mmpipe.errors import ConfigError, ShardError
from mmpipe.shards import Block, Field, compact, log, open_snapshot, write_block
from mmpipe.shards import files as shard_files
from mmpipe.shards import writer as writing

VECTOR = Field(name='vector', kind='tensor', dtype='float32', shape=(64,))
ROW = 64 * 4


def write(root, sizes, *, masked=(), first=0):
    """A snapshot of blocks with these numbers of rows, some of which are masked."""
    shards, number = [], first
    for index, size in enumerate(sizes):
        numbers = range(number, number + size)
        number += size
        columns = {'vector': [None if n % 7 == 3 else np.full(64, n, dtype=np.float32) for n in numbers]}
        block = Block(keys=[f'k{n}' for n in numbers], columns=columns, splits=['train'] * size)
        shards.append(write_block(root, [VECTOR], block, index=index))
    dropped = np.array(sorted(masked), dtype=np.int64).reshape(-1, 2)
    return writing.commit(
        root, [VECTOR], shards, dropped=dropped, splits={'train': sum(sizes) - len(dropped)},
        source={'table': 'a/b'}, versions={'a/b': [['id', 3, 1.5]]},
    )  # fmt: skip


def held(snapshot):
    rows = snapshot.rows()
    values, valid = rows.read('vector')
    return {name: rows.system(name).tolist() for name in ('_key', '_hash', '_split', '_rowid', '_digest.vector')} | {
        'values': values.tolist(), 'valid': valid.tolist(),
    }  # fmt: skip


def sizes_of(snapshot):
    return [shard.rows for shard in snapshot.manifest.shards]


def test_small_and_masked_blocks_become_full_ones_and_full_ones_stay_as_they_are(tmp_path):
    old = write(tmp_path, [5, 100, 7, 1, 60, 60, 100, 9], masked=[(4, row) for row in range(0, 60, 2)])
    before = files(tmp_path)
    made = compact(tmp_path, block_bytes=100 * ROW)
    # 5 stays, since it has no small neighbour; 7, 1 and the 30 left of the masked 60 are one; the last one is alone too
    assert sizes_of(made) == [5, 100, 38, 60, 100, 9]
    assert sorted({shard.block for shard in made.manifest.shards}) == list(range(6))
    assert held(made) == held(old)
    after = files(tmp_path)
    assert {name: after[name] for name in before if name != 'LATEST'} == {n: before[n] for n in before if n != 'LATEST'}
    assert len([name for name in after.keys() - before.keys() if name.startswith('shards/')]) == 1
    assert (made.manifest.parent, made.manifest.source, made.versions) == (old.id, old.manifest.source, old.versions)
    assert (made.splits, len(made.manifest.dropped)) == (old.splits, 0)
    assert 'compacted 8 blocks into 6, without 30 masked rows' in str(log(tmp_path)[0])
    assert held(open_snapshot(tmp_path, old.id)) == held(old)


def test_blocks_are_cut_where_they_are_full_and_a_second_compaction_does_nothing(tmp_path):
    old = write(tmp_path, [30] * 10)
    made = compact(tmp_path, block_bytes=100 * ROW)
    assert sizes_of(made) == [83, 82, 82, 53]  # keys and digests take room beside the vectors
    assert held(made) == held(old)
    before = files(tmp_path)
    assert compact(tmp_path, block_bytes=100 * ROW).id == made.id
    assert files(tmp_path) == before


def test_a_snapshot_that_is_committed_meanwhile_is_not_lost(tmp_path, monkeypatch):
    write(tmp_path, [3, 3])
    put = shard_files.put

    def meanwhile(*args):
        monkeypatch.undo()
        write(tmp_path, [4])
        return put(*args)

    monkeypatch.setattr(shard_files, 'put', meanwhile)
    with pytest.raises(ShardError, match=r'got another snapshot than .*: compact again'):
        compact(tmp_path)
    assert len(open_snapshot(tmp_path)) == 4
    with pytest.raises(ShardError, match='no snapshot'):
        compact(tmp_path / 'nothing')


def test_it_takes_memory_for_a_few_blocks_however_many_there_are(tmp_path):
    rows, block = 100, 400 * ROW
    write(tmp_path, [rows] * 60, masked=[(index, 0) for index in range(60)])
    with peak_memory() as peak:
        made = compact(tmp_path, block_bytes=block)
    assert len(made) == 60 * 99
    assert len(made.manifest.shards) == 19
    assert peak.bytes < 8 * block < 60 * rows * ROW


def test_the_gc_command_compacts_first(tmp_path, monkeypatch, capsys):
    root = tmp_path / '.mmpipe' / 'shards' / 'compacted'
    (tmp_path / 'pipelines' / 'compacted').mkdir(parents=True)
    (tmp_path / 'pyproject.toml').touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MMPIPE_HOME', str(tmp_path / '.mmpipe'))
    monkeypatch.setenv('PIXELTABLE_HOME', str(tmp_path / 'none'))
    old = write(root, [3, 4], masked=[(0, 1)])
    for path in root.rglob('*'):
        os.utime(path, (1, 1))
    with pytest.raises(ConfigError, match='give one of them'):
        app(['gc', 'compacted', '--compact', '--dry-run'], standalone_mode=False)
    app(['gc', 'compacted', '--compact', '--json'], standalone_mode=False)
    said = json.loads(capsys.readouterr().out)
    made = open_snapshot(root)
    assert (said['kept'], said['removed'], sizes_of(made)) == ([made.id], [old.id], [6])
    assert len(list((root / 'shards').iterdir())) == 1
    made.verify()


def test_a_block_without_rows_goes(tmp_path):
    old = write(tmp_path, [3, 0, 4])
    made = compact(tmp_path, block_bytes=100 * ROW)
    assert held(made) == held(old)
    assert sizes_of(made) == [7]

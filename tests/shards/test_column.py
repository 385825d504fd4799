"""A field of a block as a shard of its own, or as a patch: counted in files and bytes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from memory import peak_memory

from mmpipe.errors import ShardError
from mmpipe.shards import Block, Field, column, commit, open_snapshot, write_block
from mmpipe.shards.column import ColumnWriter
from mmpipe.shards.field import content_digest

VECTOR = Field(name='vector', kind='tensor', dtype='float32', shape=(32,))
NOTE = Field(name='note', kind='string')
ROWS = 64


def vector(number):
    return None if number < 0 else np.full(32, number, dtype=np.float32)


@pytest.fixture
def snapshot(tmp_path):
    """One block of 64 rows; every fifth vector is null."""
    columns = {
        'vector': [vector(i if i % 5 else -1) for i in range(ROWS)],
        'note': [f'note {i}' for i in range(ROWS)],
    }
    block = Block(keys=[f'k{i}' for i in range(ROWS)], columns=columns)
    return commit(tmp_path, [VECTOR, NOTE], [write_block(tmp_path, [VECTOR, NOTE], block, index=0)], splits={'': ROWS})


def changed(snapshot, numbers):
    """The snapshot in which some vectors are others, and the shard that holds them."""
    writer = ColumnWriter(Path(snapshot.root), VECTOR, block=0, rows=ROWS, old=snapshot)
    for row, number in sorted(numbers.items()):
        value = vector(number)
        writer.put(row, value, content_digest(VECTOR, value), key=f'k{row}', size=128)
    shard = writer.close()
    keep = []
    for old in snapshot.manifest.shards:
        if '_key' in old.fields:
            gone = () if '_row' in shard.fields else ('vector',)
            keep.append(replace(old, fields=tuple(name for name in old.fields if name not in gone)))
        elif '_row' in shard.fields and '_row' not in old.fields:
            keep.append(old)
    return commit(snapshot.root, [VECTOR, NOTE], [*keep, shard], splits={'': ROWS}), shard


def held(snapshot):
    values, valid = snapshot.rows().read('vector')
    assert snapshot.rows().words('note') == [f'note {i}' for i in range(ROWS)]
    numbers = [int(value[0]) if ok else -1 for value, ok in zip(values, valid, strict=True)]
    digests = [content_digest(VECTOR, vector(number)) for number in numbers]
    assert snapshot.rows().system('_digest.vector').tolist() == digests
    return numbers


@pytest.mark.parametrize('batch_bytes', [64 << 20, 700])
def test_few_values_are_a_patch_that_grows_until_the_column_is_written_whole(snapshot, monkeypatch, batch_bytes):
    monkeypatch.setattr(column, 'BATCH_BYTES', batch_bytes)
    expected = held(snapshot)
    whole = ROWS * 32 * 4
    shapes = []
    for numbers in ({3: 100}, {0: 101, 3: -1}, {row: 200 + row for row in (1, 2, 62)}, dict.fromkeys(range(20), 7),
                    {63: 300}):  # fmt: skip
        snapshot, shard = changed(snapshot, numbers)
        for row, number in numbers.items():
            expected[row] = number
        assert held(snapshot) == expected
        mixed = snapshot.rows().take([63, 0, 3, 3, 40])
        assert mixed.read('vector')[0][:, 0].tolist() == [max(expected[i], 0) for i in (63, 0, 3, 3, 40)]
        assert (shard.bytes < whole / 3) == ('_row' in shard.fields)
        shapes.append((shard.fields, shard.rows))
    patch, full = ('_row', 'vector'), ('vector',)
    assert shapes == [(patch, 1), (patch, 2), (patch, 5), (full, 64), (patch, 1)]
    assert held(open_snapshot(snapshot.root)) == expected
    snapshot.verify()


def test_the_size_of_a_patch_does_not_depend_on_the_block(tmp_path):
    sizes = []
    for rows in (64, 640):
        root = tmp_path / str(rows)
        block = Block(keys=[f'k{i}' for i in range(rows)], columns={'vector': [vector(1)] * rows})
        snapshot = commit(root, [VECTOR], [write_block(root, [VECTOR], block, index=0)], splits={'': rows})
        writer = ColumnWriter(root, VECTOR, block=0, rows=rows, old=snapshot)
        writer.put(rows - 1, vector(2), content_digest(VECTOR, vector(2)), key='', size=128)
        sizes.append(writer.close().bytes)
    assert sizes[0] == sizes[1]


def test_a_wide_field_is_added_to_and_changed_in_a_long_block_with_memory_for_a_few_batches(tmp_path, monkeypatch):
    monkeypatch.setattr(column, 'BATCH_BYTES', 100_000)
    rows = 4000
    names = [f'k{i}' for i in range(rows)]
    narrow = write_block(tmp_path, [NOTE], Block(keys=names, columns={'note': names}), index=0)
    wide = Field(name='wide', kind='tensor', dtype='float32', shape=(256,))
    snapshot = commit(tmp_path, [NOTE], [narrow], splits={'': rows})
    for step in (1, 2):
        old = snapshot if 'wide' in snapshot.fields else None
        with peak_memory() as peak:
            writer = ColumnWriter(tmp_path, wide, block=0, rows=rows, old=old)
            for row in range(0, rows, step):
                value = np.full(256, row * step, dtype=np.float32)
                writer.put(row, value, content_digest(wide, value), key='', size=value.nbytes)
            shard = writer.close()
        assert peak.bytes < 1_000_000 < shard.bytes == pytest.approx(rows * 1040, rel=0.02)
        snapshot = commit(tmp_path, [NOTE, wide], [narrow, shard], splits={'': rows})
        assert snapshot.unpatched(0, 'wide').num_chunks > 40
        values, valid = snapshot.rows().read('wide', [0, 1, 1999, 2000, 3998])
        assert values[:, 0].tolist() == [0, 1, 1999, 2000 * step, 3998 * step]
        assert valid.all()


@pytest.mark.parametrize('wrong', ['field missing', 'field twice', 'rows differ', 'patch twice', 'patch of nothing'])
def test_a_block_that_does_not_add_up_is_refused_before_it_is_committed(snapshot, wrong):
    (whole,) = snapshot.manifest.shards
    _, patch = changed(snapshot, {3: 100})
    shards = {
        'field missing': [replace(whole, fields=('_key', 'note'))],
        'field twice': [whole, replace(whole, fields=('note',))],
        'rows differ': [replace(whole, fields=('_key', 'note')), replace(whole, fields=('vector',), rows=63)],
        'patch twice': [whole, patch, replace(patch)],
        'patch of nothing': [whole, replace(patch, block=1)],
    }[wrong]
    before = open_snapshot(snapshot.root).id
    with pytest.raises(ShardError, match=r'block \d of snapshot .* lists .* it should list each of _key, note, vector'):
        commit(snapshot.root, [VECTOR, NOTE], shards, splits={'': ROWS})
    assert open_snapshot(snapshot.root).id == before

"""Keys and few rows of a remote shard are read by their bytes alone, and are what the whole shard holds."""

from __future__ import annotations

import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from object_roots import get, put

from mmpipe.errors import ShardError
from mmpipe.shards import Block, Field, commit, copies, open_snapshot, parts, ranges, write_block, write_snapshot
from mmpipe.shards.ahead import FetchAhead
from mmpipe.shards.column import ColumnWriter
from mmpipe.shards.field import Column, content_digest

WORDS = ('cat', 'dog', 'eel')
FIELDS = [
    Field(name='photo', kind='tensor', dtype='uint8', shape=(3, 40)),
    Field(name='sound', kind='ragged', dtype='float32', shape=(2,)),
    Field(name='price', kind='scalar', dtype='float32'),
    Field(name='flag', kind='scalar', dtype='bool'),
    Field(name='note', kind='string'),
    Field(name='kind', kind='label', vocabulary=WORDS),
    Field(name='tags', kind='labels', vocabulary=WORDS),
    Field(name='file', kind='binary'),
]


def columns(draw, rows, nulls):
    def some(value):
        return [None if nulls and draw.random() < 0.3 else value() for _ in range(rows)]

    array = np.random.default_rng(draw.randrange(1 << 30))
    return {
        'photo': some(lambda: array.integers(0, 256, (3, 40), dtype=np.uint8)),
        'sound': some(lambda: array.random((draw.randrange(5), 2), dtype=np.float32)),
        'price': some(draw.random),
        'flag': some(lambda: draw.random() < 0.5),
        'note': some(lambda: 'é' * draw.randrange(30)),
        'kind': some(lambda: draw.choice(WORDS)),
        'tags': some(lambda: draw.sample(WORDS, draw.randrange(3))),
        'file': some(lambda: draw.randbytes(draw.randrange(200))),
    }


def written(root, draw, blocks, rows, nulls=True):
    """A snapshot, and no copies of it."""
    made = []
    for index in range(blocks):
        block = Block(
            keys=[f'{index}-{i}' for i in range(rows)],
            columns=columns(draw, rows, nulls),
            splits=[draw.choice(['train', 'val']) for _ in range(rows)],
        )
        made.append(write_block(root, FIELDS, block, index=index))
    commit(root, FIELDS, made, splits={'train': 1, 'val': blocks * rows - 1})
    forget()
    return open_snapshot(root)


def forget():
    for file in copies.shard_cache_dir().glob('*/*'):
        file.unlink()


def equal(one, two):
    (values, valid), (others, also) = one, two
    assert valid.tolist() == also.tolist()
    for value, other in zip(values, others, strict=True):
        assert np.array_equal(value, other)


def fetched():
    return len([path for path in copies.shard_cache_dir().glob('*/*') if '.keys.' not in path.name])


@pytest.fixture
def small(monkeypatch):
    """Shards of some kilobytes are large, and what is read of them is little."""
    monkeypatch.setattr(parts, 'SMALLEST', 0)
    for name, value in (('GAP', 16), ('HEAD', 64), ('TAIL', 32)):
        monkeypatch.setattr(ranges, name, value)


@given(seed=st.integers(0, 10_000), rows=st.integers(1, 60), nulls=st.booleans(), gap=st.integers(0, 500))
@settings(max_examples=25, deadline=None)
def test_few_rows_of_any_field_are_those_of_the_whole_shard(seed, rows, nulls, gap):
    draw = random.Random(seed)
    table = pa_table(draw, rows, nulls)
    data = table.to_pybytes()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (('GAP', gap), ('HEAD', 64), ('TAIL', 32)):
            patch.setattr(ranges, name, value)
        reads = []

        def read(start, end):
            reads.append((start, end))
            return data[start:end]

        part = ranges.Ranges(read, len(data), url='memory://x')
        whole = ranges.Ranges(lambda start, end: data[start:end], len(data), url='memory://x')
        for field in draw.sample(FIELDS, 4):
            chosen = np.unique(np.array(draw.choices(range(rows), k=draw.randrange(1, 6)), dtype=np.int64))
            column = parts.few_rows(part, field, chosen)
            expected = Column(field, whole.column(field.name))
            shuffled = draw.sample(chosen.tolist(), len(chosen))
            ((found, at, here),) = column.groups(np.array(shuffled, dtype=np.int64))
            assert here.tolist() == list(range(len(shuffled)))
            for value, other in zip(found.gather(at), expected.gather(np.array(shuffled, dtype=np.int64)), strict=True):
                assert np.array_equal(value, other)
            for row in shuffled:
                number, at = column.place(row)
                found = column.columns[number]
                assert (found.valid is None or found.valid[at]) == (expected.valid is None or expected.valid[row])
        assert part.bytes == sum(end - start for start, end in reads)
        seen = np.zeros(len(data), dtype=int)
        for start, end in reads:
            seen[start:end] += 1
        assert seen.max() == 1  # no byte twice


def pa_table(draw, rows, nulls):
    import pyarrow as pa

    from mmpipe.shards.field import DIGEST_BYTES, encode
    from mmpipe.shards.files import table_bytes

    names = {}
    for field, values in zip(FIELDS, columns(draw, rows, nulls).values(), strict=True):
        digests = [content_digest(field, value) for value in values]
        names[field.name] = encode(field, values)
        names[f'_digest.{field.name}'] = pa.array(digests, type=pa.binary(DIGEST_BYTES))
    return table_bytes(pa.table(names))


def test_a_snapshot_gives_the_same_rows_as_a_directory_and_fetches_no_shard(small, tmp_path, url):
    local, remote = (written(root, random.Random(5), blocks=3, rows=80) for root in (tmp_path, url))
    assert remote.id == local.id
    chosen = [3, 100, 7, 170, 8]
    for split in ('train', 'val'):
        assert remote.split(split).keys.tolist() == local.split(split).keys.tolist()
    assert remote.rows().hashes.tolist() == local.rows().hashes.tolist()
    for field in FIELDS:
        equal(remote.rows().read(field.name, chosen), local.rows().read(field.name, chosen))
        assert len(remote.rows().take(chosen).read(field.name)[1]) == 5
    assert fetched() == 0
    for field in FIELDS:  # more and more
        equal(remote.rows().read(field.name), local.rows().read(field.name))
    assert fetched() == 3


def test_a_shard_is_fetched_when_more_than_a_part_of_it_was_asked_for(small, url):
    snapshot = written(url, random.Random(1), blocks=1, rows=100, nulls=False)
    rows = snapshot.rows()
    for row in range(100):
        rows.read('file', [row])
        if fetched():
            break
    assert 15 <= row <= 25


def test_a_field_with_a_patch_is_read_from_the_whole_shards(small, url):
    fields = [FIELDS[2]]
    block = Block(keys=[str(i) for i in range(40)], columns={'price': [float(i) for i in range(40)]})
    first = write_snapshot(url, fields, block)
    column = ColumnWriter(url, fields[0], block=0, rows=40, old=first)
    column.put(3, 99.0, content_digest(fields[0], 99.0), key='3', size=4)
    snapshot = commit(url, fields, [*first.manifest.shards, column.close()], splits={'': 40})
    forget()
    assert snapshot.rows().read('price', [2, 3])[0].tolist() == [2.0, 99.0]


@pytest.mark.parametrize(
    'seeds', [range(10), pytest.param(range(10, 100), marks=pytest.mark.hardening)], ids=['some', 'all']
)
def test_a_bit_that_was_turned_is_never_taken_for_a_value(small, seeds):
    url = 'memory://shards/turned'
    expected = written(url, random.Random(0), blocks=1, rows=60)
    (shard,) = expected.manifest.shards
    data = get(url, shard.path)
    keys = expected.rows().keys.tolist()
    told = []
    for seed in seeds:
        draw = random.Random(seed)
        at = draw.randrange(len(data))
        forget()
        put(url, shard.path, data[:at] + bytes([data[at] ^ (1 << draw.randrange(8))]) + data[at + 1 :])
        rows = open_snapshot(url).rows()
        chosen = sorted(draw.sample(range(60), 4))
        for field in FIELDS:
            try:
                assert rows.keys.tolist() == keys
                equal(rows.read(field.name, chosen), expected.rows().read(field.name, chosen))
            except ShardError as error:
                told.append(str(error))
    put(url, shard.path, data)
    assert told
    assert all(shard.path in text for text in told)


# What it costs, in requests and bytes: on S3.

PHOTO = Field(name='photo', kind='tensor', dtype='uint8', shape=(30_000,))


@pytest.fixture
def store(front, request):
    """(snapshot of three shards of 3 MB, what the store in front of it counts)."""
    url = f's3://shards/{re.sub(r"[^a-z0-9]", "-", request.node.name)}'
    made = []
    for index in range(3):
        values = np.full((100, 30_000), index, dtype=np.uint8)
        splits = ['train' if i % 10 else 'val' for i in range(100)]
        block = Block(keys=[f'{index}-{i}' for i in range(100)], columns={'photo': list(values)}, splits=splits)
        made.append(write_block(url, [PHOTO], block, index=index))
    commit(url, [PHOTO], made, splits={'train': 270, 'val': 30})
    forget()
    front.reset()
    return open_snapshot(url), front


def test_keys_of_a_shard_are_two_small_requests(store):
    snapshot, state = store
    train = snapshot.split('train')
    assert len(train) == 270
    assert len(train.keys) == len(train.hashes) == 270
    assert len(state.sent) == 6
    assert state.bytes == 3 * (ranges.HEAD + ranges.TAIL)  # of 9 MB
    assert state.most > 1
    assert fetched() == 0
    state.sent.clear()
    assert open_snapshot(snapshot.root).split('train').keys.tolist() == train.keys.tolist()
    assert state.sent == []  # the next process finds them here
    for number, file in enumerate(copies.shard_cache_dir().glob('*/*.keys.arrow')):
        data = file.read_bytes()
        at = data.index(b'1-1') if b'1-1' in data else len(data) // (number + 1) - 1
        file.write_bytes(data[:at] + b'9' + data[at + 1 :])
    assert open_snapshot(snapshot.root).split('train').keys.tolist() == train.keys.tolist()
    assert state.sent


def test_few_rows_are_read_without_the_rest(store):
    snapshot, state = store
    rows = snapshot.rows()
    values, _ = rows.read('photo', [150, 151, 152, 250])
    assert values[:, 0].tolist() == [1, 1, 1, 2]
    assert state.bytes < 2 * (ranges.HEAD + ranges.TAIL) + 4 * 30_016 + 2 * ranges.GAP
    assert len(state.sent) <= 2 * 4
    assert fetched() == 0
    state.sent.clear()
    assert rows.read('photo', [151])[0][0, 0] == 1
    assert state.sent == []  # it is here


def test_a_small_selection_is_not_fetched_ahead_and_a_large_one_is(store):
    snapshot, state = store
    for split, shards in (('val', 0), ('train', 3)):
        rows = snapshot.split(split)
        state.sent.clear()
        ahead = FetchAhead(snapshot, ['photo'], selection=rows.places)
        ahead.want(rows.places)
        ahead.wait(rows.places)
        ahead.close()
        assert fetched() == shards
        assert rows.read('photo')[0][:, 0].tolist() == rows.places[:, 0].tolist()
        if split == 'val':
            assert state.bytes < 0.4 * sum(shard.bytes for shard in snapshot.manifest.shards)

from __future__ import annotations

import itertools
import json
import os
import pickle
import tempfile
from pathlib import Path

import numpy as np
import pytest
from fields import as_python, fields_with_values, same
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpipe.errors import ConfigError, DataError, FieldError, ShardError
from mmpipe.shards import Block, Field, commit, open_snapshot, write_block, write_snapshot
from mmpipe.shards.files import sha256_of

PRICE = Field(name='price', kind='scalar', dtype='float32')


@st.composite
def stored(draw):
    """A field, its values, how they are cut into blocks, and which rows are masked."""
    rows = draw(st.integers(0, 12))
    field, values = draw(fields_with_values(rows=rows))
    cuts = sorted(draw(st.lists(st.integers(0, rows), max_size=3)))
    masked = draw(st.sets(st.integers(0, max(rows - 1, 0)), max_size=4)) if rows else set()
    return field, values, [0, *cuts, rows], masked


def write(root, field, values, cuts, masked=()):
    shards, dropped = [], []
    for index, (start, end) in enumerate(itertools.pairwise(cuts)):
        keys = [f'k{i}' for i in range(start, end)]
        splits = ['train' if i % 3 else 'val' for i in range(start, end)]
        block = Block(keys=keys, columns={field.name: values[start:end]}, splits=splits)
        shards.append(write_block(root, [field], block, index=index))
        dropped += [(index, i - start) for i in range(start, end) if i in masked]
    live = [i for i in range(len(values)) if i not in masked]
    counts = {name: sum(('train' if i % 3 else 'val') == name for i in live) for name in ('train', 'val')}
    return commit(root, [field], shards, dropped=np.array(dropped, dtype=np.int64).reshape(-1, 2), splits=counts)


@settings(deadline=None, max_examples=60)
@given(stored(), st.data())
def test_reading_is_list_indexing_for_every_kind_with_nulls_blocks_and_masks(case, data):
    field, values, cuts, masked = case
    live = [i for i in range(len(values)) if i not in masked]
    with tempfile.TemporaryDirectory() as root:
        snapshot = write(root, field, values, cuts, masked)
        rows = snapshot.rows()
        assert len(snapshot) == len(rows) == len(live)
        assert rows.keys.tolist() == [f'k{i}' for i in live]
        chosen = data.draw(st.lists(st.integers(0, len(live) - 1), max_size=8)) if live else []
        read, valid = rows.read('f', chosen)
        again, valid_again = rows.take(chosen).read('f')
        for one, ok in ((read, valid), (again, valid_again)):
            assert len(one) == len(chosen)
            got = as_python(snapshot.fields['f'], one, ok)
            assert all(same(field, values[live[i]], value) for i, value in zip(chosen, got, strict=True))
        for name in snapshot.splits:
            assert snapshot.split(name).keys.tolist() == [
                f'k{i}' for i in live if ('train' if i % 3 else 'val') == name
            ]
        snapshot.verify()
        copied = pickle.loads(pickle.dumps(rows.take(chosen)))
        assert copied.keys.tolist() == rows.take(chosen).keys.tolist()


@settings(deadline=None, max_examples=20)
@given(stored(), st.lists(st.integers(0, 12), max_size=2))
def test_digests_do_not_depend_on_how_rows_are_cut_into_shards(case, other_cuts):
    field, values, cuts, _ = case
    other = sorted(min(cut, len(values)) for cut in other_cuts)
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        first = write(one, field, values, cuts).rows()
        second = write(two, field, values, [0, *other, len(values)]).rows()
        assert first.system('_digest.f').tolist() == second.system('_digest.f').tolist()
        assert first.hashes.tolist() == second.hashes.tolist()
        assert first.hashes.dtype == np.uint64


def prices(root, values, **options):
    keys = [f'k{i}' for i in range(len(values))]
    return write_snapshot(root, [PRICE], Block(keys=keys, columns={'price': values}, **options))


def test_a_mask_a_position_and_a_name_select_rows(tmp_path):
    rows = prices(tmp_path, [1.0, None, 3.0]).rows()
    assert rows.take(rows.keys == 'k2').keys.tolist() == ['k2']
    assert rows.take([2, 0, 2]).keys.tolist() == ['k2', 'k0', 'k2']
    assert rows.where('price', 3.0).keys.tolist() == ['k2']
    assert rows.where('price', None).keys.tolist() == ['k1']
    assert rows.among('_key', ['k1', 'none']).tolist() == [False, True, False]
    assert rows.words('price') == [1.0, None, 3.0]


def test_a_pickle_holds_positions_and_no_values(tmp_path):
    rows = prices(tmp_path, [float(i) for i in range(2000)]).rows()
    before = len(pickle.dumps(rows))
    assert len(rows.keys) == len(rows.hashes) == 2000
    assert len(pickle.dumps(rows)) == before < 17_000


def test_a_snapshot_opened_by_a_relative_path_reopens_from_another_directory(tmp_path, monkeypatch):
    prices(tmp_path / 'here', [1.0])
    monkeypatch.chdir(tmp_path)
    blob = pickle.dumps(open_snapshot('here'))
    monkeypatch.chdir('/')
    assert len(pickle.loads(blob)) == 1


def test_an_older_snapshot_stays_readable_by_its_id(tmp_path):
    first = prices(tmp_path, [1.0])
    second = prices(tmp_path, [1.0, 2.0])
    assert open_snapshot(tmp_path).id == second.id != first.id
    assert len(open_snapshot(tmp_path, first.id)) == 1
    assert prices(tmp_path, [1.0]).id == first.id
    assert open_snapshot(tmp_path).id == first.id


def test_asking_for_what_is_not_there_names_what_is(tmp_path):
    snapshot = prices(tmp_path, [1.0], splits=['train'])
    with pytest.raises(DataError, match="no split 'test'; it has 'train'"):
        snapshot.split('test')
    with pytest.raises(DataError, match="no field 'photo'; it has price"):
        snapshot.rows().read('photo')
    with pytest.raises(ShardError, match=f"no snapshot 'abc' in .*; there: {snapshot.id}"):
        open_snapshot(tmp_path, 'abc')
    with pytest.raises(ConfigError, match='is a chain of URLs'):
        open_snapshot('simplecache::s3://bucket/shards')
    with pytest.raises(ConfigError, match='pass it as a str'):
        open_snapshot(Path('s3://bucket/shards'))


def damage(path: Path, how: str) -> None:
    data = path.read_bytes()
    if how == 'gone':
        path.unlink()
    elif how == 'empty':
        path.write_bytes(b'')
    elif how == 'cut':
        path.write_bytes(data[: len(data) // 2])
    else:
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])


@pytest.mark.parametrize('how', ['gone', 'empty', 'cut', 'flipped'])
@pytest.mark.parametrize('what', ['shards/*.arrow', 'manifests/*.json', 'manifests/*.arrow', 'masks/*.arrow'])
def test_damage_is_an_error_that_names_the_file_and_the_next_move(tmp_path, what, how):
    snapshot = prices(tmp_path, [1.0, 2.0])
    file = next(tmp_path.glob(what))
    damage(file, how)
    with pytest.raises(ShardError) as raised:
        open_snapshot(tmp_path, snapshot.id).verify()
    assert 'estore' in str(raised.value) or 'there: none' in str(raised.value)
    assert file.stem in str(raised.value)


@pytest.mark.parametrize('text', ['[]', '"x"', 'null', '{}', '\xff'])
def test_a_manifest_of_another_kind_is_an_error(tmp_path, text):
    snapshot = prices(tmp_path, [1.0])
    (tmp_path / 'manifests' / f'{snapshot.id}.json').write_bytes(text.encode('latin-1'))
    with pytest.raises(ShardError, match='is not a manifest'):
        open_snapshot(tmp_path)


def test_a_pointer_to_nowhere_and_a_root_that_is_a_file_are_errors(tmp_path):
    prices(tmp_path, [1.0])
    (tmp_path / 'LATEST').write_bytes(b'\xff\xfe')
    with pytest.raises(ShardError, match='no snapshot'):
        open_snapshot(tmp_path)
    with pytest.raises(ShardError, match='is a file'):
        open_snapshot(tmp_path / 'LATEST')


def test_another_format_version_names_the_next_move(tmp_path):
    snapshot = prices(tmp_path, [1.0])
    path = tmp_path / 'manifests' / f'{snapshot.id}.json'
    head = json.loads(path.read_text())
    head.pop('checksum')
    head['version'] = 99
    head['checksum'] = sha256_of(json.dumps(head, sort_keys=True).encode())
    path.write_text(json.dumps(head))
    with pytest.raises(ShardError, match=r'99.*Install the mmpipe that wrote it'):
        open_snapshot(tmp_path)


def test_a_damaged_shard_is_written_again_when_its_content_comes_again(tmp_path):
    prices(tmp_path, [1.0, 2.0])
    damage(next(tmp_path.glob('shards/*.arrow')), 'cut')
    prices(tmp_path, [1.0, 2.0]).verify()


def test_a_crash_before_the_pointer_leaves_the_old_snapshot(tmp_path, monkeypatch):
    first = prices(tmp_path, [1.0])
    replace = os.replace

    def stop(source, target):
        if Path(target).name == 'LATEST':
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, 'replace', stop)
    with pytest.raises(KeyboardInterrupt):
        prices(tmp_path, [1.0, 2.0])
    monkeypatch.undo()
    assert open_snapshot(tmp_path).id == first.id
    assert not list(tmp_path.rglob('*.tmp'))


def test_two_rows_with_one_key_are_refused(tmp_path):
    with pytest.raises(FieldError, match="two rows have the key 'a'"):
        write_snapshot(tmp_path, [PRICE], Block(keys=['a', 'a'], columns={'price': [1.0, 2.0]}))
    with pytest.raises(FieldError, match="'price' has 1 values for 2 rows"):
        write_snapshot(tmp_path, [PRICE], Block(keys=['a', 'b'], columns={'price': [1.0]}))


def test_many_blocks_open_and_read_in_block_order(tmp_path):
    values = [float(i) for i in range(150)]
    snapshot = write(tmp_path, Field(name='f', kind='scalar', dtype='float32'), values, list(range(151)), {0, 70, 149})
    assert len(snapshot) == 147
    assert snapshot.rows().read('f')[0].tolist() == [v for v in values if v not in (0.0, 70.0, 149.0)]

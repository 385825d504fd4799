"""mm.snapshot into an object store: the same snapshots as in a directory, also when another writer is first."""

from __future__ import annotations

import random
import sys
import uuid
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).parents[1] / 'functions'))  # what schemas imports

import pixeltable as pxt
import pytest
from object_roots import pointers, there
from schemas import numbers
from snapshots import content

import mmpipe as mm
from mmpipe.errors import BusyError
from mmpipe.shards import collect, log, open_snapshot
from mmpipe.snapshots import write
from mmpipe.snapshots.write import root_lock


@pytest.fixture(scope='module')
def declared(pixeltable_home):
    pxt.drop_dir('t_objects', force=True, if_not_exists='ignore')
    yield numbers('t_objects')
    pxt.drop_dir('t_objects', force=True)


@pytest.fixture
def shop(declared, url):
    """Eight rows, and what freezes them into the store."""
    table = declared.Numbers.table
    table.delete()
    table.insert([{'key': f'k{i}', 'x': i - 2, 'text': f'w{i % 3}'} for i in range(8)])
    fields = {'x': declared.Numbers.x, 'text': declared.Numbers.text}

    def freeze(root=url, **options):
        return mm.snapshot(declared.Numbers, **{'root': root, 'fields': fields, **options})

    return SimpleNamespace(Numbers=declared.Numbers, table=table, url=url, freeze=freeze)


def edit(table, draw, number):
    key = f'k{draw.randrange(8)}'
    kind = draw.choice(['update', 'update', 'text', 'insert', 'delete'])
    if kind == 'insert':
        table.insert([{'key': f'n{number}', 'x': number, 'text': 'new'}])
    elif kind == 'delete':
        table.delete(where=table.key == key)
    else:
        table.update({'x': 100 + number} if kind == 'update' else {'text': f'text {number}'}, where=table.key == key)


@pytest.mark.parametrize('url', ['s3'], indirect=True)
def test_snapshots_of_a_table_are_those_that_a_directory_gets(shop, tmp_path):
    draw = random.Random(7)
    for number in range(3):
        made, expected = shop.freeze(), shop.freeze(root=tmp_path / 'shards')
        assert made.snapshot.id == expected.snapshot.id
        assert content(made.snapshot) == content(expected.snapshot)
        said = made.to_json()
        assert {**said, 'root': ''} == {**expected.to_json(), 'root': ''}
        assert said['root'] == shop.url
        before = there(shop.url)
        assert shop.freeze().written == 0
        assert there(shop.url) == before
        edit(shop.table, draw, number)
    assert [entry.id for entry in log(shop.url)] == [entry.id for entry in log(tmp_path / 'shards')]
    assert shop.freeze(full=True).snapshot.id == shop.freeze(root=tmp_path / 'shards').snapshot.id
    collect(shop.url, runs=tmp_path, grace_s=0)
    open_snapshot(shop.url).verify()


def another_writer_first(shop, monkeypatch, times):
    """Before each of the next commits a writer that shares no lock freezes a new row, and then there is one more."""
    commit, left = write.commit, list(range(times))

    def second(*args, **options):
        if left:
            number = left.pop()
            shop.table.insert([{'key': f'other {number}', 'x': 1, 'text': 'other'}])
            with monkeypatch.context() as patch:
                patch.setattr(write, 'commit', commit)
                patch.setattr(write, 'root_lock', lambda root, wait_s: nullcontext())
                shop.freeze()
            shop.table.insert([{'key': f'late {number}', 'x': 1, 'text': 'late'}])
        return commit(*args, **options)

    monkeypatch.setattr(write, 'commit', second)


@pytest.mark.parametrize('url', ['memory'], indirect=True)
def test_a_writer_that_comes_second_goes_on_from_the_snapshot_of_the_first(shop, monkeypatch):
    first = shop.freeze().snapshot
    shop.table.update({'x': 50}, where=shop.table.key == 'k3')
    another_writer_first(shop, monkeypatch, times=1)
    report = shop.freeze()
    monkeypatch.undo()
    assert set(report.snapshot.rows().keys) == {*(f'k{i}' for i in range(8)), 'other 0', 'late 0'}
    assert open_snapshot(shop.url).id == report.snapshot.id
    assert len(pointers(shop.url)) == 3
    assert (report.inserted, report.updated) == (1, 0)  # the rest came with the other's snapshot
    assert [entry.id for entry in log(shop.url) if entry.parent is None] == [first.id]
    assert shop.freeze().written == 0


@pytest.mark.parametrize('url', ['memory'], indirect=True)
def test_a_writer_that_is_never_first_is_told_so_and_loses_nothing(shop, monkeypatch):
    shop.freeze()
    shop.table.update({'x': 50}, where=shop.table.key == 'k3')
    another_writer_first(shop, monkeypatch, times=99)
    with pytest.raises(BusyError, match=rf"'{shop.url}' got snapshots of other writers during 3 attempts"):
        shop.freeze()
    monkeypatch.undo()
    assert shop.freeze().written == 1
    assert len(open_snapshot(shop.url)) == shop.table.count()


@pytest.mark.parametrize('url', ['memory'], indirect=True)
def test_the_lock_of_a_store_goes_by_its_url(shop):
    with root_lock(shop.url + '/'), pytest.raises(BusyError, match=f"'snapshot:{shop.url}'"):
        shop.freeze(wait_s=0.2)


@pytest.mark.parametrize('url', ['memory'], indirect=True)
def test_a_root_without_a_store_behind_it_is_refused_before_any_row_is_read(shop, s3):
    with pytest.raises(mm.MmpipeError, match='cannot be written'):
        shop.freeze(root=f's3://{uuid.uuid4().hex}/shop')

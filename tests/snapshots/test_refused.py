"""What a snapshot refuses, and how it says so."""

from __future__ import annotations

import os

import media
import pixeltable as pxt
import pytest
from schemas import doubled, media_table, spread, write_csv

import mmpipe as mm
from mmpipe.commands.upkeep import _as_writer
from mmpipe.errors import (
    BusyError,
    ConfigError,
    FieldError,
    LabelError,
    SchemaError,
    SnapshotError,
    SourceChangedError,
)
from mmpipe.shards import open_snapshot
from mmpipe.snapshots import root_lock
from mmpipe.store import writer_lock


def test_a_label_outside_its_declared_vocabulary_is_refused_by_row(declared, directory):
    declared.freeze(root=declared.root)
    before = open_snapshot(declared.root).id
    with pytest.raises(LabelError, match=rf"'{declared.path}': label 'w2' of field 'text' in row 'k2'.*\(w0, w1\)"):
        declared.freeze(fields={'text': mm.field.label(declared.Numbers.text, vocabulary=['w0', 'w1'])})
    bad = pxt.create_table(f'{directory}/bad', {'words': pxt.Json | None})
    bad.insert([{'words': ['a']}, {'words': 'a'}])
    with pytest.raises(LabelError, match="field 'text' holds"):
        mm.snapshot(bad, root=declared.root / 'bad', fields={'text': mm.field.labels(bad.words)})
    assert open_snapshot(declared.root).id == before


def test_rows_that_differ_in_shape_are_refused_by_row_and_ragged_takes_them(directory, tmp_path):
    table = pxt.create_table(f'{directory}/t', {'key': {'type': pxt.String, 'primary_key': True}, 'x': pxt.Int})
    table.insert([{'key': f'k{i}', 'x': i} for i in range(6)])
    table.add_computed_column(v=spread(table.x))
    with pytest.raises(FieldError, match=rf"'{directory}/t': field 'v' holds float32.*row 'k\d' has float32.*ragged"):
        mm.snapshot(table, root=tmp_path, fields={'v': table.v})
    snapshot = mm.snapshot(table, root=tmp_path, fields={'v': mm.field.ragged(table.v)}).snapshot
    values, _ = snapshot.rows().read('v')
    assert [len(value) for value in values] == [1, 2, 3, 1, 2, 3]


def test_a_function_that_raises_while_rows_are_read_names_the_way_out(declared):
    declared.table.where(declared.table.key == 'k0').update({'text': 'x'})
    declared.table.insert([{'key': 'bad', 'x': 13}], on_error='ignore')
    with pytest.raises(SnapshotError, match=rf"'{declared.path}' cannot be read.*13 is unlucky.*Make the expression"):
        declared.freeze(fields={'d': doubled(declared.Numbers.x)})


@pytest.mark.parametrize('how', ['other image', 'no image', 'gone'])
def test_a_file_overwritten_since_it_was_ingested_is_refused_by_key_until_it_is_ingested_again(
    directory, tmp_path, how
):
    declared = media_table(directory)
    manifest = write_csv(tmp_path / 'a.csv', [{'key': key, 'photo': f'{key}.jpg'} for key in ('one', 'two', 'three')])
    for key in ('one', 'two', 'three'):
        media.photo(tmp_path / f'{key}.jpg', seed=len(key))
    mm.ingest(declared.Items, mm.sources.rows(manifest))
    items, root = declared.Items, tmp_path / 's'
    fields = {'square': items.square}
    before = mm.snapshot(items.table.where(items.key != 'two'), root=root, fields=fields).snapshot
    if how == 'other image':
        media.photo(tmp_path / 'two.jpg', seed=99)
    elif how == 'no image':
        (tmp_path / 'two.jpg').write_text('gone wrong')
    else:
        (tmp_path / 'two.jpg').unlink()
    for asked in (fields, {'photo': mm.field.image(items.photo, size=4)}, {'file': mm.field.file(items.photo)}):
        move = '(Ingest the changed files again|ingest with --prune); then the snapshot again'
        with pytest.raises(SourceChangedError, match=rf"row 'two', column photo: .*two.jpg.*{move}") as raised:
            mm.snapshot(items, root=root, fields=asked)
        assert "'one'" not in str(raised.value)
    assert open_snapshot(root).id == before.id
    assert mm.snapshot(items, root=tmp_path / 'c', fields={'caption': items.caption}).inserted == 3  # reads no photo
    media.photo(tmp_path / 'two.jpg', seed=99)
    os.utime(tmp_path / 'one.jpg')  # touched, not changed
    assert mm.ingest(items, mm.sources.rows(manifest)).replaced == 1
    assert len(mm.snapshot(items, root=root, fields=fields).snapshot) == 3


def test_a_root_that_another_one_writes_is_busy_and_another_root_is_not(declared):
    declared.freeze()
    with writer_lock(f'snapshot:{declared.root.resolve()}'):
        with pytest.raises(BusyError, match=str(declared.root)):
            declared.freeze(wait_s=0)
        assert declared.freeze(root=declared.root / 'other', wait_s=0).inserted == 8
    assert declared.freeze(wait_s=0).written == 0


def test_a_collection_waits_for_whoever_writes_its_root(declared):
    declared.freeze()
    with root_lock(declared.root), pytest.raises(BusyError, match=str(declared.root)):
        _as_writer(declared.root, wait_s=0).__enter__()
    with _as_writer(declared.root), pytest.raises(BusyError, match=str(declared.root)):
        declared.freeze(wait_s=0)


def test_empty_tables_and_filters_are_refused_and_keep_what_is_there(declared, directory):
    empty = pxt.create_table(f'{directory}/empty', {'x': pxt.Int})
    with pytest.raises(SnapshotError, match=r"empty' has no rows to freeze\. Ingest rows first"):
        mm.snapshot(empty, root=declared.root / 'e', fields={'x': empty.x})
    with pytest.raises(SnapshotError, match=r'is left in the filter\. Widen it'):
        declared.freeze(query=declared.table.where(declared.table.x > 1000))
    first = declared.freeze()
    declared.table.delete()
    with pytest.raises(SnapshotError, match='is left in the filter'):
        declared.freeze()
    assert open_snapshot(declared.root).id == first.snapshot.id


def test_calls_that_cannot_work_are_refused_with_the_next_move(declared):
    N = declared.Numbers
    with pytest.raises(SnapshotError, match='without fields holds nothing'):
        declared.freeze(fields={})
    with pytest.raises(SchemaError, match=r'depends on other rows \(limit 3\).*full=True'):
        declared.freeze(query=declared.table.limit(3))
    with pytest.raises(SchemaError, match=r'has select'):
        declared.freeze(query=declared.table.select(declared.table.x))
    with pytest.raises(SnapshotError, match="field 'x' is 'x', not a Pixeltable expression"):
        declared.freeze(fields={'x': 'x'})
    with pytest.raises(SnapshotError, match=r"the split of '.*numbers' is .*Int.*wants a string expression"):
        declared.freeze(split=N.x)
    with pytest.raises(SnapshotError, match='is str, and it wants a string expression'):
        declared.freeze(split='fold')
    with pytest.raises(FieldError, match="start with '_'"):
        declared.freeze(fields={'_x': N.x})
    with pytest.raises(FieldError, match=rf"'{declared.path}': field 'origin' is Json.*mm.field.labels"):
        declared.freeze(fields={'origin': N.origin})
    with pytest.raises(FieldError, match='wants an image'):
        declared.freeze(fields={'x': mm.field.image(N.text, size=4)})
    with pytest.raises(FieldError, match='wants a media column'):
        declared.freeze(fields={'x': mm.field.file(N.text)})
    with pytest.raises(FieldError, match='wants a string'):
        declared.freeze(fields={'x': mm.field.label(N.x)})
    with pytest.raises(FieldError, match='size is at least 1'):
        mm.field.image(N.x, size=0)
    with pytest.raises(FieldError, match='not a list of different words'):
        mm.field.label(N.text, vocabulary=['a', 'a'])
    with pytest.raises(ConfigError, match='refuse to write an object twice'):
        declared.freeze(root='ftp://host/x')
    with pytest.raises(SnapshotError, match='is pooled, but its columns are not of a view with an iterator'):
        declared.freeze(fields={'x': mm.field.pooled(mm.functions.mean_pool(spread(N.x)))})

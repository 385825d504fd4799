"""What an ingest writes, computes and leaves alone, on a real Pixeltable."""

from __future__ import annotations

import errno
import os
import sys
from types import SimpleNamespace

import media
import numpy as np
import PIL.Image
import pixeltable as pxt
import psycopg
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sqlalchemy.exc
from schemas import media_table, numbers, write_csv

import mmpipe as mm
from mmpipe.errors import BadInputError, ConfigError, MissingExtraError, SchemaError, SourceError, StoreError
from mmpipe.functions import counts, document, reset
from mmpipe.sources import Record
from mmpipe.sources import media as sources_media
from mmpipe.sources import write as sources_write


@pytest.fixture(scope='module')
def tables(pixeltable_home):
    """Tables that the tests of this file share, since declaring them takes most of a second."""
    pxt.drop_dir('t_ingest', force=True, if_not_exists='ignore')
    yield media_table('t_ingest'), numbers('t_ingest')
    pxt.drop_dir('t_ingest', force=True)


def empty_quarantine():
    quarantine = pxt.get_table('mmpipe/quarantine', if_not_exists='ignore')
    if quarantine is not None:
        quarantine.delete()


@pytest.fixture
def shop(tables, tmp_path):
    """An empty table of all media, and three rows with a file each, in a manifest."""
    declared = SimpleNamespace(**vars(tables[0]), path='t_ingest/items')
    declared.Items.table.delete()
    empty_quarantine()
    media.photo(tmp_path / 'a.jpg', seed=1)
    media.sound(tmp_path / 'b.wav', seconds=0.2)
    media.pdf(tmp_path / 'c.pdf', ['One', 'Two'])
    declared.rows = [
        {'key': 'a', 'photo': 'a.jpg', 'speech': None, 'document': None, 'caption': 'A cat', 'price': '1.5'},
        {'key': 'b', 'photo': None, 'speech': 'b.wav', 'document': None, 'caption': None, 'price': None},
        {'key': 'c', 'photo': None, 'speech': None, 'document': 'c.pdf', 'caption': 'ä\n"ö"', 'price': '-2'},
    ]
    declared.folder = tmp_path
    return declared


def ingest(shop, rows=None, **options):
    source = mm.sources.rows(write_csv(shop.folder / 'items.csv', shop.rows if rows is None else rows))
    return mm.ingest(shop.Items, source, **options)


def stored(shop, *columns):
    table = shop.Items.table
    rows = table.select(table.key, **{name: getattr(table, name) for name in columns}).collect()
    found = {row['key']: tuple(row[name] for name in columns) for row in rows}
    return {key: values[0] if len(columns) == 1 else values for key, values in found.items()}


def test_running_again_writes_and_computes_nothing(shop):
    first = ingest(shop)
    assert (first.inserted, first.quarantined, first.view_rows) == (3, 0, 2)
    assert stored(shop, 'caption', 'price') == {'a': ('A cat', 1.5), 'b': (None, None), 'c': ('ä\n"ö"', -2.0)}
    assert stored(shop, 'body') == {'a': None, 'b': None, 'c': 'One\n\nTwo'}
    reset()
    again = ingest(shop)
    assert again.written == 0
    assert again.unchanged == 3
    assert counts() == {}


def test_a_file_that_was_only_touched_is_read_once_more_and_nothing_is_computed(shop, monkeypatch):
    ingest(shop)
    before = stored(shop, 'square')['a']
    os.utime(shop.folder / 'a.jpg')  # another time, the same content
    read = []
    real = sources_media.digest_file
    monkeypatch.setattr(sources_media, 'digest_file', lambda path: read.append(path.name) or real(path))
    reset()
    report = ingest(shop)
    assert (report.touched, report.unchanged, report.written, report.view_rows) == (1, 2, 1, 0)
    assert '1 only touched' in str(report)
    assert read == ['a.jpg']
    assert ingest(shop).written == 0
    assert read == ['a.jpg']
    assert counts() == {}
    assert (stored(shop, 'square')['a'] == before).all()
    os.utime(shop.folder / 'a.jpg')
    shop.rows[0]['caption'] = 'A dog'
    report = ingest(shop)
    assert (report.updated, report.touched) == (1, 0)
    assert ingest(shop).written == 0
    assert read == ['a.jpg', 'a.jpg']
    assert counts() == {}


def test_a_changed_value_is_updated_without_running_the_functions_of_its_media(shop):
    ingest(shop)
    reset()
    shop.rows[0].update(caption='A dog', price=None)
    report = ingest(shop)
    assert (report.updated, report.replaced, report.inserted, report.unchanged) == (1, 0, 0, 2)
    assert stored(shop, 'caption', 'price')['a'] == ('A dog', None)
    assert counts() == {}


def test_a_changed_file_is_replaced_and_only_its_row_is_computed(shop):
    ingest(shop)
    before = stored(shop, 'square')['a']
    media.photo(shop.folder / 'a.jpg', seed=2)
    reset()
    report = ingest(shop)
    assert (report.replaced, report.inserted, report.unchanged) == (1, 0, 2)
    assert counts() == {'pixels': 1}
    assert (stored(shop, 'square')['a'] != before).any()
    assert stored(shop, 'caption', 'price')['a'] == ('A cat', 1.5)
    assert ingest(shop).written == 0


def test_a_file_that_was_moved_is_found_where_it_is_now(shop):
    ingest(shop)
    (shop.folder / 'new').mkdir()
    (shop.folder / 'a.jpg').rename(shop.folder / 'new' / 'a.jpg')
    shop.rows[0]['photo'] = 'new/a.jpg'
    assert ingest(shop).replaced == 1
    table = shop.Items.table
    assert table.where(table.key == 'a').select(table.photo.localpath).collect()[0].popitem()[1].endswith('new/a.jpg')


def test_a_file_that_is_no_longer_named_is_taken_out(shop):
    ingest(shop)
    shop.rows[0]['photo'] = None
    assert ingest(shop).replaced == 1
    assert stored(shop, 'square')['a'] is None
    assert ingest(shop).written == 0


def test_columns_that_a_manifest_leaves_out_keep_what_is_stored(shop):
    ingest(shop)
    assert ingest(shop, [{'key': 'a', 'price': '9'}]).updated == 1
    media.photo(shop.folder / 'a.jpg', seed=5)
    report = ingest(shop, [{'key': 'a', 'photo': 'a.jpg'}, {'key': 'new', 'photo': 'a.jpg'}])
    assert (report.replaced, report.inserted) == (1, 1)
    assert stored(shop, 'caption', 'price')['a'] == ('A cat', 9.0)
    media.sound(shop.folder / 'a.wav', seconds=0.2)
    assert ingest(shop, [{'key': 'a', 'speech': 'a.wav'}]).replaced == 1
    assert stored(shop, 'square')['a'] is not None
    assert stored(shop, 'mel')['a'] is not None


def test_a_file_that_is_gone_since_it_was_ingested_is_told_from_one_that_never_was(shop):
    ingest(shop)
    (shop.folder / 'a.jpg').unlink()
    shop.rows.append({'key': 'd', 'photo': 'none.jpg'})
    report = ingest(shop)
    assert {row.key: row.reason for row in report.bad} == {
        'a': 'is gone since it was ingested: put it back, or take its row out of the source and ingest with --prune',
        'd': 'does not exist: add the file, or correct the path',
    }
    assert stored(shop, 'square')['a'] is not None


def test_a_package_that_is_missing_is_asked_for_and_no_row_is_blamed(shop, monkeypatch):
    (shop.folder / 'd.md').write_text('# *Title*')
    rows = [{'key': 'd', 'document': 'd.md'}]
    with monkeypatch.context() as missing:
        missing.setitem(sys.modules, 'mistune', None)  # Python's own way to say that there is none
        with pytest.raises(MissingExtraError, match=r"d\.md' needs mistune.*pip install 'mmpipe\[text\]'"):
            ingest(shop, rows)
    assert mm.quarantined(shop.Items) == []
    assert ingest(shop, rows).inserted == 1


def test_nan_in_a_text_column_is_refused_and_null_is_null(shop):
    path = shop.folder / 'a.parquet'
    keys, nan = ['null', 'nan'], float('nan')
    pq.write_table(pa.table({'key': keys, 'caption': pa.array([None, nan]), 'price': pa.array([None, 1.0])}), path)
    report = mm.ingest(shop.Items, mm.sources.rows(path))
    assert [(row.key, row.column, row.reason) for row in report.bad] == [
        ('nan', 'caption', 'is NaN: leave the field empty where the value is missing')
    ]
    lines = shop.folder / 'a.jsonl'
    lines.write_text('{"key": "b", "caption": NaN}\n{"key": "c", "caption": "nan"}\n')
    assert [row.key for row in mm.ingest(shop.Items, mm.sources.rows(lines)).bad] == ['b']
    assert ingest(shop, [{'key': 'd', 'caption': 'nan'}]).quarantined == 0
    assert stored(shop, 'caption') == {'null': None, 'c': 'nan', 'd': 'nan'}


def test_files_of_a_row_that_mmpipe_did_not_write_are_kept(shop):
    table = shop.Items.table
    table.insert([{'key': 'x', 'photo': str(shop.folder / 'a.jpg'), 'caption': 'by hand'}])
    report = ingest(shop, [{'key': 'x', 'speech': 'b.wav'}])
    assert report.replaced == 1
    assert stored(shop, 'caption')['x'] == 'by hand'
    assert stored(shop, 'square')['x'] is not None
    assert stored(shop, 'mel')['x'] is not None


def test_a_changed_file_that_is_damaged_leaves_the_old_row(shop):
    ingest(shop)
    before = stored(shop, 'square')['a']
    (shop.folder / 'a.jpg').write_bytes((shop.folder / 'a.jpg').read_bytes()[:300])
    report = ingest(shop)
    assert (report.replaced, report.quarantined, report.unchanged) == (0, 1, 2)
    assert 'truncated' in report.bad[0].reason
    assert (stored(shop, 'square')['a'] == before).all()
    media.photo(shop.folder / 'a.jpg', seed=3)
    assert ingest(shop).replaced == 1
    assert mm.quarantined(shop.Items) == []


def test_a_changed_document_that_its_iterator_cannot_split_leaves_the_old_row_and_its_pages(shop, monkeypatch):
    ingest(shop)
    media.pdf(shop.folder / 'c.pdf', ['Three'])

    def fail(path):
        raise BadInputError(f'{path} cannot be split')

    monkeypatch.setattr(document, 'read_pages', fail)
    report = ingest(shop)
    assert (report.replaced, report.quarantined) == (0, 1)
    assert 'cannot be split' in report.bad[0].reason
    pages = shop.Pages.table
    assert sorted(row['text'] for row in pages.select(pages.text).collect()) == ['One', 'Two']
    monkeypatch.undo()
    assert ingest(shop).replaced == 1
    assert [row['text'] for row in pages.select(pages.text).collect()] == ['Three']


def test_bad_rows_go_to_quarantine_with_all_there_is_to_know_and_leave_when_mended(shop):
    (shop.folder / 'text.jpg').write_text('no picture')
    (shop.folder / 'empty.wav').touch()
    outside = shop.folder.parent / 'outside.jpg'
    media.photo(outside)
    (shop.folder / 'link.jpg').symlink_to(outside)
    bad = [
        {'key': 'missing', 'photo': 'none.jpg'}, {'key': 'text', 'photo': 'text.jpg'},
        {'key': 'empty', 'speech': 'empty.wav'},
        {'key': 'escape', 'photo': '../outside.jpg'}, {'key': 'link', 'photo': 'link.jpg'},
        {'key': 'folder', 'photo': '.'},
        {'key': 'nan', 'price': 'nan'}, {'key': 'word', 'price': 'cheap'}, {'key': '', 'price': '1'},
        {'key': 'k' * 300},
        {'key': 'a', 'caption': 'again'}, {'key': 'nul', 'photo': 'a\0.jpg'}, {'key': 'long', 'photo': 'x' * 300},
    ]  # fmt: skip
    report = ingest(shop, [*shop.rows, *bad])
    assert report.inserted == 3
    assert report.quarantined == len(bad)
    found = {row['row_key'][:9]: row for row in mm.quarantined(shop.Items)}
    manifest = str(shop.folder / 'items.csv')
    for row in found.values():
        assert row['table_path'] == shop.path
        assert row['source'] == manifest
        assert row['place'].startswith(f'{manifest} line ')
        assert row['column_name']
        assert ': ' in row['reason']  # what is wrong: the next move
    said = {key: (row['column_name'], row['reason'].split(':')[0]) for key, row in found.items()}
    assert said['missing'] == ('photo', 'does not exist')
    assert said['text'] == ('photo', 'is not an image of a format that Pillow reads')
    assert said['empty'] == ('speech', 'is empty (0 bytes)')
    assert said['escape'] == said['link'] == ('photo', f"lies outside '{shop.folder}', the folder of the source")
    assert said['folder'] == ('photo', 'is not a file')
    assert said['nan'] == ('price', 'is NaN')
    assert said['word'][0] == 'price'
    assert said[''] == ('key', 'is empty, and it is the key of the row')
    assert said['k' * 9][1].startswith('is a key of 300 characters')
    assert said['a'][1].startswith(f'has the key of {manifest} line 2')
    assert said['long'][1].startswith('cannot be read (File name too long)')
    assert str(shop.folder / 'none.jpg') in found['missing']['path']

    again = ingest(shop, [*shop.rows, *bad])
    assert again.written == 0
    assert again.quarantined == len(bad)
    mended = ingest(shop)
    assert mended.quarantine_written == len(bad)
    assert mm.quarantined(shop.Items) == []
    assert 'in quarantine' in str(report)
    assert '... and 8 more: mm.quarantined' in str(report)


def test_a_csv_of_bad_lines_brings_the_good_ones_in(shop):
    path = shop.folder / 'items.csv'
    path.write_bytes('key,caption\na,one\nb\nc,1,2\nd,Größe\n'.encode('latin-1') + 'e,Größe\n'.encode())
    report = mm.ingest(shop.Items, mm.sources.rows(path))
    assert stored(shop, 'caption') == {'a': 'one', 'e': 'Größe'}
    assert [row.place.rsplit(' ', 1)[1] for row in report.bad] == ['3', '4', '5']
    assert len(mm.quarantined(shop.Items)) == 3


@pytest.mark.parametrize(
    ('row', 'words'),
    [
        ({'colour': 'red'}, r"column colour is not in '.*items', which has key, photo.*: rename or drop it"),
        ({'square': '1'}, 'column square is computed in .*drop it from the source'),
        ({'origin': '{}'}, 'column origin is written by mmpipe itself'),
    ],
)
def test_a_column_that_cannot_be_filled_stops_before_anything_is_written(shop, row, words):
    ingest(shop)
    with pytest.raises(SourceError, match=words):
        ingest(shop, [{'key': 'z', **row}])
    assert set(stored(shop, 'caption')) == {'a', 'b', 'c'}


def test_a_later_json_line_with_an_unknown_column_is_quarantined(shop):
    path = shop.folder / 'a.jsonl'
    path.write_text('{"key": "a"}\n{"key": "b", "colour": "red"}\n{"key": "c", "price": NaN}\n{"key": "d"}\n')
    report = mm.ingest(shop.Items, mm.sources.rows(path))
    assert set(stored(shop, 'caption')) == {'a', 'd'}
    assert [(row.key, row.column) for row in report.bad] == [('b', 'colour'), ('c', 'price')]


def test_file_names_and_reasons_that_are_no_utf8_still_reach_the_quarantine(shop):
    folder = shop.folder / 'odd'
    folder.mkdir()
    with open(os.fsencode(folder) + b'/caf\xe9.jpg', 'wb') as file:
        file.write(b'x')
    media.photo(folder / 'ok.jpg')
    report = mm.ingest(shop.Items, mm.sources.files(folder, column='photo'))
    assert report.inserted == 1
    assert r'caf\udce9.jpg' in mm.quarantined(shop.Items)[0]['row_key']
    assert mm.ingest(shop.Items, mm.sources.files(folder, column='photo')).written == 0


@pytest.fixture
def counted(tables, tmp_path):
    declared = SimpleNamespace(**vars(tables[1]))
    declared.Numbers.table.delete()
    empty_quarantine()
    declared.folder = tmp_path
    declared.ingest = lambda rows, **options: mm.ingest(
        declared.Numbers, mm.sources.rows(write_csv(tmp_path / 'n.csv', rows)), **options
    )
    declared.stored = lambda: {
        row['key']: (row['x'], row['twice'])
        for row in declared.Numbers.table.select(
            declared.Numbers.table.key, declared.Numbers.table.x, declared.Numbers.table.twice
        ).collect()
    }
    return declared


def test_a_function_that_raises_on_one_row_gives_a_null_cell_and_an_error_with_the_next_move(counted):
    report = counted.ingest([{'key': f'k{i}', 'x': i} for i in range(11, 15)])
    assert counted.stored() == {'k11': (11, 22), 'k12': (12, 24), 'k13': (13, None), 'k14': (14, 28)}
    assert report.failed_cells == 1
    (message,) = report.errors
    for word in (
        'numbers.twice: 1 cell is null',
        "row 'k13'",
        '13 is unlucky',
        "then mm.retry('",
    ):
        assert word in message
    assert message in str(report)


def test_an_iterator_that_raises_on_one_row_quarantines_that_row_alone(counted):
    rows = [{'key': f'k{i}', 'x': i, 'text': 'a trap' if i == 5 else 'one two'} for i in range(12)]
    report = counted.ingest(rows)
    assert (report.inserted, report.quarantined) == (11, 1)
    assert report.bad[0].key == 'k5'
    assert report.bad[0].reason == (
        'was refused by Pixeltable (RuntimeError: fell into the trap): correct the row or the function'
    )
    assert 'k5' not in counted.stored()
    assert counted.Words.table.count() == 22
    rows[5]['text'] = 'mended'
    assert counted.ingest(rows).inserted == 1
    assert counted.Words.table.count() == 23


def test_an_update_that_a_function_refuses_keeps_the_old_row_and_does_the_others(counted):
    counted.ingest([{'key': f'k{i}', 'x': i, 'text': 'one'} for i in range(4)])
    report = counted.ingest([
        {'key': 'k0', 'x': 13, 'text': 'one'}, {'key': 'k1', 'x': 1, 'text': 'a trap'},
        {'key': 'k2', 'x': 20, 'text': 'one'},
    ])  # fmt: skip
    assert (report.updated, report.quarantined) == (1, 2)
    assert {row.key: row.reason for row in report.bad}['k0'] == (
        'was refused by Pixeltable (ValueError: 13 is unlucky, in doubled(x)): correct the row or the function'
    )
    assert counted.stored() == {'k0': (0, 0), 'k1': (1, 2), 'k2': (20, 40), 'k3': (3, 6)}


def test_a_reason_that_holds_for_every_row_so_far_stops_the_ingest_with_the_rows_in_quarantine(counted):
    elsewhere = mm.ingest(counted.Numbers, mm.sources.rows(write_csv(counted.folder / 'o.csv', [{'key': ''}])))
    assert elsewhere.quarantined == 1
    rows = [{'key': f'k{i}', 'x': i, 'text': 'trap' if i < 3 else 'one'} for i in range(5)]
    rows[4]['key'] = 'k' * 300
    counted.ingest(rows[4:])
    for size in (3, 1):  # one chunk, or several
        with pytest.raises(StoreError, match=r"numbers': none of the [23] rows from .* line 2 on.*fell into the trap"):
            counted.ingest(rows, chunk_rows=size)
        assert counted.stored() == {}
        found = [row['row_key'][:2] for row in mm.quarantined(counted.Numbers)]
        assert sorted(found) == ['', 'k0', 'k1', 'k2', 'kk']  # those of this source and of others are still there
    assert counted.ingest([{**row, 'key': row['key'][:9], 'text': 'one'} for row in rows]).inserted == 5
    assert [row['row_key'] for row in mm.quarantined(counted.Numbers)] == ['']


def test_a_last_chunk_of_bad_rows_alone_does_not_stop_the_ingest(counted):
    rows = [{'key': f'k{i}', 'x': i, 'text': 'trap' if i >= 32 else 'one'} for i in range(34)]
    report = counted.ingest(rows)
    assert (report.inserted, report.quarantined) == (32, 2)
    assert len(counted.stored()) == 32
    assert {row['row_key'] for row in mm.quarantined(counted.Numbers)} == {'k32', 'k33'}


@pytest.mark.parametrize(
    'failure',
    [
        OSError(errno.ENOSPC, 'No space left on device'),
        MemoryError(),
        sqlalchemy.exc.OperationalError('INSERT', {}, psycopg.OperationalError('the connection is lost')),
    ],
)
def test_a_failing_machine_is_blamed_on_no_row(counted, monkeypatch, failure):
    def fail(*_):
        try:
            raise failure
        except type(failure) as error:
            raise RuntimeError('refused') from error

    rows = [{'key': f'k{i}', 'x': i} for i in range(4)]
    monkeypatch.setattr(sources_write, 'replace_rows', fail)
    with pytest.raises(StoreError, match=rf'stopped at .* line 2 \({type(failure).__name__}.*run the same again'):
        counted.ingest(rows)
    monkeypatch.undo()
    assert mm.quarantined(counted.Numbers) == []
    assert counted.ingest(rows).inserted == 4


def test_a_column_that_new_rows_need_is_asked_for(directory, tmp_path):
    Tables = pxt.model_base()

    class Needy(Tables, name='needy'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        price: pxt.Float
        photo: pxt.Image
        origin: pxt.Json | None

    mm.apply(mm.plan(Tables, directory))
    media.photo(tmp_path / 'a.jpg')
    good = mm.sources.rows(write_csv(tmp_path / 'a.csv', [{'key': 'a', 'price': '1', 'photo': 'a.jpg'}]))
    assert mm.ingest(Needy, good).inserted == 1
    rows = [{'key': 'b', 'photo': 'a.jpg'}, {'key': 'c', 'photo': 'a.jpg'}]
    with pytest.raises(StoreError, match='price is not given, and a new row needs it: add the column'):
        mm.ingest(Needy, mm.sources.rows(write_csv(tmp_path / 'b.csv', rows)))
    rows = [{'key': 'a', 'photo': 'a.jpg'}, {'key': 'c', 'photo': 'a.jpg'}]
    report = mm.ingest(Needy, mm.sources.rows(write_csv(tmp_path / 'b.csv', rows)))
    assert (report.unchanged, report.bad[0].key, report.bad[0].column) == (1, 'c', 'price')
    rows = [{'key': 'd', 'price': None, 'photo': 'a.jpg'}, {'key': 'e', 'price': '1', 'photo': None}]
    report = mm.ingest(Needy, mm.sources.rows(write_csv(tmp_path / 'c.csv', rows)))
    assert [(bad.key, bad.column) for bad in report.bad] == [('d', 'price'), ('e', 'photo')]
    assert all('may not be null' in bad.reason for bad in report.bad)


def test_keys_of_several_columns_times_and_arrays_come_back_unchanged(directory, tmp_path):
    Tables = pxt.model_base()

    class Series(Tables, name='series'):
        name = pxt.Column(type=pxt.String, primary_key=True)
        step = pxt.Column(type=pxt.Int, primary_key=True)
        at: pxt.Timestamp | None
        day: pxt.Date | None
        vector: pxt.Array[(2,), pxt.Float] | None
        facts: pxt.Json | None
        flag: pxt.Bool | None
        origin: pxt.Json | None

    mm.apply(mm.plan(Tables, directory))
    rows = [
        {'name': name, 'step': str(step), 'at': '2020-01-02T03:04', 'day': '2020-01-02', 'vector': '[1, 0.1]',
         'facts': '{"n": 1152921504606846977}', 'flag': 'yes'}
        for name in 'ab' for step in range(3)
    ]  # fmt: skip
    source = mm.sources.rows(write_csv(tmp_path / 'a.csv', rows))
    assert mm.ingest(Series, source).inserted == 6
    assert mm.ingest(Series, source).written == 0
    rows[4].update(at='2021-01-02T03:04', vector='[1, 2]')
    assert mm.ingest(Series, mm.sources.rows(write_csv(tmp_path / 'a.csv', rows))).updated == 1


@pytest.mark.parametrize('mode', ['L', 'LA', 'P', 'I;16', 'CMYK', 'RGBA', '1', 'I'])
def test_an_image_of_any_mode_goes_all_the_way(shop, mode):
    grey = PIL.Image.fromarray(np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8))
    if mode == 'I;16':
        image = PIL.Image.fromarray(np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8))
    else:
        image = grey.convert(mode)
    name = 'a.tiff' if mode in ('CMYK', 'I') else 'a.png'
    image.save(shop.folder / name)
    assert PIL.Image.open(shop.folder / name).mode == mode
    report = ingest(shop, [{'key': mode, 'photo': name}])
    assert (report.inserted, report.failed_cells) == (1, 0)
    snapshot = mm.snapshot(
        shop.Items,
        root=shop.folder / 'shards',
        fields={'square': shop.Items.square, 'photo': mm.field.image(shop.Items.photo, size=8)},
    ).snapshot
    square, there = snapshot.rows().read('square')
    assert there.all()
    assert square.shape == (1, 3, 8, 8)
    assert (square == snapshot.rows().read('photo')[0]).all()
    if mode in ('L', 'LA', 'RGBA', 'P', 'I;16'):
        assert abs(square[0, 0].astype(int) - np.asarray(grey).astype(int)).max() <= 2


def test_a_float_image_is_quarantined(shop):
    PIL.Image.new('F', (4, 4), 0.5).save(shop.folder / 'f.tiff')
    report = ingest(shop, [{'key': 'f', 'photo': 'f.tiff'}, {'key': 'ok', 'photo': 'a.jpg'}])
    assert (report.inserted, report.bad[0].key, report.bad[0].column) == (1, 'f', 'photo')
    assert 'mode F' in report.bad[0].reason


def test_tables_that_cannot_be_filled_are_refused_with_the_line_to_add(shop, directory, tmp_path):
    source = mm.sources.rows(write_csv(tmp_path / 'x.csv', [{'key': 'a'}]))
    with pytest.raises(SchemaError, match=r"pages' is a view: rows go into its base table '.*items'"):
        mm.ingest(shop.Pages, source)
    pxt.create_table(f'{directory}/keyless', {'x': pxt.Int})
    with pytest.raises(SchemaError, match=r'no primary key.*primary_key=True'):
        mm.ingest(f'{directory}/keyless', source)
    pxt.create_table(f'{directory}/plain', {'key': {'type': pxt.String, 'primary_key': True}})
    with pytest.raises(SchemaError, match=r'origin: pxt.Json \| None'):
        mm.ingest(f'{directory}/plain', source)
    with pytest.raises(ConfigError, match='chunk_rows=0'):
        mm.ingest(shop.Items, source, chunk_rows=0)


def test_a_source_of_ones_own_is_checked_like_ours(shop):
    class Mine:
        name = 'mine'

        def __init__(self, **given):
            self.given = given

        def total(self):
            return None

        def records(self, *, key, media):
            yield Record(place='first', values={'key': 'one'}, root=shop.folder)
            yield Record(place='here', root=shop.folder, **self.given)

    assert (
        mm.ingest(shop.Items, Mine(values={'key': 'two', 'photo': 'a.jpg'})).bad[0].reason.endswith('in Record.media')
    )
    assert mm.ingest(shop.Items, Mine(values={'key': 'two'}, media={'price': None})).bad[0].column == 'price'
    assert mm.ingest(shop.Items, Mine(values={'key': 'two'}, media={'photo': shop.folder / 'a.jpg'})).inserted == 1


def test_chunks_and_progress_add_up(counted):
    seen = []
    rows = [{'key': f'k{i}', 'x': i} for i in range(7)]
    report = counted.ingest(rows, chunk_rows=3, progress=lambda *args: seen.append(args))
    assert report.inserted == 7
    assert seen == [('ingest', done, 7, 'rows') for done in (0, 3, 6, 7)]


def test_a_name_that_pixeltable_would_take_for_another_files_is_refused(shop):
    """Pixeltable 0.7 decodes 'a%20b.jpg' to 'a b.jpg' when it reads it, and gives that file's content."""
    for name, colour in (('a%20b.jpg', 'red'), ('a b.jpg', 'blue'), ('100%.jpg', 'green')):
        PIL.Image.new('RGB', (8, 8), colour).save(shop.folder / name)
    names = ('a%20b.jpg', 'a b.jpg', '100%.jpg')
    manifest = write_csv(shop.folder / 'odd.csv', [{'key': name, 'photo': name} for name in names])
    report = mm.ingest(shop.Items, mm.sources.rows(manifest))
    assert report.inserted == 2
    assert [(bad.key, bad.reason) for bad in report.bad] == [
        ('a%20b.jpg', "has '%20' in its path, which Pixeltable takes for another name: rename it")
    ]


def test_what_is_no_source_and_a_source_without_rows_are_told(shop):
    with pytest.raises(ConfigError, match=r"'photos' is no source: mm\.sources\.rows"):
        mm.ingest(shop.Items, 'photos')
    empty = mm.ingest(shop.Items, mm.sources.files(shop.folder / '*.nothing', column='photo'))
    assert str(empty).endswith('; the source has no rows')

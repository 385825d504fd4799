from __future__ import annotations

import csv
import json
import os
import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmpipe.errors import SourceError
from mmpipe.sources import Bad, Record, every, files, rows
from mmpipe.sources.readers import KEY_LENGTH, short_key

MEDIA = {'photo': 'image', 'speech': 'audio'}
CELL = st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0'), max_size=6)


def read(source, media=MEDIA, key=('key',)):
    return list(source.records(key=list(key), media=media))


@settings(deadline=None, max_examples=50)
@given(st.lists(st.tuples(CELL, CELL), max_size=6), st.lists(st.integers(0, 5), max_size=3))
def test_every_good_row_of_a_csv_file_comes_through_whatever_stands_between_them(cells, broken):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'items.csv'
        with path.open('w', newline='', encoding='utf-8') as file:
            writer = csv.writer(file, quoting=csv.QUOTE_ALL)
            writer.writerow(['a', 'b'])
            for i, pair in enumerate(cells):
                if i in broken:
                    file.write('one,two,three\n')
                writer.writerow(pair)
        records = read(rows(path))
        assert [tuple(r.values.values()) for r in records if isinstance(r, Record)] == [
            (a or None, b or None) for a, b in cells
        ]
        assert sum(isinstance(r, Bad) for r in records) == len({i for i in broken if i < len(cells)})


@settings(deadline=None, max_examples=30)
@given(st.lists(st.dictionaries(st.sampled_from('abc'), st.none() | st.integers() | CELL), max_size=5))
def test_json_lines_and_parquet_give_the_same_values(table):
    with tempfile.TemporaryDirectory() as folder:
        lines, parquet = Path(folder) / 'a.jsonl', Path(folder) / 'a.parquet'
        lines.write_text('\n'.join(json.dumps(row) for row in table), encoding='utf-8')
        assert [r.values for r in read(rows(lines))] == table
        whole = [{name: str(row.get(name)) for name in 'abc'} for row in table]
        pq.write_table(pa.Table.from_pylist(whole, schema=pa.schema([(n, pa.string()) for n in 'abc'])), parquet)
        records = read(rows(parquet))
        assert [r.values for r in records] == whole
        assert rows(parquet).total() == len(table)


def write(path, text, encoding='utf-8'):
    path.write_bytes(text.encode(encoding) if isinstance(text, str) else text)
    return path


def test_bad_rows_name_file_and_line_and_the_next_move(tmp_path):
    text = b'key,label\na,1\nb\nc,1,2\n"d\nd",1\n' + 'e,Größe\n'.encode('latin-1') + b'\nf,1\n'
    path = write(tmp_path / 'items.csv', text)
    records = read(rows(path))
    good = {r.place.removeprefix(f'{path} '): r.values['key'] for r in records if isinstance(r, Record)}
    bad = {r.place.removeprefix(f'{path} '): r for r in records if isinstance(r, Bad)}
    assert good == {'line 2': 'a', 'line 5': 'd\nd', 'line 9': 'f'}
    assert set(bad) == {'line 3', 'line 4', 'line 7'}
    assert bad['line 3'].reason == "has 1 fields, the header has 2: correct the line ('b'...)"
    assert 'has 3 fields' in bad['line 4'].reason
    assert (bad['line 7'].column, bad['line 7'].reason[:12]) == ('label', 'is not UTF-8')


def test_a_quote_that_is_never_closed_says_how_far_it_runs(tmp_path):
    path = write(tmp_path / 'items.csv', 'key,label\na,1\n"b,1\nc,1\nd,1\n')
    bad = [r for r in read(rows(path)) if isinstance(r, Bad)]
    assert len(bad) == 1
    assert bad[0].place.endswith('line 3')
    assert bad[0].reason == 'opens a quote that is not closed up to line 5, so none of these is read: close it'
    # The last column takes a whole row's worth of text without a word, unless quotes have to be closed.
    path = write(tmp_path / 'last.csv', 'key,label\na,1\nb,"1\nc,1\n')
    found = list(read(rows(path)))
    assert [type(each) for each in found] == [Record, Bad]
    assert 'up to line 4' in found[1].reason


@pytest.mark.parametrize('separator', [';', '\t'])
def test_another_separator_is_named(tmp_path, separator):
    path = write(tmp_path / 'items.csv', f'key{separator}x\na{separator}1,5\n')
    with pytest.raises(SourceError, match=r'seems to be separated by .* save it with commas'):
        list(read(rows(path)))


@pytest.mark.parametrize(
    ('name', 'content', 'words'),
    [
        ('a.csv', b'', 'is empty; its first line names the columns'),
        ('a.csv', b'key,key\n', 'names a column twice'),
        ('a.csv', b'key,\n', 'without a name'),
        ('a.csv', 'key,größe\n'.encode('latin-1'), 'is not UTF-8'),
        ('a.csv', 'key,a\n'.encode('utf-16'), 'is not UTF-8|without a name'),
        ('a.parquet', b'PAR1 and nothing', 'is not a Parquet file'),
        ('a.parquet', b'', 'is not a Parquet file'),
    ],
)
def test_a_manifest_that_cannot_be_read_at_all_is_an_error_with_its_name(tmp_path, name, content, words):
    path = write(tmp_path / name, content)
    with pytest.raises(SourceError, match=words) as raised:
        read(rows(path))
    assert str(path) in str(raised.value)


def test_bad_json_lines_stand_beside_good_ones(tmp_path):
    text = b'\xef\xbb\xbf{"key": "a"}\n[1]\n{"key": \n\n' + '{"key": "ö"}\n'.encode('latin-1') + b'{"key": "b"}'
    records = read(rows(write(tmp_path / 'a.jsonl', text)))
    assert [r.values['key'] for r in records if isinstance(r, Record)] == ['a', 'b']
    assert [r.place.rsplit(' ', 1)[1] for r in records if isinstance(r, Bad)] == ['2', '3', '5']
    assert all('correct the line' in r.reason or 'UTF-8' in r.reason for r in records if isinstance(r, Bad))


def test_media_columns_become_paths_below_the_root_and_urls_are_refused(tmp_path):
    path = write(tmp_path / 'a.csv', 'key,photo,speech\na,x/a.jpg,\nb,https://host/b.jpg,\n')
    one, two = read(rows(path))
    assert one.media == {'photo': tmp_path / 'x/a.jpg', 'speech': None}
    assert one.values == {'key': 'a'}
    reason = 'is a URL: download it, and give the path; or allow_urls=True for http and https'
    assert (two.column, two.key, two.reason) == ('photo', 'b', reason)


def test_what_is_no_manifest_is_refused_at_once(tmp_path):
    with pytest.raises(SourceError, match='there is no file'):
        rows(tmp_path / 'none.csv')
    with pytest.raises(SourceError, match=r"ends in '.txt'; a manifest ends in .csv"):
        rows(write(tmp_path / 'a.txt', ''))
    with pytest.raises(SourceError, match='there is no folder'):
        files(tmp_path / 'none')


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / 'photos [1]'  # glob characters in a folder's own name
    (root / 'cats').mkdir(parents=True)
    (root / 'dogs').mkdir()
    for name in ('cats/a.jpg', 'dogs/a.jpg', 'dogs/b.jpg', 'notes.txt'):
        (root / name).write_text(name)
    return root


def test_a_folder_gives_a_row_per_file_keyed_by_its_path(folder):
    source = files(folder, column='photo', values=lambda path: {'kind': path.parent.name})
    records = read(source)
    assert [r.values['key'] for r in records] == ['cats/a.jpg', 'dogs/a.jpg', 'dogs/b.jpg', 'notes.txt']
    assert records[0].values['kind'] == 'cats'
    assert records[0].media == {'photo': folder / 'cats/a.jpg'}
    assert source.total() == 4
    assert [r.place for r in read(files(str(folder.parent / 'photos?[[]1]/**/*.jpg'), column='photo'))] == [
        'photos [1]/cats/a.jpg', 'photos [1]/dogs/a.jpg', 'photos [1]/dogs/b.jpg',
    ]  # fmt: skip


def test_metadata_is_joined_by_path_or_name_and_what_does_not_join_is_reported(folder):
    meta = write(folder / 'meta.csv', (
        'file,price,speech\ncats/a.jpg,1,s/a.wav\nb.jpg,2,\nnone.jpg,3,\n,4,\nb.jpg,5,\n'
    ))  # fmt: skip
    records = read(files(folder, column='photo', metadata=meta))
    by_place = {r.place: r for r in records}
    assert by_place['cats/a.jpg'].values == {'key': 'cats/a.jpg', 'price': '1'}
    assert by_place['cats/a.jpg'].media == {'photo': folder / 'cats/a.jpg', 'speech': folder / 's/a.wav'}
    assert by_place['dogs/b.jpg'].values['price'] == '2'
    assert 'meta.csv' not in by_place  # the metadata itself is no photo
    bad = [(r.place.rsplit(' ', 1)[1], r.reason.split(':')[0]) for r in records if isinstance(r, Bad)]
    assert bad == [
        ('5', 'names no file'),
        ('6', f'names the same file as {meta} line 3'),
        ('4', f"names a file that is not in '{folder}'"),
    ]


def test_a_name_that_two_files_have_is_not_guessed(folder):
    meta = write(folder / 'meta.csv', 'file,price\na.jpg,1\n')
    records = read(files(folder, column='photo', metadata=meta))
    bad = {r.place: r.reason for r in records if isinstance(r, Bad)}
    assert set(bad) == {'cats/a.jpg', 'dogs/a.jpg'}
    assert 'write the path there' in bad['cats/a.jpg']


def test_links_that_lead_nowhere_are_rows_and_links_to_folders_are_not(folder):
    (folder / 'broken.jpg').symlink_to(folder / 'none.jpg')
    (folder / 'more').symlink_to(folder / 'cats')
    places = [r.place for r in read(files(folder / '*', column='photo'))]
    assert places == ['broken.jpg', 'notes.txt']


@pytest.mark.parametrize(
    ('options', 'key', 'words'),
    [
        ({}, ('key',), 'has 2 media columns'),
        ({'column': 'picture'}, ('key',), "column='picture'.*photo, speech"),
        ({'column': 'photo'}, ('a', 'b'), 'mm.sources.rows'),
    ],
)
def test_a_call_that_does_not_fit_the_table_names_the_option(folder, options, key, words):
    with pytest.raises(SourceError, match=words):
        read(files(folder, **options), key=key)


def test_metadata_without_the_joining_column_names_the_option(folder):
    meta = write(folder / 'meta.csv', 'name,price\na.jpg,1\n')
    with pytest.raises(SourceError, match=r"no column 'file'.*files\(..., on=\)"):
        read(files(folder, column='photo', metadata=meta))


@given(st.text(min_size=1, max_size=400), st.text(min_size=1, max_size=400))
def test_long_paths_stay_apart_and_short_ones_stay_themselves(one, two):
    assert len(short_key(one)) <= KEY_LENGTH
    assert (short_key(one * 3) == short_key(two * 3)) == (one * 3 == two * 3)
    if len(one) <= KEY_LENGTH:
        assert short_key(one) == one


def test_a_file_name_that_is_not_utf8_has_a_key(folder):
    os.close(os.open(os.fsencode(folder) + b'/caf\xe9.jpg', os.O_CREAT))
    assert any('\udce9' in r.values['key'] for r in read(files(folder, column='photo')))


@given(st.integers(0, 20), st.integers(1, 7))
def test_every_takes_each_nth_record(count, step):
    with tempfile.TemporaryDirectory() as folder:
        path = write(Path(folder) / 'a.csv', 'key\n' + ''.join(f'k{i}\n' for i in range(count)))
        part = every(rows(path), step)
        assert [r.values['key'] for r in read(part)] == [f'k{i}' for i in range(0, count, step)]
        assert part.total() == len(range(0, count, step))
    with pytest.raises(SourceError, match='at least 1'):
        every(rows, 0)

from __future__ import annotations

from datetime import date, datetime, timedelta, timezone
from uuid import UUID

import media
import pixeltable as pxt
import pytest
import sqlalchemy as sql
from pixeltable.env import Env
from schemas import media_table, numbers

from mmpipe.errors import SchemaError, StoreError
from mmpipe.store import (
    cell_errors,
    computed_columns,
    delete_rows,
    media_columns,
    path_of,
    primary_key,
    replace_rows,
    rows_with_keys,
    table_of,
    tables_in,
    update_rows,
    version_vector,
    views_of,
)
from mmpipe.store.plain import plain_rows


def stored(table):
    return {row['key']: row['x'] for row in table.select(table.key, table.x).collect()}


def test_a_replacement_that_fails_leaves_the_old_rows_and_the_view(directory):
    declared = numbers(directory)
    table, words = declared.Numbers.table, declared.Words.table
    table.insert([{'key': 'a', 'x': 1, 'text': 'one two'}])
    before = version_vector(words)
    with pytest.raises(RuntimeError, match='trap'):  # raised by the view's iterator, behind the delete
        replace_rows(table, [{'key': 'a', 'x': 2, 'text': 'a trap'}], [('a',)])
    assert stored(table) == {'a': 1}
    assert sorted(row['word'] for row in words.select(words.word).collect()) == ['one', 'two']
    assert version_vector(words) == before

    written = replace_rows(table, [{'key': 'a', 'x': 2, 'text': 'three'}], [('a',)])
    assert stored(table) == {'a': 2}
    assert written.rows == 1
    assert [row['word'] for row in words.select(words.word).collect()] == ['three']


def test_a_duplicate_key_is_refused_and_nothing_is_written(directory):
    table = numbers(directory).Numbers.table
    table.insert([{'key': 'a', 'x': 1}])
    with pytest.raises(StoreError):
        replace_rows(table, [{'key': 'b', 'x': 1}, {'key': 'a', 'x': 2}], [])
    assert stored(table) == {'a': 1}


def test_a_file_that_pixeltable_would_lose_is_refused(directory, tmp_path):
    table = media_table(directory).Items.table
    fake = tmp_path / 'page.docx'
    fake.write_text('not a zip')
    with pytest.raises(StoreError, match='document'):
        replace_rows(table, [{'key': 'a', 'document': str(fake)}], [])
    assert table.count() == 0


def test_rows_are_found_by_keys_of_several_columns(directory):
    schema = {'a': {'type': pxt.String, 'primary_key': True}, 'b': {'type': pxt.Int, 'primary_key': True}, 'x': pxt.Int}
    table = pxt.create_table(f'{directory}/pairs', schema)
    table.insert([{'a': f'k{i % 3}', 'b': i // 3, 'x': i} for i in range(12)])
    assert primary_key(table) == ['a', 'b']
    found = rows_with_keys(table, [('k1', 0), ('k2', 3), ('k9', 0)], ['x'])
    assert found == {('k1', 0): {'x': 1}, ('k2', 3): {'x': 11}}
    found = plain_rows(table, [('k1', 0), ('k2', 3), ('k9', 0)], ['x', 'a'])
    assert found == {('k1', 0): (1, 'k1'), ('k2', 3): (11, 'k2')}
    assert len(rows_with_keys(table, [(f'k{i}', i) for i in range(300)], ['x'])) == 3
    assert delete_rows(table, [('k1', 0), ('k9', 9)]) == 1
    update_rows(table, [{'a': 'k2', 'b': 3, 'x': 100}])
    assert rows_with_keys(table, [('k2', 3)], ['x']) == {('k2', 3): {'x': 100}}
    assert rows_with_keys(table, [], ['x']) == plain_rows(table, [], ['x']) == {}
    assert delete_rows(table, []) == 0


@pytest.mark.parametrize(
    ('kind', 'keys'),
    [
        (pxt.String, ['', "it's", 'ü' * 255, '{a,"b"}']),
        (pxt.Int, [0, -(2**63), 2**63 - 1]),
        (pxt.Float, [0.1, -1e300]),
        (pxt.Timestamp, [datetime(2020, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=5)))]),
        (pxt.Date, [date(2020, 1, 2)]),
        (pxt.UUID, [UUID(int=7)]),
    ],
)
def test_rows_are_found_changed_and_deleted_by_keys_of_every_type(directory, kind, keys):
    table = pxt.create_table(f'{directory}/keyed', {'key': {'type': kind, 'primary_key': True}, 'x': pxt.Int})
    replace_rows(table, [{'key': key, 'x': i} for i, key in enumerate(keys)], [])
    assert rows_with_keys(table, [(key,) for key in keys], ['x']) == {(key,): {'x': i} for i, key in enumerate(keys)}
    assert plain_rows(table, [(key,) for key in keys], ['x']) == {(key,): (i,) for i, key in enumerate(keys)}
    update_rows(table, [{'key': key, 'x': 10 + i} for i, key in enumerate(keys)])
    replace_rows(table, [{'key': keys[0], 'x': 20}], [(keys[0],)])
    assert [row['x'] for row in table.order_by(table.x).select(table.x).collect()] == [*range(11, 10 + len(keys)), 20]
    assert delete_rows(table, [(key,) for key in keys]) == len(keys)
    with pytest.raises(StoreError, match=r"keyed' has no row .* any more: run the same again"):
        update_rows(table, [{'key': keys[0], 'x': 1}])


def test_a_look_up_reads_the_index_and_not_the_table(directory):
    table = pxt.create_table(f'{directory}/many', {'key': {'type': pxt.String, 'primary_key': True}, 'x': pxt.Int})
    table.insert([{'key': f'photos/{i}.jpg', 'x': i} for i in range(4000)])
    engine, seen = Env.get().engine, []
    keys = [(f'photos/{i}.jpg',) for i in range(0, 4000, 400)]
    with engine.connect() as connection:
        connection.execute(sql.text('ANALYZE'))
        connection.commit()

    def note(connection, cursor, statement, parameters, context, many):
        seen.append((statement, parameters))

    sql.event.listen(engine, 'before_cursor_execute', note)
    try:
        assert len(rows_with_keys(table, keys, ['x'])) == 10
        assert len(plain_rows(table, keys, ['x'])) == 10
        assert delete_rows(table, keys) == 10
    finally:
        sql.event.remove(engine, 'before_cursor_execute', note)
    name = f'tbl_{str(table.get_metadata()["id"]).replace("-", "")}'
    mine = [each for each in seen if name in each[0] and not each[0].startswith('EXPLAIN')]  # Pixeltable logs plans
    assert [statement.split()[0] for statement, _ in mine] == ['SELECT', 'SELECT', 'SELECT', 'SELECT', 'UPDATE']
    with engine.connect() as connection:
        for statement, parameters in mine:
            plan = [row[0] for row in connection.exec_driver_sql(f'EXPLAIN {statement}', parameters)]
            scans = [line for line in plan if 'Scan' in line and 'unnest' not in line]
            assert scans
            assert not [line for line in scans if 'Seq Scan' in line], plan
        connection.rollback()


def test_failed_cells_are_counted_with_column_row_and_reason(directory):
    table = numbers(directory).Numbers.table
    written = replace_rows(table, [{'key': 'good', 'x': 1}, {'key': 'bad', 'x': 13}], [])
    assert written.failed_cells == 1
    assert written.columns == ('numbers.twice',)
    assert cell_errors(table) == {'twice': (1, ["row 'bad': ValueError: 13 is unlucky"])}
    assert cell_errors(table, ['split']) == {}


def test_tables_are_looked_up_and_described(directory, tmp_path):
    declared = media_table(directory)
    table = declared.Items.table
    assert table_of(declared.Items) == table_of(table) == table_of(f'{directory}/items') == table
    assert media_columns(table) == {'photo': 'image', 'speech': 'audio', 'clip': 'video', 'document': 'document'}
    assert computed_columns(table) == ['square', 'mel', 'body']
    assert [path_of(view) for view in views_of(table)] == [f'{directory}/pages']
    assert [path_of(each) for each in tables_in(directory)] == [f'{directory}/items', f'{directory}/pages']
    assert tables_in('no_such_directory') == []
    photo = media.photo(tmp_path / 'a b.jpg')
    replace_rows(table, [{'key': 'a', 'photo': str(photo)}], [])
    row = rows_with_keys(table, [('a',)], ['caption'], files=['photo', 'clip'])[('a',)]
    assert row['caption'] is None
    assert row['clip'] is None
    assert row['photo'].endswith('a%20b.jpg')


@pytest.mark.parametrize('what', ['no/such', 'a b!/c', 17, object])
def test_what_is_no_table_is_refused_with_a_next_move(pixeltable_home, what):
    with pytest.raises(SchemaError, match=r'list_tables|Give a table class'):
        table_of(what)


def test_a_directory_is_no_table_and_a_class_wants_to_be_bound(directory):
    with pytest.raises(SchemaError, match=f"'{directory}' is no table"):
        table_of(directory)
    Tables = pxt.model_base()

    class Loose(Tables, name='loose'):
        x: pxt.Int

    with pytest.raises(SchemaError, match=r'Loose is declared, but not bound.*mm\.apply'):
        table_of(Loose)

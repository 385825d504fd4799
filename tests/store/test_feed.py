"""The change feed against an oracle: what a select of the whole table showed before and shows now."""

from __future__ import annotations

import itertools

import pixeltable as pxt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemas import numbers

from mmpipe.errors import StoreError
from mmpipe.store import base_of, changes_since, rowid_expressions, rowid_width, table_of, version_vector

KEYS = [f'k{i}' for i in range(8)]
ROW = st.fixed_dictionaries({
    'x': st.none() | st.integers(-3, 7),
    'text': st.none() | st.lists(st.sampled_from(['a', 'b', 'c']), max_size=3).map(' '.join),
})  # fmt: skip
STEP = st.one_of(
    st.tuples(st.just('insert'), ROW),
    st.tuples(st.just('update'), st.sampled_from(KEYS), ROW),
    st.tuples(st.just('delete'), st.sampled_from(KEYS)),
    st.tuples(st.just('recompute')),
)
_counter = itertools.count()


def act(table, step):
    if step[0] == 'insert':
        table.insert([{'key': f'k{next(_counter) % 8}-{next(_counter)}', 'origin': None, **step[1]}])
    elif step[0] == 'update':
        table.where(table.key >= step[1]).update(step[2])
    elif step[0] == 'delete':
        table.delete(where=(table.key >= step[1]) & (table.key < step[1] + 'z'))
    else:
        table.recompute_columns('twice')


def visible(table):
    """Rowid to the values of every column, read by a plain select."""
    parts = {f'rowid_{i}': part for i, part in enumerate(rowid_expressions(table))}
    names = ['key', 'x', 'text', *(['word'] if rowid_width(table) > 1 else [])]
    found = table.select(**parts, **{name: getattr(table, name) for name in names}).collect()
    return {tuple(row[part] for part in parts): {name: row[name] for name in names} for row in found}


@pytest.fixture(scope='module')
def tables(pixeltable_home):
    pxt.drop_dir('t_feed', force=True, if_not_exists='ignore')
    declared = numbers('t_feed')
    yield [getattr(declared, name).table for name in ('Numbers', 'Positive', 'Small', 'Words', 'LongWords')]
    pxt.drop_dir('t_feed', force=True)


@settings(deadline=None, max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEP, min_size=1, max_size=4))
def test_the_feed_finds_every_change_of_tables_and_views_of_all_kinds(tables, steps):
    before = [(version_vector(table), visible(table)) for table in tables]
    for step in steps:
        act(tables[0], step)
    for table, (vector, was) in zip(tables, before, strict=True):
        changes = changes_since(table, vector)
        now = visible(table)
        assert set(changes.inserted) == now.keys() - was.keys()
        assert set(changes.deleted) == was.keys() - now.keys()
        assert {rowid for rowid in now.keys() & was.keys() if now[rowid] != was[rowid]} <= set(changes.updated)
        assert set(changes.updated) <= now.keys() & was.keys()
        assert list(changes.inserted) == sorted(changes.inserted)
        assert changes.vector == version_vector(table)
        everything = changes_since(table, None)
        assert set(everything.inserted) == now.keys()
        nothing = changes_since(table, changes.vector)
        assert nothing.inserted == nothing.updated == nothing.deleted == ()


def test_a_row_that_enters_and_leaves_a_filter_is_inserted_and_deleted(directory):
    declared = numbers(directory)
    table, view = declared.Numbers.table, declared.Positive.table
    table.insert([{'key': 'a', 'x': 1}, {'key': 'b', 'x': -1}])
    vector = version_vector(view)
    table.where(table.key == 'a').update({'x': -1})
    table.where(table.key == 'b').update({'x': 1})
    changes = changes_since(view, vector)
    assert len(changes.inserted) == len(changes.deleted) == 1
    assert changes.inserted != changes.deleted


def test_a_revert_and_a_table_made_again_are_found_out(directory):
    declared = numbers(directory)
    table = declared.Numbers.table
    table.insert([{'key': 'a', 'x': 1}])
    vector = version_vector(table)
    other = pxt.create_table(f'{directory}/other', {'x': pxt.Int})
    with pytest.raises(StoreError, match=f"'{directory}/other'.*made again.*full=True"):
        changes_since(other, vector)

    alone = pxt.create_table(f'{directory}/alone', {'x': pxt.Int})
    alone.insert([{'x': 1}])
    vector = version_vector(alone)
    alone.revert()
    with pytest.raises(StoreError, match=f"'{directory}/alone'.*reverted.*full=True"):
        changes_since(alone, vector)
    alone.insert([{'x': 2}])  # the same version number again
    with pytest.raises(StoreError, match='reverted'):
        changes_since(alone, vector)


def test_the_width_of_a_rowid_counts_the_iterators(directory):
    declared = numbers(directory)
    widths = {
        name: rowid_width(table_of(getattr(declared, name))) for name in ('Numbers', 'Small', 'Words', 'LongWords')
    }
    assert widths == {'Numbers': 1, 'Small': 1, 'Words': 2, 'LongWords': 2}
    assert base_of(declared.LongWords.table) == declared.Numbers.table

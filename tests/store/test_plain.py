"""Values read by SQL of our own are the ones that Pixeltable's select gives, with their types."""

from __future__ import annotations

import itertools
from datetime import datetime, timedelta, timezone

import numpy as np
import pixeltable as pxt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmpipe.store import column_types, delete_rows, rows_with_keys
from mmpipe.store.plain import is_plain, plain_rows

NUMBER = itertools.count()
TEXT = st.text(st.characters(exclude_characters='\x00', exclude_categories=['Cs']), max_size=300)
INT64, FLOATS = st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False)
OFFSETS = st.integers(-720, 720).map(lambda minutes: timezone(timedelta(minutes=minutes)))
LEAVES = st.none() | st.booleans() | INT64 | FLOATS | TEXT
APART = st.binary(min_size=1, max_size=2000)  # bytes in a JSON value lie in a file, however few
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=8
)
VALUES = {
    'string': (pxt.String, TEXT),
    'int': (pxt.Int, INT64),
    'float': (pxt.Float, FLOATS),
    'bool': (pxt.Bool, st.booleans()),
    # Far from the first and the last year, which another time zone could leave; one without a zone is in the default.
    'timestamp': (
        pxt.Timestamp, st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1), timezones=st.none() | OFFSETS),
    ),
    'date': (pxt.Date, st.dates()),
    'uuid': (pxt.UUID, st.uuids()),
    'json': (pxt.Json, JSON | APART.map(lambda data: {'a': [1, data]})),
}  # fmt: skip
ROWS = st.lists(st.fixed_dictionaries({name: st.none() | values for name, (_, values) in VALUES.items()}), max_size=12)


@pytest.fixture(scope='module')
def table(pixeltable_home):
    """A table with a column of every plain type."""
    pxt.drop_dir('t_plain', force=True, if_not_exists='ignore')
    pxt.create_dir('t_plain')
    columns = {name: kind | None for name, (kind, _) in VALUES.items()}
    yield pxt.create_table('t_plain/all', {'key': {'type': pxt.Int, 'primary_key': True}, **columns})
    pxt.drop_dir('t_plain', force=True)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(rows=ROWS)
def test_every_plain_type_comes_as_pixeltable_gives_it_nulls_included(table, rows):
    keyed = {(next(NUMBER),): row for row in rows}
    if keyed:
        table.insert([{'key': key, **row} for (key,), row in keyed.items()])
    plain = plain_rows(table, list(keyed), list(VALUES))
    whole = rows_with_keys(table, list(keyed), list(VALUES))
    assert plain.keys() == whole.keys() == keyed.keys()
    for key, row in plain.items():
        if row is None:  # a part of it lies in a file, and Pixeltable has read it there
            assert isinstance(whole[key]['json']['a'][1], bytes)
        else:
            assert repr(row) == repr(tuple(whole[key].values()))


def test_members_of_json_come_as_text_and_only_what_pixeltable_puts_together_is_not_plain(directory):
    schema = {
        'key': {'type': pxt.String, 'primary_key': True}, 'origin': pxt.Json | None, 'photo': pxt.Image | None,
        'array': pxt.Array[(None,), np.float32] | None, 'data': pxt.Binary | None, 'clip': pxt.Video | None,
        'speech': pxt.Audio | None, 'page': pxt.Document | None,
    }  # fmt: skip
    table = pxt.create_table(f'{directory}/origins', schema)
    assert {name for name, kind in column_types(table).items() if is_plain(kind)} == {'key', 'origin'}
    stamp = [2**40, 1_763_000_000_123_456_789, 0, 2**63]
    table.insert([
        {'key': 'a', 'origin': {'media': {'photo': {'path': '/ä "b"\\c.jpg', 'stamp': stamp}}}},
        {'key': 'b', 'origin': {'media': 'none', 'photo': [1]}},
        {'key': 'c', 'origin': None},
    ])  # fmt: skip
    members = [('origin', 'media', 'photo', 'path'), ('origin', 'media', 'photo', 'stamp')]
    assert plain_rows(table, [('a',), ('b',), ('c',), ('d',)], [], members=members) == {
        ('a',): ('/ä "b"\\c.jpg', str(stamp)),
        ('b',): (None, None),
        ('c',): (None, None),
    }


@pytest.mark.parametrize('rows', [[], [('k', 3)], [('k', 1), ('k', 2)]])
def test_only_the_live_version_of_a_row_is_read(directory, rows):
    schema = {'a': {'type': pxt.String, 'primary_key': True}, 'b': {'type': pxt.Int, 'primary_key': True}, 'x': pxt.Int}
    table = pxt.create_table(f'{directory}/live', schema)
    table.insert([{'a': 'k', 'b': i, 'x': i} for i in range(4)])
    table.update({'x': table.x + 10})
    delete_rows(table, rows)
    found = plain_rows(table, [('k', i) for i in range(5)], ['x'])
    assert found == {('k', i): (10 + i,) for i in range(4) if ('k', i) not in rows}

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st
from schemas import numbers

from mmpipe.functions import counts, reset
from mmpipe.store import changes_since, pages, select_rows


@given(st.sets(st.tuples(st.integers(0, 5), st.integers(0, 5))), st.integers(1, 7))
def test_pages_hold_every_rowid_once_in_order_and_none_is_larger_than_the_limit(rowids, size):
    ordered = sorted(rowids)
    made = list(pages(ordered, size))
    assert [rowid for page in made for rowid in page] == ordered
    assert all(0 < len(page) <= size for page in made)
    for page, following in itertools.pairwise(made):
        if page[-1][0] == following[0][0]:  # cut inside a base row only when it fills the page from its start
            assert page[0][0] == page[-1][0]


def test_chosen_rows_of_tables_views_and_filters_are_read(directory):
    declared = numbers(directory)
    table = declared.Numbers.table
    table.insert([{'key': f'k{i}', 'x': i - 2, 'text': 'a b c'} for i in range(6)])
    rowids = changes_since(table, None).inserted
    chosen = select_rows(table, table, rowids[1:3], {'v': table.key})
    assert {rowid: row['v'] for rowid, row in chosen.items()} == {rowids[1]: 'k1', rowids[2]: 'k2'}
    assert select_rows(table, table, [], {'v': table.key}) == {}

    filtered = select_rows(table.where(table.x > 0), table, rowids, {'v': table.key})
    assert sorted(row['v'] for row in filtered.values()) == ['k3', 'k4', 'k5']

    words = declared.Words.table
    parts = changes_since(words, None).inserted
    assert len(parts) == 18
    some = select_rows(words, words, parts[1:3], {'v': words.word})  # of one base row
    assert {rowid: row['v'] for rowid, row in some.items()} == {parts[1]: 'b', parts[2]: 'c'}
    more = select_rows(words, words, parts[2:5], {'v': words.word})  # of two
    assert sorted(more) == list(parts[2:5])


def test_reading_computes_nothing_that_is_stored(directory):
    declared = numbers(directory)
    table = declared.Positive.table
    declared.Numbers.table.insert([{'key': 'a', 'x': 1}])
    reset()
    select_rows(table, table, changes_since(table, None).inserted, {'v': table.thrice, 'w': table.twice})
    assert counts() == {}

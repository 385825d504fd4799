"""Parts of the rows, and which are told to differ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import mmpipe as mm
from mmpipe.errors import ConfigError, DataError
from mmpipe.evaluation.bootstrap import generator
from mmpipe.evaluation.slices import columns_of, compared, discoveries, parts_of, permutation_p, slices_of

TASK = mm.classification('kind', 2)


def rows_that_are_right(labelled, right):
    """Labelled rows, right where told."""
    right = np.asarray(right, dtype=bool)
    return labelled(TASK, np.where(right[:, None], [[2.0, 0.0]], [[0.0, 2.0]]), np.zeros(len(right), dtype=np.int64))


def compare(found, values, *, groups=None, seed=0):
    groups = np.arange(len(found)) if groups is None else groups
    slices = slices_of(found, 'x', parts_of(values), groups, times=0, seed=seed)
    return {each.name: each for each in compared(slices, {'kind': found}, groups, seed=seed)}


def test_discoveries_are_those_of_scipy():
    stats = pytest.importorskip('scipy.stats')
    draw = np.random.default_rng(0)
    for count in (1, 2, 10, 100):
        p = draw.random(count) ** 3
        assert discoveries(p).tolist() == (stats.false_discovery_control(p) <= 0.05).tolist()
    assert discoveries(np.zeros(0)).tolist() == []


def test_a_p_value_is_that_of_the_hypergeometric_distribution(labelled):
    """Without groups, how many of n random rows are right is known."""
    stats = pytest.importorskip('scipy.stats')
    right = np.arange(200) < 150
    found = rows_that_are_right(labelled, right)
    sizes, hits = np.array([20, 40, 190]), np.array([19, 24, 140])
    differences = hits / sizes - 0.75
    p = permutation_p(found, np.arange(200), sizes, differences, times=4000, draw=generator(0))
    for size, gap, value in zip(sizes, differences, p, strict=True):
        chance = stats.hypergeom(200, 150, size)
        k = np.arange(size + 1)
        expected = chance.pmf(k)[np.abs(k / size - 0.75) >= abs(gap) - 1e-9].sum()
        assert value == pytest.approx(expected, abs=0.025)


def test_parts_that_do_not_differ_are_rarely_marked(labelled):
    """5 % of reports at most mark one where there is nothing to find: 60 reports of 10 parts each."""
    marked = 0
    for seed in range(60):
        draw = np.random.default_rng(seed)
        found = rows_that_are_right(labelled, draw.random(300) < 0.9)
        marked += any(each.differs for each in compare(found, draw.integers(0, 10, 300).tolist()).values())
    assert marked <= 7  # 3 expected; more than 7 come with a probability of 1 %


def test_groups_that_are_alike_are_no_difference(labelled):
    """30 groups of 20 equal rows, in 3 parts of 10 groups: as rows alone, most reports would mark one."""
    with_groups = without = 0
    groups = np.repeat(np.arange(30), 20)
    for seed in range(30):
        right = np.random.default_rng(seed).random(30) < 0.6
        found = rows_that_are_right(labelled, right[groups])
        values = (groups % 3).tolist()
        with_groups += any(each.differs for each in compare(found, values, groups=groups).values())
        without += any(each.differs for each in compare(found, values).values())
    assert with_groups <= 4
    assert without >= 15


def test_a_part_that_differs_is_marked_and_says_by_how_much(labelled):
    draw = np.random.default_rng(0)
    where = draw.integers(0, 8, 800)
    found = rows_that_are_right(labelled, draw.random(800) < np.where(where == 3, 0.5, 0.9))
    parts = compare(found, [f'shop {n}' for n in where])
    # It draws the whole down, so that others can lie above that.
    assert [name for name, each in parts.items() if each.differs and each.difference < 0] == ['shop 3']
    whole = (found.output.argmax(axis=1) == 0).mean()
    assert parts['shop 3'].difference == pytest.approx(parts['shop 3'].metrics['accuracy'].value - whole)
    assert parts['shop 3'].p < 0.002


def test_a_small_part_that_is_all_right_is_no_difference_and_a_tiny_one_is_not_compared(labelled):
    right = np.random.default_rng(0).random(1000) < 0.9
    values = np.array(['rest'] * 1000, dtype=object)
    lucky = np.flatnonzero(right)
    values[lucky[:10]], values[lucky[10:19]] = 'ten', 'nine'
    parts = compare(rows_that_are_right(labelled, right), values)
    assert (parts['ten'].metrics['accuracy'].value, parts['ten'].differs, parts['ten'].few) == (1, False, False)
    assert parts['ten'].p > 0.2
    assert (parts['nine'].few, parts['nine'].p) == (True, None)


def test_a_part_that_is_the_whole_is_not_compared(labelled):
    found = rows_that_are_right(labelled, np.arange(50) % 3 > 0)
    (only,) = compare(found, ['val'] * 50).values()
    assert (only.n, only.p, only.difference, only.differs) == (50, None, 0, False)


@given(
    st.one_of(
        st.lists(st.one_of(st.none(), st.text(max_size=3)), min_size=1, max_size=80),
        st.lists(st.one_of(st.none(), st.integers(-50, 50)), min_size=1, max_size=80),
        st.lists(st.one_of(st.none(), st.floats(allow_nan=False, width=16)), min_size=1, max_size=80),
        st.lists(st.one_of(st.none(), st.booleans()), min_size=1, max_size=10),
    )
)
def test_every_row_is_in_one_part(values):
    parts = parts_of(values)
    total = np.sum([mask.astype(int) for mask in parts.values()], axis=0)
    assert (total == 1).all()
    assert all(mask.any() for mask in parts.values())
    assert len(parts) <= 31


def test_a_row_with_several_labels_is_in_several_parts():
    parts = parts_of([['red', 'old'], [], None, ['red']])
    assert {name: mask.tolist() for name, mask in parts.items()} == {
        'red': [True, False, False, True],
        'old': [True, False, False, False],
        '(none)': [False, True, True, False],
    }


def test_many_numbers_are_cut_into_quarters_and_many_words_leave_a_rest():
    quarters = parts_of([*range(100), None])
    assert [int(mask.sum()) for mask in quarters.values()] == pytest.approx([25, 25, 25, 25, 1], abs=1)
    assert next(iter(quarters)).startswith('0 to <')
    words = parts_of([f'w{i}' for i in range(40)] + ['often'] * 5)
    assert next(iter(words)) == 'often'
    assert words['(others: 12 values)'].sum() == 12
    assert list(parts_of([3, 1, 2, 1])) == ['1', '2', '3']


def test_columns_are_fields_that_nobody_loads_the_split_functions_and_values(shop):
    rows = shop.split('val')
    loader = mm.DataLoader(rows, batch_size=8, device='cpu', fields=['title', 'kind'])

    def heavy(rows):
        return [None if weight is None else weight > 5 for weight in rows.words('weight')]

    values = np.arange(len(rows))
    found = columns_of(['note', 'tags', 'split', heavy], loader, len(rows))
    assert found['note'] == rows.words('note')
    assert set(found['split']) == {'val'}
    assert found['heavy'] == heavy(rows)
    tags, there = rows.read('tags')
    for words, row, ok in zip(found['tags'], tags, there, strict=True):
        assert words == ([rows.fields['tags'].vocabulary[c] for c in np.flatnonzero(row)] if ok else None)
    assert columns_of({'place': values}, loader, len(rows)) == {'place': values.tolist()}


def test_what_cannot_part_the_rows_is_refused(shop):
    loader = mm.DataLoader(shop.split('val'), batch_size=8, device='cpu')
    count = len(loader.rows)
    with pytest.raises(DataError, match="no field 'colour'; it has photo"):
        columns_of('colour', loader, count)
    with pytest.raises(DataError, match='kind tensor'):
        columns_of('photo', loader, count)
    with pytest.raises(ConfigError, match=f'gives 2 values for {count} rows'):
        columns_of({'x': [1, 2]}, loader, count)
    with pytest.raises(ConfigError, match='holds a int'):
        columns_of([3], loader, count)
    with pytest.raises(ConfigError, match=r'needs an mm\.DataLoader'):
        columns_of('kind', [], 0)

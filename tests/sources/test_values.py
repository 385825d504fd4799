from __future__ import annotations

import contextlib
import json
import math
from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pixeltable as pxt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmpipe.errors import BadInputError
from mmpipe.sources.values import parse

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=6,
)  # fmt: skip


def kind(hint):
    from pixeltable.type_system import ColumnType

    return ColumnType.from_python_type(hint)


@given(st.integers(-(2**63), 2**63 - 1))
def test_whole_numbers_come_back(number):
    assert parse(str(number), kind(pxt.Int)) == parse(number, kind(pxt.Int)) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_back(number):
    assert parse(repr(number), kind(pxt.Float)) == parse(np.float64(number), kind(pxt.Float)) == number


@given(JSON.filter(lambda value: value is not None))
def test_json_comes_back_spelled_out_in_text_and_as_it_is_elsewhere(value):
    assert parse(json.dumps(value), kind(pxt.Json)) == value
    assert parse(value, kind(pxt.Json), text=False) == value


@given(st.text(st.characters(exclude_categories=['Cs'], exclude_characters='\0'), max_size=9))
def test_text_comes_back(text):
    assert parse(text, kind(pxt.String)) == text


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.text(max_size=6), st.floats(), st.integers(), st.booleans(), st.binary(max_size=3), JSON))
def test_any_value_is_parsed_or_refused_and_nothing_else_is_raised(pixeltable_home, value):
    for hint in (
        pxt.Int,
        pxt.Float,
        pxt.Bool,
        pxt.String,
        pxt.Json,
        pxt.Timestamp,
        pxt.Date,
        pxt.Array[(2,), pxt.Float],
    ):
        with contextlib.suppress(BadInputError):
            parsed = parse(value, kind(hint))
            assert not isinstance(parsed, float) or math.isfinite(parsed)


@pytest.mark.parametrize(
    ('value', 'hint', 'reason'),
    [
        ('nan', pxt.Float, 'NaN'), ('inf', pxt.Float, 'inf'), (float('nan'), pxt.Int, 'NaN'),
        (float('nan'), pxt.String, 'is NaN: leave'), (np.float32('nan'), pxt.String, 'is NaN: leave'),
        (Decimal('nan'), pxt.String, 'is NaN: leave'),
        (float('inf'), pxt.Int, 'inf'), ('3.5', pxt.Int, '3.5'), (2**63, pxt.Int, '64 bits'),
        ('maybe', pxt.Bool, 'maybe'),
        ('{"a": NaN}', pxt.Json, 'NaN|JSON'), ('{', pxt.Json, 'correct'), ('a\0b', pxt.String, 'NUL'),
        ('\ud800', pxt.String, 'surrogate'), (['a'], pxt.String, 'not text'), ('tomorrow', pxt.Timestamp, 'tomorrow'),
        ('1.2.2020', pxt.Date, '1.2.2020'), ('[1, "x"]', pxt.Array[(2,), pxt.Float], 'correct'),
    ],
)  # fmt: skip
def test_a_value_of_another_type_is_refused_with_the_value(value, hint, reason):
    with pytest.raises(BadInputError, match=reason):
        parse(value, kind(hint))


def test_null_is_kept_where_the_column_allows_it():
    assert parse(None, kind(pxt.Int | None)) is None
    assert parse(np.datetime64('NaT'), kind(pxt.Timestamp | None)) is None
    with pytest.raises(BadInputError, match=r'may not be null.*`| None`'):
        parse(None, kind(pxt.Int))


def test_times_dates_and_arrays_are_parsed(pixeltable_home):
    assert parse('2020-01-02T03:04:05+00:00', kind(pxt.Timestamp)) == datetime(2020, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert parse('2020-01-02', kind(pxt.Timestamp)).tzinfo is not None
    assert parse('2020-01-02', kind(pxt.Date)) == date(2020, 1, 2)
    array = parse('[1, 2]', kind(pxt.Array[(2,), pxt.Float]))
    assert array.tolist() == [1, 2]
    assert array.dtype == np.float32
    assert parse('yes', kind(pxt.Bool)) is True

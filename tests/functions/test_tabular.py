from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmpipe.functions import hash_bucket, log1p, parse_number, ratio

parse = parse_number.py_fn
finite = st.floats(allow_nan=False, allow_infinity=False)


@given(finite)
def test_every_number_python_writes_is_read_back(value):
    assert parse(repr(value)) == value
    assert parse(f'$ {value!r} each') == value


@given(st.integers(-(10**12), 10**12), st.integers(0, 99), st.sampled_from(", \u202f'"))
def test_thousands_separators_are_ignored(whole, cents, separator):
    text = f'{whole:,}'.replace(',', separator) + f'.{cents:02}'
    assert parse(text) == pytest.approx(float(f'{whole}.{cents:02}'))


@given(st.text())
def test_any_text_gives_a_finite_number_or_none(text):
    value = parse(text)
    assert value is None or math.isfinite(value)


@pytest.mark.parametrize(
    ('text', 'value'),
    [
        ('€ 1,234.50', 1234.5), ('1 234', 1234), ('12kg', 12), ('-.5', -0.5), ('+7', 7), ('\u22123 °C', -3),
        ('45 %', 45), ('1e3', 1000), ('0', 0), ('007', 7),
        ('', None), ('n/a', None), ('3 of 5', None), ('2024-05-01', None), ('1,23', None), ('12,34,567', None),
        ('1.234.567', None), ('1e999', None), ('nan', None),
    ],
)  # fmt: skip
def test_numbers_as_people_write_them(text, value):
    assert parse(text) == value


def test_decimal_comma():
    assert parse('1.234,50 €', decimal=',') == 1234.5
    assert parse('1,5', decimal=',') == 1.5
    assert parse('1.5', decimal=',') is None


@given(finite, finite)
def test_ratio_is_finite_or_none(a, b):
    value = ratio.py_fn(a, b)
    assert value is None or math.isfinite(value)
    if b == 0:
        assert value is None


@given(st.floats())
def test_log1p_is_none_exactly_where_it_is_undefined(value):
    result = log1p.py_fn(value)
    assert (result is None) == (not value > -1 or math.isinf(value))
    if result is not None:
        assert math.expm1(result) == pytest.approx(value, rel=1e-6, abs=1e-12)


@given(st.text(), st.integers(1, 1000), st.integers())
def test_buckets_are_stable_and_in_range(text, buckets, seed):
    bucket = hash_bucket.py_fn(text, buckets=buckets, seed=seed)
    assert 0 <= bucket < buckets
    assert bucket == hash_bucket.py_fn(text, buckets=buckets, seed=seed)


def test_buckets_never_change():
    # Stored columns depend on these values.
    assert [hash_bucket.py_fn(name, buckets=1000) for name in ('acme', 'Zoë', '')] == [332, 783, 479]

from __future__ import annotations

import numpy as np
import pytest
from fields import fields_with_values
from hypothesis import given
from hypothesis import strategies as st

from mmpipe.errors import FieldError, LabelError
from mmpipe.shards import Field
from mmpipe.shards.field import content_digest, encode


@given(fields_with_values(rows=2))
def test_digests_are_equal_for_equal_values_and_differ_from_null(case):
    field, (one, two) = case
    if one is not None:
        copied = one.copy() if isinstance(one, (np.ndarray, list)) else one
        assert content_digest(field, one) == content_digest(field, copied)
        assert content_digest(field, one) != content_digest(field, None)
    if isinstance(one, str) and isinstance(two, str):
        assert (content_digest(field, one) == content_digest(field, two)) == (one == two)


def test_the_word_null_is_no_null():
    field = Field(name='word', kind='string')
    assert content_digest(field, 'null') != content_digest(field, None)


def test_a_digest_is_of_the_value_as_it_is_stored():
    field = Field(name='price', kind='scalar', dtype='float32')
    assert content_digest(field, 0.1) == content_digest(field, float(np.float32(0.1)))
    wide = Field(name='price', kind='scalar', dtype='float64')
    assert content_digest(wide, 0.1) != content_digest(wide, float(np.float32(0.1)))


def test_the_order_of_several_labels_makes_no_difference():
    field = Field(name='words', kind='labels', vocabulary=('a', 'b'))
    assert content_digest(field, ['a', 'b']) == content_digest(field, ['b', 'a', 'b'])
    assert content_digest(field, []) != content_digest(field, None)


@given(st.lists(st.text(max_size=3), unique=True), st.lists(st.text(max_size=3)))
def test_a_vocabulary_grows_at_its_end_only(known, new):
    field = Field(name='x', kind='label', vocabulary=tuple(known))
    grown = field.grown(new).vocabulary
    assert grown[: len(known)] == tuple(known)
    assert set(grown) == set(known) | set(new)
    assert len(set(grown)) == len(grown)
    assert Field.from_json(field.grown(new).to_json()) == field.grown(new)


def test_a_sample_rate_survives_and_a_field_without_one_is_recorded_as_before():
    wave = Field(name='wave', kind='ragged', dtype='float32', rate=16_000)
    assert Field.from_json(wave.to_json()) == wave
    assert 'rate' not in Field(name='wave', kind='ragged', dtype='float32').to_json()
    for options in ({'kind': 'string'}, {'kind': 'scalar', 'dtype': 'int64'}, {'kind': 'tensor', 'dtype': 'float32'}):
        with pytest.raises(FieldError, match=r"'wave' of kind \w+ has the rate"):
            Field(name='wave', **options, rate=0 if options['kind'] == 'tensor' else 8000)


PHOTO = Field(name='photo', kind='tensor', dtype='uint8', shape=(3, 2, 2))


@pytest.mark.parametrize(
    ('field', 'value', 'error', 'words'),
    [
        (PHOTO, np.zeros((3, 2, 3), 'uint8'), FieldError, ['photo', "'k1'", '[3, 2, 3]', 'Resize']),
        (PHOTO, np.zeros((3, 2, 2), 'float32'), FieldError, ['photo', "'k1'", 'float32', 'Cast']),
        (PHOTO, np.zeros((2, 2, 2), 'uint8'), FieldError, ['photo', "'k1'", '[2, 2, 2]', 'mm.field.ragged()']),
        (
            Field(name='wave', kind='ragged', dtype='float32', shape=(2,)),
            np.zeros((4, 3), 'float32'), FieldError, ['wave', "'k1'", '[4, 3]'],
        ),
        (Field(name='wave', kind='ragged', dtype='float32'), np.float32(1), FieldError, ['wave', "'k1'"]),
        (Field(name='price', kind='scalar', dtype='float32'), float('nan'), FieldError, ['price', "'k1'", 'null']),
        (Field(name='price', kind='scalar', dtype='float32'), 1e300, FieldError, ['price', "'k1'", 'null']),
        (Field(name='price', kind='scalar', dtype='float32'), 'cheap', FieldError, ['price', "'k1'", 'cheap']),
        (Field(name='count', kind='scalar', dtype='int64'), 2**70, FieldError, ['count', "'k1'"]),
        (Field(name='kind', kind='label', vocabulary=('cat',)), 'dog', LabelError, ['kind', "'k1'", 'dog', 'cat']),
        (Field(name='kind', kind='labels', vocabulary=('cat',)), ['cat', 'x'], LabelError, ['kind', "'k1'", "'x'"]),
        (Field(name='kind', kind='labels', vocabulary=('c',)), 'c', LabelError, ['kind', "'k1'", 'list of strings']),
        (Field(name='kind', kind='labels', vocabulary=('c',)), [['c']], LabelError, ['kind', "'k1'", 'list']),
        (Field(name='kind', kind='label', vocabulary=('c',)), 3, LabelError, ['kind', "'k1'", 'a string']),
    ],
)  # fmt: skip
def test_a_value_that_does_not_fit_is_refused_with_field_and_row(field, value, error, words):
    with pytest.raises(error) as raised:
        encode(field, [None, value], keys=['k0', 'k1'])
    for word in words:
        assert word in str(raised.value)


@pytest.mark.parametrize(
    'options',
    [
        {'name': '_x', 'kind': 'string'},
        {'name': '', 'kind': 'string'},
        {'name': 'x', 'kind': 'picture'},
        {'name': 'x', 'kind': 'tensor', 'dtype': 'complex64'},
        {'name': 'x', 'kind': 'scalar', 'dtype': 'uint8'},
        {'name': 'x', 'kind': 'label'},
    ],
)
def test_a_field_that_cannot_be_is_refused_when_it_is_made(options):
    with pytest.raises(FieldError, match=f"field '{options['name']}'"):
        Field(**options)

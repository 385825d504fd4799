"""What another process needs to make an object again, and nothing else."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmpipe.data import sampling, transforms
from mmpipe.data.transforms.tables import Standardise
from mmpipe.errors import RunError
from mmpipe.runs.described import NotDescribed, described, rebuilt

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text().filter(lambda key: key != '!'), inner, max_size=4)
    ),
    max_leaves=12,
)


@dataclass(frozen=True)
class Blurred:
    width: float
    modes: tuple[str, ...] = ('a', 'b')
    derived: float = field(init=False, default=0.0)

    def __call__(self, values):
        return values


def doubled(values):
    return values * 2


def through_json(value):
    return rebuilt(json.loads(json.dumps(described(value), allow_nan=False)))


@given(PLAIN)
def test_plain_values_come_back_as_they_were_with_their_types(value):
    found = through_json(value)
    assert found == value
    assert repr(found) == repr(value)


@pytest.mark.parametrize(
    'value',
    [
        Blurred(0.5, ('c',)),
        transforms.image(crop=8, flip=True),
        transforms.log_mel(16_000),
        sampling.Shuffle(),
        sampling.Balanced('kind'),
        (Blurred(1.0), [Blurred(2.0)]),
        {'photo': [transforms.image(crop=8), Blurred(3.0)]},
    ],
    ids=lambda value: type(value).__name__,
)
def test_dataclasses_come_back_equal(value):
    assert through_json(value) == value


def test_functions_partials_and_fitted_numbers_come_back():
    assert through_json(doubled) is doubled
    assert through_json(functools.partial(doubled, values=3))() == 6
    fitted = through_json(Standardise(np.array([1.0, 5.0]), np.array([2.0, 0.0])))
    np.testing.assert_array_equal(fitted.mean, [1.0, 5.0])
    np.testing.assert_array_equal(fitted.std, [2.0, 1.0])


@pytest.mark.parametrize(
    'value',
    [lambda values: values, object(), np.zeros(5000), 'text'.upper, {1: 2}, Blurred(width=object())],
    ids=['lambda', 'object', 'large', 'bound', 'keys', 'inside'],
)
def test_what_no_other_process_could_make_is_refused(value):
    with pytest.raises(NotDescribed):
        described(value)


def test_a_class_whose_arguments_are_others_now_is_named():
    record = described(Blurred(1.0))
    record['with']['gone'] = 1
    with pytest.raises(RunError, match=r'Run shop/0001 used a Blurred .*gone'):
        rebuilt(record, run='shop/0001')
    record['by'] |= {'qualname': 'Sharpened'}
    with pytest.raises(RunError, match='no longer has that name'):
        rebuilt(record, run='shop/0001')

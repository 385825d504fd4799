"""Hypothesis strategies for the fields of a snapshot and values that fit them."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mmpipe.shards import Field

WORDS = ('cat', 'dog', 'null', 'ein Wort', '')
TEXT = st.text(st.characters(exclude_categories=['Cs']), max_size=8)


@st.composite
def fields_with_values(draw, rows):
    """A field of any kind, and a value or None for each row."""
    kind = draw(st.sampled_from(['tensor', 'ragged', 'scalar', 'string', 'label', 'labels', 'binary']))
    dtype, shape, vocabulary = '', (), None
    if kind in ('tensor', 'ragged'):
        dtype = draw(st.sampled_from(['uint8', 'int64', 'float16', 'float32', 'uint32']))
        shape = draw(st.lists(st.integers(1, 3), min_size=int(kind == 'tensor'), max_size=2).map(tuple))
    if kind == 'scalar':
        dtype = draw(st.sampled_from(['int64', 'float32', 'float64', 'bool']))
    if kind in ('label', 'labels'):
        vocabulary = WORDS
    field = Field(name='f', kind=kind, dtype=dtype, shape=shape, vocabulary=vocabulary)
    value = {
        'tensor': lambda: hnp.arrays(dtype, shape),
        'ragged': lambda: st.integers(0, 3).flatmap(lambda n: hnp.arrays(dtype, (n, *shape))),
        'string': lambda: TEXT,
        'label': lambda: st.sampled_from(WORDS),
        'labels': lambda: st.lists(st.sampled_from(WORDS), max_size=3),
        'binary': lambda: st.binary(max_size=6),
        'scalar': lambda: {
            'int64': st.integers(-(2**63), 2**63 - 1),
            'bool': st.booleans(),
            'float32': st.floats(width=32, allow_nan=False, allow_infinity=False),
            'float64': st.floats(allow_nan=False, allow_infinity=False),
        }[dtype],
    }[kind]()
    return field, draw(st.lists(st.none() | value, min_size=rows, max_size=rows))


def as_python(field, values, valid):
    """What `Rows.read` gave, as the values that were written; several labels in the order of the vocabulary."""
    out = []
    for value, ok in zip(values, valid, strict=True):
        if not ok:
            out.append(None)
        elif field.kind == 'label':
            out.append(field.vocabulary[value])
        elif field.kind == 'labels':
            out.append([word for word, there in zip(field.vocabulary, value, strict=True) if there])
        else:
            out.append(value)
    return out


def same(field, written, read):
    """Whether a value came back."""
    if written is None or read is None:
        return written is read
    if field.kind in ('tensor', 'ragged'):
        return read.dtype == field.dtype and np.array_equal(np.asarray(written), read, equal_nan=read.dtype.kind == 'f')
    if field.kind == 'labels':
        return set(written) == set(read)
    return written == read

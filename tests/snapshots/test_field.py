"""What a field holds by the type of its expression, and what is said where the type does not tell."""

from __future__ import annotations

import datetime
import uuid

import numpy as np
import pixeltable as pxt
import pytest

import mmpipe as mm
from mmpipe.errors import FieldError, LabelError

TYPES = {
    'taken': pxt.Timestamp, 'day': pxt.Date, 'facts': pxt.Json, 'clip': pxt.Video, 'speech': pxt.Audio,
    'page': pxt.Document, 'photo': pxt.Image, 'id': pxt.UUID, 'seconds': pxt.Float, 'frames': pxt.Int,
}  # fmt: skip


@pytest.fixture(scope='module')
def typed(pixeltable_home):
    """A table with a column of every type that has no fixed form, and one row."""
    pxt.create_dir('t_field')
    table = pxt.create_table('t_field/typed', {name: kind | None for name, kind in TYPES.items()})
    taken = datetime.datetime(2024, 5, 6, 7, tzinfo=datetime.UTC)
    table.insert([{'taken': taken, 'day': taken.date(), 'id': uuid.UUID(int=5), 'seconds': 0.1, 'frames': 3}])
    yield table
    pxt.drop_dir('t_field', force=True)


@pytest.mark.parametrize(('column', 'hint'), [
    ('taken', r'use mm\.field\.number\(expression\.posix_timestamp\(\), dtype="float64"\)'),
    ('day', r'use expression\.toordinal\(\)'), ('facts', r'use mm\.field\.labels\(expression\)'),
    ('clip', r'use mm\.field\.pooled\(mean_pool'), ('speech', r'use a computed column such as log_mel'),
    ('page', r'use a computed column such as embed_text'), ('photo', r'use mm\.field\.image\(expression, size'),
    ('id', r'use expression\.to_string\(\)'),
])  # fmt: skip
def test_a_type_without_a_fixed_form_is_refused_with_what_to_write_instead(typed, tmp_path, column, hint):
    with pytest.raises(FieldError, match=rf"'t_field/typed': field 'f' is .*, which has no fixed form.*{hint}"):
        mm.snapshot(typed, root=tmp_path, fields={'f': getattr(typed, column)})


def test_what_the_hints_say_works(typed, tmp_path):
    fields = {
        'taken': mm.field.number(typed.taken.posix_timestamp(), dtype='float64'),
        'day': typed.day.toordinal(), 'id': typed.id.to_string(),
    }  # fmt: skip
    rows = mm.snapshot(typed, root=tmp_path, fields=fields).snapshot.rows()
    assert rows.words('taken') == [datetime.datetime(2024, 5, 6, 7, tzinfo=datetime.UTC).timestamp()]
    assert rows.words('day') == [datetime.date(2024, 5, 6).toordinal()]
    assert rows.words('id') == [str(uuid.UUID(int=5))]


def test_a_number_is_stored_as_it_is_declared(typed, tmp_path):
    fields = {
        'plain': typed.seconds, 'double': mm.field.number(typed.seconds, dtype='float64'),
        'frames': typed.frames, 'real': mm.field.number(typed.frames, dtype='float32'),
    }  # fmt: skip
    rows = mm.snapshot(typed, root=tmp_path, fields=fields).snapshot.rows()
    assert {name: rows.read(name)[0].dtype.name for name in fields} == {
        'plain': 'float32', 'double': 'float64', 'frames': 'int64', 'real': 'float32',
    }  # fmt: skip
    assert rows.read('double')[0].tolist() == [0.1]
    assert rows.read('plain')[0].tolist() == [float(np.float32(0.1))]
    wider = {**fields, 'plain': mm.field.number(typed.seconds, dtype='float64')}
    assert mm.snapshot(typed, root=tmp_path, fields=wider).cells == {'plain': 1}
    with pytest.raises(FieldError, match=r"dtype='float16'\): use one of int64, float32, float64, bool"):
        mm.field.number(typed.seconds, dtype='float16')
    with pytest.raises(FieldError, match=r"'n': mm.field.number\(\) wants a number, and the expression is Date"):
        mm.snapshot(typed, root=tmp_path, fields={'n': mm.field.number(typed.day, dtype='int64')})
    with pytest.raises(FieldError, match=r"field 'n' is 0\.1 in row '0', and int64 holds whole numbers: declare"):
        mm.snapshot(typed, root=tmp_path, fields={'n': mm.field.number(typed.seconds, dtype='int64')})


def test_a_label_that_is_no_word_is_refused_by_row(directory, tmp_path):
    table = pxt.create_table(f'{directory}/bad', {'key': {'type': pxt.String, 'primary_key': True}, 'words': pxt.Json})
    table.insert([{'key': 'good', 'words': ['a']}, {'key': 'wrong', 'words': [1]}])
    with pytest.raises(LabelError, match=r"field 'words' holds \[1\] in row 'wrong', and it wants a list of strings"):
        mm.snapshot(table, root=tmp_path, fields={'words': mm.field.labels(table.words)})

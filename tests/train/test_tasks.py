"""Tasks: checked early, recorded as JSON."""

from __future__ import annotations

import json

import numpy as np
import pytest
from shop_snapshot import KINDS, TAGS

from mmpipe.errors import ConfigError, DataError, LabelError, RunError, TrainError
from mmpipe.shards import Block, Field, write_snapshot
from mmpipe.train import classification, multilabel, regression, task_from_json


@pytest.mark.parametrize(
    'task',
    [
        classification('a', 3),
        classification('a', ['x', 'y'], name='b', weight=2.0),
        multilabel('a', ('x',)),
        regression('a'),
    ],
)
def test_tasks_survive_json(task):
    assert task_from_json(json.loads(json.dumps(task.to_json()))) == task


def test_tasks_that_cannot_work_are_refused():
    for make in (
        lambda: classification('a', 0),
        lambda: classification('a', 'xyz'),
        lambda: classification('a', ['x', 'x']),
        lambda: regression('a', weight=0),
        lambda: regression('a', name='a.b'),
        lambda: regression('_mask'),
    ):
        with pytest.raises(ConfigError):
            make()
    with pytest.raises(RunError, match='ranking'):
        task_from_json({'kind': 'ranking', 'field': 'a', 'name': 'a'})


def test_labels_of_the_shop_pass(shop):
    for task in (classification('kind', KINDS), multilabel('tags', TAGS), multilabel('tags', 6), regression('price')):
        task.check(shop.rows(), what='train')


def test_a_label_outside_the_classes_names_task_key_and_value(full_shop):
    rows = full_shop.split('train')
    first = int(np.flatnonzero(rows.read('kind')[0] == 2)[0])
    with pytest.raises(LabelError, match=rf"'kind'.*'{rows.keys[first]}'.*kind = 2.*0 to 1"):
        classification('kind', 2).check(rows, what='train')
    with pytest.raises(LabelError, match="'tags'"):
        multilabel('tags', 2).check(rows, what='train')


def test_numbers_that_are_no_class_or_not_finite_are_named(tmp_path, monkeypatch):
    # Our writer refuses what is not finite; another writer of the format may not.
    monkeypatch.setattr('mmpipe.shards.field._fits', lambda value, dtype: True)
    fields = [Field(name='size', kind='scalar', dtype='int64'), Field(name='price', kind='scalar', dtype='float32')]
    columns = {'size': [0, -1, 1], 'price': [1.0, 2.0, float('inf')]}
    rows = write_snapshot(tmp_path, fields, Block(keys=['a', 'b', 'c'], columns=columns)).rows()
    with pytest.raises(LabelError, match=r"'b'.*size = -1"):
        classification('size', 2).check(rows, what='train')
    with pytest.raises(LabelError, match=r"'c'.*price = inf"):
        regression('price').check(rows, what='train')


def test_class_names_in_another_order_than_the_vocabulary_are_refused(shop):
    with pytest.raises(LabelError, match=r"'hat'.*'cup'"):
        classification('kind', ('hat', 'cup', 'map')).check(shop.rows(), what='train')


def test_a_field_of_another_kind_is_refused(shop):
    for task in (classification('note', 3), regression('kind'), multilabel('kind', 3), classification('title', 3)):
        with pytest.raises(ConfigError, match='is of kind'):
            task.check(shop.rows(), what='train')


def test_labels_that_do_not_fit_are_named_with_what_is_expected_and_what_to_do(shop, tmp_path):
    fields = [
        Field(name='grade', kind='scalar', dtype='float32'),
        Field(name='hot', kind='tensor', dtype='uint8', shape=(3,)),
    ]
    columns = {'grade': [1.0, 2.5], 'hot': [np.array([0, 1, 0], np.uint8), np.array([0, 2, 0], np.uint8)]}
    rows = write_snapshot(tmp_path, fields, Block(keys=['a', 'b'], columns=columns)).rows()
    for task, error, message in (
        (classification('grade', 3), LabelError, r"'grade': row 'b' of the train .* = 2.5, .*from 0 to 2. Correct"),
        (multilabel('hot', 3), LabelError, r"'hot': row 'b' .*\[0, 2, 0\], which is not 0 or 1 for each of 3 classes"),
        (multilabel('hot', 4), ConfigError, r"'hot'.*tensor \[3\].*multilabel takes several labels, or a tensor \[4\]"),
        (regression('hot'), ConfigError, r"'hot' is of kind 'tensor', and regression takes a number\. Declare"),
        (classification('hot', 3), ConfigError, r"'hot' is of kind 'tensor', and classification takes a label or an"),
        (regression('cost'), DataError, r"'cost' is learned from field 'cost', which snapshot .* has grade, hot\. Add"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            task.check(rows, what='train')


def test_a_task_without_any_label_is_refused_for_training_only(shop):
    rows = shop.rows()
    rows = rows.take(np.flatnonzero(~rows.read('price')[1]))
    with pytest.raises(TrainError, match="'price' has no label"):
        regression('price').check(rows, what='train')
    regression('price').check(rows, what='val')

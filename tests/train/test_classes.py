"""Classes that only validation rows have."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from shop_snapshot import KINDS, TAGS

from mmpipe.data import DataLoader
from mmpipe.errors import LabelError
from mmpipe.models import MultitaskModel, encoders
from mmpipe.shards import Block, Field, write_snapshot
from mmpipe.train import Trainer, classification, multilabel
from mmpipe.train.classes import check_classes, counts


def build(*, kinds=KINDS):
    return MultitaskModel(encoders={'title': encoders.vector(8, 4)}, tasks=[classification('kind', kinds)], hidden=4)


def without(rows, field, number):
    values, valid = rows.read(field)
    has = valid & ((values == number) if values.ndim == 1 else values[:, number] > 0)
    return rows.take(np.flatnonzero(~has))


def loader(rows):
    return DataLoader(rows, batch_size=16, device='cpu')


def test_a_class_that_only_validation_rows_have_is_refused_before_a_run_is_made(shop, tmp_path):
    train, val = without(shop.split('train'), 'kind', 1), shop.split('val')
    values, valid = val.read('kind')
    key = val.keys[np.flatnonzero(valid & (values == 1))[0]]
    with pytest.raises(LabelError, match=rf"'kind'.*no training row has class 'hat', which \d+ .*'{key}'.*stratify"):
        Trainer(runs=tmp_path / 'runs').fit(build, loader(train), loader(val))
    assert not (tmp_path / 'runs').exists()
    # The ways out that the message names.
    run = Trainer(runs=tmp_path / 'runs').fit(build, loader(train), loader(without(val, 'kind', 1)))
    assert run.status == 'finished'
    with pytest.warns(UserWarning, match="class 'hat'"):
        run = Trainer(runs=tmp_path / 'runs').fit(build, loader(train), loader(val), allow_unseen=True)
    assert run.metrics['kind']['n'] == valid.sum()


def test_a_class_that_no_row_has_and_one_that_only_training_rows_have_are_fine(shop):
    task = classification('kind', [*KINDS, 'new'])
    assert check_classes([task], shop.split('train'), without(shop.split('val'), 'kind', 2)) == {}


def test_what_a_run_before_has_learned_counts(shop, tmp_path):
    trainer, train, val = Trainer(runs=tmp_path), shop.split('train'), shop.split('val')
    first = trainer.fit(build, loader(train), loader(val))
    fewer = without(train, 'kind', 1)
    assert trainer.fit(build, loader(fewer), loader(val), continue_from=first).status == 'finished'


def test_a_new_class_that_continued_training_has_no_row_of_is_refused(tmp_path):
    fields = [
        Field(name='title', kind='tensor', dtype='float32', shape=(8,)),
        Field(name='kind', kind='label', vocabulary=(*KINDS, 'pot')),
    ]
    words = ['cup', 'hat', 'map', 'cup', 'pot']
    block = Block(
        keys=list('abcde'), columns={'title': [np.ones(8, np.float32)] * 5, 'kind': words},
        splits=['train', 'train', 'train', 'val', 'val'],
    )  # fmt: skip
    snapshot = write_snapshot(tmp_path / 'shop', fields, block)
    train, val = snapshot.split('train'), snapshot.split('val')
    first = Trainer(runs=tmp_path / 'runs').fit(build, loader(train), loader(val.take([0])))
    more = {'kinds': [*KINDS, 'pot']}
    with pytest.raises(LabelError, match=r"class 'pot', which 1 validation row has \('e'\)"):
        Trainer(runs=tmp_path / 'runs').fit(build, loader(train), loader(val), args=more, continue_from=first)


def test_one_of_several_labels_is_told_and_not_refused(shop):
    task, val = multilabel('tags', TAGS), shop.split('val')
    train = without(shop.split('train'), 'tags', 0)
    with pytest.warns(UserWarning, match=r"'tags': no training row has class 'old', which \d+ validation rows"):
        assert check_classes([task], train, val) == {'tags': [0]}
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert check_classes([task], shop.split('train'), val) == {}


def test_classes_are_counted_over_the_rows_that_have_a_label(shop):
    rows = shop.split('train')
    values, valid = rows.read('kind')
    assert counts(classification('kind', 5), rows).tolist() == [int((valid & (values == i)).sum()) for i in range(5)]
    hot, there = rows.read('tags')
    assert counts(multilabel('tags', 6), rows).tolist() == [*hot[there].sum(0).tolist(), 0, 0]

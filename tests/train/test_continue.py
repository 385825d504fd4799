"""Continuing from a run on a newer snapshot, and transferring from it to new tasks."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import pytest
import torch
from shop_snapshot import FIELDS, KINDS, TAGS, shop_block, write_shop
from torch import nn

from mmpipe.data import DataLoader
from mmpipe.errors import ConfigError, ModelError, RunError
from mmpipe.models import BareModel, MultitaskModel, encoders, load_model, transfer
from mmpipe.runs import open_run
from mmpipe.shards import write_snapshot
from mmpipe.train import Trainer, classification, evaluate, multilabel, regression


class WithBatchNorm(nn.Module):
    """An encoder whose statistics move in training mode."""

    out_features = 6

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))

    def forward(self, values):
        return self.layers(values)


def build(tasks=('kind', 'price'), classes=3):
    known = {'kind': classification('kind', classes), 'price': regression('price'), 'tags': multilabel('tags', TAGS)}
    return MultitaskModel(
        encoders={'title': WithBatchNorm(), 'weight': encoders.vector(1, 4)}, tasks=[known[t] for t in tasks], hidden=8
    )


def build_named(kinds):
    return MultitaskModel(encoders={'title': encoders.vector(8, 8)}, tasks=[classification('kind', kinds)], hidden=8)


def loaders(snapshot):
    return (
        DataLoader(snapshot.split('train'), batch_size=16, shuffle=True, device='cpu'),
        DataLoader(snapshot.split('val'), batch_size=16, device='cpu'),
    )


def weights(run):
    return load_model(run).state_dict()


@pytest.fixture
def trainer(tmp_path):
    return Trainer(epochs=2, runs=tmp_path / 'runs')


@pytest.fixture
def first(shop, trainer):
    return trainer.fit(build, *loaders(shop))


def test_a_continued_run_starts_from_the_weights_and_buffers_and_counts_the_rows_that_are_new(tmp_path, trainer):
    old, new = write_shop(tmp_path / 'old' / 'shop', 96), write_shop(tmp_path / 'new' / 'shop', 128)
    first = trainer.fit(build, *loaders(old))
    start = Trainer(epochs=1, max_steps=1, lr=1e-12, weight_decay=0, runs=tmp_path / 'runs')
    second = start.fit(build, *loaders(new), continue_from=first)
    assert second.id == 'shop/0002'
    assert second.parent['run'] == first.id
    assert second.parent['kind'] == 'continue'
    assert second.parent['snapshot']['id'] == old.id
    assert second.snapshot['id'] == new.id
    assert (second.parent['new_rows'], second.parent['gone_rows'], second.parent['new_tasks']) == (24, 0, [])
    is_new = ~first.trained_on(new.split('train').hashes)
    assert set(new.split('train').keys[is_new]) == set(new.split('train').keys) - set(old.split('train').keys)
    before, after = weights(first), weights(second)
    for name in before:
        if 'running' not in name and 'num_batches' not in name:
            torch.testing.assert_close(before[name], after[name], atol=1e-6, rtol=1e-6)
    assert torch.equal(before['heads.price.standardize.mean'], after['heads.price.standardize.mean'])


def test_rows_that_left_are_counted(shop, trainer, first):
    rows = shop.split('train')
    fewer = DataLoader(rows.take(np.arange(50)), batch_size=16, device='cpu')
    second = trainer.fit(build, fewer, continue_from=first.path)
    assert (second.parent['new_rows'], second.parent['gone_rows']) == (0, len(rows) - 50)


def test_a_continued_run_may_have_other_tasks(shop, trainer, first):
    second = trainer.fit(build, *loaders(shop), continue_from=first, args={'tasks': ['price', 'tags']})
    assert second.parent['new_tasks'] == ['tags']
    assert set(second.metrics) == {'price', 'tags'}


def test_a_grown_vocabulary_keeps_the_weights_of_the_old_classes(shop, tmp_path, trainer):
    first = trainer.fit(build_named, *loaders(shop), args={'kinds': list(KINDS)})
    fields = [field.grown(['zip']) if field.name == 'kind' else field for field in FIELDS]
    grown = write_snapshot(tmp_path / 'grown', fields, shop_block(96))
    slow = Trainer(epochs=1, max_steps=1, lr=1e-12, weight_decay=0, runs=tmp_path / 'runs')
    second = slow.fit(build_named, *loaders(grown), args={'kinds': [*KINDS, 'zip']}, continue_from=first)
    before, after = (weights(run)['heads.kind.linear.weight'] for run in (first, second))
    assert after.shape[0] == 4
    torch.testing.assert_close(after[:3], before, atol=1e-6, rtol=1e-6)


def test_weights_of_another_architecture_are_refused(shop, trainer, first):
    with pytest.raises(ModelError, match='do not fit'):
        trainer.fit(build_named, *loaders(shop), args={'kinds': list(KINDS)}, continue_from=first)


def test_resume_and_continue_are_kept_apart(shop, trainer, first):
    with pytest.raises(ConfigError, match='pass one of them'):
        trainer.fit(build, *loaders(shop), resume=first, continue_from=first)
    # A script that may be started again: there is nothing unfinished, so it continues.
    assert trainer.fit(build, *loaders(shop), resume='auto', continue_from=first).parent['run'] == first.id


def test_a_continued_run_killed_before_a_checkpoint_still_starts_from_its_parent(shop, tmp_path, first):
    def stop(*_):
        raise KeyboardInterrupt

    options = {'epochs': 1, 'max_steps': 1, 'lr': 1e-12, 'weight_decay': 0.0, 'runs': tmp_path / 'runs'}
    with pytest.raises(KeyboardInterrupt):
        Trainer(**options, progress=stop).fit(build, *loaders(shop), continue_from=first)
    stopped = open_run('shop/0002', runs=tmp_path / 'runs')
    assert stopped.status == 'interrupted'
    resumed = Trainer(**options).fit(build, *loaders(shop), resume=stopped)
    before, after = (weights(run)['fusion.layers.0.weight'] for run in (first, resumed))
    torch.testing.assert_close(before, after, atol=1e-6, rtol=1e-6)


def test_transferred_encoders_come_out_of_training_bit_for_bit_as_they_went_in(shop, trainer, first):
    new = [multilabel('tags', TAGS), classification('kind', 3, name='sort')]
    second = trainer.fit(transfer(first, tasks=new, freeze='encoders'), *loaders(shop))
    before, after = weights(first), weights(second)
    frozen = [name for name in before if name.startswith(('encoders.', 'missing.'))]
    assert any('running_mean' in name for name in frozen)
    for name in frozen:
        assert torch.equal(before[name], after[name]), name
    assert not torch.equal(before['fusion.layers.0.weight'], after['fusion.layers.0.weight'])
    assert set(second.metrics) == {'tags', 'sort'}
    assert second.parent['kind'] == 'transfer'
    assert second.parent['new_tasks'] == ['tags', 'sort']


def test_a_frozen_trunk_trains_heads_alone_and_nothing_frozen_trains_all(shop, trainer, first):
    for freeze, same in (('trunk', True), (None, False)):
        second = trainer.fit(transfer(first, tasks=[regression('weight')], freeze=freeze), *loaders(shop))
        name = 'fusion.layers.0.weight'
        assert torch.equal(weights(first)[name], weights(second)[name]) == same


def test_a_transferred_run_is_rebuilt_when_the_first_is_gone_and_can_be_transferred_again(shop, trainer, first):
    second = trainer.fit(transfer(first, tasks=[multilabel('tags', TAGS)]), *loaders(shop))
    third = trainer.fit(transfer(second, tasks=[regression('price')]), *loaders(shop))
    shutil.rmtree(first.path)
    shutil.rmtree(second.path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model = load_model(third)
    assert model.frozen == ('encoders', 'missing')
    assert evaluate(model, loaders(shop)[1]) == third.metrics


def test_what_cannot_be_transferred_says_why(shop, trainer, first):
    with pytest.raises(ConfigError, match="freeze='all'"):
        transfer(first, tasks=[regression('price')], freeze='all')
    with pytest.raises(ConfigError, match='at least one task'):
        transfer(first, tasks=[])
    with pytest.raises(ConfigError, match='leave out continue_from'):
        trainer.fit(transfer(first, tasks=[regression('price')]), *loaders(shop), continue_from=first)
    bare = trainer.fit(BareModel(nn.Linear(8, 1), inputs='title', tasks=[regression('price')]), *loaders(shop))
    with pytest.raises(RunError, match='cannot be transferred from'):
        transfer(bare, tasks=[regression('price')])

"""Features of frozen encoders: what the encoder gives, computed once per content, and never taken for another's."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from shop_snapshot import FIELDS, shop_block, write_shop

from mmpipe.data import DataLoader, transforms
from mmpipe.errors import ConfigError, DataError
from mmpipe.models import MultitaskModel, encoders, load_model
from mmpipe.shards import write_snapshot
from mmpipe.train import Trainer, classification, embed, evaluate, predict, regression, transfer
from mmpipe.train.embed import encoder_digest


def build():
    return MultitaskModel(
        encoders={
            'photo': encoders.timm('test_resnet'),
            'title': encoders.vector(8, 16),
            'frames': encoders.sequence(4, 8),
        },
        tasks=[classification('kind', 3), regression('price')],
        hidden=16,
    )


def loader(rows, **options):
    given = {'batch_size': 16, 'device': 'cpu', 'transforms': {'photo': transforms.image(crop=16)}}
    return DataLoader(rows, **{**given, **options})


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    return write_shop(tmp_path_factory.mktemp('shards') / 'shop')


@pytest.fixture(scope='module')
def run(shop, tmp_path_factory):
    runs = tmp_path_factory.mktemp('runs')
    return Trainer(epochs=1, runs=runs).fit(build, loader(shop.split('train')), loader(shop.split('val')))


@pytest.fixture
def passes(monkeypatch):
    """Rows that went through the encoders, by encoder."""
    seen = {}
    for name, kind in (('photo', encoders.TimmEncoder), ('frames', type(encoders.sequence(4, 8)))):
        real = kind.forward

        def counted(self, values, *rest, _name=name, _real=real):
            seen[_name] = seen.get(_name, 0) + len(values)
            return _real(self, values, *rest)

        monkeypatch.setattr(kind, 'forward', counted)
    return seen


def present(rows, field):
    return int(rows.read(field)[1].sum())


def test_a_feature_is_what_the_encoder_gives_and_labels_and_splits_are_what_they_were(shop, run, tmp_path):
    rows = shop.rows().take(np.random.default_rng(0).permutation(len(shop)))
    found = embed(run, loader(rows), folder=tmp_path)
    assert found.keys.tolist() == rows.keys.tolist()
    assert found.system('_split').tolist() == rows.system('_split').tolist()
    assert found.snapshot.splits == shop.splits
    assert set(found.fields) == {'photo', 'title', 'frames', 'weight', 'price', 'kind', 'tags', 'note'}
    for name in ('weight', 'price', 'kind', 'tags'):
        for mine, theirs in zip(found.read(name), rows.read(name), strict=True):
            np.testing.assert_array_equal(mine, theirs)
    model = load_model(run)
    for batch in loader(rows, batch_size=len(rows)):
        with torch.no_grad():
            expected = model.features(batch)
    for name, (positions, values) in expected.items():
        features, there = found.read(name)
        np.testing.assert_array_equal(np.flatnonzero(there), positions)
        np.testing.assert_allclose(features[there], values.numpy(), rtol=1e-4, atol=1e-5)


def test_only_new_and_changed_content_goes_through_an_encoder(run, tmp_path, passes):
    def snapshot(count, change=None):
        block = shop_block(count)
        if change:
            change(block.columns)
        return write_snapshot(tmp_path / f'shop{len(list(tmp_path.iterdir()))}', FIELDS, block).rows()

    first = snapshot(40)
    embed(run, loader(first), folder=tmp_path / 'features')
    assert passes == {name: present(first, name) for name in ('photo', 'frames')}
    passes.clear()
    embed(run, loader(first), folder=tmp_path / 'features')
    embed(run, loader(first.take(range(5, 9))), folder=tmp_path / 'features')
    assert passes == {}

    def edited(columns):
        columns['kind'][3] = 'map' if columns['kind'][3] != 'map' else 'cup'  # a label costs no encoder
        columns['frames'][7] = np.full((2, 4), 0.5, np.float32)
        columns['photo'][9], columns['photo'][11] = columns['photo'][11], columns['photo'][9]  # known contents

    later = snapshot(44, edited)
    found = embed(run, loader(later), folder=tmp_path / 'features')
    new = later.take(range(40, 44))
    rewritten = [7, 40, 41, 42, 43]
    # A row goes through its encoders together: the photo of row 7 does so with its frames.
    assert passes['frames'] == present(later.take(rewritten), 'frames')
    assert passes['photo'] <= present(new, 'photo') + 1
    fresh = embed(run, loader(later), folder=tmp_path / 'other')
    for name in ('photo', 'title', 'frames', 'kind'):
        for mine, theirs in zip(found.read(name), fresh.read(name), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)
    assert sum(found.snapshot.splits.values()) == len(later)


def test_a_row_that_moved_to_another_split_is_in_it_and_costs_no_pass(run, tmp_path, passes):
    block = shop_block(8)
    first = write_snapshot(tmp_path / 'a', FIELDS, block)
    moved = dataclasses.replace(block, splits=['val', *block.splits[1:]])
    second = write_snapshot(tmp_path / 'b', FIELDS, moved)
    embed(run, loader(first.rows()), folder=tmp_path / 'features')
    passes.clear()
    found = embed(run, loader(second.rows()), folder=tmp_path / 'features')
    assert passes == {}
    assert found.system('_split').tolist() == moved.splits
    assert found.snapshot.splits == second.splits


def test_training_on_features_is_training_through_the_frozen_encoder(shop, run, tmp_path, passes):
    tasks = [regression('weight'), classification('kind', 3)]
    features = embed(run, loader(shop.rows()), folder=tmp_path / 'features')
    passes.clear()

    def trained(name, rows, cached, **options):
        parts = {split: rows.take(np.flatnonzero(rows.system('_split') == split)) for split in ('train', 'val')}
        trainer = Trainer(epochs=3, lr=0.01, runs=tmp_path / name, log_every=1)
        train = loader(parts['train'], shuffle=True, seed=3, **options)
        factory = transfer(run, tasks=tasks, cached=cached)
        return trainer.fit(factory, train, loader(parts['val'], **options), name=name)

    cached = trained('cached', features, True, transforms=None)
    assert passes == {}
    through = trained('through', shop.rows(), False)
    for mine, theirs in zip(cached.history(), through.history(), strict=True):
        if 'loss' in mine:
            assert mine['loss'] == pytest.approx(theirs['loss'], rel=1e-3)
    for task, scores in through.metrics.items():
        assert cached.metrics[task] == pytest.approx(scores, rel=1e-2, abs=1e-3)

    # What comes out takes inputs, and gives for them what it gave for features.
    model = load_model(cached)
    assert model.cached == ()
    found = evaluate(model, loader(shop.split('val')))
    assert found['weight']['mae'] == pytest.approx(cached.metrics['weight']['mae'], rel=1e-4)
    assert len(predict(model, loader(shop.split('val')))['weight']) == len(shop.split('val'))
    before, after = load_model(run).encoders.state_dict(), model.encoders.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_features_are_not_taken_for_inputs_or_for_those_of_other_weights(shop, run, tmp_path):
    features = embed(run, loader(shop.rows()), folder=tmp_path / 'features')
    cached = transfer(run, tasks=[regression('weight')], cached=True)
    plain = transfer(run, tasks=[regression('weight')])
    trainer = Trainer(runs=tmp_path / 'runs')
    on_features = loader(features, transforms=None)
    with pytest.raises(DataError, match=r"'frames' of snapshot .* holds features of an encoder"):
        trainer.fit(plain, on_features)
    with pytest.raises(DataError, match=r"takes features of 'frames', and snapshot .* holds none: .*mm.embed"):
        trainer.fit(cached, loader(shop.rows()))
    other = Trainer(runs=tmp_path / 'others', max_steps=1).fit(build, loader(shop.rows()))
    with pytest.raises(DataError, match=r"features of 'frames' .* made by other weights"):
        trainer.fit(transfer(other, tasks=[regression('weight')], cached=True), on_features)
    with pytest.raises(ConfigError, match=r'freeze=2.*encoders that stay as they are'):
        transfer(run, tasks=[regression('weight')], freeze=2, cached=True)


def test_what_is_drawn_at_random_or_cannot_be_told_is_not_cached(shop, run, tmp_path):
    drawn = loader(shop.rows(), transforms={'photo': transforms.image(crop=8, flip=True)})
    with pytest.raises(ConfigError, match=r"transform of 'photo' draws at random .*validate with"):
        embed(run, drawn, folder=tmp_path)
    with pytest.raises(ConfigError, match=r"transform of 'title': .*lambda.*must be possible to tell"):
        embed(run, loader(shop.rows(), transforms={'title': lambda values: values}), folder=tmp_path)
    with pytest.raises(DataError, match=r"reads field 'title', which the loader does not load"):
        embed(run, loader(shop.rows(), fields=['photo', 'frames', 'kind']), folder=tmp_path)


def test_another_transform_or_another_weight_is_another_folder(shop, run, tmp_path):
    rows = shop.rows().take(range(4))
    embed(run, loader(rows), folder=tmp_path)
    embed(run, loader(rows, transforms=None), folder=tmp_path)
    model = load_model(run)
    digest = encoder_digest(model.encoders['photo'])
    for name, buffer in model.encoders['photo'].named_buffers():
        if name.endswith('running_mean'):
            buffer += 1
    assert encoder_digest(model.encoders['photo']) != digest
    embed(model, loader(rows), folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 3

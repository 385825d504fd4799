"""Training on from a run in one call: on which rows, with which settings, and what stays as it was."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from shop_snapshot import FIELDS, KINDS, shop_block, write_shop

from mmpipe.data import DataLoader, transforms
from mmpipe.errors import ConfigError, DataError, RunError
from mmpipe.models import MultitaskModel, encoders, load_model
from mmpipe.shards import Field, write_snapshot
from mmpipe.train import Trainer, classification, continue_training, finetune, linear_probe, regression


def build(kind=KINDS):
    return MultitaskModel(
        encoders={'photo': encoders.timm('test_resnet'), 'title': encoders.vector(8, 16)},
        tasks=[classification('kind', kind), regression('price')],
        hidden=16,
    )


def loader(rows, **options):
    given = {'batch_size': 8, 'device': 'cpu', 'transforms': {'photo': transforms.image(crop=12)}}
    return DataLoader(rows, **{**given, **options})


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    return write_shop(tmp_path_factory.mktemp('shards') / 'shop', 64)


@pytest.fixture(scope='module')
def run(shop, tmp_path_factory):
    trainer = Trainer(epochs=2, lr=0.01, clip=1.0, runs=tmp_path_factory.mktemp('runs'))
    train = loader(shop.split('train'), shuffle=True, seed=4)
    return trainer.fit(build, train, loader(shop.split('val')), args={'kind': list(KINDS)})


def later(shop, count=80, fields=None, change=None):
    """The shop with more rows, in the same root."""
    block = shop_block(count)
    if change:
        change(block.columns)
    return write_snapshot(shop.root, fields or FIELDS, block)


def test_finetuning_starts_from_the_weights_with_smaller_steps(shop, run):
    found = finetune(run, loader(shop.split('train')), epochs=1)
    settings = found.record['trainer']
    assert settings['lr'] == pytest.approx(0.001)
    assert (settings['layer_decay'], settings['epochs'], settings['clip'], settings['warmup']) == (0.75, 1, 1.0, 1)
    assert found.parent['run'] == run.id
    assert found.path.parents[1] == run.path.parents[1]
    first, second = (load_model(each).state_dict() for each in (run, found))
    moved = max(float((first[n].float() - second[n].float()).abs().max()) for n in first if n.endswith('weight'))
    assert 0 < moved < 0.05
    with pytest.raises(ConfigError, match='trainer= and epochs=: give a whole Trainer, or single settings'):
        finetune(run, loader(shop.split('train')), trainer=Trainer(), epochs=1)


def test_a_linear_probe_moves_nothing_but_its_heads(shop, run, tmp_path):
    found = linear_probe(
        run, loader(shop.split('train')), tasks=[regression('weight')], epochs=2, runs=tmp_path, lr=0.1
    )
    first, second = (load_model(each).state_dict() for each in (run, found))
    kept = [name for name in first if not name.startswith('heads.')]
    assert any('running_mean' in name for name in kept)
    assert all(torch.equal(first[name], second[name]) for name in kept)
    assert found.record['trainer']['schedule'] == 'cosine'


def test_continuing_takes_what_is_new_and_a_share_of_the_old(shop, run):
    now = later(shop)
    found = continue_training(run, replay=0.5, epochs=1)
    assert found.snapshot['id'] == now.id
    assert found.record['loader']['sampling'] == {
        'sampling': 'since', 'before': shop.id, 'replay': 0.5, 'new': found.record['loader']['sampling']['new'],
    }  # fmt: skip
    new = len(now.split('train')) - len(shop.split('train'))
    assert found.parent['new_rows'] == new
    steps = max(line['step'] for line in found.history())
    assert steps == -(-2 * new // 8)
    assert found.record['val_rows'] == len(now.split('val'))
    assert found.record['inputs']['val'] == run.record['inputs']['val']
    assert sorted(found.train_rows()) == sorted(now.split('train').hashes)


def test_grown_vocabularies_grow_the_heads_and_the_arguments(shop, run):
    words = (*KINDS, 'pen')
    fields = [Field(name='kind', kind='label', vocabulary=words) if f.name == 'kind' else f for f in FIELDS]
    later(shop, fields=fields, change=lambda columns: columns['kind'].__setitem__(70, 'pen'))
    found = continue_training(run, epochs=1)
    assert found.record['factory']['args'] == {'kind': list(words)}
    assert load_model(found).heads['kind'].linear.weight.shape[0] == 4


def test_what_cannot_be_continued_is_refused(shop, run, tmp_path):
    with pytest.raises(DataError, match=r'None of the .* rows is new'):
        continue_training(run, shop)
    plain = Trainer(runs=tmp_path, max_steps=1).fit(
        build, loader(shop.split('train'), transforms={'title': lambda values: values})
    )
    with pytest.raises(RunError, match=r'cannot be continued from its record: .*lambda.*mm\.sampling\.since'):
        continue_training(plain)
    probed = linear_probe(run, loader(shop.split('train')), tasks=[regression('weight')], epochs=1, runs=tmp_path)
    with pytest.raises(RunError, match=r'was made by mm\.transfer: transfer from it again'):
        finetune(probed, loader(shop.split('train')))
    assert np.isin(shop.split('train').hashes, probed.train_rows()).all()

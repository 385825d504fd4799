"""What is frozen stays as it was, to the last bit and buffer, whichever way it was frozen; adapters learn beside it."""

from __future__ import annotations

import pytest
import torch
from shop_snapshot import write_shop

from mmpipe.data import DataLoader, transforms
from mmpipe.errors import ConfigError, ModelError
from mmpipe.models import Lora, MultitaskModel, encoders, load_model, merge_lora, transfer
from mmpipe.models.lora import PART
from mmpipe.train import Trainer, classification, embed, evaluate, linear_probe, regression

TASKS = [regression('weight'), classification('kind', 3)]


def build():
    return MultitaskModel(
        encoders={'photo': encoders.timm('test_resnet'), 'title': encoders.vector(8, 16)},
        tasks=[classification('kind', 3), regression('price')],
        hidden=16,
    )


def loader(rows, **options):
    given = {'batch_size': 8, 'device': 'cpu', 'transforms': {'photo': transforms.image(crop=16)}}
    return DataLoader(rows, **{**given, **options})


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    return write_shop(tmp_path_factory.mktemp('shards') / 'shop', 48)


@pytest.fixture(scope='module')
def run(shop, tmp_path_factory):
    return Trainer(max_steps=2, runs=tmp_path_factory.mktemp('runs')).fit(build, loader(shop.split('train')))


def probe(run, shop, runs):
    return linear_probe(run, loader(shop.split('train')), tasks=TASKS, epochs=1, lr=0.1, runs=runs), ()


def heads_and_fusion(run, shop, runs):
    return trained(transfer(run, tasks=TASKS), shop, runs), ('fusion.',)


def last_layers(run, shop, runs):
    return trained(transfer(run, tasks=TASKS, freeze=1), shop, runs), ('fusion.', 'missing.', 'title', 'layer4')


def adapters(run, shop, runs):
    return trained(transfer(run, tasks=TASKS, lora=Lora(rank=2)), shop, runs), ('fusion.', PART)


def not_yet_unfrozen(run, shop, runs):
    return trained(transfer(run, tasks=TASKS), shop, runs, unfreeze={5: None}), ('fusion.',)


def on_features(run, shop, runs):
    rows = embed(run, loader(shop.split('train')), folder=runs / 'features')
    factory = transfer(run, tasks=TASKS, cached=True)
    return trained(factory, shop, runs, rows=rows, transforms=None), ('fusion.',)


def trained(factory, shop, runs, *, rows=None, unfreeze=None, **options):
    train = loader(rows if rows is not None else shop.split('train'), shuffle=True, **options)
    return Trainer(epochs=2, lr=0.05, weight_decay=0.1, runs=runs, unfreeze=unfreeze).fit(factory, train)


def state_of(run):
    return {name.replace('.base_layer', ''): value for name, value in load_model(run).state_dict().items()}


@pytest.mark.parametrize('recipe', [probe, heads_and_fusion, last_layers, adapters, not_yet_unfrozen, on_features])
def test_what_is_not_replaced_or_trained_is_the_same_to_the_last_bit(run, shop, tmp_path, recipe):
    made, moving = recipe(run, shop, tmp_path)
    before, after = state_of(run), state_of(made)
    kept = [name for name in before if not name.startswith('heads.') and not any(part in name for part in moving)]
    assert any('running_var' in name for name in kept)
    assert any(name.startswith('encoders.photo.') and name.endswith('conv1.weight') for name in kept)
    assert [name for name in kept if not torch.equal(before[name], after[name])] == []
    if 'fusion.' in moving:
        assert any(not torch.equal(before[name], after[name]) for name in before if name.startswith('fusion.'))


def test_adapters_learn_and_are_all_of_the_encoders_that_does(run, shop, tmp_path):
    factory = transfer(run, tasks=TASKS, lora=Lora(rank=2, alpha=4, targets=['conv3', 'project.0']))
    model = factory()
    free = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {name for name in free if name.startswith('encoders.')} == {
        name for name, _ in model.named_parameters() if PART in name
    }
    assert any('conv3' in name for name in free)
    made = trained(factory, shop, tmp_path)
    assert made.record['factory']['lora'] == {'rank': 2, 'alpha': 4, 'dropout': 0.0, 'targets': ['conv3', 'project.0']}
    model = load_model(made)
    learned = [value for name, value in model.named_parameters() if '.lora_B.' in name]
    assert learned
    assert all(value.abs().sum() > 0 for value in learned)


def test_merged_adapters_give_what_they_gave(run, shop, tmp_path):
    made = trained(transfer(run, tasks=TASKS, lora=Lora(rank=2)), shop, tmp_path)
    model, val = load_model(made), loader(shop.split('val'))
    before = evaluate(model, val)
    merged = merge_lora(model)
    assert not any(PART in name or 'base_layer' in name for name in merged.state_dict())
    after = evaluate(merged, val)
    for task, scores in before.items():
        assert after[task]['loss'] == pytest.approx(scores['loss'], rel=1e-4)


def test_adapters_that_cannot_be_are_refused(run):
    with pytest.raises(ConfigError, match=r'freeze=None, cached=False\): adapters are for encoders that stay'):
        transfer(run, tasks=TASKS, freeze=None, lora=Lora())
    with pytest.raises(ModelError, match=r"targets=\['nothing'\]\): no encoder has such a layer"):
        transfer(run, tasks=TASKS, lora=Lora(targets=['nothing']))()
    with pytest.raises(ConfigError, match='a whole rank from 1'):
        Lora(rank=0)

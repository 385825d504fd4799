"""Optimizers: groups, layer-wise rates, objects of the user's, averaged weights, and resuming with all of them."""

from __future__ import annotations

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from shop_snapshot import KINDS
from torch import nn

from mmpipe.data import DataLoader
from mmpipe.errors import ConfigError, TrainError
from mmpipe.models import MultitaskModel, encoders, load_model, transfer
from mmpipe.models.contract import layers_of
from mmpipe.train import Trainer, classification, regression
from mmpipe.train.average import Average
from mmpipe.train.optimizer import make_optimizer, parameter_groups


class Tied(nn.Module):
    """Two names of one weight, an embedding, and a number."""

    def __init__(self, width):
        super().__init__()
        self.table = nn.Embedding(5, width)
        self.out = nn.Linear(width, 5, bias=False)
        self.out.weight = self.table.weight
        self.scale = nn.Parameter(torch.ones(()))


PARTS = st.recursive(
    st.sampled_from(['linear', 'conv', 'norm', 'tied', 'gelu']), lambda inner: st.lists(inner, min_size=1, max_size=4)
)


def built(tree):
    if isinstance(tree, list):
        return nn.Sequential(*map(built, tree))
    return {
        'linear': lambda: nn.Linear(3, 3), 'conv': lambda: nn.Conv2d(2, 2, 1), 'norm': lambda: nn.LayerNorm(3),
        'tied': lambda: Tied(3), 'gelu': nn.GELU,
    }[tree]()  # fmt: skip


@given(tree=PARTS, decay=st.none() | st.floats(0.1, 1.0), frozen=st.integers(0, 3), too=st.booleans())
def test_every_trainable_parameter_is_in_one_group_with_the_right_decay(tree, decay, frozen, too):
    model = nn.Sequential(built(tree), nn.Linear(3, 2))
    parameters = list(model.parameters())
    for parameter in parameters[::4][:frozen]:
        parameter.requires_grad_(False)
    groups = parameter_groups(model, weight_decay=0.5, layer_decay=decay, frozen_too=too)
    found = [parameter for group in groups for parameter in group['params']]
    assert len(found) == len({id(p) for p in found})
    assert {id(p) for p in found} == {id(p) for p in parameters if too or p.requires_grad}
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    for group in groups:
        assert 0 < group['lr_scale'] <= 1
        for parameter in group['params']:
            assert (group['weight_decay'] == 0.5) == (parameter.ndim >= 2 and id(parameter) not in tables)


def model_of_layers():
    return MultitaskModel(
        encoders={'photo': encoders.timm('test_vit'), 'title': encoders.vector(8, 4)},
        tasks=[classification('kind', KINDS)], hidden=4,
    )  # fmt: skip


def test_layers_learn_slower_the_nearer_they_are_to_the_input():
    model = model_of_layers()
    optimizer = make_optimizer(model, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    rates = {id(p): group['lr'] for group in optimizer.param_groups for p in group['params']}
    layers = layers_of(model.encoders['photo'])
    assert len(layers) > 3
    for number, layer in enumerate(layers):
        assert {rates[id(p)] for p in layer.parameters()} == {0.5 ** (len(layers) - number)}
    backbone = model.encoders['photo'].backbone
    assert rates[id(backbone.cls_token)] == 0.5 ** len(layers)  # lies in no layer, and enters at the input
    assert {rates[id(p)] for p in [*model.fusion.parameters(), *model.heads.parameters()]} == {1.0}


def test_embeddings_are_not_decayed_and_nothing_to_train_is_told():
    with pytest.raises(TrainError, match='no parameter to train'):
        make_optimizer(nn.Linear(1, 1).requires_grad_(False), lr=0.1, weight_decay=0.1)


@pytest.mark.parametrize('count', [0, 1, 3])
def test_only_the_last_layers_of_encoders_train(count):
    model = model_of_layers()
    model.freeze(count)
    layers = layers_of(model.encoders['photo'])
    trained = [any(p.requires_grad for p in layer.parameters()) for layer in layers]
    assert trained == [False] * (len(layers) - count) + [True] * count
    assert not model.encoders['photo'].backbone.cls_token.requires_grad
    assert all(p.requires_grad for p in [*model.fusion.parameters(), *model.heads.parameters()])
    model.train()
    assert [layer.training for layer in layers] == trained


def build(norm=False):
    encoder = encoders.timm('resnet10t') if norm else encoders.image(8, width=8)
    return MultitaskModel(
        encoders={'photo': encoder, 'title': encoders.vector(8, 8)},
        tasks=[classification('kind', KINDS), regression('price')], hidden=8,
    )  # fmt: skip


def loaders(shop):
    train = DataLoader(shop.split('train'), batch_size=16, shuffle=True, device='cpu')
    return train, DataLoader(shop.split('val'), batch_size=24, device='cpu')


def test_what_is_frozen_comes_out_bit_for_bit_and_is_unfrozen_when_it_is_due(shop, tmp_path):
    """With BatchNorm, whose statistics would move if it were not in eval mode."""
    first = Trainer(epochs=1, runs=tmp_path).fit(build, *loaders(shop), args={'norm': True})
    before = load_model(first).state_dict()
    new = [classification('kind', KINDS, name='again')]
    second = Trainer(epochs=1, runs=tmp_path).fit(transfer(first, tasks=new, freeze=1), loaders(shop)[0])
    after = load_model(second).state_dict()
    top = {name for name, _ in load_model(second).encoders['photo'].layers()[-1].named_parameters()}
    assert top
    model = load_model(second)
    names = {id(part): name for name, part in model.named_modules()}
    free = tuple(f'{names[id(layers_of(encoder)[-1])]}.' for encoder in model.encoders.values())
    moved = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    frozen = {name for name in before if name.startswith('encoders.') and not name.startswith(free)}
    assert any('running_mean' in name for name in frozen)
    assert not moved & frozen
    assert any(name.startswith(free) for name in moved)
    third = Trainer(epochs=2, runs=tmp_path, unfreeze={1: None}).fit(
        transfer(first, tasks=new, freeze='encoders'), loaders(shop)[0]
    )
    last = load_model(third).state_dict()
    assert any(not torch.equal(before[name], last[name]) for name in frozen if 'running_mean' in name)
    assert any(not torch.equal(before[name], last[name]) for name in frozen if 'weight' in name)


def test_the_average_is_that_of_its_formula():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    average = Average(model, decay=0.8)
    expected = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(5):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter))
        model(torch.randn(4, 2))
        average.update()
        expected = {n: 0.8 * expected[n] + 0.2 * p.detach() for n, p in model.named_parameters()}
    average.settle()
    for name, value in expected.items():
        assert torch.allclose(average.model.state_dict()[name], value, atol=1e-6)
    assert torch.equal(average.model[1].running_mean, model[1].running_mean)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with average.applied():
        assert torch.allclose(model[0].weight, expected['0.weight'], atol=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_averaged_weights_are_evaluated_and_loaded(shop, tmp_path):
    from mmpipe.train import evaluate

    train, val = loaders(shop)
    run = Trainer(epochs=3, runs=tmp_path, ema=0.9, lr=0.02).fit(build, train, val)
    assert evaluate(load_model(run), val) == run.metrics
    from mmpipe.models.weights_file import load_weights

    raw = load_weights(run.checkpoint() / 'model.safetensors')
    assert not torch.equal(raw['fusion.layers.0.weight'], load_model(run).state_dict()['fusion.layers.0.weight'])


OWN = {
    'optimizer': functools.partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True),
    'scheduler': functools.partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=0.1, total_steps=30),
}


@pytest.mark.parametrize(
    'options',
    [
        OWN,
        {'ema': 0.9, 'balancing': 'uncertainty', 'layer_decay': 0.7},
        {'precision': 'fp16', 'accumulate': 2, 'clip': 1.0},
        {'unfreeze': {0: 1, 2: None}, 'warmup': 2, 'recompute': ['encoders.photo.stages']},
    ],
    ids=['own', 'averaged', 'fp16', 'unfrozen'],
)
def test_a_training_that_goes_on_from_the_middle_ends_bit_for_bit_as_one_that_did_not_stop(shop, tmp_path, options):
    whole = Trainer(epochs=4, runs=tmp_path / 'a', **options).fit(build, *loaders(shop))
    part = Trainer(epochs=4, max_steps=7, runs=tmp_path / 'b', **options).fit(build, *loaders(shop))
    resumed = Trainer(epochs=4, runs=tmp_path / 'b', **options).fit(build, *loaders(shop), resume=part)
    assert resumed.id == part.id
    files = sorted(file.name for file in whole.checkpoint().iterdir() if file.suffix == '.safetensors')
    assert ('average.safetensors' in files) == ('ema' in options)
    for file in files:
        assert (resumed.checkpoint() / file).read_bytes() == (whole.checkpoint() / file).read_bytes(), file


def test_optimizers_and_schedulers_are_recorded_and_a_resumed_run_must_have_the_same(shop, tmp_path):
    from mmpipe.errors import RunError

    run = Trainer(epochs=2, max_steps=3, runs=tmp_path, **OWN).fit(build, *loaders(shop))
    assert run.record['trainer']['optimizer'] == 'torch.optim.sgd.SGD(lr=0.05, momentum=0.9, nesterov=True)'
    assert run.record['trainer']['scheduler'].startswith('torch.optim.lr_scheduler.OneCycleLR(')
    with pytest.raises(RunError, match='optimizer'):
        Trainer(epochs=2, runs=tmp_path).fit(build, *loaders(shop), resume=run)


def test_what_is_no_optimizer_or_scheduler_is_refused(shop, tmp_path):
    for options, message in (
        ({'optimizer': lambda groups: len(groups)}, 'made a int, not a torch.optim.Optimizer'),
        ({'scheduler': lambda optimizer: optimizer}, 'not a scheduler'),
    ):
        with pytest.raises(ConfigError, match=message):
            Trainer(runs=tmp_path, **options).fit(build, *loaders(shop))
    for options in (
        {'scheduler': OWN['scheduler'], 'warmup': 3}, {'ema': 1.0}, {'layer_decay': 0.0}, {'layer_decay': 1.5},
        {'unfreeze': {-1: 2}}, {'unfreeze': {1: 'all'}}, {'ema': math.nan},
    ):  # fmt: skip
        with pytest.raises(ConfigError):
            Trainer(**options)

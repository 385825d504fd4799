"""Blocks that forget their activations: the same losses and gradients, in less memory."""

from __future__ import annotations

import copy

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy

from mmpipe.errors import ConfigError
from mmpipe.train.precision import autocast
from mmpipe.train.recompute import EXPENSIVE, recompute, repeated_blocks, saved_bytes


def transformer(blocks=12, dropout=0.1):
    layer = nn.TransformerEncoderLayer(
        64, 4, 256, dropout=dropout, batch_first=True, norm_first=True, activation='gelu'
    )
    return nn.TransformerEncoder(layer, blocks, enable_nested_tensor=False)


def stepped(model, values, precision='fp32'):
    torch.manual_seed(1)
    model.zero_grad()
    with autocast(precision, torch.device('cpu')):
        out = model(values)
    loss = out.float().square().mean()
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def nothing(context, operator, *args, **kwargs):
    return CheckpointPolicy.PREFER_RECOMPUTE


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('policy', [None, 'matmuls', nothing])
def test_losses_and_gradients_are_bitwise_the_same_with_dropout_too(precision, policy):
    torch.manual_seed(0)
    model, values = transformer(4), torch.randn(2, 9, 64)
    other = copy.deepcopy(model)
    recompute(other, policy=policy)
    loss, gradients = stepped(model, values, precision)
    again, others = stepped(other, values, precision)
    assert torch.equal(loss, again)
    assert gradients.keys() == others.keys()
    for name, gradient in gradients.items():
        assert torch.equal(gradient, others[name]), name


def test_a_transformer_of_twelve_blocks_keeps_a_third_less():
    """Width 64, 4 heads, GELU, batch 8 of 64 tokens: what a forward pass leaves behind."""
    torch.manual_seed(0)
    values, found = torch.randn(8, 64, 64), {}
    for name, options in {
        'nothing': None,
        'whole': {},
        'matmuls': {'policy': 'matmuls'},
        'every 2nd': {'every': 2},
    }.items():
        model = transformer(12)
        if options is not None:
            recompute(model, **options)
        found[name] = saved_bytes(lambda model=model: model(values).square().mean())
    saved = {name: round(1 - size / found['nothing'], 3) for name, size in found.items()}
    print(f'checkpointing_memory_saved {saved}')
    assert saved['whole'] > 0.35
    assert 0 < saved['matmuls'] < saved['whole']
    assert 0 < saved['every 2nd'] < saved['whole']


def test_what_is_counted_is_what_is_there():
    weight = torch.ones(256, 256, requires_grad=True)
    values = torch.ones(32, 256)
    kilobyte = 32 * 256 * 4
    assert saved_bytes(lambda: (values @ weight).sum()) == 4  # the product is not needed for its own gradient
    assert saved_bytes(lambda: (values @ weight).exp().sum()) == kilobyte + 4
    assert saved_bytes(lambda: ((values @ weight).exp() * values).sum()) == kilobyte + 4


@pytest.mark.parametrize(
    ('name', 'blocks'),
    [
        ('test_vit', 6),
        ('vit_tiny_patch16_224', 12),
        ('resnet18', 8),
        ('convnext_atto', 12),
        ('tf_efficientnet_lite0', 14),
    ],
)
def test_blocks_of_timm_models_are_found(name, blocks):
    model = timm.create_model(name, num_classes=0)
    found = repeated_blocks(model)
    assert len(found) == blocks
    modules = dict(model.named_modules())
    assert all(not other.startswith(f'{one}.') for one in found for other in found if one != other)
    keys = list(model.state_dict())
    model.train()
    assert recompute(model) == found
    assert list(model.state_dict()) == keys
    assert all(dict(model.named_modules())[each] is modules[each] for each in found)


def test_blocks_of_torchvision_models_are_found():
    assert len(repeated_blocks(torchvision.models.vit_b_16())) == 12
    assert len(repeated_blocks(torchvision.models.resnet18())) == 8


@pytest.mark.parametrize('name', ['resnet18', 'test_vit'])
def test_images_through_real_backbones_give_the_same_gradients(name):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=0)
    side = model.pretrained_cfg['input_size'][-1] if 'vit' in name else 48
    values = torch.randn(3, 3, side, side)
    other = copy.deepcopy(model)
    recompute(other)
    loss, gradients = stepped(model.train(), values)
    again, others = stepped(other.train(), values)
    assert torch.equal(loss, again)
    for key, gradient in gradients.items():
        assert torch.equal(gradient, others[key]), key


@pytest.mark.parametrize('policy', [None, 'matmuls'])
def test_batchnorm_counts_a_batch_once(policy):
    """The forward pass runs twice; its statistics must not."""
    torch.manual_seed(0)
    block = lambda: nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.ReLU())  # noqa: E731
    model = nn.Sequential(block(), block())
    other = copy.deepcopy(model)
    recompute(other, policy=policy)
    values = torch.randn(8, 4)
    stepped(model, values)
    stepped(other, values)
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_in_evaluation_and_where_all_is_frozen_nothing_runs_twice():
    model, values, calls = transformer(2), torch.randn(2, 5, 64), []
    recompute(model)
    model.layers[0].linear1.register_forward_hook(lambda *_: calls.append(1))
    model.eval()(values)
    model.train().requires_grad_(False)
    model(values)
    assert len(calls) == 2
    model.requires_grad_(True)
    model(values).sum().backward()
    assert len(calls) == 4


def test_what_cannot_be_is_refused():
    with pytest.raises(ConfigError, match='no blocks that repeat'):
        recompute(nn.Linear(2, 2))
    with pytest.raises(ConfigError, match='no such module; it has layers'):
        recompute(transformer(2), blocks=['nothing'])
    with pytest.raises(ConfigError, match='policy is None'):
        recompute(transformer(2), policy='all')
    assert len(set(EXPENSIVE)) == len(EXPENSIVE)

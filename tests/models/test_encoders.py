"""Encoders keep one contract."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mmpipe.errors import ConfigError, ModelError
from mmpipe.models import encoders
from mmpipe.models.contract import input_spec, layers_of
from mmpipe.models.encoders import weights_follow

# Whatever needs a value on the host before it can go on.
SYNCS = ('_local_scalar_dense', 'item', 'nonzero', 'is_nonzero', 'equal', 'masked_select', 'unique', '_assert_async')
CASES = {
    'vector': (encoders.vector(5, 7), (torch.rand(4, 5),)),
    'vector of one number': (encoders.vector(1, 7), (torch.rand(4),)),
    'vector of whole numbers': (encoders.vector(1, 7), (torch.arange(4),)),
    'image': (encoders.image(7, width=8), (torch.rand(4, 3, 16, 16),)),
    'grey image': (encoders.image(7, channels=1, width=8), (torch.zeros(4, 1, 16, 16, dtype=torch.uint8),)),
    'spectrogram': (encoders.spectrogram(16, 7, width=8), (torch.rand(4, 16, 20),)),
    'sequence': (encoders.sequence(5, 7), (torch.rand(4, 3, 5), torch.tensor([3, 0, 1, 2]))),
    'category': (encoders.category(3, 7), (torch.tensor([0, 1, 2, 0]),)),
    'table': (encoders.tabular(2, [3, 5], 7), (torch.tensor([[0.5, 3, 2, 4]] * 4),)),
    'table of numbers': (encoders.tabular(4, out_features=7, layers=1), (torch.rand(4, 4),)),
    'table of categories': (encoders.tabular(0, [3], 7, hidden=5, layers=3), (torch.tensor([[0], [1], [2], [9]]),)),
    'waveform': (encoders.waveform(8000, 7, n_mels=16, width=8), (torch.rand(4, 900), torch.tensor([900, 1, 300, 0]))),
    'tokens': (encoders.tokens(11, 7, heads=1), (torch.randint(11, (4, 6)), torch.tensor([6, 0, 1, 3]))),
    **{
        f'video, {pooling}': (
            encoders.video(encoders.image(7, width=8), pooling),
            (torch.randint(0, 256, (4, 3, 3, 16, 16), dtype=torch.uint8), torch.tensor([3, 1, 2, 3])),
        )
        for pooling in ('mean', 'attention', 'gru')
    },
}


@pytest.mark.parametrize('name', CASES)
def test_features_have_the_size_that_is_declared_and_gradients_flow(name):
    encoder, arguments = CASES[name]
    features = encoder(*arguments)
    assert features.shape == (4, encoder.out_features) == (4, 7)
    features.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize('name', CASES)
@pytest.mark.parametrize('precision', [torch.float32, torch.bfloat16])
def test_no_encoder_waits_for_the_device_whatever_the_precision(name, precision):
    class Counting(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen[func.overloadpacket.__name__] += 1
            return func(*args, **(kwargs or {}))

    seen = Counter()
    encoder, arguments = CASES[name]
    with Counting():
        with torch.autocast('cpu', torch.bfloat16, enabled=precision == torch.bfloat16):
            features = encoder.train()(*arguments)
        features.float().sum().backward()
    assert torch.isfinite(features).all()
    assert seen
    assert not {operator for operator in seen if operator in SYNCS}


@pytest.mark.parametrize('name', CASES)
def test_what_an_encoder_says_it_takes_is_what_it_takes(name):
    encoder, (values, *_) = CASES[name]
    spec = input_spec(encoder)
    assert spec.differs(values) is None
    assert spec.differs(['text']) == 'kind'
    assert spec.differs(values.cfloat()) == 'dtype'
    assert spec.encoder.startswith('encoders.')


@pytest.mark.parametrize('name', CASES)
def test_layers_are_parts_in_order_and_hold_every_parameter(name):
    encoder, _ = CASES[name]
    layers = layers_of(encoder)
    assert layers[0] is not encoder or name == 'category'
    inside = {id(parameter) for layer in layers for parameter in layer.parameters()}
    assert inside == {id(parameter) for parameter in encoder.parameters()}


def test_features_before_pooling_are_those_that_are_pooled():
    encoder, (images,) = CASES['image']
    assert torch.equal(encoder.project(encoder.forward_features(images).mean((2, 3))), encoder(images))
    for name in ('spectrogram', 'sequence', 'waveform', 'tokens', 'video, mean'):
        encoder, arguments = CASES[name]
        encoder.forward_features(*arguments)


def test_a_timm_backbone_gives_its_features_and_normalises_uint8_itself():
    encoder = encoders.timm('test_resnet').eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    config = encoder.backbone.pretrained_cfg
    mean, std = (torch.tensor(config[key])[:, None, None] for key in ('mean', 'std'))
    with torch.no_grad():
        assert encoder(pixels).shape == (2, encoder.out_features)
        torch.testing.assert_close(encoder(pixels), encoder((pixels / 255 - mean) / std), rtol=1e-3, atol=1e-3)


def test_packaged_weights_are_loaded_whole_unless_a_checkpoint_follows():
    trained, again = (encoders.timm('tf_efficientnet_lite0', pretrained=True) for _ in range(2))
    with weights_follow():
        random = encoders.timm('tf_efficientnet_lite0', pretrained=True)
    name = 'backbone.conv_stem.weight'
    assert torch.equal(trained.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(trained.state_dict()[name], random.state_dict()[name])


def test_padding_of_a_sequence_does_not_count():
    encoder = encoders.sequence(5, 7).eval()
    values, lengths = torch.rand(2, 4, 5), torch.tensor([2, 4])
    noisy = values.clone()
    noisy[0, 2:] = 99
    torch.testing.assert_close(encoder(values, lengths), encoder(noisy, lengths))


def test_wrong_sizes_and_unknown_backbones_are_refused():
    with pytest.raises(ConfigError):
        encoders.vector(0)
    with pytest.raises(ModelError, match='resnet_18'):
        encoders.timm('resnet_18')
    with pytest.raises(ModelError, match='label 3'):
        encoders.category(3).fit_buffers([np.array([3])])

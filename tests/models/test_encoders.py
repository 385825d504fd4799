"""Encoders keep one contract."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmpipe.errors import ConfigError, ModelError
from mmpipe.models import encoders
from mmpipe.models.encoders import weights_follow

CASES = {
    'vector': (encoders.vector(5, 7), (torch.rand(4, 5),)),
    'vector of one number': (encoders.vector(1, 7), (torch.rand(4),)),
    'vector of whole numbers': (encoders.vector(1, 7), (torch.arange(4),)),
    'image': (encoders.image(7, width=8), (torch.rand(4, 3, 16, 16),)),
    'grey image': (encoders.image(7, channels=1, width=8), (torch.zeros(4, 1, 16, 16, dtype=torch.uint8),)),
    'spectrogram': (encoders.spectrogram(16, 7, width=8), (torch.rand(4, 16, 20),)),
    'sequence': (encoders.sequence(5, 7), (torch.rand(4, 3, 5), torch.tensor([3, 0, 1, 2]))),
    'category': (encoders.category(3, 7), (torch.tensor([0, 1, 2, 0]),)),
}


@pytest.mark.parametrize('name', CASES)
def test_features_have_the_size_that_is_declared_and_gradients_flow(name):
    encoder, arguments = CASES[name]
    features = encoder(*arguments)
    assert features.shape == (4, encoder.out_features) == (4, 7)
    features.sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


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

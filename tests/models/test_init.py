"""Initial weights: the variance of activations stays over many layers, where torch's own lose it."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torchvision.ops import Conv2dNormActivation

from mmpipe.errors import ConfigError
from mmpipe.models import MultitaskModel, encoders, initialise
from mmpipe.models.init import activation_of, gain
from mmpipe.train import classification, regression

ACTIVATIONS = {'relu': nn.ReLU, 'gelu': nn.GELU, 'tanh': nn.Tanh}
DEPTH, WIDTH = 16, 1024


def spread(network, values):
    """Largest over smallest variance of what comes out of the activations of a sequence."""
    variances = []
    with torch.no_grad():
        for layer in network:
            values = layer(values)
            if activation_of(layer) is not None:
                variances.append(float(values.var()))
    assert len(variances) == DEPTH
    return max(variances) / min(variances)


@pytest.mark.parametrize('name', ACTIVATIONS)
@pytest.mark.parametrize('seed', range(3))
def test_variance_stays_within_a_factor_of_two_over_sixteen_layers_and_torchs_own_does_not(name, seed):
    torch.manual_seed(seed)
    layers = [part for _ in range(DEPTH) for part in (nn.Linear(WIDTH, WIDTH), nn.Dropout(0.0), ACTIVATIONS[name]())]
    network, values = nn.Sequential(*layers), torch.randn(128, WIDTH)
    before = spread(network, values)
    after = spread(initialise(network), values)
    print(f"{name} over {DEPTH} layers: variance changes by {after:.2f}, with torch's own by {before:.2g}")
    assert after < 2
    assert before > 100


def test_variance_stays_through_convolutions():
    torch.manual_seed(0)
    layers = [part for _ in range(DEPTH) for part in (nn.Conv2d(128, 128, 3, padding='same', padding_mode='circular'),
              nn.ReLU())]  # fmt: skip
    network, values = nn.Sequential(*layers), torch.randn(4, 128, 6, 6)
    before = spread(network, values)
    assert spread(initialise(network), values) < 3  # 128 channels vary more by chance than 1024 features
    assert before > 100


def test_each_type_of_layer_gets_what_its_paper_says():
    torch.manual_seed(0)
    he, xavier = nn.Linear(400, 100), nn.Linear(400, 100)
    last, up = nn.Conv1d(300, 60, 3, groups=3), nn.ConvTranspose2d(128, 64, 3)
    sequence = nn.Sequential(
        nn.Sequential(he, nn.LayerNorm(100)), nn.LeakyReLU(0.5), xavier, nn.Dropout(), nn.Tanh(), last, up
    )
    assert initialise(sequence, activation='relu') is sequence
    for layer, variance in (
        (he, 2 / (1 + 0.5**2) / 400), (xavier, (5 / 3) ** 2 * 2 / 500), (last, 2 / 300), (up, 2 / (128 * 9)),
    ):  # fmt: skip
        assert float(layer.weight.detach().var()) == pytest.approx(variance, rel=0.1)
        assert not layer.bias.any()
    derived = initialise(Conv2dNormActivation(128, 64, 3), activation='linear')  # its ReLU counts
    assert float(derived[0].weight.detach().var()) == pytest.approx(2 / (128 * 9), rel=0.1)


def test_recurrent_layers_attention_and_transformers_have_rules_of_their_own():
    torch.manual_seed(0)
    lstm, gru = initialise(nn.LSTM(32, 64)), initialise(nn.GRU(32, 64))
    for part in (*lstm.weight_hh_l0.chunk(4), *gru.weight_hh_l0.chunk(3)):
        torch.testing.assert_close(part @ part.T, torch.eye(64), atol=1e-5, rtol=0)
    assert [float(part.detach().mean()) for part in lstm.bias_ih_l0.chunk(4)] == [0, 1, 0, 0]
    block = initialise(nn.TransformerEncoderLayer(128, 4, 512, activation='gelu'))
    assert float(block.linear1.weight.detach().var()) == pytest.approx(gain('gelu') ** 2 / 128, rel=0.1)
    assert float(block.linear2.weight.detach().var()) == pytest.approx(2 / 640, rel=0.1)
    for part in block.self_attn.in_proj_weight.chunk(3):  # each a layer of its own, not one of three times the width
        assert float(part.detach().var()) == pytest.approx(1 / 128, rel=0.1)


@pytest.mark.parametrize('name', ['gelu', 'silu', 'elu', 'mish', 'relu'])
def test_gains_keep_the_second_moment(name):
    torch.manual_seed(0)
    values = getattr(nn.functional, name)(gain(name) * torch.randn(1_000_000))
    assert float(values.square().mean()) == pytest.approx(1, rel=0.01)


def test_everything_from_scratch_is_initialised_and_what_is_trained_is_left_alone():
    photo = encoders.timm('tf_efficientnet_lite0', pretrained=True)
    before = {name: value.clone() for name, value in photo.state_dict().items()}
    model = MultitaskModel(
        encoders={
            'clip': encoders.video(photo, 'attention'), 'title': encoders.vector(200, 128),
            'mel': encoders.spectrogram(16, 64, width=16), 'facts': encoders.tabular(64, out_features=128),
            'note': encoders.tokens(50, 64), 'speech': encoders.waveform(8000, 64, width=16),
        },
        tasks=[classification('kind', 64), regression('price')], fusion='attention', hidden=64,
    )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in photo.state_dict().items())
    scratch = [(name, part) for name, part in model.named_modules()
               if isinstance(part, nn.Linear | nn.Conv2d) and 'frame_encoder' not in name]  # fmt: skip
    assert len(scratch) > 20
    for name, layer in scratch:  # torch's own biases are uniform
        assert layer.bias is None or not layer.bias.any(), name
    assert float(model.encoders['title'].project[0].weight.detach().var()) == pytest.approx(
        gain('gelu') ** 2 / 200, rel=0.1
    )


def test_an_activation_that_is_none_is_refused():
    with pytest.raises(ConfigError, match=r"activation='softplus'.*relu"):
        initialise(nn.Linear(1, 1), activation='softplus')
    assert initialise(nn.Linear(4, 4), activation=nn.GELU()).bias.abs().sum() == 0

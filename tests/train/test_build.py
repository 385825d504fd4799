"""A model is made where it is trained."""

from __future__ import annotations

import pytest
import torch
from shop_snapshot import KINDS
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mmpipe.errors import ConfigError
from mmpipe.models import MultitaskModel, encoders
from mmpipe.train import classification, regression
from mmpipe.train.build import built

LARGEST_CONSTANT = 257 * (64 + 2)  # the mel bands, which torchaudio computes on the host


class OnHost(TorchDispatchMode):
    """Notes the largest tensor that anything makes on the host."""

    largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in tree_leaves(out):
            if isinstance(each, torch.Tensor) and each.device.type == 'cpu':
                self.largest = max(self.largest, each.numel())
        return out


def build(fusion='concat'):
    return MultitaskModel(
        encoders={
            'photo': encoders.image(64, width=64),
            'back': encoders.timm('resnet18'),
            'clip': encoders.video(encoders.torchvision('resnet18'), 'gru'),
            'speech': encoders.waveform(16_000, 64),
            'note': encoders.tokens(5000, 64),
            'facts': encoders.tabular(3, [4000]),
            'title': encoders.vector(1000, 64),
        },
        tasks=[classification('kind', KINDS), regression('price')], fusion=fusion,
    )  # fmt: skip


@pytest.mark.parametrize('fusion', ['concat', 'mean', 'attention'])
def test_every_parameter_and_buffer_is_made_on_the_device_and_none_on_the_host(fusion):
    with OnHost() as noted:
        model = built(build, {'fusion': fusion}, device=torch.device('meta'))
    assert {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]} == {'meta'}
    assert noted.largest <= LARGEST_CONSTANT < min(
        max(p.numel() for p in part.parameters()) for part in model.encoders.values()
    )  # fmt: skip


def test_a_factory_that_chooses_its_device_keeps_it_and_a_module_stays_where_it_is():
    meta = torch.device('meta')
    assert built(lambda: nn.Linear(2, 1, device='cpu'), None, device=meta).weight.device.type == 'cpu'
    module = nn.Linear(2, 1)
    assert built(module, None, device=meta) is module
    assert torch.zeros(1).device.type == 'cpu'  # the default is what it was
    with pytest.raises(ConfigError, match=r'dict, not an nn\.Module'):
        built(dict, None, device=meta)

"""Adapters count in encoders whose layers are read rather than called."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmpipe.errors import ModelError
from mmpipe.models import Lora, MultitaskModel, encoders, merge_lora
from mmpipe.models.lora import add_lora
from mmpipe.train import classification

BATCH = {'title': torch.arange(24).reshape(4, 6), '_length': {'title': torch.tensor([6, 3, 2, 6])}}


def build(targets='linear'):
    torch.manual_seed(0)
    model = MultitaskModel(
        encoders={'title': encoders.tokens(50, 16, layers=2)}, tasks=[classification('kind', 3)], dropout=0.0
    )
    names = add_lora(model, Lora(rank=2, targets=targets))
    model.freeze('encoders')
    for name, parameter in model.named_parameters():
        if '.lora_B.' in name:
            nn.init.normal_(parameter, std=0.3)
    return model, names


def test_every_adapter_of_a_frozen_transformer_gets_a_gradient():
    model, names = build()
    assert len(names) == 4
    model.train()(BATCH)['kind'].square().sum().backward()
    adapters = {name: value for name, value in model.named_parameters() if '.lora_' in name}
    assert len(adapters) == 2 * len(names)
    assert [n for n, value in adapters.items() if value.grad is None or not value.grad.abs().sum() > 0] == []


@pytest.mark.parametrize('without_gradients', [torch.no_grad, torch.inference_mode])
def test_adapters_count_in_evaluation_and_once_merged(without_gradients):
    model, _ = build()
    trained = model.train().fused(BATCH).detach()
    with without_gradients():
        torch.testing.assert_close(model.eval().fused(BATCH), trained)
    plain = merge_lora(model)
    with without_gradients():
        torch.testing.assert_close(plain.fused(BATCH), trained, rtol=1e-4, atol=1e-4)


def test_a_layer_that_attention_only_reads_gets_no_adapter():
    with pytest.raises(ModelError, match='no encoder has such a layer'):
        build(targets=['out_proj'])

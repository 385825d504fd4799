"""Weights as safetensors: every name and shape, or an error."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from mmpipe.errors import ModelError
from mmpipe.models.weights_file import load_weights, put_weights, save_weights


def test_weights_come_back_bit_for_bit_also_tied_ones(tmp_path):
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    module[1].weight = module[0].weight
    save_weights(module, tmp_path / 'a')
    other = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.BatchNorm1d(3))
    put_weights(other, load_weights(tmp_path / 'a'), source='a')
    for name, value in module.state_dict().items():
        assert torch.equal(value, other.state_dict()[name])


@pytest.mark.parametrize(
    ('other', 'problem'),
    [(nn.Linear(2, 1, bias=False), "has 'bias' that"), (nn.Linear(3, 1), r'\[1, 2\] there and \[1, 3\] here')],
)
def test_weights_of_another_module_are_refused_and_nothing_is_changed(other, problem):
    before = other.weight.clone()
    with pytest.raises(ModelError, match=problem):
        put_weights(other, nn.Linear(2, 1).state_dict(), source='a')
    assert torch.equal(before, other.weight)


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / 'model.safetensors').write_bytes(b'x' * 100)
    with pytest.raises(ModelError, match=r'model\.safetensors'):
        load_weights(tmp_path / 'model.safetensors')

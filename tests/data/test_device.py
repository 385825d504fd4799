"""Names of devices."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from mmpipe.data.device import resolve, to_device
from mmpipe.errors import ConfigError


def test_auto_is_the_accelerator_or_the_cpu():
    expected = torch.accelerator.current_accelerator(check_available=True) or torch.device('cpu')
    assert resolve('auto') == expected


def test_a_device_that_is_not_here_or_does_not_exist_is_an_error():
    with pytest.raises(ConfigError, match='knows no device'):
        resolve('gpu7')
    if not torch.accelerator.is_available():
        with pytest.raises(ConfigError, match="device='auto'"):
            resolve('cuda')
    if importlib.util.find_spec('torch_xla') is None:
        with pytest.raises(ConfigError, match=r"device='xla' needs torch_xla in the version of torch"):
            resolve('xla')


def test_only_tensors_move():
    batch = {'a': torch.zeros(2), '_mask': {'a': torch.ones(2)}, '_key': ['x', 'y']}
    moved = to_device(batch, torch.device('meta'))
    assert moved['a'].is_meta
    assert moved['_mask']['a'].is_meta
    assert moved['_key'] == ['x', 'y']

"""What the adapter asks of YaFSDP, against a stand-in: the package needs CUDA devices and is on no index."""

from __future__ import annotations

import sys
import types
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import mmpipe as mm
from mmpipe.errors import ConfigError, MissingExtraError, TrainError
from mmpipe.train.parallel import check_installed
from mmpipe.train.yafsdp import YaSharded


class Mesh:
    """One of two processes."""

    def __init__(self, size: int = 2) -> None:
        self.length = size

    def size(self) -> int:
        return self.length

    def __getitem__(self, name):
        return Mesh(2 if name == 'dp_shard' else 1)


@pytest.fixture
def calls(monkeypatch):
    found = []

    @dataclass
    class Policy:
        param_dtype: torch.dtype | None = None
        reduce_dtype: torch.dtype | None = None

    def fully_shard(module, *, mesh, mp_policy=None):
        module.set_requires_gradient_sync = lambda sync, recurse: found.append(('sync', type(module), sync, recurse))
        module.set_state_dict_type = lambda kind: found.append(('state', kind))
        found.append((module, mesh.size(), mp_policy))

    library = types.ModuleType('ya_fsdp')
    library.fully_shard, library.MixedPrecisionPolicy = fully_shard, Policy
    library.StateDictType = types.SimpleNamespace(FULL_STATE_DICT='full')
    monkeypatch.setitem(sys.modules, 'ya_fsdp', library)
    monkeypatch.setattr(YaSharded, '_assert_applied', lambda self, model: None)  # parameters stay what they are here
    return found


def model() -> nn.Module:
    return mm.MultitaskModel(
        encoders={'price': mm.encoders.vector(1, 4)}, tasks=[mm.classification('kind', 3)], hidden=4
    )


def test_every_layer_is_sharded_and_then_the_model(calls):
    whole = model()
    YaSharded(Mesh(), precision='bf16').prepare(whole)
    *blocks, last, state = calls
    assert last[0] is whole
    assert state == ('state', 'full')
    assert {id(block) for block, _, _ in blocks} <= {id(part) for part in whole.encoders.modules()}
    assert all(size == 2 for _, size, _ in blocks)
    assert all(policy.param_dtype == torch.bfloat16 and policy.reduce_dtype == torch.float32 for *_, policy in blocks)


def test_gradients_are_sent_after_the_last_micro_batch_alone(calls):
    strategy = YaSharded(Mesh())
    strategy.prepare(model())
    calls.clear()
    strategy.micro(last=False, even=True)
    assert calls
    assert all(call[2:] == (False, False) for call in calls)


def test_a_package_that_did_not_load_is_an_error(calls, monkeypatch):
    monkeypatch.setattr(sys.modules['ya_fsdp'], 'fully_shard', None)
    with pytest.raises(TrainError, match='ya_fsdp cannot be used with torch'):
        YaSharded(Mesh()).prepare(model())


def test_it_does_not_resume(calls):
    with pytest.raises(TrainError, match='keeps no state of an optimizer: start from its weights with continue_from='):
        YaSharded(Mesh()).owned.room(['a'], source='checkpoint x')


def test_without_the_package_the_message_says_how_to_get_it():
    with pytest.raises(MissingExtraError, match=r'pip install .git\+https://github.com/yandex/YaFSDP'):
        check_installed(mm.Parallel(dp_shard=2, sharding='yafsdp'), torch.device('cuda'))


def test_it_is_refused_on_other_devices_than_cuda(calls, monkeypatch):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: object())
    with pytest.raises(ConfigError, match='yafsdp is for CUDA devices'):
        check_installed(mm.Parallel(dp_shard=2, sharding='yafsdp'), torch.device('cpu'))

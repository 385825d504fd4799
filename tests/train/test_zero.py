"""DeepSpeed's ZeRO takes the steps of one process, and goes on from where it was."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from launched import launch, losses, stop
from parallel_script import train_once, write_rows

import mmpipe as mm
from mmpipe.errors import ConfigError, MissingExtraError
from mmpipe.models.weights_file import load_weights
from mmpipe.runs import open_run
from mmpipe.train.balancing import make_balancing
from mmpipe.train.parallel import check_installed
from mmpipe.train.zero import check_beside

here = importlib.util.find_spec('deepspeed') is not None
needs_deepspeed = pytest.mark.skipif(not here, reason='DeepSpeed is not installed')
# Each of these steps has labels of both tasks, rows with an image and rows without: DeepSpeed steps what gets no
# gradient, too, and nothing else does.
OPTIONS = {'accumulate': 2, 'global_batch': 8, 'weight_decay': 0.1}


@pytest.fixture(scope='module')
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('vit') / 'shards'
    write_rows(folder)
    return folder


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.timeout(600)  # the first import builds an operator of DeepSpeed
@pytest.mark.parametrize('sharding', ['zero1', 'zero2', 'zero3'])
def test_each_stage_takes_the_steps_of_one_process_also_when_resumed(shards, tmp_path, sharding):
    train_once(str(shards), str(tmp_path / 'one'), mm.Parallel(), **OPTIONS)
    sizes = {'dp_shard': 2, 'sharding': sharding}
    launch(shards, tmp_path / 'more', 2, parallel=sizes, **OPTIONS, max_steps=2, timeout_s=300)
    stop(open_run('vit', runs=tmp_path / 'more'))
    launch(shards, tmp_path / 'more', 2, parallel=sizes, **OPTIONS)
    one, more = (open_run('vit', runs=tmp_path / name) for name in ('one', 'more'))
    assert more.id == 'vit/0001'
    assert losses(more) == pytest.approx(losses(one), rel=1e-5)
    for task in ('kind', 'price'):
        assert more.metrics[task] == pytest.approx(one.metrics[task], rel=1e-4)
    expected = load_weights(one.checkpoint() / 'model.safetensors')
    for name, value in load_weights(more.checkpoint() / 'model.safetensors').items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=2e-4, msg=name)


@needs_deepspeed
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_state_of_one_stage_is_not_taken_for_that_of_another(shards, tmp_path):
    launch(shards, tmp_path, 2, parallel={'dp_shard': 2, 'sharding': 'zero2'}, max_steps=2, timeout_s=300)
    stop(open_run('vit', runs=tmp_path))
    for other, said in (
        ({'dp_shard': 2, 'sharding': 'zero1'}, 'was that of zero2 over 2 processes, and this training is zero1 over 2'),
        ({'dp_shard': 2}, 'was that of zero2 over 2 processes, whose state is made for that'),
    ):
        with pytest.raises(AssertionError, match=said):
            launch(shards, tmp_path, 2, parallel=other)


def test_a_balancing_that_deepspeed_cannot_send_is_refused():
    balancing = make_balancing('uncertainty', [mm.regression('price')])
    with pytest.raises(ConfigError, match=r"log_variances.price.*: pass balancing='fixed'"):
        check_beside(balancing)


def test_without_deepspeed_the_message_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'mmpipe\[deepspeed\]'"):
        check_installed(mm.Parallel(dp_shard=2, sharding='zero3'), torch.device('cpu'))

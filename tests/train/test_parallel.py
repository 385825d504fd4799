"""However a model is spread over processes, it takes the steps of one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import parallel_script
import pytest
import torch
from parallel_script import train_once, write_rows
from torch.distributed.tensor.parallel import ColwiseParallel

import mmpipe as mm
from mmpipe.errors import ConfigError
from mmpipe.models.rebuild import run_weights
from mmpipe.models.weights_file import load_weights
from mmpipe.runs import open_run
from mmpipe.train.balancing import Balancing
from mmpipe.train.parallel import check_installed
from mmpipe.train.sharded import tensor_plan_of

SCRIPT = Path(parallel_script.__file__)
LAUNCH = [sys.executable, '-m', 'torch.distributed.run', '--standalone']
WAYS = {
    'fsdp': {'dp_shard': 2},
    'ddp': {},
    'tensor': {'tp': 2},
    'hybrid': {'dp_replicate': 2, 'dp_shard': 2},
    'data_x_tensor': {'dp_replicate': 2, 'tp': 2},
    'shards_x_tensor': {'dp_shard': 2, 'tp': 2},
}


class OwnGradients(Balancing):
    """As PCGrad does, it takes gradients itself."""

    def backward(self, losses, **rest):
        raise AssertionError('is not called')


@pytest.fixture(scope='module')
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('vit') / 'shards'
    write_rows(folder)
    return folder


@pytest.fixture(scope='module')
def alone(shards, tmp_path_factory):
    runs = tmp_path_factory.mktemp('alone')
    train_once(str(shards), str(runs), mm.Parallel(), checkpoint_every=2, keep_checkpoints=9)
    return open_run('vit', runs=runs)


def spread(shards: Path, runs: Path, processes: int, **options) -> subprocess.CompletedProcess:
    command = [*LAUNCH, '--nproc-per-node', processes, SCRIPT, shards, runs, json.dumps(options)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=120)


def losses(run) -> list[float]:
    return [line['loss'] for line in run.history() if 'loss' in line]


def weights(run) -> dict[str, torch.Tensor]:
    return load_weights(run.checkpoint() / 'model.safetensors')


@pytest.mark.timeout(240)
@pytest.mark.parametrize('way', [
    way if way == 'fsdp' else pytest.param(way, marks=pytest.mark.slow) for way in WAYS
])  # fmt: skip
def test_it_takes_the_steps_of_one_process(shards, alone, tmp_path, way):
    sizes = WAYS[way]
    processes = 4 if len(sizes) > 1 else 2
    done = spread(shards, tmp_path, processes, parallel=sizes, checkpoint_every=2, keep_checkpoints=9)
    assert done.returncode == 0, done.stderr[-3000:]
    run = open_run('vit', runs=tmp_path)
    pieces = (
        0 if way == 'ddp' else processes
    )  # of a checkpoint on the way, and of the last one, whose weights are whole
    assert [len(list(run.checkpoint(step).glob('pieces-*'))) for step in (4, 5)] == [pieces, pieces]
    then = run_weights(alone, 4)
    for name, value in run_weights(run, 4).items():
        torch.testing.assert_close(value, then[name], rtol=1e-3, atol=2e-4, msg=name)
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)
    assert run.metrics['kind']['n'] == alone.metrics['kind']['n']
    for task in ('kind', 'price'):
        assert run.metrics[task]['loss'] == pytest.approx(alone.metrics[task]['loss'], rel=1e-5)
    expected = weights(alone)
    for name, value in weights(run).items():  # Adam turns rounding of small gradients into steps of the rate's size
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize('way', ['ddp', 'fsdp', 'data_x_tensor'])
def test_accumulation_uncertainty_and_recomputing_take_the_same_steps_too(shards, tmp_path, way):
    options = {'accumulate': 2, 'balancing': 'uncertainty', 'recompute': True, 'weight_decay': 0.1}
    train_once(str(shards), str(tmp_path / 'one'), mm.Parallel(), **options)
    done = spread(shards, tmp_path / 'more', 4 if way == 'data_x_tensor' else 2, parallel=WAYS[way], **options)
    assert done.returncode == 0, done.stderr[-3000:]
    one, more = (open_run('vit', runs=tmp_path / name) for name in ('one', 'more'))
    assert losses(more) == pytest.approx(losses(one), rel=1e-5)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_the_first_process_says_when_a_checkpoint_of_all_is_due(shards, tmp_path):
    done = spread(
        shards, tmp_path, 2, parallel={'dp_shard': 2}, checkpoint_seconds=None, first_saves_s=1e-9, keep_checkpoints=9,
        max_steps=16,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    saved = [entry.name for entry in (open_run('vit', runs=tmp_path).path / 'checkpoints').iterdir()]
    assert '00000016' in saved


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_a_step_too_small_for_all_ranks_is_refused_before_the_first_one(shards, tmp_path):
    done = spread(shards, tmp_path, 2, parallel={'dp_shard': 2}, global_batch=40, pad_last=False)  # 41 rows
    assert done.returncode != 0
    assert 'has fewer rows than the 2 ranks that share it' in done.stderr
    assert not list(tmp_path.glob('vit/*'))


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_with_bf16_the_losses_are_those_of_one_process_to_a_percent(shards, alone, tmp_path):
    done = spread(shards, tmp_path, 2, parallel={'dp_shard': 2}, precision='bf16')
    assert done.returncode == 0, done.stderr[-3000:]
    assert losses(open_run('vit', runs=tmp_path)) == pytest.approx(losses(alone), rel=1e-2)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    'options',
    [{}, {'recompute': True, 'accumulate': 2}, {'convolving': True}],
    ids=['transformer', 'recomputed', 'convolving'],
)
def test_with_bf16_a_model_in_parts_takes_the_steps_of_whole_ones(shards, tmp_path, options):
    for way in ('ddp', 'fsdp'):
        done = spread(shards, tmp_path / way, 2, parallel=WAYS[way], precision='bf16', clip=None, **options)
        assert done.returncode == 0, done.stderr[-3000:]
    whole, parts = (losses(open_run('vit', runs=tmp_path / way)) for way in ('ddp', 'fsdp'))
    assert parts == pytest.approx(whole, rel=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ('first', 'second'),
    [(('fsdp', 2), ('hybrid', 4)), (('shards_x_tensor', 4), ('ddp', 1)), (('ddp', 1), ('tensor', 2))],
)
@pytest.mark.parametrize('sharded', [True, False])
def test_a_run_goes_on_over_another_number_of_processes(shards, alone, tmp_path, first, second, sharded):
    for (way, processes), steps in ((first, 3), (second, 5)):
        done = spread(
            shards,
            tmp_path,
            processes,
            parallel=WAYS[way],
            max_steps=steps,
            checkpoint_every=1,
            sharded_checkpoints=sharded,
            keep_checkpoints=2,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        if steps == 3:  # as if it had been stopped there
            run = open_run('vit', runs=tmp_path)
            file = run.path / 'run.json'
            file.write_text(file.read_text().replace('"finished"', '"interrupted"'))
            if sharded:
                shutil.rmtree(run.checkpoint())  # from the one before, whose weights are in pieces
                assert not (run.checkpoint() / 'model.safetensors').exists()
    run = open_run('vit', runs=tmp_path)
    assert run.id == 'vit/0001'
    assert losses(run) == pytest.approx(losses(alone), rel=1e-5)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'dp_shard': 0}, 'a whole number from 1 on'),
        ({'dp_shard': 2}, r'wants a multiple of 2 processes, and there are 1'),
        ({'dp_replicate': 3, 'tp': 2}, 'wants 6 processes, and there are 1'),
    ],
)
def test_a_number_of_processes_that_does_not_fit_is_refused(shards, tmp_path, options, message):
    with pytest.raises(ConfigError, match=message):
        train_once(str(shards), str(tmp_path), mm.Parallel(**options))


@pytest.mark.parametrize(
    ('plan', 'message'),
    [({}, 'needs a plan'), ({'layers.9': ColwiseParallel()}, "names 'layers.9', which is no module of Planned")],
)
def test_a_plan_that_fits_nothing_is_refused(plan, message):
    class Planned(torch.nn.Sequential):
        def tensor_plan(self):
            return plan

    with pytest.raises(ConfigError, match=message):
        tensor_plan_of(Planned(torch.nn.Linear(1, 1)))


@pytest.mark.parametrize(
    'options',
    [{'ema': 0.9}, {'precision': 'fp16'}, {'compile': True}, {'unfreeze': {0: None}}, {'balancing': OwnGradients()}],
)
def test_what_needs_the_whole_model_is_refused_beside_parts_of_it(options):
    with pytest.raises(ConfigError, match=f'{next(iter(options))}.* needs the whole model on every rank'):
        mm.Trainer(parallel=mm.Parallel(dp_shard=2), **options)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'dp_shard': 2, 'sharding': 'zero4'}, "'zero4'.* is none of 'fsdp', 'zero1'"),
        ({'sharding': 'zero1'}, 'say into how many parts by dp_shard'),
        ({'dp_shard': 2, 'tp': 2, 'sharding': 'zero1'}, 'zero1 goes with dp_shard alone'),
        ({'dp_shard': 2, 'sharding': 'yafsdp', 'offload': True}, 'yafsdp goes with dp_shard alone'),
        ({'dp_shard': 2, 'offload': 'yes'}, 'True or False is meant'),
        ({'pp': True}, 'a whole number from 1 on'),
        ({'offload': True}, 'what is in parts is offloaded'),
        ({'pp': 2, 'tp': 2}, 'stages .pp. hold whole layers'),
    ],
)
def test_ways_of_spreading_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        mm.Parallel(**options)


def test_offloading_is_refused_where_there_is_no_cuda_device():
    with pytest.raises(ConfigError, match=r"offload is for CUDA devices, and this training is on 'cpu'"):
        check_installed(mm.Parallel(dp_shard=2, offload=True), torch.device('cpu'))

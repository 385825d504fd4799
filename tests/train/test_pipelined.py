"""A model in stages takes the steps of one process that accumulates as many micro-batches."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from launched import launch, losses, stop
from parallel_script import train_once, write_rows
from torch import nn

import mmpipe as mm
from mmpipe.errors import ConfigError
from mmpipe.models.weights_file import load_weights
from mmpipe.runs import open_run
from mmpipe.train.pipelined import cut_of, places_of

TWO = {'accumulate': 2, 'global_batch': 4}
WAYS = {
    'two stages': (2, {'pp': 2}, TWO),
    # The last step of an epoch has fewer micro-batches than there are stages, the last batch fewer rows.
    'four stages': (4, {'pp': 4}, {'accumulate': 4, 'global_batch': 4, 'depth': 4, 'max_steps': 7}),
    'two stages twice': (
        4,
        {'pp': 2, 'dp_replicate': 2},
        {'accumulate': 3, 'global_batch': 4, 'balancing': 'uncertainty', 'recompute': True, 'max_steps': 7},
    ),
}


@pytest.fixture(scope='module')
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('vit') / 'shards'
    write_rows(folder)
    return folder


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize('way', WAYS)
def test_stages_take_the_steps_of_one_process(shards, tmp_path, way):
    processes, sizes, options = WAYS[way]
    train_once(str(shards), str(tmp_path / 'one'), mm.Parallel(), **options)
    launch(shards, tmp_path / 'more', processes, parallel=sizes, **options)
    one, more = (open_run('vit', runs=tmp_path / name) for name in ('one', 'more'))
    assert losses(more) == pytest.approx(losses(one), rel=1e-5)
    for task in ('kind', 'price'):
        assert more.metrics[task] == pytest.approx(one.metrics[task], rel=1e-5)
    expected = load_weights(one.checkpoint() / 'model.safetensors')
    found = load_weights(more.checkpoint() / 'model.safetensors')
    assert found.keys() == expected.keys()
    for name, value in found.items():  # Adam turns rounding of small gradients into steps of the rate's size
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=2e-4, msg=name)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_with_bf16_the_losses_are_those_of_one_process_to_a_percent(shards, tmp_path):
    options = {**TWO, 'precision': 'bf16'}
    train_once(str(shards), str(tmp_path / 'one'), mm.Parallel(), **options)
    launch(shards, tmp_path / 'more', 2, parallel={'pp': 2}, **options)
    one, more = (open_run('vit', runs=tmp_path / name) for name in ('one', 'more'))
    assert losses(more) == pytest.approx(losses(one), rel=1e-2)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_run_goes_from_stages_to_one_process_and_back(shards, tmp_path):
    train_once(str(shards), str(tmp_path / 'one'), mm.Parallel(), **TWO, max_steps=6)
    for processes, sizes, steps in ((2, {'pp': 2}, 2), (1, {}, 4), (2, {'pp': 2}, 6)):
        launch(shards, tmp_path / 'more', processes, parallel=sizes, **TWO, max_steps=steps)
        if steps < 6:
            stop(open_run('vit', runs=tmp_path / 'more'))
    one, more = (open_run('vit', runs=tmp_path / name) for name in ('one', 'more'))
    assert more.id == 'vit/0001'
    assert losses(more) == pytest.approx(losses(one), rel=1e-5)


def test_the_largest_encoder_that_can_be_cut_is():
    model = mm.MultitaskModel(
        encoders={
            'photo': mm.encoders.timm('resnet18'),
            'title': sized(nn.Sequential(nn.Linear(4, 64), nn.GELU(), nn.Linear(64, 8)), 8),
            'price': sized(nn.Sequential(nn.Linear(1, 8), nn.GELU(), nn.Linear(8, 8)), 8),
        },
        tasks=[mm.classification('kind', 3)],
    )
    model.encoders['photo'].pipeline_plan = None
    _, field, pieces = cut_of(model, 2)
    assert field == 'title'
    assert len(pieces) == 2


def test_a_model_without_an_encoder_that_can_be_cut_is_refused():
    model = mm.MultitaskModel(encoders={'price': mm.encoders.vector(1, 4)}, tasks=[mm.regression('price')])
    with pytest.raises(ConfigError, match=r'none of the encoders \(price\) can be cut'):
        cut_of(model, 2)
    bare = mm.BareModel(nn.Flatten(0), inputs='price', tasks=[mm.regression('price')])
    with pytest.raises(ConfigError, match='this model is a BareModel'):
        cut_of(bare, 2)


def test_a_stage_whose_layers_are_all_frozen_is_refused():
    model = mm.MultitaskModel(
        encoders={'title': sized(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 8)), 8)}, tasks=[mm.regression('price')]
    )
    model.freeze('encoders')
    with pytest.raises(ConfigError, match='Stage 0 of 2 would have nothing to train'):
        places_of(model, 2)


def test_stages_that_share_a_weight_are_refused():
    one, other = nn.Linear(8, 8), nn.Linear(8, 8)
    other.weight = one.weight
    model = mm.MultitaskModel(encoders={'title': sized(nn.Sequential(one, other), 8)}, tasks=[mm.regression('price')])
    with pytest.raises(ConfigError, match='on stages 0 and 1 share a weight'):
        places_of(model, 2)


def test_fewer_micro_batches_than_stages_are_refused():
    with pytest.raises(ConfigError, match='fewer micro-batches in a step than it has stages'):
        mm.Trainer(parallel=mm.Parallel(pp=4), accumulate=2)


def sized(encoder: nn.Module, features: int) -> nn.Module:
    encoder.out_features = features
    return encoder

"""Steps whose loss is not finite: they change nothing, are named by their rows, and do not come again."""

from __future__ import annotations

import math

import pytest
import torch
from shop_snapshot import FIELDS, KINDS, shop_block
from torch import nn

from mmpipe.data import DataLoader
from mmpipe.errors import TrainError
from mmpipe.models import BareModel, load_model
from mmpipe.runs import open_run
from mmpipe.shards import Field, write_snapshot
from mmpipe.train import Trainer, classification
from mmpipe.train.balancing import Balancing
from mmpipe.train.random_numbers import borrowed_generators, seed_generators
from mmpipe.train.step import Stepper
from mmpipe.train.strategy import Replicated


class Brittle(nn.Module):
    """Linear on the title, but a row whose weight is below a bound spoils its batch."""

    def __init__(self, bound: float, norm: bool) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(8) if norm else nn.Identity()
        self.layer, self.bound = nn.Linear(8, 3), bound

    def forward(self, title, weight):
        return self.layer(self.norm(title / torch.where(weight < self.bound, 0.0, 1.0)[:, None]))


def build(bound=-99.0, norm=False):
    return BareModel(Brittle(bound, norm), inputs=['title', 'weight'], tasks=[classification('kind', KINDS)])


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    """96 rows without holes, in a known order, the weights of which tell which of them are bad."""
    block = shop_block(96, holes=0.0)
    block.columns['weight'] = [float(i) for i in range(96)]
    fields = [
        field if field.name != 'weight' else Field(name='weight', kind='scalar', dtype='float32') for field in FIELDS
    ]
    return write_snapshot(tmp_path_factory.mktemp('numbered'), fields, block).rows()


def loader(rows, **options):
    return DataLoader(rows, batch_size=8, device='cpu', shuffle=True, **options)


def bad_steps(rows, bound, epochs):
    """Steps (from 1 on) that hold a row below the bound, and the keys of each of them."""
    batches = loader(rows).batches
    found, step = {}, 0
    for epoch in range(epochs):
        for positions in batches.global_steps(epoch):
            step += 1
            if rows.read('weight', positions)[0].min() < bound:
                found[step] = rows.keys[positions].tolist()
    return found


def trained_by_hand(epochs, without, args):
    """Weights after an epoch of plain torch from the same start, but for some steps."""
    device = torch.device('cpu')
    with borrowed_generators(device):
        seed_generators(device, 0)
        model = build(**args)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{'params': decayed, 'weight_decay': 0.01}, {'params': others, 'weight_decay': 0.0}]
    optimizer, step = torch.optim.AdamW(groups, lr=0.05, fused=True), 0
    for epoch in epochs:
        for batch in epoch:
            step += 1
            if step not in without:
                optimizer.zero_grad()
                total = nn.functional.cross_entropy(model(batch)['kind'], batch['kind'], reduction='sum')
                (total * (1.0 / len(batch['_key']))).backward()
                optimizer.step()
    return model.state_dict()


def assert_same(run, weights):
    for name, value in load_model(run).state_dict().items():
        assert torch.equal(value, weights[name]), name


def test_they_change_nothing_and_are_recorded_with_their_rows(rows, tmp_path):
    expected = bad_steps(rows, 2, 2)
    assert 2 <= len(expected) <= 4
    trainer = Trainer(epochs=2, runs=tmp_path, skip_nonfinite=9, log_every=5, lr=0.05)
    run = trainer.fit(build, loader(rows), args={'bound': 2.0})
    assert {line['step']: line['keys'] for line in run.history() if 'not_finite' in line} == expected
    assert all(math.isfinite(line['loss']) for line in run.history() if 'loss' in line)
    batches = loader(rows)
    assert_same(run, trained_by_hand([batches, batches], expected, {'bound': 2.0}))


def test_after_too_many_the_training_goes_back_and_leaves_them_out(rows, tmp_path):
    """Their forward passes had spoilt the statistics of BatchNorm: these are what they were before."""
    expected = bad_steps(rows, 2, 1)
    assert len(expected) == 2
    trainer = Trainer(epochs=1, runs=tmp_path, skip_nonfinite=1, log_every=1, checkpoint_every=1, lr=0.05)
    run = trainer.fit(build, loader(rows), args={'bound': 2.0, 'norm': True})
    told = {line.get('leaves_out', line['step']): line['keys'] for line in run.history() if 'keys' in line}
    assert told == expected
    assert_same(run, trained_by_hand([loader(rows)], expected, {'bound': 2.0, 'norm': True}))


def test_after_as_many_again_it_stops_and_names_task_step_and_rows(rows, tmp_path):
    expected = bad_steps(rows, 20, 1)
    assert len(expected) > 4
    trainer = Trainer(epochs=1, runs=tmp_path, skip_nonfinite=1, log_every=1, checkpoint_every=1)
    with pytest.raises(TrainError, match=r'loss of kind is not finite at step \d+, whose rows .*since it went back'):
        trainer.fit(build, loader(rows), args={'bound': 20.0})
    run = open_run(next(tmp_path.iterdir()).name, runs=tmp_path)
    assert run.status == 'failed'
    assert any(repr(key) in run.record['error'] for keys in expected.values() for key in keys)


def test_where_there_is_nothing_to_go_back_to_it_stops_at_once(rows, tmp_path):
    with pytest.raises(TrainError, match='It has no checkpoint yet'):
        Trainer(epochs=1, runs=tmp_path, skip_nonfinite=0, log_every=1).fit(build, loader(rows), args={'bound': 1e9})


def test_an_optimizer_that_cannot_skip_on_the_device_skips_all_the_same(rows):
    model = build(bound=1e9)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, foreach=True)
    stepper = Stepper(
        model, model.tasks, optimizer, balancing=Balancing(), strategy=Replicated(), device=torch.device('cpu')
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    taken = stepper([next(iter(loader(rows)))], [8.0], factor=1.0)
    assert not taken[-1].isfinite()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert math.isnan(float(taken[0]))

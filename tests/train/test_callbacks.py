"""What a program is told while a model trains, and how it ends a training."""

from __future__ import annotations

import io
import re

import pytest
import torch
from shop_snapshot import KINDS

from mmpipe.data import DataLoader
from mmpipe.errors import ConfigError
from mmpipe.models import MultitaskModel, encoders, load_model
from mmpipe.progress import StageProgress
from mmpipe.runs import open_run
from mmpipe.train import Callback, StopTraining, Trainer, classification, regression


def build():
    return MultitaskModel(
        encoders={'title': encoders.vector(8, 8)}, tasks=[classification('kind', KINDS), regression('price')], hidden=8
    )


def loaders(shop):
    train = DataLoader(shop.split('train'), batch_size=24, shuffle=True, device='cpu')
    return train, DataLoader(shop.split('val'), batch_size=24, device='cpu')


class Noting(Callback):
    def __init__(self):
        self.told = []

    def on_start(self, run):
        self.told.append(('start', run.status))

    def on_losses(self, run, step, losses):
        self.told.append(('losses', step, sorted(losses)))

    def on_epoch(self, run, epoch, metrics):
        self.told.append(('epoch', epoch, sorted(metrics)))

    def on_end(self, run):
        self.told.append(('end', run.status))


def test_it_is_told_of_start_losses_epochs_and_end_in_this_order(shop, tmp_path):
    noting = Noting()
    run = Trainer(epochs=2, runs=tmp_path, log_every=2, callbacks=[noting], evaluate_every=2).fit(build, *loaders(shop))
    both = ['kind', 'price']
    assert noting.told == [
        ('start', 'running'),
        ('losses', 2, both), ('losses', 3, both), ('epoch', 0, []),
        ('losses', 4, both), ('losses', 6, both), ('epoch', 1, both),
        ('end', 'finished'),
    ]  # fmt: skip
    lines = [line for line in run.history() if 'tasks' in line]
    assert [line['step'] for line in lines] == [2, 3, 4, 6]


def test_it_can_end_the_training_which_then_counts_as_finished_and_can_be_used(shop, tmp_path):
    class Enough(Callback):
        def on_losses(self, run, step, losses):
            if step >= 4:
                raise StopTraining('good enough')

    trainer = Trainer(epochs=50, runs=tmp_path, log_every=1, callbacks=[Enough()])
    run = trainer.fit(build, *loaders(shop))
    assert run.status == 'finished'
    assert run.record['step'] == 5  # the step that runs when it is told ends, as on every rank
    assert run.checkpoint().name == '00000005'
    load_model(run)


def test_what_it_raises_ends_the_training_as_failed_with_what_was_raised(shop, tmp_path):
    class Broken(Callback):
        def on_epoch(self, run, epoch, metrics):
            raise ValueError('no disk')

    with pytest.raises(ValueError, match='no disk'):
        Trainer(epochs=2, runs=tmp_path, callbacks=[Broken()]).fit(build, *loaders(shop))
    run = open_run('shop', runs=tmp_path)
    assert (run.status, run.record['error']) == ('failed', 'ValueError: no disk')


def test_it_changes_nothing_of_what_is_trained(shop, tmp_path):
    one = Trainer(epochs=2, runs=tmp_path).fit(build, *loaders(shop))
    two = Trainer(epochs=2, runs=tmp_path, callbacks=[Noting()]).fit(build, *loaders(shop))
    for name, value in load_model(one).state_dict().items():
        assert torch.equal(value, load_model(two).state_dict()[name])
    assert 'callbacks' not in two.record['trainer']


def test_something_else_is_refused():
    with pytest.raises(ConfigError, match=r'derive it from mmpipe\.train\.Callback'):
        Trainer(callbacks=[print])


def test_the_live_line_tells_steps_samples_waiting_and_losses(shop, tmp_path):
    out = io.StringIO()
    show = StageProgress(out)
    with show.stage('train'):
        Trainer(epochs=12, runs=tmp_path, log_every=2, progress=show).fit(build, *loaders(shop))
    line = out.getvalue().splitlines()[-1]
    assert re.search(
        r'864/864 rows, .*rows/s, [\d.,]+ steps/s, \d+ % waiting for data, kind [\d.]+, price [\d.]+', line
    )

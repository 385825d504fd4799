"""What TensorBoard is told, read back by its own reader."""

from __future__ import annotations

import pytest
from shop_snapshot import write_shop

from mmpipe.data import DataLoader
from mmpipe.models import BareModel
from mmpipe.train import Callback, TensorBoard, Trainer, classification

accumulator = pytest.importorskip('tensorboard.backend.event_processing.event_accumulator')


class Stop(Exception):
    pass


class StopAt(Callback):
    def __init__(self, step):
        self.step = step

    def on_losses(self, run, step, losses):
        if step == self.step:
            raise Stop


def build():
    from torch import nn

    return BareModel(nn.Linear(8, 3), inputs='title', tasks=[classification('kind', 3)])


def test_every_step_comes_once_also_of_a_run_that_went_on(tmp_path):
    snapshot = write_shop(tmp_path / 'shop', 64, holes=0.0)

    def fit(*callbacks):
        train, val = (DataLoader(snapshot.split(name), batch_size=8, device='cpu') for name in ('train', 'val'))
        trainer = Trainer(
            epochs=2, runs=tmp_path / 'runs', log_every=1, checkpoint_every=4, checkpoint_seconds=None,
            callbacks=[TensorBoard(), *callbacks],
        )  # fmt: skip
        return trainer.fit(build, train, val, name='shop', resume='auto')

    with pytest.raises(Stop):
        fit(StopAt(7))
    run = fit()
    found = accumulator.EventAccumulator(str(run.path / 'tensorboard'))
    found.Reload()
    assert set(found.Tags()['scalars']) >= {'loss/kind', 'val/kind/accuracy', 'val/kind/loss'}
    told = {event.step: event.value for event in found.Scalars('loss/kind')}
    assert len(found.Scalars('loss/kind')) == len(told) == 12
    written = {line['step']: line['loss'] for line in run.history() if 'loss' in line}
    assert told == pytest.approx(written, rel=1e-6)
    assert [event.step for event in found.Scalars('val/kind/accuracy')] == [6, 12]

"""A killed run goes on from its record alone, bit for bit; or is refused with the reason."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass

import pytest
from shop_snapshot import write_shop

from mmpipe.cli import app
from mmpipe.data import DataLoader, transforms
from mmpipe.errors import RunError
from mmpipe.models import MultitaskModel, encoders
from mmpipe.runs import open_run, update_run
from mmpipe.train import Callback, Trainer, classification, regression, resume_run, transfer

SCRIPT = """
import functools, os, signal, sys
import torch
from dataclasses import dataclass
from mmpipe.data import DataLoader, transforms
from mmpipe.models import MultitaskModel, encoders
from mmpipe.shards import open_snapshot
from mmpipe.train import Trainer, classification, regression

def build(hidden):
    return MultitaskModel(
        encoders={'photo': encoders.image(8, width=8), 'title': encoders.vector(8, 16, dropout=0.3)},
        tasks=[classification('kind', 3), regression('price')], hidden=hidden, dropout=0.3, modality_dropout=0.2)

@dataclass(frozen=True)
class Darker:
    by: float
    def __call__(self, images):
        return images * self.by

def main(shards, runs, kill_at):
    snapshot = open_snapshot(shards)
    darker = {'photo': [transforms.image(crop=12, flip=True), Darker(0.5)]}
    train = DataLoader(snapshot.split('train'), batch_size=8, shuffle=True, seed=5, device='cpu', transforms=darker)
    val = DataLoader(snapshot.split('val'), batch_size=32, device='cpu',
                     transforms={'photo': [transforms.image(crop=12), Darker(0.5)]})

    def kill(stage, done, total, unit):
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer = Trainer(epochs=3, runs=runs, accumulate=2, checkpoint_every=2, log_every=1, seed=7, progress=kill,
                      optimizer=functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9), ema=0.9, unfreeze={1: 2})
    trainer.fit(build, train, val, args={'hidden': 16}, name='shop')

if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
"""


def test_a_killed_run_goes_on_by_its_id_bit_for_bit(tmp_path, monkeypatch, capsys):
    write_shop(tmp_path / 'shop')
    script = tmp_path / 'training.py'
    script.write_text(SCRIPT)
    (tmp_path / 'pyproject.toml').touch()
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'MMPIPE_HOME': str(tmp_path / 'home')}
    for runs, kill_at, status in (('killed', 48 + 72, -signal.SIGKILL), ('whole', -1, 0)):
        command = [sys.executable, str(script), str(tmp_path / 'shop'), str(tmp_path / runs), str(kill_at)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == status, done.stderr
    killed, whole = (open_run('shop', runs=tmp_path / name) for name in ('killed', 'whole'))
    assert (killed.status, killed.cannot) == ('killed', {})
    elsewhere = tmp_path / 'elsewhere'
    elsewhere.mkdir()
    command = [sys.executable, '-m', 'mmpipe.cli', 'resume', str(killed.path), '--json']
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=elsewhere)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)['run'] == 'shop/0001'
    resumed = open_run(killed.path)
    assert resumed.history() == whole.history()
    for file in ('model.safetensors', 'average.safetensors', 'optimizer.safetensors'):
        assert (resumed.checkpoint() / file).read_bytes() == (whole.checkpoint() / file).read_bytes(), file
    with pytest.raises(RunError, match='has finished: there is nothing to resume'):
        resume_run(resumed)

    # With other code it would not be the same training.
    script.write_text(SCRIPT.replace('images * self.by', 'images / self.by'))
    update_run(resumed, status='failed')
    with pytest.raises(RunError, match=r"(?s)cannot go on as it began: The source of 'Darker' .*continue_from"):
        resume_run(resumed.path)
    assert app(['runs', '--json'], standalone_mode=False) in (0, None)
    assert json.loads(capsys.readouterr().out)['runs'] == []


class Stop(Exception):
    pass


@dataclass
class StopAt(Callback):
    """Fails at a step, as a disk that is full does."""

    step: int

    def on_losses(self, run, step, losses):
        if step == self.step and not (run.path / 'again').exists():
            (run.path / 'again').touch()
            raise Stop


def build():
    return MultitaskModel(
        encoders={'title': encoders.vector(8, 16)}, tasks=[classification('kind', 3), regression('price')]
    )


def stopped(rows, runs, factory=build, *, loader=None, callbacks=None, **how):
    train = DataLoader(rows, batch_size=8, shuffle=True, device='cpu', **(loader or {}))
    trainer = Trainer(runs=runs, epochs=2, log_every=1, callbacks=callbacks or [StopAt(3)], **how)
    with pytest.raises(Stop):
        trainer.fit(factory, train, name='shop')
    return open_run('shop', runs=runs)


def negative(values):
    return -values


@pytest.mark.parametrize('checkpoint_every', [2, None])
def test_a_transferred_run_goes_on_with_or_without_a_checkpoint(tmp_path, checkpoint_every):
    rows = write_shop(tmp_path / 'shop').rows()
    first = Trainer(runs=tmp_path / 'first').fit(build, DataLoader(rows, batch_size=8, device='cpu'))
    factory = transfer(first, tasks=[regression('weight')])
    loader = {'transforms': {'title': negative}}
    run = stopped(rows, tmp_path / 'stopped', factory, loader=loader, checkpoint_every=checkpoint_every)
    assert (run.status, run.newest_checkpoint() is None) == ('failed', checkpoint_every is None)
    found = resume_run(run)
    whole = Trainer(runs=tmp_path / 'whole', epochs=2, log_every=1).fit(
        factory, DataLoader(rows, batch_size=8, shuffle=True, device='cpu', **loader), name='shop'
    )
    assert found.history() == whole.history()
    weights = [(each.checkpoint() / 'model.safetensors').read_bytes() for each in (found, whole)]
    assert weights[0] == weights[1]


def test_what_no_record_can_say_is_refused_with_the_way_out(tmp_path):
    rows = write_shop(tmp_path / 'shop').rows()
    shuffled = rows.take(list(range(len(rows)))[::-1])
    for name, (chosen, how, why) in enumerate(
        [
            (rows, {'loader': {'transforms': {'title': lambda values: values}}}, "transform of 'title': '.*lambda"),
            (rows, {'callbacks': [type('Mine', (StopAt,), {})(3)]}, 'callbacks=: '),
            (shuffled, {}, 'the rows are in an order of their own'),
        ]
    ):
        run = stopped(chosen, tmp_path / str(name), **how)
        with pytest.raises(RunError, match=rf'(?s)cannot go on from its record: .*{why}.*with resume='):
            resume_run(run)
    old = update_run(run, cannot={}, inputs=None)
    record = {key: value for key, value in old.record.items() if key != 'inputs'}
    (old.path / 'run.json').write_text(json.dumps(record))
    with pytest.raises(RunError, match='an older mmpipe made it'):
        resume_run(old)


def test_a_record_says_where_each_value_comes_from(tmp_path):
    snapshot = write_shop(tmp_path / 'shop')
    train = DataLoader(snapshot.rows(), batch_size=8, device='cpu', transforms={'photo': transforms.image(crop=8)})
    run = Trainer(lr=0.5, max_steps=1, runs=tmp_path / 'runs').fit(build, train)
    sources = run.record['sources']
    assert sources['lr'].rpartition(':')[0].endswith('test_from_record.py')
    assert sources['weight_decay'] == 'default'
    assert set(sources) == set(run.record['trainer'])
    assert run.record['machine']['device'] == 'cpu'
    assert run.record['git'] is None or len(run.record['git']['commit']) == 40
    assert run.snapshot == {'id': snapshot.id, 'root': str(tmp_path / 'shop'), 'versions': {}}

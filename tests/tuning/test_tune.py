"""Trials are runs: recorded, pruned, failed alone, and gone on with after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from shop_snapshot import write_shop
from torch import nn

import mmpipe as mm
from mmpipe.errors import BusyError, ConfigError, TrainError
from mmpipe.models import BareModel
from mmpipe.train import Callback, Trainer
from mmpipe.tuning import Choice, Float, Int
from mmpipe.tuning.studies import JOURNAL, held, journal

optuna = pytest.importorskip('optuna')
optuna.logging.set_verbosity(optuna.logging.WARNING)
ROOT = Path(mm.__file__).parents[1]
SPACE = {'lr': Float(1e-4, 1e-1, log=True), 'hidden': Int(2, 8)}
STATE = optuna.trial.TrialState


def build(hidden):
    layers = nn.Sequential(nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, 3))
    return BareModel(layers, inputs='title', tasks=[mm.classification('kind', 3)])


@pytest.fixture(scope='module')
def snapshot(tmp_path_factory):
    return write_shop(tmp_path_factory.mktemp('tuning') / 'shop', 64, holes=0.0)


@pytest.fixture
def fit(snapshot):
    def fit(trainer, *, hidden=4):
        train, val = (mm.DataLoader(snapshot.split(name), batch_size=16, device='cpu') for name in ('train', 'val'))
        return trainer.fit(build, train, val, args={'hidden': hidden}, resume='auto')

    return fit


def test_each_trial_is_a_run_with_its_values_and_the_best_is_the_best_of_them(fit, tmp_path):
    study = mm.tune(fit, space=SPACE, metric='kind.accuracy', trials=3, runs=tmp_path, trainer=Trainer(epochs=2))
    runs = [mm.open_run(trial.user_attrs['run']) for trial in study.trials]
    for trial, run in zip(study.trials, runs, strict=True):
        assert run.record['trainer']['lr'] == trial.params['lr']
        assert run.record['factory']['args'] == {'hidden': trial.params['hidden']}
        assert run.path.is_relative_to(tmp_path / 'tuning' / 'trials' / f'{trial.number:04d}')
        told = [line['val']['kind']['accuracy'] for line in run.history() if 'val' in line]
        assert list(trial.intermediate_values.values()) == told
        assert trial.value == told[-1]
    assert study.best_value == max(run.metrics['kind']['accuracy'] for run in runs)


def test_called_again_it_adds_what_is_missing_and_draws_other_values(fit, tmp_path):
    first = mm.tune(fit, space=SPACE, metric='kind.loss', trials=1, runs=tmp_path)
    again = mm.tune(fit, space=SPACE, metric='kind.loss', trials=3, runs=tmp_path)
    assert [trial.number for trial in again.trials] == [0, 1, 2]
    assert again.trials[0].params == first.trials[0].params
    assert len({trial.params['lr'] for trial in again.trials}) == 3
    assert again.best_value == min(trial.value for trial in again.trials)


def test_other_goals_or_another_space_are_refused(fit, tmp_path):
    mm.tune(fit, space=SPACE, metric='kind.loss', trials=1, runs=tmp_path)
    with pytest.raises(ConfigError, match='directions minimize'):
        mm.tune(fit, space=SPACE, metric='kind.accuracy', trials=2, runs=tmp_path)
    with pytest.raises(ConfigError, match='has trials with goals'):
        mm.tune(fit, space=SPACE, metric='-kind.accuracy', trials=2, runs=tmp_path)
    with pytest.raises(ConfigError, match='has trials with space'):
        mm.tune(fit, space={'lr': Float(0.1, 1)}, metric='kind.loss', trials=2, runs=tmp_path)


def test_several_goals_on_a_database_with_a_sampler_of_ones_own(fit, tmp_path):
    study = mm.tune(
        fit, space=SPACE, metric=['kind.accuracy', 'seconds'], trials=2, runs=tmp_path,
        storage=f'sqlite:///{tmp_path}/study.db', sampler=optuna.samplers.RandomSampler(seed=0),
    )  # fmt: skip
    assert [each.name for each in study.directions] == ['MAXIMIZE', 'MINIMIZE']
    for trial in study.trials:
        run = mm.open_run(trial.user_attrs['run'])
        assert trial.values == [run.metrics['kind']['accuracy'], trial.user_attrs['seconds']]
        assert trial.values[1] > 0
    stored = optuna.load_study(study_name='tuning', storage=f'sqlite:///{tmp_path}/study.db')
    assert [trial.values for trial in stored.trials] == [trial.values for trial in study.trials]
    assert not (tmp_path / 'tuning' / JOURNAL).exists()


def test_a_study_of_ones_own_comes_back_as_itself(fit, tmp_path):
    own = optuna.create_study(direction='minimize')
    assert mm.tune(fit, space=SPACE, metric='kind.loss', trials=1, runs=tmp_path, study=own) is own
    assert len(own.trials) == 1
    with pytest.raises(ConfigError, match='leave them out'):
        mm.tune(fit, space=SPACE, metric='kind.loss', study=own, storage='sqlite://', runs=tmp_path)


class After(optuna.pruners.BasePruner):
    """Prunes odd trials after their second report."""

    def prune(self, study, trial):
        return trial.number % 2 == 1 and len(trial.intermediate_values) == 2


def test_a_pruned_trial_ends_early_and_says_so(fit, tmp_path):
    study = mm.tune(
        fit, space=SPACE, metric='kind.accuracy', trials=2, runs=tmp_path, trainer=Trainer(epochs=4), pruner=After()
    )
    assert [trial.state for trial in study.trials] == [STATE.COMPLETE, STATE.PRUNED]
    full, pruned = (mm.open_run(trial.user_attrs['run']) for trial in study.trials)
    assert sum('val' in line for line in full.history()) == 4
    assert sum('val' in line for line in pruned.history()) == 2
    assert pruned.record['step'] < full.record['step']
    assert study.trials[1].user_attrs['pruned'] is True


def test_a_trial_that_fails_keeps_its_cause_and_the_others_go_on(fit, tmp_path):
    def sometimes(trainer, *, fails):
        if fails:
            raise ValueError('no such luck')
        return fit(trainer)

    sampler = optuna.samplers.GridSampler({'fails': [True, False]}, seed=0)
    study = mm.tune(
        sometimes, space={'fails': Choice(True, False)}, metric='kind.loss', trials=5, runs=tmp_path, sampler=sampler
    )
    assert len(study.trials) == 2  # the grid has no more points
    by_state = {trial.state: trial for trial in study.trials}
    assert by_state[STATE.FAIL].user_attrs['error'] == 'ValueError: no such luck'
    assert by_state[STATE.COMPLETE].value > 0


def test_when_every_trial_fails_the_first_cause_is_raised(fit, tmp_path):
    with pytest.raises(TrainError, match=r"no value of 'kind.speed'; it has kind\.loss"):
        mm.tune(fit, space=SPACE, metric='kind.speed', trials=2, runs=tmp_path)


def test_two_processes_do_not_take_one_study(fit, tmp_path):
    with held(tmp_path / 'tuning'), pytest.raises(BusyError, match='Another process tunes'):
        mm.tune(fit, space=SPACE, metric='kind.loss', trials=1, runs=tmp_path)


def test_a_half_written_line_of_the_journal_is_cut_off(fit, tmp_path):
    mm.tune(fit, space=SPACE, metric='kind.loss', trials=1, runs=tmp_path)
    file = tmp_path / 'tuning' / JOURNAL
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"op_code": 4, "wor')
    journal(tmp_path / 'tuning')
    assert file.read_bytes() == whole
    assert len(mm.tune(fit, space=SPACE, metric='kind.loss', trials=2, runs=tmp_path).trials) == 2


class Interrupt(Callback):
    def on_epoch(self, run, epoch, metrics):
        if epoch == 1:
            raise KeyboardInterrupt


def test_after_ctrl_c_the_trial_goes_on_under_its_number(fit, tmp_path):
    settings = {'space': SPACE, 'metric': 'kind.loss', 'trials': 1, 'runs': tmp_path}
    with pytest.raises(KeyboardInterrupt):
        mm.tune(fit, **settings, trainer=Trainer(epochs=3, checkpoint_every=1, callbacks=[Interrupt()]))
    study = mm.tune(fit, **settings, trainer=Trainer(epochs=3, checkpoint_every=1))
    assert [(trial.number, trial.state) for trial in study.trials] == [(0, STATE.COMPLETE)]
    assert sorted(study.trials[0].intermediate_values) == [0, 1, 2]


KILLED = """
    import os, signal, sys
    sys.path.insert(0, {tests!r})
    import torch; torch.set_num_threads(1)
    import mmpipe as mm
    from mmpipe.train import Callback, Trainer
    from test_tune import SPACE, build
    snapshot = mm.open_snapshot({shop!r})

    class Kill(Callback):
        def on_losses(self, run, step, losses):
            if {kill} and '/trials/0001/' in str(run.path) and step == 5:
                os.kill(os.getpid(), signal.SIGKILL)

    def fit(trainer, *, hidden):
        train, val = (mm.DataLoader(snapshot.split(name), batch_size=16, device='cpu') for name in ('train', 'val'))
        return trainer.fit(build, train, val, args={{'hidden': hidden}}, resume='auto')

    trainer = Trainer(epochs=4, checkpoint_every=2, log_every=1, callbacks=[Kill()])
    mm.tune(fit, space=SPACE, metric='kind.loss', trials=3, runs={runs!r}, trainer=trainer, seed=3)
"""


@pytest.mark.slow
def test_a_killed_study_goes_on_with_the_running_trial_from_its_checkpoint(snapshot, fit, tmp_path):
    def started(*, kill):
        support = str(ROOT / 'tests' / 'support')
        names = {'tests': str(Path(__file__).parent), 'shop': str(snapshot.root), 'runs': str(tmp_path), 'kill': kill}
        code = textwrap.dedent(KILLED.format(**names))
        environment = {**os.environ, 'PYTHONPATH': f'{ROOT}{os.pathsep}{support}', 'OMP_NUM_THREADS': '1'}
        return subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)

    assert started(kill=True).returncode == -signal.SIGKILL
    left = optuna.load_study(study_name='tuning', storage=journal(tmp_path / 'tuning')).trials
    assert [trial.state for trial in left] == [STATE.COMPLETE, STATE.RUNNING]
    done = started(kill=False)
    assert done.returncode == 0, done.stderr
    now = optuna.load_study(study_name='tuning', storage=journal(tmp_path / 'tuning')).trials
    assert [trial.state for trial in now] == [STATE.COMPLETE] * 3
    assert (now[0].params, now[0].value) == (left[0].params, left[0].value)
    assert now[1].params == left[1].params
    assert now[1].user_attrs['run'] == left[1].user_attrs['run']
    # The oracle: the same training without a kill.
    values = now[1].params
    whole = fit(Trainer(epochs=4, lr=values['lr'], runs=tmp_path / 'whole', log_every=1), hidden=values['hidden'])
    assert whole.metrics == json.loads(json.dumps(mm.open_run(now[1].user_attrs['run']).metrics))
    assert now[1].value == whole.metrics['kind']['loss']

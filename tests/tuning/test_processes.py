"""Several processes train trials at once; what is killed, interrupted or cannot start costs no more than its own."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import tuned_shop
from processes import gone
from shop_snapshot import write_shop

import mmpipe as mm
from mmpipe.errors import ConfigError, TrainError
from mmpipe.tuning import Float, Int
from mmpipe.tuning.processes import shares
from mmpipe.tuning.studies import journal

optuna = pytest.importorskip('optuna')
optuna.logging.set_verbosity(optuna.logging.WARNING)
ROOT = Path(mm.__file__).parents[1]
SPACE = {'lr': Float(1e-4, 1e-1, log=True), 'hidden': Int(2, 8)}
STATE = optuna.trial.TrialState
DEADLINE_S = 120


@pytest.fixture(scope='module')
def shop(tmp_path_factory):
    return str(write_shop(tmp_path_factory.mktemp('tuning') / 'shop', 64, holes=0.0).root)


def again(shop, trial, runs, **settings):
    """The oracle: the training of a trial once more, in this process, with nothing in between."""
    trainer = tuned_shop.trainer(lr=trial.params['lr'], runs=runs / 'again' / str(trial.number), **settings)
    return tuned_shop.fit(shop, trainer, hidden=trial.params['hidden'])


def test_a_killed_process_costs_nothing_but_steps_and_every_trial_is_as_if_it_were_alone(shop, tmp_path):
    settings = {'epochs': 3}
    study = mm.tune(
        functools.partial(tuned_shop.fit, shop), space=SPACE, metric='kind.loss', trials=4, processes=2,
        runs=tmp_path, study=optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0)),  # kept in memory
        trainer=tuned_shop.trainer(**settings, callbacks=[tuned_shop.Kill(trial=1, step=5, times=1)]),
    )  # fmt: skip
    assert [(trial.number, trial.state) for trial in study.trials] == [(i, STATE.COMPLETE) for i in range(4)]
    for trial in study.trials:
        assert trial.value == again(shop, trial, tmp_path, **settings).metrics['kind']['loss']
        assert sorted(trial.intermediate_values) == [0, 1, 2]
    assert [trial.user_attrs.get('lost') for trial in study.trials] == [None, 1, None, None]
    assert len(list((tmp_path / 'tuning' / 'trials' / '0001' / 'shop').iterdir())) == 1  # the same run, gone on with
    seen = tuned_shop.processes(tmp_path / 'tuning')
    of_trial = {i: [note['pid'] for note in seen if note['trial'] == i] for i in range(4)}
    assert {i: len(set(pids)) for i, pids in of_trial.items()} == {0: 1, 1: 2, 2: 1, 3: 1}  # another one went on
    assert of_trial[0] != of_trial[1][:1]
    assert {note['parent'] for note in seen} == {os.getpid()}
    assert os.getpid() not in {note['pid'] for note in seen}
    assert {note['threads'] for note in seen} == {len(shares(2)[0])}
    assert {tuple(note['cores']) for note in seen} == {tuple(sorted(share)) for share in shares(2)}
    assert gone({note['pid'] for note in seen})


def test_what_no_other_process_can_find_is_refused_before_any_starts(shop, tmp_path):
    with pytest.raises(ConfigError, match='top level of a module'):
        mm.tune(lambda trainer: None, space={'lr': Float(0.1, 1)}, metric='a.b', processes=2, runs=tmp_path)
    assert not (tmp_path / 'tuning').exists()


def test_cores_are_shared_evenly_and_doubly_where_there_are_too_few():
    mine = os.sched_getaffinity(0)
    assert frozenset().union(*shares(len(mine))) == mine
    assert {len(share) for share in shares(len(mine) + 3)} == {1}


class Odd(optuna.pruners.BasePruner):
    def prune(self, study, trial):
        return trial.number % 2 == 1


@pytest.mark.slow
def test_pruning_crosses_processes(shop, tmp_path):
    study = mm.tune(
        functools.partial(tuned_shop.fit, shop), space=SPACE, metric='kind.loss', trials=4, processes=2, runs=tmp_path,
        pruner=Odd(), trainer=tuned_shop.trainer(epochs=3),
    )  # fmt: skip
    assert [trial.state for trial in study.trials] == [STATE.COMPLETE, STATE.PRUNED] * 2
    assert [len(trial.intermediate_values) for trial in study.trials] == [3, 1, 3, 1]


@pytest.mark.slow
def test_a_trial_that_takes_every_process_with_it_is_failed_and_the_others_go_on(shop, tmp_path):
    study = mm.tune(
        functools.partial(tuned_shop.fit, shop), space=SPACE, metric='kind.loss', trials=3, processes=2, runs=tmp_path,
        trainer=tuned_shop.trainer(callbacks=[tuned_shop.Kill(trial=0, step=1, times=9)]),
    )  # fmt: skip
    assert [trial.state for trial in study.trials] == [STATE.FAIL, STATE.COMPLETE, STATE.COMPLETE]
    assert study.trials[0].user_attrs['error'] == 'its process was ended by SIGKILL, and so did the 1 before it'
    assert (tmp_path / 'tuning' / 'trials' / '0000' / 'killed').read_text() == 'xx'


@pytest.mark.slow
def test_a_process_that_cannot_start_ends_the_search_and_says_what_to_do(tmp_path):
    script = tmp_path / 'script.py'
    script.write_text(
        textwrap.dedent(f"""
            import mmpipe as mm
            from mmpipe.tuning import Float

            def fit(trainer):
                pass

            mm.tune(fit, space={{'lr': Float(0.1, 1)}}, metric='a.b', processes=2, runs={str(tmp_path)!r})
        """)
    )
    done = run(script)
    assert done.wait(DEADLINE_S) == 1
    assert TrainError.__name__ in (tmp_path / 'said').read_text()
    assert "below `if __name__ == '__main__':`" in (tmp_path / 'said').read_text()


SEARCH = """
    import functools
    import mmpipe as mm
    import tuned_shop
    from mmpipe.tuning import Float, Int

    if __name__ == '__main__':
        mm.tune(
            functools.partial(tuned_shop.fit, {shop!r}),
            space={{'lr': Float(1e-4, 1e-1, log=True), 'hidden': Int(2, 8)}},
            metric='kind.loss', trials=2, processes=2, runs={runs!r},
            trainer=tuned_shop.trainer(epochs={epochs}, callbacks=[tuned_shop.Stay({runs!r})]),
        )
"""


def run(script, **options):
    paths = (ROOT, ROOT / 'tests' / 'support')
    environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(map(str, paths)), 'OMP_NUM_THREADS': '1'}
    with open(script.parent / 'said', 'wb') as said:
        return subprocess.Popen([sys.executable, str(script)], env=environment, stdout=said, stderr=said, **options)


def both_train(folder, search):
    """Process ids of the two trials, once both train."""
    until = time.monotonic() + DEADLINE_S
    while len(found := [int(file.name.partition('-')[2]) for file in folder.glob('trains-*')]) < 2:
        assert time.monotonic() < until, (folder / 'said').read_text()
        assert search.poll() is None, (folder / 'said').read_text()
        time.sleep(0.05)
    return found


def states(folder):
    trials = optuna.load_study(study_name='tuning', storage=journal(folder / 'tuning')).trials
    return [trial.state for trial in trials]


@pytest.mark.slow
@pytest.mark.parametrize('whole_group', [True, False], ids=['from the terminal', 'to the parent alone'])
def test_ctrl_c_ends_all_with_checkpoints_and_the_same_call_goes_on(shop, tmp_path, whole_group):
    script = tmp_path / 'search.py'
    script.write_text(textwrap.dedent(SEARCH.format(shop=shop, runs=str(tmp_path), epochs=3000)))
    search = run(script, start_new_session=True)
    pids = both_train(tmp_path, search)
    (os.killpg if whole_group else os.kill)(search.pid, signal.SIGINT)
    assert search.wait(DEADLINE_S) in (1, -signal.SIGINT)
    assert gone(pids)
    said = (tmp_path / 'said').read_text()
    assert said.count('Traceback') == 1, said  # the caller's own
    assert 'KeyboardInterrupt' in said
    assert states(tmp_path) == [STATE.RUNNING] * 2
    runs = [mm.open_run(next((tmp_path / 'tuning' / 'trials' / name / 'shop').iterdir())) for name in ('0000', '0001')]
    for one in runs:  # not a step is lost: the last that was told of is in the checkpoint
        last = max(line['step'] for line in one.history() if 'step' in line)
        assert max(one.checkpoints()) == last > 0
        assert one.record['error'].startswith('KeyboardInterrupt')


@pytest.mark.slow
def test_when_the_parent_is_killed_its_processes_end_and_the_next_call_goes_on(shop, tmp_path):
    script = tmp_path / 'search.py'
    script.write_text(textwrap.dedent(SEARCH.format(shop=shop, runs=str(tmp_path), epochs=200)))
    search = run(script)
    pids = both_train(tmp_path, search)
    search.kill()
    search.wait(DEADLINE_S)
    assert gone(pids)
    assert states(tmp_path) == [STATE.RUNNING] * 2
    assert run(script).wait(DEADLINE_S) == 0, (tmp_path / 'said').read_text()
    study = optuna.load_study(study_name='tuning', storage=journal(tmp_path / 'tuning'))
    assert [trial.state for trial in study.trials] == [STATE.COMPLETE] * 2
    for trial in study.trials:
        assert trial.value == again(shop, trial, tmp_path, epochs=200).metrics['kind']['loss']

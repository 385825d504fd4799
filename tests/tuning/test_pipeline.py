"""`mmpipe tune` on a pipeline of the user's: what training.tuning() declares, what the command line puts over it."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from shop_snapshot import write_shop

import mmpipe as mm
from mmpipe.cli import app
from mmpipe.errors import ConfigError

optuna = pytest.importorskip('optuna')
pytest.importorskip('matplotlib')
optuna.logging.set_verbosity(optuna.logging.WARNING)
ROOT = Path(mm.__file__).parents[1]
TRAINING = """
    import functools
    import mmpipe as mm
    import tuned_shop
    from mmpipe.tuning import Float, Int

    def fit(snapshot, trainer, *, hidden):
        print('a word of the user')
        return tuned_shop.fit(snapshot.root, trainer, hidden=hidden)

    def tuning(snapshot):
        return {
            'fit': functools.partial(fit, snapshot),
            'space': {'lr': Float(1e-4, 1e-1, log=True), 'hidden': Int(2, 8)},
            'metric': 'kind.loss',
            'trainer': mm.Trainer(epochs=2),
            'trials': 9,
        }
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    (tmp_path / 'pyproject.toml').touch()
    for name, code in {'tuned': TRAINING, 'untuned': '', 'wrong': 'def tuning(snapshot): return {"space": {}}'}.items():
        (tmp_path / 'pipelines' / name).mkdir(parents=True)
        (tmp_path / 'pipelines' / name / 'training.py').write_text(textwrap.dedent(code))
    write_shop(tmp_path / 'shards', 64, holes=0.0)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('MMPIPE_HOME', str(tmp_path / '.mmpipe'))
    monkeypatch.setattr(sys, 'path', list(sys.path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith('pipelines.')]:
        del sys.modules[name]


def test_the_command_searches_what_the_pipeline_declares_and_goes_on(project, capsys):
    def command(*more):
        app(['tune', 'tuned', '--root', 'shards', *more], standalone_mode=False)
        return capsys.readouterr()

    told = json.loads(command('--trials', '2', '--json').out)
    snapshot = mm.open_snapshot(project / 'shards')
    assert told['study'] == f'shards-tuning-{snapshot.id[:8]}'
    assert told['trials'] == {'complete': 2}
    (best,) = told['best']
    assert best['values']['kind.loss'] == mm.open_run(best['run']).metrics['kind']['loss']
    assert Path(best['run']).is_relative_to(project / '.mmpipe' / 'runs' / told['study'])
    said = command('--trials', '4', '--plots', 'pictures')
    assert '4 trials (4 complete)' in said.out
    assert 'a word of the user' not in said.out
    assert 'tune: 4/4 trials' in said.err
    drawn = sorted(path.name for path in (project / 'pictures').iterdir())
    assert drawn == ['tuning-history-kind.loss.png', 'tuning-importance-kind.loss.png']
    # Another snapshot is another study, and so is another goal under another name.
    write_shop(project / 'shards', 60, holes=0.0)
    front = ('--metric', 'kind.loss', '--metric', 'memory', '--name', 'front', '--trials', '2', '--json')
    told = json.loads(command(*front).out)
    assert told['study'] == 'front'
    assert all(set(each['values']) == {'kind.loss', 'memory'} for each in told['best'])
    assert json.loads(command('--trials', '1', '--json').out)['trials'] == {'complete': 1}


def test_a_pipeline_that_declares_no_search_is_told_what_to_write(project):
    for name, message in {'untuned': 'defines no `tuning', 'wrong': 'gave no fit, metric'}.items():
        with pytest.raises(ConfigError, match=message):
            app(['tune', name, '--root', 'shards'], standalone_mode=False)


@pytest.mark.slow
def test_the_command_in_several_processes_keeps_stdout_for_the_result(project):
    paths = os.pathsep.join(map(str, (ROOT, ROOT / 'tests' / 'support')))
    line = [sys.executable, '-m', 'mmpipe.cli', 'tune', 'tuned', '--root', 'shards', '--json']
    started = functools.partial(
        subprocess.run, env={**os.environ, 'PYTHONPATH': paths}, capture_output=True, text=True, timeout=120
    )
    done = started([*line, '--trials', '4', '--processes', '2'])
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)['trials'] == {'complete': 4}
    assert done.stderr.count('a word of the user') == 4

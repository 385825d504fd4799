"""Where a project keeps its state, and how Pixeltable is pointed there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from mmpipe import home
from mmpipe.errors import ConfigError


@pytest.fixture
def clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory outside any project, as the working directory, with no variable set."""
    monkeypatch.delenv('MMPIPE_HOME', raising=False)
    monkeypatch.delenv('PIXELTABLE_HOME', raising=False)
    monkeypatch.setattr(home, 'running_home', lambda: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_home_is_in_the_working_directory_when_there_is_no_project(clean: Path) -> None:
    assert home.home_dir() == clean / '.mmpipe'
    assert home.pixeltable_home() == clean / '.mmpipe' / 'pixeltable'


def test_the_home_is_at_the_root_of_the_project(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clean / 'pyproject.toml').touch()
    (clean / 'deep' / 'down').mkdir(parents=True)
    monkeypatch.chdir(clean / 'deep' / 'down')
    assert home.shards_dir('shop') == clean / '.mmpipe' / 'shards' / 'shop'


def test_a_variable_overrules_it(clean: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('MMPIPE_HOME', str(clean / 'elsewhere'))
    assert home.runs_dir() == clean / 'elsewhere' / 'runs'
    monkeypatch.setenv('PIXELTABLE_HOME', str(clean / 'theirs'))
    assert home.configure_pixeltable() == clean / 'theirs'


def test_a_home_with_a_space_is_refused_before_postgres_fails_in_it(
    clean: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv('MMPIPE_HOME', str(clean / 'my files'))
    with pytest.raises(ConfigError, match='space in it'):
        home.configure_pixeltable()


def test_nothing_is_made_in_the_users_home_directory(tmp_path: Path) -> None:
    user, work = tmp_path / 'user', tmp_path / 'work'
    user.mkdir()
    work.mkdir()
    script = 'import mmpipe.functions, pixeltable.config; print(pixeltable.config.Config.get().home)'
    env = {'HOME': str(user), 'PATH': '/usr/bin:/bin'}
    done = subprocess.run([sys.executable, '-c', script], cwd=work, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(work / '.mmpipe' / 'pixeltable')
    assert not (user / '.pixeltable').exists()


def test_where_pixeltable_runs_already_its_environment_is_left_alone(tmp_path: Path) -> None:
    """Pixeltable's own `pxt` daemon imports schemas, and refuses to go on when its environment changes under it."""
    script = (
        'import os, pixeltable.config; pixeltable.config.Config.get(); before = dict(os.environ)\n'
        'import mmpipe.functions; assert dict(os.environ) == before\n'
        'from mmpipe.store import start; start()'
    )
    env = {'HOME': str(tmp_path), 'PATH': '/usr/bin:/bin'}
    done = subprocess.run(
        [sys.executable, '-c', script], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    assert 'Pixeltable already runs on' in done.stderr.splitlines()[-1]
    assert 'set PIXELTABLE_HOME' in done.stderr.splitlines()[-1]

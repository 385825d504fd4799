"""The command line as a user meets it: the built wheel in an environment of its own, away from any checkout."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import tempfile
import venv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import mmpipe
from mmpipe.cli import PENDING, USAGE, app

ROOT = Path(mmpipe.__file__).parent.parent
DEMO_KEYS = {'rows', 'computed', 'written', 'snapshot', 'metrics', 'baselines', 'seconds'}
PXT = ('python', '-c', 'import sys; from pixeltable_cli.client.main import main; sys.exit(main())')
OWN_SCHEMA = """
from __future__ import annotations
import pixeltable as pxt
from mmpipe.functions import split_of
Tables = pxt.model_base()
class Things(Tables, name='things'):
    key = pxt.Column(type=pxt.String, primary_key=True)
    size: pxt.Int | None
    origin: pxt.Json | None
    split = split_of(key)
"""


class Installed:
    """The wheel, installed beside the packages it needs; no file of the checkout is on the path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.work = folder / 'work'
        self.work.mkdir()
        subprocess.run(
            [
                sys.executable,
                '-m',
                'pip',
                'wheel',
                '-q',
                '--no-deps',
                '--no-build-isolation',
                '-w',
                folder / 'dist',
                ROOT,
            ],
            check=True,
        )
        venv.create(folder / 'env', symlinks=True)
        self.bin = folder / 'env' / 'bin'
        packages = next((folder / 'env' / 'lib').glob('python3*')) / 'site-packages'
        # A path line, not a site directory: the editable install of the checkout is not followed from here.
        (packages / 'installed.pth').write_text(site.getsitepackages()[0])
        wheel = next((folder / 'dist').glob('*.whl'))
        install = [
            sys.executable,
            '-m',
            'pip',
            '--python',
            self.bin / 'python',
            'install',
            '-q',
            '--no-deps',
            '--no-index',
        ]
        subprocess.run([*install, '--ignore-installed', wheel], check=True)
        skip = ('MMPIPE', 'PIXELTABLE', 'PYTHON')
        self.env = {key: value for key, value in os.environ.items() if not key.startswith(skip)}
        (folder / 'user').mkdir()
        self.env |= {'HOME': str(folder / 'user'), 'OMP_NUM_THREADS': '2', 'PATH': f'{self.bin}:{self.env["PATH"]}'}

    def run(self, *arguments: str, check: bool = True, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        command = [self.bin / arguments[0], *arguments[1:]]
        done = subprocess.run(command, cwd=cwd or self.work, env=self.env, capture_output=True, text=True, check=False)
        assert not check or done.returncode == 0, f'{arguments}\n{done.stdout}\n{done.stderr}'
        return done

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, '--json').stdout)


@pytest.fixture(scope='module')
def installed() -> Iterator[Installed]:
    # Not in pytest's own folder: the next pytest closes that to other users, and Postgres runs as one when we are root.
    folder = Path(tempfile.mkdtemp(prefix='mmpipe-wheel-'))
    made = Installed(folder)
    yield made
    made.run('python', '-c', 'from mmpipe.store import stop_postgres; stop_postgres()', check=False)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope='module')
def first(installed: Installed) -> dict[str, Any]:
    """The first demo, `--quick`: every eighth item."""
    return installed.json('mmpipe', 'demo', '--quick')


def test_the_wheel_runs_away_from_the_checkout(installed: Installed) -> None:
    code = 'import mmpipe, mmpipe.demo; print(mmpipe.__file__); print(mmpipe.demo.data_folder())'
    package, data = map(Path, installed.run('python', '-c', code).stdout.split())
    assert package.is_relative_to(installed.folder)
    assert data.is_relative_to(installed.folder)
    assert installed.run('mmpipe', '--version').stdout.strip() == mmpipe.__version__


def test_every_command_has_help_with_an_example(installed: Installed) -> None:
    names = [command.name or command.callback.__name__ for command in app.registered_commands]
    assert {'demo', 'plan', 'apply', 'ingest', 'status', 'snapshot', 'train'} <= set(names)
    for name in names:
        said = installed.run('mmpipe', name, '--help').stdout
        assert f'Example: mmpipe {name}' in said
        assert '--json' in said


@pytest.mark.slow
def test_the_demo_computes_and_appends_only_what_is_new(first: dict[str, Any]) -> None:
    assert set(first) == {'first', 'unchanged', 'added'}
    assert all(set(phase) >= DEMO_KEYS for phase in first.values())
    assert all(first['first']['computed'].values())
    assert first['unchanged']['written'] == 0
    assert not any(first['unchanged']['computed'].values())
    assert first['unchanged']['snapshot'] == first['first']['snapshot']
    new = {table: count - first['first']['rows'][table] for table, count in first['added']['rows'].items()}
    assert 0 < new['items'] < first['first']['rows']['items']
    assert first['added']['computed']['items.split'] == new['items']
    assert first['added']['computed']['frames.vector'] == new['frames']
    assert first['added']['run']['continued'] == first['first']['run']['id']


@pytest.mark.slow
def test_the_home_is_in_the_working_directory(installed: Installed, first: dict[str, Any]) -> None:
    assert {entry.name for entry in installed.work.iterdir()} == {'.mmpipe'}
    assert (installed.work / '.mmpipe' / 'shards' / 'demo' / 'LATEST').read_text().strip() == first['added']['snapshot']


@pytest.mark.slow
def test_a_second_demo_writes_nothing_and_takes_in_a_folder_of_the_users(
    installed: Installed, first: dict[str, Any]
) -> None:
    folder = installed.folder / 'mine' / 'mammal'
    folder.mkdir(parents=True)
    Image.new('CMYK', (300, 20), (0, 200, 0, 0)).save(folder / 'wide.jpg')
    (folder / 'wide.txt').write_text('a wide thing', encoding='utf-8')
    (folder / 'notes.md').write_text('# *Été*\n\nUne page.', encoding='utf-8')
    (folder / 'broken.png').write_bytes(b'\x89PNG\r\n\x1a\n and no more')
    second = installed.json('mmpipe', 'demo', '--quick', '--add', str(folder.parent))
    for phase in ('first', 'unchanged'):
        assert second[phase]['written'] == 0
        assert not any(second[phase]['computed'].values())
    added = second['added']
    assert added['rows']['items'] == first['added']['rows']['items'] + 2
    assert added['computed']['items.photo_vector'] == 1
    assert added['computed']['items.caption_vector'] == 1
    assert added['computed']['pages.vector'] == 1
    assert added['computed']['frames.vector'] == 0
    assert added['run']['continued'] == first['added']['run']['id']
    status = installed.json('mmpipe', 'status', 'demo')
    assert [table['quarantined'] for table in status['tables'] if table['path'] == 'demo/items'] == [1]


@pytest.mark.slow
def test_the_other_commands_agree_with_the_demo(installed: Installed, first: dict[str, Any]) -> None:
    assert installed.json('mmpipe', 'plan', 'demo')['pending'] is False
    frozen = installed.json('mmpipe', 'snapshot', 'demo')
    assert frozen['written'] == 0
    trained = installed.json('mmpipe', 'train', 'demo', '--continue')
    assert trained['snapshot'] == frozen['snapshot']
    assert trained['parent'] is not None


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['plan', 'nowhere'], "there is no pipeline 'nowhere'"),
        (['ingest', 'demo', 'nowhere'], "there is no folder 'nowhere'"),
        (['demo', '--add', 'nowhere'], 'there is no such folder'),
        (['train', 'demo', '--root', 'nowhere'], 'mmpipe snapshot'),
    ],
)
def test_an_error_is_one_line_with_the_next_move(
    installed: Installed, first: dict[str, Any], arguments: list[str], said: str
) -> None:
    done = installed.run('mmpipe', *arguments, check=False)
    lines = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert done.returncode == 1
    assert done.stdout == ''
    assert len(lines) == 1
    assert said in lines[0]
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['plan'], "Missing argument 'PIPELINE'"),
        (['nowhere'], "No such command 'nowhere'"),
        (['plan', 'demo', '--wat'], 'No such option: --wat'),
    ],
)
def test_wrong_arguments_are_told_apart_from_pending_changes(
    installed: Installed, arguments: list[str], said: str
) -> None:
    done = installed.run('mmpipe', *arguments, check=False)
    assert done.returncode == USAGE != PENDING
    assert done.stdout == ''
    assert done.stderr.count('\n') == 1
    assert done.stderr.startswith('error: ')
    assert said in done.stderr


def test_without_arguments_the_commands_are_listed(installed: Installed) -> None:
    assert 'snapshot' in installed.run('mmpipe').stdout


def test_debug_shows_the_traceback(installed: Installed) -> None:
    done = installed.run('mmpipe', '--debug', 'plan', 'nowhere', check=False)
    assert done.returncode == 1
    assert 'Traceback' in done.stderr


@pytest.mark.slow
def test_a_users_own_pipeline_beside_the_wheel_is_planned_and_applied(
    installed: Installed, first: dict[str, Any]
) -> None:
    (installed.work / 'pipelines' / 'own').mkdir(parents=True)
    (installed.work / 'pipelines' / 'own' / 'schema.py').write_text(OWN_SCHEMA)
    (installed.work / 'pyproject.toml').write_text('[tool.pixeltable]\n')
    planned = installed.run('mmpipe', 'plan', 'own', '--json', check=False)
    assert planned.returncode == PENDING
    assert [change['action'] for change in json.loads(planned.stdout)['changes']] == ['create']
    applied = installed.run('mmpipe', 'apply', 'own')
    assert '+ own/things' in applied.stderr  # said before it is done
    assert applied.stdout == 'applied\n'
    elsewhere = installed.run('mmpipe', 'plan', 'own', '--dir', 'elsewhere', '--json', check=False)
    assert [change['table'] for change in json.loads(elsewhere.stdout)['changes']] == ['elsewhere/things']
    try:
        assert 'valid' in installed.run(*PXT, 'schema', 'check', 'pipelines/own/schema.py').stdout
        installed.env['PIXELTABLE_HOME'] = str(installed.work / '.mmpipe' / 'pixeltable')
        assert installed.run(*PXT, 'schema', 'diff', 'pipelines/own/schema.py', 'own').returncode == 0
        for name, status in (('demo', 0), ('stamps', 2)):  # 2 is Pixeltable's own word for pending changes
            shipped = installed.run(*PXT, 'schema', 'diff', f'pipelines/{name}/schema.py', name, cwd=ROOT, check=False)
            assert shipped.returncode == status, shipped.stderr
    finally:
        installed.run(*PXT, 'daemon', 'stop', check=False)
        installed.env.pop('PIXELTABLE_HOME', None)


@pytest.mark.slow
def test_stop_says_whether_a_postgres_was_running(installed: Installed) -> None:
    installed.run('mmpipe', 'status', 'demo')
    assert installed.json('mmpipe', 'stop') == {'stopped': True}
    home = installed.work / '.mmpipe' / 'pixeltable'
    assert installed.run('mmpipe', 'stop').stdout == f'no Postgres runs in {home}\n'
    assert installed.json('mmpipe', 'status', 'demo')['directory'] == 'demo'  # which starts it again

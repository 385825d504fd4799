"""Commands on a small project of a newcomer, in this process: what they say when something is not as it should be."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mmpipe.cli import PENDING, app
from mmpipe.errors import ConfigError, DestructiveError

SCHEMA = """
from __future__ import annotations
import pixeltable as pxt
Tables = pxt.model_base()
class Things(Tables, name='things'):
    key = pxt.Column(type=pxt.String, primary_key=True)
    photo: pxt.Image | None
    size: pxt.Int | None
    origin: pxt.Json | None
"""
VIEWS = """
import mmpipe as mm
from pipelines.newcomer.schema import Things
def sources(folder):
    return [(Things, mm.sources.rows(f'{folder}/things.csv'))]
def training_view():
    return {'query': Things, 'fields': {'size': Things.size}}
"""


@pytest.fixture
def project(tmp_path: Path, pixeltable_home: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A pipeline `newcomer`, and a manifest of one good and eleven bad rows."""
    import pixeltable as pxt

    (tmp_path / 'pyproject.toml').touch()
    (tmp_path / 'pipelines' / 'newcomer').mkdir(parents=True)
    (tmp_path / 'pipelines' / 'newcomer' / 'schema.py').write_text(SCHEMA)
    (tmp_path / 'pipelines' / 'newcomer' / 'views.py').write_text(VIEWS)
    (tmp_path / 'data').mkdir()
    bad = [f'b{i},gone{i}.jpg,1' for i in range(11)]
    (tmp_path / 'data' / 'things.csv').write_text('\n'.join(['key,photo,size', 'good,,1', *bad]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    yield tmp_path
    pxt.drop_dir('newcomer', if_not_exists='ignore', force=True)
    for name in [name for name in sys.modules if name.startswith('pipelines.newcomer')]:
        del sys.modules[name]


def said(line: str, capsys: pytest.CaptureFixture[str], *, status: int = 0) -> str:
    assert (app(line.split(), standalone_mode=False) or 0) == status
    return capsys.readouterr().out


def test_the_quarantine_of_a_pipeline_is_listed_whole(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said('apply newcomer', capsys)
    assert said('ingest newcomer data', capsys).endswith(
        'computed cells: none\n`mmpipe quarantine newcomer` lists all that is in quarantine\n'
    )
    lines = said('quarantine newcomer', capsys).splitlines()
    manifest = project / 'data' / 'things.csv'
    assert lines[0] == 'newcomer: 11 entries in quarantine'
    assert [line.partition(', ')[0] for line in lines[1:]] == [
        f'  newcomer/things: {manifest} line {i}' for i in range(3, 14)
    ]
    assert lines[-1].endswith(
        f"row 'b10': photo '{project}/data/gone10.jpg' does not exist: add the file, or correct the path"
    )
    told = json.loads(said('quarantine newcomer --json', capsys))
    assert [entry['row_key'] for entry in told['entries']] == [f'b{i}' for i in range(11)]
    assert set(told['entries'][0]) == {
        'table_path', 'source', 'place', 'row_key', 'column_name', 'path', 'reason',
    }  # fmt: skip
    assert said('quarantine newcomer --dir elsewhere', capsys) == 'elsewhere: 0 entries in quarantine\n'


def test_status_of_a_directory_without_tables_names_the_pipeline_to_apply(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert '  `mmpipe apply newcomer --dir a/b` makes the tables\n' in said('status newcomer --dir a/b', capsys)


def test_a_root_that_cannot_hold_shards_is_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said('apply newcomer', capsys)
    said('ingest newcomer data', capsys)
    with pytest.raises(ConfigError, match=r"'ftp://x/y'.* refuse to write an object twice"):
        said('snapshot newcomer --root ftp://x/y', capsys)
    with pytest.raises(ConfigError, match=r'^--root /proc/x: cannot hold shards \(.*\)\. Give a directory'):
        said('snapshot newcomer --root /proc/x', capsys)
    assert {path.name for path in project.iterdir()} == {'pyproject.toml', 'pipelines', 'data'}
    assert '1 new' in said('snapshot newcomer --root shards', capsys)


def test_the_root_of_shards_may_be_a_url(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f'memory://shards/{project.name}'
    said('apply newcomer', capsys)
    said('ingest newcomer data', capsys)
    assert '1 new' in said(f'snapshot newcomer --root {url}', capsys)
    assert '0 new' in said(f'snapshot newcomer --root {url}', capsys)
    assert said(f'log newcomer --root {url}', capsys).count('1 inserted') == 1
    assert f'{url}: removed 0 files' in said(f'gc newcomer --root {url} --compact', capsys)
    assert 'nothing to compare' in said(f'leaks newcomer --root {url}', capsys)


def test_a_loss_without_a_terminal_names_the_option_and_the_argument(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said('apply newcomer', capsys)
    schema = project / 'pipelines' / 'newcomer' / 'schema.py'
    schema.write_text(SCHEMA.replace('    size: pxt.Int | None\n', ''))
    for name in [name for name in sys.modules if name.startswith('pipelines.newcomer')]:
        del sys.modules[name]
    said('plan newcomer', capsys, status=PENDING)
    with pytest.raises(DestructiveError, match=r'things\.size \(drop\)\. .* --yes .* allow_destructive=True in Python'):
        said('apply newcomer', capsys)

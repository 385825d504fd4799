"""Pipelines are found by name, in the project first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mmpipe.errors import ConfigError, DataError, SchemaError
from mmpipe.pipeline import find_pipeline, known_pipelines


def test_the_shipped_pipelines_are_known() -> None:
    assert {'demo', 'stamps'} <= set(known_pipelines())


def test_an_unknown_pipeline_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no pipeline 'shop'.*demo, stamps"):
        find_pipeline('shop')
    with pytest.raises(ConfigError, match=r"no pipeline '\.\./demo'.*a folder there, of letters, digits and _"):
        find_pipeline('../demo')
    with pytest.raises(ConfigError, match=r"'bad dir' cannot be a directory of tables: give another one \(--dir\)"):
        find_pipeline('demo', directory='bad dir')
    with pytest.raises(ConfigError, match="'Shop' has capitals, and Pixeltable's directories have none: 'shop'"):
        find_pipeline('demo', directory='Shop')


def test_a_pipeline_of_the_project_is_found_beside_the_shipped_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / 'pyproject.toml').touch()
    (tmp_path / 'pipelines' / 'mine_only').mkdir(parents=True)
    (tmp_path / 'pipelines' / 'mine_only' / 'training.py').write_text('ANSWER = 42\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    found = find_pipeline('mine_only', directory='elsewhere')
    assert (found.name, found.directory) == ('mine_only', 'elsewhere')
    assert found.module('training').ANSWER == 42
    with pytest.raises(ConfigError, match=r'no pipelines/mine_only/views\.py'):
        found.module('views')


BROKEN = {
    'a name': (
        'Tables = 1\n\nclass Items:\n    x = titel\n',
        "line 4 in Items: NameError: name 'titel' is not defined",
    ),
    'a module': ('\nimport nosuchmod\n', "line 2: ModuleNotFoundError: No module named 'nosuchmod'"),
    'syntax': ('x = (\n', "line 1: SyntaxError: '(' was never closed"),
    'deeper': (
        'import json\n\njson.loads("a\\nb")\n',
        'line 3: JSONDecodeError: Expecting value: line 1 column 1 (char 0)',
    ),
    'a word': (
        'import pixeltable as pxt\nTables = pxt.model_base()\n'
        "class A(Tables, name='a'):\n    where: pxt.Int\n"
        "class B(Tables, name='b', base=A.where(A.where > 1)):\n    pass\n",
        'line 5: NotImplementedError: Expression of type',
    ),
}


@pytest.mark.parametrize(('text', 'said'), BROKEN.values(), ids=list(BROKEN))
def test_a_module_that_cannot_be_imported_is_told_with_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str, request: pytest.FixtureRequest
) -> None:
    name = 'broken_' + request.node.callspec.id.replace(' ', '_')
    (tmp_path / 'pyproject.toml').touch()
    (tmp_path / 'pipelines' / name).mkdir(parents=True)
    for part in ('schema', 'training'):
        (tmp_path / 'pipelines' / name / f'{part}.py').write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    for part, kind in (('schema', SchemaError), ('training', ConfigError)):
        with pytest.raises(kind) as caught:
            find_pipeline(name).module(part)
        assert str(caught.value).startswith(f'pipelines/{name}/{part}.py {said}')
        assert '\n' not in str(caught.value)
        assert caught.value.__cause__ is not None


def test_an_error_of_mmpipe_in_a_module_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / 'pyproject.toml').touch()
    (tmp_path / 'pipelines' / 'refusing').mkdir(parents=True)
    (tmp_path / 'pipelines' / 'refusing' / 'training.py').write_text(
        "from mmpipe.errors import DataError\nraise DataError('as it is')\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', list(sys.path))
    with pytest.raises(DataError, match=r'^as it is$'):
        find_pipeline('refusing').module('training')

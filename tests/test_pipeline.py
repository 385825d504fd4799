"""Pipelines are found by name, in the project first."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mmpipe.errors import ConfigError
from mmpipe.pipeline import find_pipeline, known_pipelines


def test_the_shipped_pipelines_are_known() -> None:
    assert {'demo', 'stamps'} <= set(known_pipelines())


def test_an_unknown_pipeline_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match=r"no pipeline 'shop'.*demo, stamps"):
        find_pipeline('shop')
    with pytest.raises(ConfigError, match='no pipeline'):
        find_pipeline('../demo')


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

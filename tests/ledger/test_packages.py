"""Versions of packages are recorded, and count where the project says so."""

from __future__ import annotations

import numpy as np
import pixeltable as pxt
import pytest

import mmpipe as mm
from mmpipe.errors import ConfigError
from mmpipe.fingerprints import walk
from mmpipe.settings import counted_packages


@pxt.udf
def rooted(x: int) -> float:
    """Calls a package."""
    return float(np.sqrt(x))


@pytest.fixture
def things(directory, tmp_path, monkeypatch):
    """A project with nine rows whose column calls numpy, and the version of it that is installed."""
    (tmp_path / 'pyproject.toml').touch()
    monkeypatch.chdir(tmp_path)
    Tables = pxt.model_base()

    class Things(Tables, name='things'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        x: pxt.Int
        origin: pxt.Json | None
        y = rooted(x)  # noqa: F821

    mm.apply(mm.plan(Tables, directory))
    (tmp_path / 'a.csv').write_text('key,x\n' + ''.join(f'k{i},{i * i}\n' for i in range(9)))
    mm.ingest(Things, mm.sources.rows(tmp_path / 'a.csv'))
    return Tables


def install(monkeypatch, version):
    installed = walk.distribution_of
    monkeypatch.setattr(
        walk, 'distribution_of', lambda name: ('numpy', version) if name == 'numpy' else installed(name)
    )


def test_another_version_counts_where_the_project_says_so(things, directory, tmp_path, monkeypatch):
    install(monkeypatch, '9.9')
    assert not mm.plan(things, directory).pending
    (tmp_path / 'pyproject.toml').write_text('[tool.mmpipe]\ncount_packages = ["numpy"]')
    (change,) = mm.plan(things, directory).changes
    assert (change.action, change.rows) == ('stale', 9)
    assert change.detail == f'numpy {np.__version__} -> 9.9'
    mm.apply(mm.plan(things, directory))
    assert not mm.plan(things, directory).pending
    (tmp_path / 'pyproject.toml').write_text('[tool.mmpipe]\ncount_packages = ["*"]')
    assert not mm.plan(things, directory).pending
    install(monkeypatch, '9.10')
    assert mm.plan(things, directory).pending
    (tmp_path / 'pyproject.toml').write_text('[tool.mmpipe]\ncount_packages = ["torch"]')
    assert not mm.plan(things, directory).pending


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        ('[tool.mmpipe', 'is not TOML'),
        ('[tool.mmpipe]\ncount = []', r'sets count under \[tool.mmpipe\]; known are count_packages'),
        ('[tool.mmpipe]\ncount_packages = "torch"', "count_packages is 'torch'; give a list"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_file(tmp_path, text, told):
    (tmp_path / 'pyproject.toml').write_text(text)
    with pytest.raises(ConfigError, match=rf'pyproject.toml. ?.*{told}'):
        counted_packages(tmp_path)

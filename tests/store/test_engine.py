from __future__ import annotations

import os

import pytest

from mmpipe.errors import ConfigError, StoreError
from mmpipe.home import configure_pixeltable
from mmpipe.store import engine


def test_a_pixeltable_with_other_internals_is_refused_with_a_version_that_fits(monkeypatch):
    monkeypatch.setattr(engine, 'INTERNALS', (*engine.INTERNALS, 'pixeltable.nowhere:thing', 'pixeltable.env:Env.gone'))
    engine.check_internals.cache_clear()
    with pytest.raises(StoreError, match=r'pixeltable.nowhere.thing, pixeltable.env.Env.gone.*pip install'):
        engine.check_internals()
    monkeypatch.undo()
    engine.check_internals.cache_clear()
    engine.check_internals()


def test_a_home_that_cannot_work_is_refused_before_anything_starts(pixeltable_home, monkeypatch, tmp_path):
    monkeypatch.setenv('PIXELTABLE_HOME', str(tmp_path / 'with space'))
    with pytest.raises(ConfigError, match='has a space.*MMPIPE_HOME'):
        configure_pixeltable()
    monkeypatch.setenv('PIXELTABLE_HOME', str(tmp_path / 'elsewhere'))
    with pytest.raises(ConfigError, match='already runs on .*new process'):
        configure_pixeltable()
    assert not os.path.exists(tmp_path / 'elsewhere')

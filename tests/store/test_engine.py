from __future__ import annotations

import pytest

from mmpipe import home
from mmpipe.errors import ConfigError, StoreError
from mmpipe.store import engine


def test_a_pixeltable_with_other_internals_is_refused_with_a_version_that_fits(monkeypatch):
    monkeypatch.setattr(engine, 'INTERNALS', (*engine.INTERNALS, 'pixeltable.nowhere:thing', 'pixeltable.env:Env.gone'))
    engine.check_internals.cache_clear()
    with pytest.raises(StoreError, match=r'pixeltable.nowhere.thing, pixeltable.env.Env.gone.*pip install'):
        engine.check_internals()
    monkeypatch.undo()
    engine.check_internals.cache_clear()
    engine.check_internals()


def test_a_home_that_cannot_work_is_refused_before_anything_starts(monkeypatch, tmp_path):
    monkeypatch.setattr(home, 'running_home', lambda: None)
    monkeypatch.setenv('PIXELTABLE_HOME', str(tmp_path / 'with space'))
    with pytest.raises(ConfigError, match=r'has a space.*MMPIPE_HOME'):
        home.configure_pixeltable()
    assert not (tmp_path / 'with space').exists()

# ruff: noqa: E402
from __future__ import annotations

import sys
from pathlib import Path

for folder in ('support', 'functions'):  # test folders are no packages, so what they share is put on the path
    if str(Path(__file__).parents[1] / folder) not in sys.path:
        sys.path.insert(0, str(Path(__file__).parents[1] / folder))

from types import SimpleNamespace

import pixeltable as pxt
import pytest
from schemas import numbers

import mmpipe as mm


@pytest.fixture(scope='session')
def shared(pixeltable_home):
    """Tables that the tests of this folder share, since declaring them takes most of a second."""
    pxt.drop_dir('t_snapshots', force=True, if_not_exists='ignore')
    yield numbers('t_snapshots')
    pxt.drop_dir('t_snapshots', force=True)


@pytest.fixture
def declared(shared, tmp_path):
    """The shared tables with eight rows, and a root of its own."""
    table = shared.Numbers.table
    table.delete()
    table.insert([{'key': f'k{i}', 'x': i - 2, 'text': f'w{i % 3}'} for i in range(8)])

    def freeze(query=shared.Numbers, **options):
        return mm.snapshot(query, **{'root': tmp_path / 'shards', 'fields': {'x': shared.Numbers.x}, **options})

    return SimpleNamespace(
        **vars(shared), table=table, path='t_snapshots/numbers', root=tmp_path / 'shards', freeze=freeze
    )

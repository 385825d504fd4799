# ruff: noqa: E402
from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

for folder in ('support', 'functions'):  # test folders are no packages, so what they share is put on the path
    if str(Path(__file__).parents[1] / folder) not in sys.path:
        sys.path.insert(0, str(Path(__file__).parents[1] / folder))

import pytest
from forked import Forker


@pytest.fixture(scope='module')
def forker(pixeltable_home: Path) -> Iterator[Forker]:
    """Forks children that work on the catalog of this session."""
    with Forker() as forker:
        yield forker

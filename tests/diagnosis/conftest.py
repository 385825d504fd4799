# ruff: noqa: E402
from __future__ import annotations

import sys
from pathlib import Path

SUPPORT = str(Path(__file__).parents[1] / 'support')
if SUPPORT not in sys.path:  # test folders are no packages, so what they share is put on the path
    sys.path.insert(0, SUPPORT)

import pytest
import torch
from shop_snapshot import write_shop

torch.set_num_threads(1)


@pytest.fixture(scope='session')
def shop(tmp_path_factory):
    """A snapshot of 96 rows with holes in every field."""
    return write_shop(tmp_path_factory.mktemp('shards') / 'shop')


@pytest.fixture(scope='session')
def full_shop(tmp_path_factory):
    """The same without holes."""
    return write_shop(tmp_path_factory.mktemp('shards') / 'full', holes=0.0)

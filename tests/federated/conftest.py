from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / 'support'))
# The apps below are written with Flower's own names.
collect_ignore_glob = [] if importlib.util.find_spec('flwr') else ['test_*.py']


@pytest.fixture(scope='session')
def roots(tmp_path_factory):
    from federation import write_clients

    return write_clients(tmp_path_factory.mktemp('shops'), 4)

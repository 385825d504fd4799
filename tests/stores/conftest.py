"""A real Postgres and a real S3 server on loopback, and processes that know them by their environment alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

for folder in ('support', 'functions'):  # test folders are no packages, so what they share is put on the path
    if str(Path(__file__).parents[1] / folder) not in sys.path:
        sys.path.insert(0, str(Path(__file__).parents[1] / folder))

from machines import Machine, Shop  # noqa: E402
from postgres_server import Postgres, postgres_server  # noqa: E402
from s3_server import S3, s3_server  # noqa: E402


@pytest.fixture(scope='module')
def postgres() -> Iterator[Postgres]:
    """A server outside of Pixeltable; skipped, with the reason, where none can run."""
    with postgres_server() as server:
        yield server


@pytest.fixture(scope='module')
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    """An S3 server; skipped where its packages are not installed."""
    pytest.importorskip('s3fs', reason='the extra s3 is not installed')
    pytest.importorskip('moto.server', reason='moto[server] is not installed')
    with s3_server(tmp_path_factory.mktemp('s3')) as server:
        yield server


@pytest.fixture
def shop(postgres: Postgres, s3: S3, tmp_path: Path) -> Shop:
    """A catalog in a database of its own, with its tables made, and a source and a root in a bucket of its own."""
    machine = Machine(tmp_path / 'machine', s3=s3, database=postgres.new_database())
    shop = Shop(machine, s3, tmp_path)
    made = machine.do('logged:making', directory='shop')
    assert not made.error, made.message
    return shop

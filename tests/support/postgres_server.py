"""A Postgres server of the tests' own, from the system's package: a data directory and a port that nothing else has."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

DEADLINE_S = 180


class Postgres:
    """A running server, on loopback alone.

    Args:
        programs: folder of initdb and pg_ctl.
        data: data directory.
        port: free one.
        as_user: words before a command that run it as who owns the data.
    """

    def __init__(self, programs: Path, data: Path, port: int, as_user: list[str]) -> None:
        self.programs, self.data, self.port, self._as_user = programs, data, port, as_user
        self._names = (f'catalog{number}' for number in itertools.count())

    def url(self, database: str = 'postgres') -> str:
        """Connection string of a database."""
        return f'postgresql://mmpipe@127.0.0.1:{self.port}/{database}'

    def new_database(self) -> str:
        """Connection string of an empty database."""
        name = next(self._names)
        self.run('psql', f'--dbname={self.url()}', '--no-psqlrc', '--quiet', f'--command=create database {name}')
        return self.url(name)

    def start(self) -> None:
        """Start it, and wait until it answers."""
        options = f"-c listen_addresses=127.0.0.1 -c port={self.port} -c unix_socket_directories='' -c fsync=off"
        self.run('pg_ctl', '-D', str(self.data), '-w', '-l', str(self.data / 'log'), '-o', options, 'start')

    def stop(self, mode: str = 'immediate') -> None:
        """Stop it: 'immediate' as a crash does, 'fast' in order."""
        self.run('pg_ctl', '-D', str(self.data), '-w', '-m', mode, 'stop')

    def run(self, name: str, *arguments: str) -> None:
        """Run one of its programs."""
        subprocess.run(
            [*self._as_user, str(self.programs / name), *arguments], check=True, timeout=DEADLINE_S,
            stdout=subprocess.DEVNULL, cwd='/',
        )  # fmt: skip


@contextmanager
def postgres_server() -> Iterator[Postgres]:
    """A server that is stopped at the end; skips the test where none can run."""
    programs = _binaries()
    if programs is None:
        pytest.skip('no Postgres server is installed (Debian: postgresql)')
    as_user: list[str] = []
    if os.getuid() == 0:  # which Postgres refuses to run as
        if shutil.which('runuser') is None or subprocess.run(['id', 'postgres'], capture_output=True).returncode:
            pytest.skip('a Postgres server does not run as root, and there is no user postgres or no runuser')
        as_user = ['runuser', '-u', 'postgres', '--']
    # Not pytest's tmp_path, whose parent is closed to other users.
    with tempfile.TemporaryDirectory(prefix='mmpipe-postgres-') as folder:
        data = Path(folder) / 'data'
        data.mkdir(mode=0o700)
        os.chmod(folder, 0o755)
        if as_user:
            shutil.chown(data, 'postgres')
        server = Postgres(programs, data, free_port(), as_user)
        server.run('initdb', '-D', str(data), '-U', 'mmpipe', '--auth=trust', '--no-sync')
        server.start()
        try:
            yield server
        finally:
            server.stop()


def free_port() -> int:
    """A port of loopback that nobody listens at now."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        return free.getsockname()[1]


def _binaries() -> Path | None:
    """Folder of Debian's Postgres, of the newest version, or of one in the path."""
    found = sorted(Path('/usr/lib/postgresql').glob('*/bin/initdb'), key=lambda path: int(path.parts[-3]))
    named = shutil.which('initdb')
    return found[-1].parent if found else Path(named).parent if named else None

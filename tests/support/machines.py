"""What the tests of stores work with: a machine, whose processes have an environment of their own, and a shop."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import s3fs
from calls import FILE, PAUSE, noted
from logged import Source
from s3_server import S3, wait_until
from stores_catalog import TOGETHER

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parents[1]
DEADLINE_S = 240


@dataclass(frozen=True, kw_only=True)
class Said:
    """How a process ended: what its work returned, or the error it raised."""

    value: Any = None
    error: str = ''
    message: str = ''
    killed: bool = False


class Process:
    """A process that was started; `end` waits for it."""

    def __init__(self, arguments: list[str], env: dict[str, str], cwd: Path) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, *arguments], env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def kill(self) -> Said:
        """SIGKILL."""
        self.popen.kill()
        self.popen.communicate()
        return Said(killed=True)

    def end(self) -> Said:
        """What it said in the end."""
        out, err = self.popen.communicate(timeout=DEADLINE_S)
        lines = [line for line in out.splitlines() if line.startswith('{')]
        assert self.popen.returncode == 0, f'exit status {self.popen.returncode}: {out[-2000:]}{err[-4000:]}'
        return Said(**json.loads(lines[-1]))


class Machine:
    """Processes that share a home, and know database and object store by their environment.

    Args:
        home: folder of its state.
        s3: the object store; None for none.
        database: connection string; '' for none.
        env: additions to the environment, which has nothing else of this process's.
    """

    def __init__(self, home: Path, *, s3: S3 | None = None, database: str = '', **env: str) -> None:
        self.home = home
        home.mkdir(parents=True, exist_ok=True)
        self.env = {
            'PATH': os.environ['PATH'], 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'MMPIPE_HOME': str(home),
            'PIXELTABLE_VERBOSITY': '0', 'PYTHONDONTWRITEBYTECODE': '1',
            **(s3.env if s3 is not None else {}), **env,
        }  # fmt: skip
        if database:
            self.env['PIXELTABLE_DB_CONNECT_STR'] = database

    def begin(self, work: str, *, env: dict[str, str] | None = None, **arguments: Any) -> Process:
        """Start a process that does some work of a module of `tests/support`."""
        script = str(SUPPORT / 'stores_catalog.py')
        return Process([script, work, json.dumps(arguments)], {**self.env, **(env or {})}, self.home)

    def do(self, work: str, *, env: dict[str, str] | None = None, **arguments: Any) -> Said:
        """Start one and wait for it."""
        return self.begin(work, env=env, **arguments).end()

    def together(self, *jobs: tuple[str, dict[str, Any]], env: list[dict[str, str]]) -> list[Process]:
        """Start several, each with its additions to the environment, that wait for each other before they begin."""
        go = self.home / f'go-{time.time_ns()}'
        begun = [
            self.begin(work, env={**mine, TOGETHER: str(go)}, **arguments)
            for (work, arguments), mine in zip(jobs, env, strict=True)
        ]
        wait_until(
            lambda: (
                len(list(self.home.glob(f'{go.name}.*'))) == len(begun)
                or any(each.popen.poll() is not None for each in begun)
            ),
            'processes that are ready',
        )
        go.touch()
        return begun


class Shop:
    """A catalog with the tables of `logged`, their source in a bucket, and a root of snapshots there."""

    def __init__(self, machine: Machine, s3: S3, folder: Path) -> None:
        self.machine, self.s3, self.folder = machine, s3, folder
        self.bucket = f'bucket{time.time_ns()}'
        self.root = f's3://{self.bucket}/shards'
        self.draw = random.Random(5)
        (folder / 'source').mkdir()
        self.source = Source(folder / 'source')
        self.system.mkdir(self.bucket)
        self.calls = folder / 'calls.jsonl'
        self.factor = 2

    @cached_property
    def system(self) -> s3fs.S3FileSystem:
        """The store, as this process reaches it."""
        return s3fs.S3FileSystem(
            endpoint_url=f'http://127.0.0.1:{self.s3.behind}', key='test', secret='test', use_listings_cache=False,
            skip_instance_cache=True,
        )  # fmt: skip

    @property
    def noting(self) -> dict[str, str]:
        """Environment of processes that write down which functions they call, and take a while for each."""
        return self.noting_in(self.calls)

    def noting_in(self, file: Path) -> dict[str, str]:
        """The same, with a file of their own."""
        return {FILE: str(file), PAUSE: '0.002'}

    def upload(self, name: str = 'things.csv', keys: list[str] | None = None) -> str:
        """Put the photos that are not there yet, and a manifest of some rows; returns its URL."""
        manifest = self.source.write()
        there = {path.rpartition('/')[2] for path in self.system.find(f'{self.bucket}/source')}
        for key in self.source.rows:
            file = self.source.folder / f'{key}.png'
            if file.name not in there:
                self.system.pipe_file(f'{self.bucket}/source/{file.name}', file.read_bytes())
        head, *lines = manifest.read_text().splitlines()
        chosen = [line for line in lines if keys is None or line.partition(',')[0] in keys]
        self.system.pipe_file(f'{self.bucket}/source/{name}', '\n'.join([head, *chosen, '']).encode())
        return f's3://{self.bucket}/source/{name}'

    def ingest(self, url: str) -> tuple[str, dict[str, Any]]:
        """The job of ingesting a manifest."""
        return 'logged:ingesting', {'directory': 'shop', 'manifest': url, 'factor': self.factor, 'prune': False}

    @property
    def apply(self) -> tuple[str, dict[str, Any]]:
        """The job of applying what is due."""
        return 'logged:applying', {'directory': 'shop', 'factor': self.factor}

    @property
    def snapshot(self) -> tuple[str, dict[str, Any]]:
        """The job of freezing things."""
        return 'logged:snapshotting', {'directory': 'shop', 'root': self.root, 'factor': self.factor}

    def do(self, job: tuple[str, dict[str, Any]]) -> Any:
        """Do a job in a process of its own; what it returned."""
        said = self.machine.do(job[0], env=self.noting, **job[1])
        assert not said.error, f'{said.error}: {said.message}'
        return said.value

    def noted(self) -> list[tuple]:
        """Calls of functions so far, without those of the ledger."""
        return [call for call in noted(self.calls) if call[0] != 'recorded']

    def as_from_scratch(self) -> None:
        """Tables hold what one process would have made of the source; nothing is due, nothing in quarantine."""
        found = self.do(
            ('stores_catalog:comparing', {'directory': 'shop', 'rows': self.source.rows, 'factor': self.factor})
        )
        assert found == {'differ': [], 'pending': False, 'quarantined': []}, found

    def read(self, snapshot: str | None = None, root: str | None = None) -> dict[str, list[str]]:
        """What a snapshot holds."""
        return self.do(('stores_catalog:reading', {'root': root or self.root, 'snapshot': snapshot}))

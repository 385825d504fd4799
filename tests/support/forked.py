"""Children forked from a process that has imported Pixeltable and not started it: ready in a tenth of the time.

    test ──lines of JSON──► forker (imports, forks, waits, kills) ──fork──► child (starts Pixeltable, works)

A process in which Pixeltable runs cannot be forked, so the forker is one of its own. Postgres outlives killed children.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from calls import FILE

LIMIT_S = 240.0
LOOK_EVERY_S = 0.003


@dataclass(frozen=True, kw_only=True)
class Job:
    """Work for a child.

    Args:
        work: 'module:function'; the function prepares, and returns what is then called without arguments.
        args: keyword arguments of the function.
        env: additions to the environment.
        delay: seconds between the common start and this child's.
        kill_after: seconds from the common start to a SIGKILL; None for none.
        kill_at: a SIGKILL once as many lines are in the file of `calls` that `env` names; 0 for none.
    """

    work: str
    args: dict[str, Any] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    delay: float = 0.0
    kill_after: float | None = None
    kill_at: int = 0


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a child ended.

    Args:
        killed: the SIGKILL found it working.
        value: what the work returned.
        error: name of the class of what it raised; '' for nothing.
        message: of that.
        seconds: from its start to its end.
    """

    killed: bool = False
    value: Any = None
    error: str = ''
    message: str = ''
    seconds: float = 0.0


class Forker:
    """The process that forks.

    Args:
        env: additions to its environment.
    """

    def __init__(self, **env: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, **env}
        )

    def __enter__(self) -> Forker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stdin.close()
        self._process.wait(60)
        self._process.stdout.close()

    def run(self, *jobs: Job) -> list[Ended]:
        """Run jobs at the same time, each in a child, all prepared before the first begins."""
        self._process.stdin.write(json.dumps([asdict(job) for job in jobs]).encode() + b'\n')
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, 'the forker has died'
        return [Ended(**each) for each in json.loads(line)]


class _Child:
    """A child with two pipes: one says go, the other 'r' when it is ready and then how it ended."""

    def __init__(self, job: Job) -> None:
        self.job, self.heard, self.reaped = job, b'', False
        self.out, told = os.pipe()
        wait, self._go = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.out)
            os.close(self._go)
            try:
                _work(job, wait, told)
            finally:
                os._exit(0)
        os.close(told)
        os.close(wait)

    def ready(self) -> None:
        self.heard += os.read(self.out, 1)

    def go(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._go, b'g')
        os.close(self._go)

    def calls(self) -> int:
        """How many calls are noted."""
        path = Path(self.job.env[FILE])
        return path.read_bytes().count(b'\n') if path.exists() else 0

    def hear(self) -> bool:
        """Take what the child says; False once it has ended."""
        heard = os.read(self.out, 1 << 16)
        self.heard += heard
        if not heard:
            os.close(self.out)
            os.waitpid(self.pid, 0)
            self.reaped = True
        return bool(heard)

    def ended(self) -> dict[str, Any]:
        said = self.heard.removeprefix(b'r')
        return json.loads(said) if said.endswith(b'}') else {'killed': True}


def _work(job: Job, wait: int, told: int) -> None:
    os.environ.update(job.env)
    module, _, name = job.work.partition(':')
    ended: dict[str, Any] = {}
    try:
        work = getattr(importlib.import_module(module), name)(**job.args)
        os.write(told, b'r')
        os.read(wait, 1)
        time.sleep(job.delay)
        started = time.monotonic()
        try:
            ended['value'] = work()
        finally:
            ended['seconds'] = time.monotonic() - started
    except Exception as error:
        ended |= {'error': type(error).__name__, 'message': str(error)}
        if job.env.get('MMPIPE_TEST_TRACE'):
            traceback.print_exc()
    os.write(told, json.dumps(ended).encode())


def _play(jobs: list[Job]) -> list[dict[str, Any]]:
    children = [_Child(job) for job in jobs]
    for child in children:
        child.ready()
    started = time.monotonic()
    for child in children:
        child.go()
    while working := [child for child in children if not child.reaped]:
        left = {}
        for child in working:
            limit = LIMIT_S if child.job.kill_after is None else child.job.kill_after
            left[child.pid] = started + limit - time.monotonic()
            if left[child.pid] <= 0 or (child.job.kill_at and child.calls() >= child.job.kill_at):
                os.kill(child.pid, signal.SIGKILL)
        soonest = max(0.0, min((each for each in left.values() if each > 0), default=LIMIT_S))
        if any(child.job.kill_at for child in working):
            soonest = min(soonest, LOOK_EVERY_S)
        for out in select.select([child.out for child in working], [], [], soonest)[0]:
            next(child for child in working if child.out == out).hear()
    return [child.ended() for child in children]


def main() -> None:
    """Fork what is asked for on standard input."""
    import pixeltable.env

    import mmpipe.ledger
    import mmpipe.plans
    import mmpipe.shards
    import mmpipe.snapshots
    import mmpipe.sources  # noqa: F401

    answers = os.fdopen(os.dup(1), 'wb')
    os.dup2(2, 1)  # what children print is no answer
    for line in sys.stdin:
        assert pixeltable.env.Env._instance is None
        answers.write(json.dumps(_play([Job(**each) for each in json.loads(line)])).encode() + b'\n')
        answers.flush()


if __name__ == '__main__':
    sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]
    from forked import main  # so that jobs find this module under its name

    main()

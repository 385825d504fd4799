"""One process trains a run: a lock that dies with its holder, so that a killed run can be told from a running one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

from mmpipe.errors import RunError
from mmpipe.runs.record import Run

try:
    import fcntl
except ImportError:  # Windows has no such lock; there, two processes can train one run
    fcntl = None  # type: ignore[assignment]


@contextmanager
def training(run: Run) -> Iterator[None]:
    """Hold a run while the block trains it.

    Raises:
        RunError: another process trains it.

    >>> import tempfile
    >>> from mmpipe.runs import create_run
    >>> run = create_run('shop', {}, runs=tempfile.mkdtemp())
    >>> with training(run):
    ...     is_training(run)
    True
    >>> is_training(run)
    False
    """
    with open(run.path / 'lock', 'ab') as file:
        if not _taken(file):
            raise RunError(
                f'Run {run.id} is being trained by another process. Wait for it, or leave out resume= for a new run.'
            )
        yield


def is_training(run: Run) -> bool:
    """Whether a process trains the run right now. A run whose process was killed says 'running' too, and is not held.

    >>> import tempfile
    >>> from mmpipe.runs import create_run
    >>> is_training(create_run('shop', {}, runs=tempfile.mkdtemp()))
    False
    """
    with open(run.path / 'lock', 'ab') as file:
        return not _taken(file)


def _taken(file: IO[bytes]) -> bool:
    """Take the lock, until the file is closed; False when someone else has it."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: better two trainings of one run than none
        return True
    return True

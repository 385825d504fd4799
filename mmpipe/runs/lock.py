"""One process trains a run: a lock that dies with its holder, so that a killed run can be told from a running one."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from mmpipe.errors import RunError

if TYPE_CHECKING:
    from mmpipe.runs.record import Run

try:
    import fcntl
except ImportError:  # Windows has no such lock; there, two processes can train one run
    fcntl = None  # type: ignore[assignment]

TRIES, TRY_EVERY_S = 10, 0.05


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
        for _ in range(TRIES):
            if _taken(file):
                break
            time.sleep(TRY_EVERY_S)  # whoever looks at the run has the lock for a moment
        else:
            raise RunError(
                f'Run {run.id} is being trained by another process. Wait for it, or leave out resume= for a new run.'
            )
        file.truncate(0)
        file.write(platform.node().encode())
        file.flush()
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


def was_killed(folder: Path) -> bool:
    """Whether a run that says 'running' was trained on this machine by a process that is gone.

    Args:
        folder: of the run; nothing is written there.

    Returns:
        False also where that cannot be told: another machine trained it last, or the file system has no locks.

    >>> import tempfile
    >>> from mmpipe.runs import create_run
    >>> run = create_run('shop', {}, runs=tempfile.mkdtemp())
    >>> with training(run):
    ...     was_killed(run.path)
    False
    >>> was_killed(run.path)
    True
    """
    if fcntl is None:
        return False
    try:
        with open(folder / 'lock', 'rb') as file:
            if file.read() != platform.node().encode():
                return False
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # held; or there is no such file, or no such thing as a lock
        return False
    return True


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

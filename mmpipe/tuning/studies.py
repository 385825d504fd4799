"""Where trials are kept, and which of them a killed process left."""

from __future__ import annotations

import importlib.util
import json
import platform
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpipe.durable import make_folders
from mmpipe.errors import BusyError, ConfigError
from mmpipe.tuning.goals import direction

if TYPE_CHECKING:
    import optuna

try:
    import fcntl
except ImportError:  # Windows has no such lock; there, two processes could take one study for their own
    fcntl = None  # type: ignore[assignment]

JOURNAL = 'study.journal'
OPENING = zlib.crc32(b'mmpipe.tuning')
"""Key of the advisory lock of Postgres under which studies are opened."""


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Hold the folder of a study: whatever trial is running in it was left by a process that is gone.

    Raises:
        BusyError: another process holds it.

    >>> import tempfile
    >>> with held(Path(tempfile.mkdtemp())):
    ...     pass
    """
    make_folders(folder)
    with open(folder / 'lock', 'ab') as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(
                    f'Another process tunes in {folder}. Wait for it, or pass another name= or runs=.'
                ) from None
        yield


def journal(folder: Path) -> optuna.storages.BaseStorage:
    """Optuna's file storage in a folder that this process holds.

    Args:
        folder: of the study. A last line that a kill left half-written is cut off, since the next would be glued to it.
    """
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    file = folder / JOURNAL
    if file.is_file():
        content = file.read_bytes()
        if not content.endswith(b'\n'):
            with open(file, 'r+b') as cut:
                cut.truncate(content.rfind(b'\n') + 1)
    return JournalStorage(JournalFileBackend(str(file)))


def with_driver(
    storage: str | optuna.storages.BaseStorage | None,
) -> str | optuna.storages.BaseStorage | None:
    """A URL of Postgres that names no driver gets the one that Pixeltable brings, unless SQLAlchemy's old one is here.

    Args:
        storage: URL or storage of Optuna.

    >>> with_driver('sqlite:///study.db')
    'sqlite:///study.db'
    """
    plain = ('postgresql://', 'postgres://')
    if not isinstance(storage, str) or not storage.startswith(plain) or importlib.util.find_spec('psycopg2'):
        return storage
    return f'postgresql+psycopg://{storage.partition("://")[2]}'


@contextmanager
def opening(storage: str | optuna.storages.BaseStorage | None) -> Iterator[None]:
    """Let one process at a time open a study of a Postgres: two that make Optuna's tables at once fail.

    Args:
        storage: as `with_driver` gives it; nothing is done about others than a URL of Postgres.

    >>> with opening('sqlite:///study.db'):
    ...     pass
    """
    if not isinstance(storage, str) or not storage.startswith(('postgresql', 'postgres:')):
        yield
        return
    import sqlalchemy

    engine = sqlalchemy.create_engine(storage, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:  # the lock ends with it, however this process ends
        connection.execute(sqlalchemy.text('SELECT pg_advisory_lock(:key)'), {'key': OPENING})
        yield


def check_study(study: optuna.Study, goals: Sequence[str], space: Mapping[str, Any]) -> None:
    """Compare a study that may have trials with what is asked now, and note the latter in it.

    Raises:
        ConfigError: other goals, directions or another space.
    """
    directions = [direction(goal) for goal in goals]
    found = [each.name.lower() for each in study.directions]
    if found != directions:
        raise ConfigError(
            f'Study {study.study_name!r} has the directions {", ".join(found)}, and {", ".join(goals)} need '
            f'{", ".join(directions)}. Make it with directions={directions!r}, or pass another name=.'
        )
    now = {'goals': list(goals), 'space': {name: repr(each) for name, each in sorted(space.items())}}
    for what, value in now.items():
        then = study.user_attrs.get(what)
        if then is not None and then != value:
            raise ConfigError(
                f'Study {study.study_name!r} has trials with {what} {json.dumps(then)}, and now {json.dumps(value)} '
                f'is asked. Give it what it had, or pass another name=.'
            )
        if then is None:
            study.set_user_attr(what, value)


def place_of_trials(folder: Path) -> str:
    """What tells trials of this folder on this machine from those of others in one storage."""
    return f'{platform.node()}:{folder.resolve()}'


def left_behind(study: optuna.Study, place: str) -> list[optuna.Trial]:
    """Trials of this place that still run although nobody runs them, to be gone on with under their numbers.

    Args:
        study: whose folder this process holds.
        place: as `place_of_trials` gives it.
    """
    import optuna

    running = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,))
    ours = [trial for trial in running if trial.user_attrs.get('place') == place]
    return [optuna.Trial(study, trial._trial_id) for trial in ours]

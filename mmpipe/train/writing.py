"""A checkpoint in pieces is written while training goes on, and appears under its name when all of it is there.

Every rank writes its own file into one hidden folder and notes beside it that it is on the disk; the first rank waits
for these notes, seals the folder and renames it. Ranks tell each other through the folder: a thread that took part in
collectives would mix them up with those of the training.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mmpipe.durable import sync_directory, sync_file, write_json
from mmpipe.errors import RunError
from mmpipe.runs.seal import digest

LOOK_EVERY_S = 0.02


class Writing:
    """One piece of work at a time, in a thread.

    >>> writing, done = Writing(), []
    >>> writing.start(lambda given_up: done.append(1)); writing.wait(); done
    [1]
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._given_up = threading.Event()
        self._error: BaseException | None = None

    def start(self, work: Callable[[threading.Event], None]) -> None:
        """Begin, once what was begun before is done.

        Args:
            work: called with an event that is set when nobody waits for it any more.

        Raises:
            BaseException: what the work before raised.
        """
        self.wait()

        def run() -> None:
            try:
                work(self._given_up)
            except BaseException as error:  # noqa: BLE001 (raised where the training asks)
                self._error = error

        # A daemon, so that a process whose training failed can end; `wait` and `close` see to it in any other case.
        self._thread = threading.Thread(target=run, name='mmpipe-checkpoint', daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until it is done.

        Raises:
            BaseException: what it raised.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Leave what waits for other ranks, and let what is being written get written."""
        self._given_up.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None


def write_piece(folder: Path, name: str, write: Callable[[Path], None]) -> None:
    """Write a file of this rank and note that it is right on the disk, or why it is not.

    Args:
        folder: of all ranks.
        name: of the file.
        write: writes it.

    Raises:
        RunError: it could not be written, or is not what was written.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_piece(folder, 'a', lambda file: file.write_text('x') and None)
    >>> sorted(wait_for_pieces(folder, ['a'], patience_s=1.0)['a'])
    ['bytes', 'sha256']
    """
    file = folder / name
    try:
        write(file)
        expected = digest(file)
        sync_file(file)
        found = digest(file, from_disk=True)
        if found != expected:
            raise RunError(f'{file} has SHA-256 {found[:8]}... on the disk where {expected[:8]}... was written')
    except Exception as error:
        said = str(error) if isinstance(error, RunError) else f'{type(error).__name__}: {error}'
        write_json(_note(folder, name), {'error': said})
        raise RunError(
            f'A piece of a checkpoint could not be written: {said}. The one before it is still there: look after '
            f'the disk, and resume.'
        ) from error
    write_json(_note(folder, name), {'bytes': file.stat().st_size, 'sha256': expected})


def wait_for_pieces(
    folder: Path, names: list[str], *, patience_s: float, given_up: threading.Event | None = None
) -> dict[str, dict[str, Any]]:
    """Size and digest of the files of all ranks, once they are there.

    Args:
        folder: of all ranks.
        names: of their files, in order of ranks.
        patience_s: seconds that the last of them may take.
        given_up: set when there is nobody to wait for any more.

    Raises:
        RunError: a rank could not write its file, or has not in time.
    """
    deadline, found = time.monotonic() + patience_s, {}
    while True:
        for rank, name in enumerate(names):
            if name in found or not _note(folder, name).is_file():
                continue
            found[name] = json.loads(_note(folder, name).read_text(encoding='utf-8'))
            if 'error' in found[name]:
                raise RunError(
                    f'Rank {rank} could not write its piece of a checkpoint: {found[name]["error"]}. The checkpoint '
                    f'before it is still there: look after the disk, and resume.'
                )
        missing = [rank for rank, name in enumerate(names) if name not in found]
        if not missing:
            for name in names:
                _note(folder, name).unlink()
            return found
        late = time.monotonic() > deadline
        if late or (given_up is not None and given_up.is_set()):
            within = f' in {patience_s:g} s' if late else ''
            raise RunError(
                f'Rank {missing[0]} has not written its piece of a checkpoint{within}: no {names[missing[0]]} in '
                f'{folder}. The checkpoint before it is still there.'
            )
        time.sleep(LOOK_EVERY_S)


def publish(folder: Path, path: Path) -> None:
    """Give a complete folder its name, by one rename.

    Args:
        folder: whose files are on the disk or small; what is not is flushed here.
        path: its name, which nothing has.
    """
    for file in folder.iterdir():
        sync_file(file)
    sync_directory(folder)
    os.replace(folder, path)
    sync_directory(path.parent)


def _note(folder: Path, name: str) -> Path:
    return folder / f'{name}.json'

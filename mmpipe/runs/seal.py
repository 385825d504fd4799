"""What a checkpoint is of, and the digests of its files: a damaged or foreign one is refused before it is loaded.

checkpoints/<step>/checkpoint.json    {"format": 2, "about": {...}, "files": {name: {"bytes": ..., "sha256": ...}},
                                       "sha256": of the rest, so that damage here is not taken for damage elsewhere}
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mmpipe.errors import RunError

FILE = 'checkpoint.json'
FORMAT = 2


def seal(folder: Path, about: Mapping[str, Any], *, known: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Note the digests of all files of a folder in it.

    Args:
        folder: complete but for this.
        about: what it is of, as JSON, such as run, step and snapshot.
        known: {file: {'bytes', 'sha256'}} of files that whoever wrote them has read back already.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()); _ = (folder / 'a').write_text('x'); seal(folder, {'step': 3})
    >>> check_seal(folder)
    {'step': 3}
    """
    known = known or {}
    files = {
        file.name: dict(known.get(file.name) or {'bytes': file.stat().st_size, 'sha256': digest(file)})
        for file in sorted(folder.iterdir())
    }
    content: dict[str, Any] = {'format': FORMAT, 'about': dict(about), 'files': files}
    content['sha256'] = _own_digest(content)
    (folder / FILE).write_text(json.dumps(content, indent=2, allow_nan=False) + '\n', encoding='utf-8')


def check_seal(
    folder: Path,
    *,
    about: Mapping[str, Any] | None = None,
    only: Collection[str] | None = None,
    from_disk: bool = False,
) -> dict[str, Any]:
    """Compare the files of a folder with what was noted of them.

    Args:
        folder: that was sealed.
        about: what it must be of; entries that it does not name do not matter.
        only: names of the files to read; all when None. All must be there, with their size, in any case.
        from_disk: read what is on the disk, and not what the system still holds of it in memory.

    Returns:
        What it is about.

    Raises:
        RunError: something is missing, damaged or of something else; names file, what was expected and what was found.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp()); _ = (folder / 'a').write_text('x'); seal(folder, {'step': 3})
    >>> _ = (folder / 'a').write_text('y'); check_seal(folder)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    mmpipe.errors.RunError: Checkpoint ... is damaged: a has SHA-256 a1fce436... where 2d711642... was written. ...
    """
    noted = _noted(folder)
    for key, wanted in (about or {}).items():
        if noted['about'].get(key) != wanted:
            raise RunError(
                f'Checkpoint {folder} is of {key} {noted["about"].get(key)!r}, and {wanted!r} is wanted. It was '
                f'copied from another run, or belongs to other code or rows. {_others(folder)}'
            )
    there = {file.name for file in folder.iterdir()} - {FILE}
    for name, entry in noted['files'].items():
        if name not in there:
            raise RunError(f'Checkpoint {folder} is damaged: {name} is missing. {_others(folder)}')
        size = (folder / name).stat().st_size
        if size != entry['bytes']:
            raise RunError(
                f'Checkpoint {folder} is damaged: {name} has {size:,} bytes where {entry["bytes"]:,} were written. '
                f'{_others(folder)}'
            )
        if only is None or name in only:
            found = digest(folder / name, from_disk=from_disk)
            if found != entry['sha256']:
                raise RunError(
                    f'Checkpoint {folder} is damaged: {name} has SHA-256 {found[:8]}... where '
                    f'{entry["sha256"][:8]}... was written. {_others(folder)}'
                )
    if extra := there - set(noted['files']):
        raise RunError(f'Checkpoint {folder} holds {min(extra)}, which it was not written with. {_others(folder)}')
    return noted['about']


def digest(file: Path, *, from_disk: bool = False) -> str:
    """SHA-256 of a file: 64 hexadecimal characters.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / 'a'; _ = file.write_text('x'); digest(file)[:8]
    '2d711642'
    """
    with file.open('rb') as opened:
        if from_disk and hasattr(os, 'posix_fadvise'):
            with suppress(OSError):  # a hint
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return hashlib.file_digest(opened, 'sha256').hexdigest()


def _own_digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _noted(folder: Path) -> dict[str, Any]:
    try:
        noted = json.loads((folder / FILE).read_text(encoding='utf-8'))
        own = noted.pop('sha256', None)
        if own is not None and own != _own_digest(noted):
            raise ValueError('it does not hold what was written')
        if noted['format'] != FORMAT:
            raise RunError(
                f'Checkpoint {folder} has format {noted["format"]}; this mmpipe reads format {FORMAT}. Use the mmpipe '
                f'that wrote it.'
            )
        if not (
            own is not None
            and isinstance(noted['about'], dict)
            and all(len(e['sha256']) == 64 for e in noted['files'].values())
        ):
            raise ValueError('about, files')
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f'Checkpoint {folder} is damaged: {FILE} cannot be read ({type(error).__name__}: {error}). '
            f'{_others(folder)}'
        ) from error
    return noted


def _others(folder: Path) -> str:
    """What to do instead: the newest of the other checkpoints, if there are any."""
    steps = [each for each in folder.parent.iterdir() if each.name.isdecimal() and each != folder]
    newest = max(steps, key=lambda each: int(each.name), default=None)
    if newest is None:
        return 'There is no other one: delete its folder, and the training starts anew.'
    return f'Delete its folder, and the training goes on from the one of step {int(newest.name)}.'

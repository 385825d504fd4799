"""Where a row's files come from: the record of path, digest and stamp that tells a changed file from an old one."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mmpipe.errors import BadInputError
from mmpipe.home import media_dir
from mmpipe.sources import media as media_files

ORIGIN = 'origin'
"""Name of the JSON column with a row's files; written in the same transaction as the row."""

Entry = dict[str, dict[str, Any]]
"""Media column to {'path', 'digest', 'stamp'}."""


def recorded(stored: Mapping[str, Any] | None) -> Entry:
    """The files recorded in a stored row; empty where `mm.ingest` did not write it.

    >>> recorded({'origin': None}), recorded(None)
    ({}, {})
    """
    origin = (stored or {}).get(ORIGIN)
    media = origin.get('media') if isinstance(origin, dict) else None
    return media if isinstance(media, dict) else {}


def inspect(
    files: Mapping[str, Path | None],
    known: Entry,
    kinds: Mapping[str, str],
    root: Path,
    *,
    downloaded: frozenset[str] = frozenset(),
) -> Entry:
    """Path, digest and stamp of each of a row's files; opened unless they are the recorded ones.

    Args:
        files: media column to file; None where there is none. Columns left out keep what is known.
        known: what is recorded for the row.
        kinds: media column to image, video, audio or document.
        root: resolved directory that every file has to lie in.
        downloaded: media columns whose file lies in the project's media folder instead.

    Raises:
        BadMedium: a file that cannot be taken.
    """
    found = {name: item for name, item in known.items() if name not in files}
    for name, file in files.items():
        if file is None:
            continue
        try:
            inside = media_dir().resolve() if name in downloaded else root
            found[name] = _look(file, known.get(name, {}), kinds[name], inside)
        except BadInputError as error:
            raise BadMedium(name, file, str(error)) from error
        except OSError as error:
            raise BadMedium(
                name, file, f'cannot be read ({error.strerror or error}): check path and permissions'
            ) from error
        except (RuntimeError, ValueError) as error:  # a loop of links; a character no path can have
            raise BadMedium(name, file, f'is no path ({error}): correct it') from error
    return found


class BadMedium(BadInputError):
    """A file that cannot be taken, with the column it is for."""

    def __init__(self, column: str, file: Path, reason: str) -> None:
        super().__init__(reason)
        self.column, self.file = column, file


def _look(file: Path, known: Mapping[str, Any], kind: str, root: Path) -> dict[str, Any]:
    resolved = file.resolve()
    if not resolved.is_relative_to(root):
        raise BadInputError(f"lies outside '{root}', the folder of the source: move it there")
    if unquote(str(resolved)) != str(resolved):
        # Pixeltable 0.7 decodes it once too often when it reads the file, and so may take another one for it.
        raise BadInputError(
            f"has '{_escape(resolved)}' in its path, which Pixeltable takes for another name: rename it"
        )
    if not resolved.exists() and known.get('path') == str(resolved):
        raise BadInputError(
            'is gone since it was ingested: put it back, or take its row out of the source and ingest with --prune'
        )
    if not resolved.exists():
        raise BadInputError('does not exist: add the file, or correct the path')
    if not resolved.is_file():
        raise BadInputError('is not a file: name a file')
    now = media_files.stamp(resolved)
    if known.get('path') == str(resolved) and known.get('stamp') == now:
        return dict(known)
    digest = media_files.digest_file(resolved)
    if known.get('digest') != digest:
        media_files.check(resolved, kind)
    return {'path': str(resolved), 'digest': digest, 'stamp': now}


class Folders:
    """Tells recorded files from others by one `lstat` each, having asked each folder once where it really is.

    Make a new one for every chunk of rows: a link may be put in the place of a folder.
    """

    def __init__(self) -> None:
        self._real: dict[str, str] = {}

    @cached_property
    def downloads(self) -> Path:
        """The project's media folder, resolved."""
        return media_dir().resolve()

    def hold(self, file: Path, path: str, stamp: str, root: Path) -> bool:
        """Whether a file is the one that is recorded: same resolved path, inside of the root, with the same stamp.

        Args:
            file: as a source names it.
            path: the recorded path.
            stamp: the recorded stamp, written as JSON.
            root: resolved directory that the file has to lie in.

        >>> file = Path(__file__).resolve()
        >>> Folders().hold(file, str(file), str(media_files.stamp(file)), file.parent)
        True
        >>> Folders().hold(file, str(file), '[0, 0, 0, 0]', file.parent)
        False
        """
        try:
            text = str(file)
            folder, _, name = (text if text.startswith('/') else f'{os.getcwd()}/{text}').rpartition('/')
            if folder not in self._real:
                self._real[folder] = os.path.realpath(folder) if folder else ''
            real = f'{self._real[folder]}/{name}'
            found = os.lstat(real)
            if stat.S_ISLNK(found.st_mode):
                real = os.path.realpath(real)
                found = os.stat(real)
        except (OSError, ValueError):  # whoever opens it says what is wrong
            return False
        return (
            real == path
            and stat.S_ISREG(found.st_mode)
            and str(media_files.stamp_of(found)) == stamp
            and '%' not in real  # may be no name that Pixeltable takes
            and real.startswith(f'{str(root).rstrip("/")}/')
        )


def _escape(path: Path) -> str:
    """The first part of a path that looks like an escape in a URL.

    >>> _escape(Path('/a/b%20c.png'))
    '%20'
    """
    found = re.search('%[0-9A-Fa-f]{2}', str(path))
    return found[0] if found else '%'


def changed(entry: Entry, known: Entry) -> bool:
    """Whether the row has to be replaced: other contents, or the file Pixeltable refers to is gone and lies elsewhere.

    >>> changed({'photo': {'path': '/a', 'digest': '1'}}, {})
    True
    """
    if {name: item['digest'] for name, item in entry.items()} != {name: item['digest'] for name, item in known.items()}:
        return True
    return any(
        item['path'] != known[name]['path'] and not Path(known[name]['path']).exists() for name, item in entry.items()
    )


def renewed(entry: Entry, known: Entry) -> Entry:
    """What is recorded, with the stamps of files that were only touched, so that the next ingest need not read them.

    A file of the same content at another path keeps its old record: that is the path Pixeltable refers to.

    >>> renewed({'photo': {'path': '/a', 'stamp': 2}}, {'photo': {'path': '/a', 'stamp': 1}})
    {'photo': {'path': '/a', 'stamp': 2}}
    """
    return {name: entry[name] if entry[name]['path'] == item['path'] else item for name, item in known.items()}

"""What runs in a Ray worker: functions, imported there, over pages of cells. It opens no database.

Errors come back as data: what is raised in a worker would end the job, and one cell is no reason for that.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import io
import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pyarrow as pa

SCHEMA = pa.schema([('page', pa.int64()), ('key', pa.binary()), ('value', pa.large_binary()), ('about', pa.string())])
GIVE_UP = 3  # workers that may die over one page before its cells are left to the process that asked
POLL_S, LONGEST_POLL_S = 0.02, 0.5


def ray_module() -> Any:
    """Ray, untyped, so that types are checked alike with and without it; it sends no usage statistics."""
    os.environ.setdefault('RAY_USAGE_STATS_ENABLED', '0')
    importlib.import_module('ray.data')
    return importlib.import_module('ray')


class Pages:
    """Where workers find the page of a number: an actor that holds references and no page.

    All it knows is told again every moment, so one that was killed is the same soon after its restart.

    >>> pages = Pages()
    >>> pages.take(0) is None
    True
    >>> pages.tell({1: ['a reference']}, made=2, ended=False)
    >>> pages.take(0), pages.take(1), pages.take(2)
    ([], ['a reference', 1], None)
    """

    def __init__(self) -> None:
        self._held: dict[int, list[Any]] = {}
        self._taken: dict[int, int] = {}
        self._made, self._ended = 0, False

    def tell(self, held: dict[int, list[Any]], made: int, ended: bool) -> None:
        """Take what there is: references by page, pages that were made so far, whether there will be more."""
        self._held, self._made, self._ended = held, made, ended

    def take(self, number: int) -> list[Any] | None:
        """[reference, how many took it]; [] for a page that nobody needs; None for one that is not made yet."""
        if number in self._held:
            self._taken[number] = self._taken.get(number, 0) + 1
            return [*self._held[number], self._taken[number]]
        return [] if self._ended or number < self._made else None


class Compute:
    """The callable of `map_batches`: numbers of pages to results.

    Args:
        packages: those whose version counts in fingerprints.
        pages: handle of the actor `Pages`.
        home: mmpipe's home, where nothing else names one here.
        folders: where the process that asked finds modules.
    """

    def __init__(self, *, packages: Sequence[str], pages: Any, home: str, folders: Sequence[str]) -> None:
        self.packages, self.pages, self.home, self.folders = packages, pages, home, folders
        self._keys: dict[str, Any] = {}
        self._loop: asyncio.Runner | None = None

    def __call__(self, batch: pa.Table) -> pa.Table:
        """Rows with a key and a value for each cell that was computed, behind one that tells about its page."""
        tables = [self._page(number) for number in batch.column('page').to_pylist()]
        return pa.concat_tables(tables)

    def _page(self, number: int) -> pa.Table:
        page, tried = self._taken(number)
        about: dict[str, Any] = {'pid': os.getpid(), 'node': os.uname().nodename, 'cells': 0}
        done: list[tuple[bytes, bytes]] = []
        if page is not None and tried > GIVE_UP:
            about['died'] = tried - 1
        elif page is not None:
            about['refused'] = self._refused(page['path'], page['prints'])
            if not about['refused']:
                done, counted = self._computed(self._keys[page['path']], page['cells'])
                about |= counted
        rows = [(number, b'', b'', json.dumps(about)), *((number, key, value, '') for key, value in done)]
        columns = zip(*rows, strict=True)
        return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA, strict=True)], schema=SCHEMA)

    def _taken(self, number: int) -> tuple[Any, int]:
        """A page, waiting for it to be made, and how often it was taken; None for one that nobody needs."""
        ray = ray_module()
        pause = POLL_S
        while True:
            found = ray.get(self.pages.take.remote(number))
            if found is not None:
                return (ray.get(found[0]), found[1]) if found else (None, 0)
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_POLL_S)

    def _refused(self, path: str, prints: Sequence[tuple[dict[str, Any], str]]) -> str:
        """Why this worker must not compute: it cannot import the function, or has another one."""
        node = os.uname().nodename
        if path not in self._keys:
            try:
                self._keys[path] = _imported(path, self.home, self.folders)
            except Exception as error:  # noqa: BLE001 (an import may raise anything)
                return (
                    f"a Ray worker on '{node}' cannot import {path} ({type(error).__name__}: {error}). Give the "
                    f'cluster the code, as with the working_dir of its runtime_env.'
                )
        for constants, theirs in prints:
            mine = self._keys[path].print(constants, self.packages)
            if mine != theirs:
                file = inspect.getsourcefile(inspect.unwrap(self._keys[path].function))
                return (
                    f"a Ray worker on '{node}' has another {path} (fingerprint {mine[:12]}, from '{file}') than this "
                    f'process ({theirs[:12]}). Give the cluster the code, the weights and the versions of counted '
                    f'packages that are used here.'
                )
        return ''

    def _computed(
        self, keys: Any, cells: Sequence[tuple[bytes, dict[str, Any]]]
    ) -> tuple[list[tuple[bytes, bytes]], dict]:
        """(key, result) of the cells that can be kept, and how many of the others there are, by why."""
        from mmpipe.results import to_bytes

        found: list[tuple[bytes, dict[str, Any]]] = []
        counted: dict[str, Any] = {'cells': len(cells), 'failed': 0, 'other': 0, 'unkept': 0, 'reason': ''}
        for key, packed in cells:
            try:
                named = {name: unpacked(value) for name, value in packed.items()}
                same = keys.key((), named) == key
            except Exception as error:  # noqa: BLE001 (such as a file that is not here)
                same, counted['reason'] = False, f'{type(error).__name__}: {error}'
            if same:
                found.append((key, named))
            else:
                counted['other'] += 1
        if self._loop is None:
            self._loop = asyncio.Runner()
        results = self._loop.run(_all(keys.function, [named for _, named in found]))
        done = []
        for (key, _), result in zip(found, results, strict=True):
            if isinstance(result, BaseException):
                counted['failed'] += 1
                continue
            content = to_bytes(result)
            if content is None:
                counted['unkept'] += 1
            else:
                done.append((key, content))
        return done, counted


async def _all(function: Any, calls: Sequence[Mapping[str, Any]]) -> list[Any]:
    """What each call returns, or the exception that it raises."""
    if inspect.iscoroutinefunction(function):
        return await asyncio.gather(*(function(**call) for call in calls), return_exceptions=True)
    results: list[Any] = []
    for call in calls:
        try:
            results.append(function(**call))
        except Exception as error:  # noqa: BLE001 (the cell's own)
            results.append(error)
    return results


def _imported(path: str, home: str, folders: Sequence[str]) -> Any:
    """The `cell_keys` of a cached function, imported where no database may be opened."""
    os.environ.setdefault('MMPIPE_HOME', home)
    os.environ['MMPIPE_RESULT_CACHE_GB'] = '0'  # results are kept by the process that asked
    sys.path += [folder for folder in folders if folder not in sys.path and Path(folder).exists()]
    vars(importlib.import_module('pixeltable.env'))['Env'].get = _no_database
    module, _, name = path.rpartition('.')
    return getattr(importlib.import_module(module), name).py_fn.cell_keys


def _no_database() -> Any:
    raise RuntimeError(
        "Pixeltable's database is not for Ray workers, and something opens it. Put functions into a module of their "
        'own, without table classes, and ask no tables in them'
    )


def packed(value: Any) -> Any:
    """An argument as it is sent: an image of a file as the file's bytes, which are fewer than its pixels.

    >>> packed(3), unpacked(packed(3))
    (3, 3)
    """
    if isinstance(value, PIL.Image.Image):
        name = getattr(value, 'filename', '')
        if name and Path(name).is_file():
            return _File(str(name), Path(name).read_bytes())
    return value


def unpacked(value: Any) -> Any:
    """The argument that was sent, as the function would have got it from Pixeltable."""
    if isinstance(value, _File):
        image = PIL.Image.open(io.BytesIO(value.content))
        image.load()
        image.filename = value.name
        return image
    # What comes out of Ray's memory cannot be written to, and a function may do so.
    return value.copy() if isinstance(value, np.ndarray) else value


def size_of(value: Any) -> int:
    """About how many bytes an argument is when it is sent.

    >>> size_of('four'), size_of(np.zeros(3)), size_of(None)
    (4, 24, 8)
    """
    if isinstance(value, _File):
        return len(value.content)
    if isinstance(value, PIL.Image.Image):
        return value.width * value.height * max(1, len(value.getbands()))
    if isinstance(value, np.ndarray):
        return value.nbytes
    return len(value) if isinstance(value, (str, bytes)) else len(json.dumps(value, default=str)) if value else 8


class _File:
    """An image's file."""

    def __init__(self, name: str, content: bytes) -> None:
        self.name, self.content = name, content

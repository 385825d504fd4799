"""Keep what an expensive function returns: the same code on the same content is computed once, in any process."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import pixeltable as pxt

from mmpipe.fingerprints import fingerprint
from mmpipe.functions.parallel import in_pool
from mmpipe.results import content_key, from_bytes, result_cache, to_bytes
from mmpipe.settings import counted_packages

# Stands for the code of this module in fingerprints: raise it when what is computed with its help changes.
__fingerprint__ = 1

F = TypeVar('F', bound=Callable[..., Any])


class CellKeys:
    """Names the results of one function: what `cached` looks cells up by. It is its `cell_keys`.

    Args:
        function: what is cached, below `cached`.

    >>> keys = CellKeys(lambda x, *, by=2: by * x)
    >>> keys.key((1,), {}) == keys.key((), {'x': 1, 'by': 2}) != keys.key((1,), {'by': 3})
    True
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self._signature = inspect.signature(function, eval_str=True)
        media = (pxt.Audio, pxt.Video, pxt.Document)
        parameters = self._signature.parameters
        self._files = {name for name, each in parameters.items() if each.annotation in media}
        self._fixed = {name for name, each in parameters.items() if each.kind is inspect.Parameter.KEYWORD_ONLY}
        self._prints: dict[str, str] = {}

    def given(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments of a call by name, defaults too; files as `Path`, since their bytes count."""
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return {name: Path(value) if name in self._files else value for name, value in bound.arguments.items()}

    def constants(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Those of a call's arguments that are the column's constants."""
        return {name: given[name] for name in sorted(self._fixed)}

    def print(self, constants: Mapping[str, Any], count_packages: Iterable[str] | None = None) -> str:
        """Digest of the function's fingerprint, taken once per process.

        Args:
            constants: arguments that are the same for all cells.
            count_packages: packages whose version counts; those of the project's settings when None.
        """
        name = repr(sorted(constants.items()))
        if name not in self._prints:
            counted = counted_packages() if count_packages is None else count_packages
            self._prints[name] = fingerprint(self.function, constants=constants, count_packages=counted).digest
        return self._prints[name]

    def key(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes | None:
        """Name of a call's result; None where an argument has no content that could be told."""
        given = self.given(args, kwargs)
        return content_key(self.print(self.constants(given)), given)


def cached(function: F) -> F:
    """Look a cell up before it is computed, by the function's fingerprint and the content of its arguments.

    Goes below `@pxt.udf` and above `@counted`, so that only calls are counted. For `async def` and `def` functions of
    one cell, not for batched ones, that return arrays or plain JSON; other results are not kept. Keyword-only
    parameters are the column's constants, files count by their bytes. There is a cache where
    `$MMPIPE_RESULT_CACHE_GB` gives it a size; cells of equal content that are computed at one time are computed once.

    >>> @cached
    ... def doubled(x: int) -> int:
    ...     return 2 * x
    >>> doubled(2)
    4
    """
    keys = CellKeys(function)

    if not inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            cache = result_cache()
            key = keys.key(args, kwargs) if cache is not None else None
            if cache is None or key is None:
                return function(*args, **kwargs)
            kept = cache.get(key)
            if kept is not None:
                return from_bytes(kept)
            return _keep(cache, key, function(*args, **kwargs))

        wrapper.cell_keys = keys  # type: ignore[attr-defined]
        return cast(F, wrapper)

    running: dict[tuple[int, bytes], asyncio.Future[Any]] = {}

    @functools.wraps(function)
    async def waiting(*args: Any, **kwargs: Any) -> Any:
        cache = result_cache()
        key = await in_pool(keys.key, args, kwargs) if cache is not None else None
        if cache is None or key is None:
            return await function(*args, **kwargs)
        kept = await in_pool(cache.get, key)
        if kept is not None:
            return from_bytes(kept)
        place = (id(asyncio.get_running_loop()), key)
        if place in running:
            return await asyncio.shield(running[place])
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        running[place] = future
        try:
            result = await function(*args, **kwargs)
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # nobody may be waiting for it
            raise
        else:
            future.set_result(result)
            await in_pool(_keep, cache, key, result)
            return result
        finally:
            del running[place]

    waiting.cell_keys = keys  # type: ignore[attr-defined]
    return cast(F, waiting)


def _keep(cache: Any, key: bytes, result: Any) -> Any:
    content = to_bytes(result)
    if content is not None:
        cache.put(key, content)
    return result

"""Keep what an expensive function returns: the same code on the same content is computed once, in any process."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
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
    signature = inspect.signature(function, eval_str=True)
    media = (pxt.Audio, pxt.Video, pxt.Document)
    files = {name for name, each in signature.parameters.items() if each.annotation in media}
    fixed = {name for name, each in signature.parameters.items() if each.kind is inspect.Parameter.KEYWORD_ONLY}
    prints: dict[str, str] = {}

    def key_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes | None:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = {name: Path(value) if name in files else value for name, value in bound.arguments.items()}
        constants = {name: given[name] for name in fixed}
        name = repr(sorted(constants.items()))
        if name not in prints:
            prints[name] = fingerprint(function, constants=constants, count_packages=counted_packages()).digest
        return content_key(prints[name], given)

    if not inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            cache = result_cache()
            key = key_of(args, kwargs) if cache is not None else None
            if cache is None or key is None:
                return function(*args, **kwargs)
            kept = cache.get(key)
            if kept is not None:
                return from_bytes(kept)
            return _keep(cache, key, function(*args, **kwargs))

        return cast(F, wrapper)

    running: dict[tuple[int, bytes], asyncio.Future[Any]] = {}

    @functools.wraps(function)
    async def waiting(*args: Any, **kwargs: Any) -> Any:
        cache = result_cache()
        key = await in_pool(key_of, args, kwargs) if cache is not None else None
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

    return cast(F, waiting)


def _keep(cache: Any, key: bytes, result: Any) -> Any:
    content = to_bytes(result)
    if content is not None:
        cache.put(key, content)
    return result

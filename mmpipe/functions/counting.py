"""How many cells each function computed in this process: what "only the new rows" is checked with.

Pixeltable's own `computed_values` stays 0, and a row count says nothing about what was computed for it. So every body
here counts itself: `@pxt.udf` over `@counted`.
"""

from __future__ import annotations

import functools
import inspect
import threading
import typing
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from pixeltable.func import Batch

# Stands for the code of this module in fingerprints: raise it when what is computed with its help changes.
__fingerprint__ = 1

F = TypeVar('F', bound=Callable[..., Any])

_counts: Counter[str] = Counter()
_lock = threading.Lock()


def counted(function: F) -> F:
    """Count the cells that `function` computes, under its name; goes below `@pxt.udf` or `@pxt.iterator`.

    A plain call counts 1, a batched call the length of its batch, a generator each row it yields. Cells are counted
    when they are done: a call that raises counts nothing. Works for `def`, `async def` and generators, and leaves the
    signature and annotations readable to Pixeltable.

    >>> @counted
    ... def doubled(x: int) -> int:
    ...     return 2 * x
    >>> before = counts().get('doubled', 0)
    >>> doubled(4), counts()['doubled'] - before
    (8, 1)
    """
    name = function.__name__
    cells = _batch_length(function)

    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            for row in function(*args, **kwargs):
                add(name, 1)
                yield row

    elif inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = await function(*args, **kwargs)
            add(name, cells(args, kwargs))
            return result

    else:

        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            result = function(*args, **kwargs)
            add(name, cells(args, kwargs))
            return result

    return typing.cast(F, wrapper)


def counts() -> dict[str, int]:
    """Cells computed so far in this process, by function name.

    >>> reset(); add('pixels', 3); counts()
    {'pixels': 3}
    """
    with _lock:
        return dict(_counts)


def reset() -> None:
    """Start counting from zero.

    >>> reset(); counts()
    {}
    """
    with _lock:
        _counts.clear()


def add(name: str, cells: int) -> None:
    """Count `cells` more under `name`; safe from any thread.

    >>> reset(); add('log_mel', 2); add('log_mel', 1); counts()
    {'log_mel': 3}
    """
    with _lock:
        _counts[name] += cells


def _batch_length(function: Callable[..., Any]) -> Callable[[tuple[Any, ...], dict[str, Any]], int]:
    """A function from one call's arguments to the number of cells it computes."""
    marker = Batch.__metadata__  # type: ignore[attr-defined]  # Batch[T] is Annotated[list[T], marker]
    for position, parameter in enumerate(inspect.signature(function, eval_str=True).parameters.values()):
        annotation = parameter.annotation
        if typing.get_origin(annotation) is typing.Annotated and annotation.__metadata__ == marker:
            name = parameter.name
            return lambda args, kwargs: len(kwargs[name] if name in kwargs else args[position])
    return lambda args, kwargs: 1

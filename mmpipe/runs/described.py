"""Objects as JSON, so that another process can make them again: transforms, decoders, optimizers, samplings.

Nothing is pickled. A frozen dataclass is its class and its fields, a function is where it is defined and a fingerprint
of its source, as a model factory is (`mmpipe.runs.factory`); any other object can say by a method
`made_by() -> (function, keyword arguments)` how it is made. What is none of these cannot be described.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import math
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from mmpipe.errors import RunError
from mmpipe.runs.factory import describe_factory, find_factory

TAG = '!'  # marks an object of JSON that stands for something else
MOST_NUMBERS = 4096  # of an array


class NotDescribed(Exception):
    """Something cannot be described; the text says what and why."""


def described(value: Any) -> Any:
    """A value as JSON that `rebuilt` takes.

    Args:
        value: None, numbers, strings, lists, tuples and dicts with string keys of these; small arrays; dataclasses;
            functions and classes at the top level of a module or script; `functools.partial` of them; objects with
            `made_by()`.

    Raises:
        NotDescribed: anything else.

    >>> described((1, {'a': None}))
    {'!': 'tuple', 'of': [1, {'a': None}]}
    >>> rebuilt(described(functools.partial(described, value=0.5)))()
    0.5
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {TAG: 'float', 'of': repr(value)}
    if isinstance(value, list):
        return [described(each) for each in value]
    if isinstance(value, tuple):
        return {TAG: 'tuple', 'of': [described(each) for each in value]}
    if isinstance(value, Mapping) and all(isinstance(key, str) and key != TAG for key in value):
        return {key: described(each) for key, each in value.items()}
    if isinstance(value, np.generic):
        return described(value.item())
    if isinstance(value, np.ndarray) and value.size <= MOST_NUMBERS and value.dtype.kind in 'bifu':
        return {TAG: 'array', 'of': value.tolist(), 'dtype': value.dtype.str}
    if isinstance(value, functools.partial):
        return {
            TAG: 'partial', 'by': described(value.func), 'of': described(list(value.args)),
            'with': described(value.keywords),
        }  # fmt: skip
    if hasattr(value, 'made_by') and not isinstance(value, type):
        maker, arguments = value.made_by()
        return {TAG: 'made', 'by': described(maker), 'with': described(arguments)}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        arguments = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        return {TAG: 'made', 'by': described(type(value)), 'with': described(arguments)}
    return _named(value)


def _named(value: Any) -> dict[str, Any]:
    name = getattr(value, '__qualname__', None)
    if not callable(value) or name is None or (not isinstance(value, type) and hasattr(value, '__self__')):
        raise NotDescribed(
            f'a {type(value).__name__} cannot be described: make it a frozen dataclass, a function at the top level of '
            f'a module, or give it made_by()'
        )
    module = getattr(value, '__module__', None) or ''
    there: Any = sys.modules.get(module)
    for part in name.split('.'):
        there = getattr(there, part, None)
    if there is not value:
        raise NotDescribed(f'{name!r} is not what {module} has under this name at its top level')
    if module.partition('.')[0] in ('mmpipe', 'torch'):  # the versions of these stand in the record
        return {TAG: 'named', 'module': module, 'qualname': name}
    record, reason = describe_factory(value)
    if record is None or record.get('kind') != 'function':
        raise NotDescribed(reason or f'{name!r} describes itself as something else')
    return {TAG: 'named', **record}


def rebuilt(value: Any, *, run: str = 'this run') -> Any:
    """What `described` described, made again.

    Args:
        value: JSON.
        run: id of the run it is of, for messages.

    Raises:
        RunError: a module, file or name is gone, or what is made refuses its arguments.

    Warns:
        ChangedSourceWarning: the source of a function or class has changed since.

    >>> rebuilt(described([(1.5, float('inf'))]))
    [(1.5, inf)]
    """
    if isinstance(value, list):
        return [rebuilt(each, run=run) for each in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(TAG)
    if kind is None:
        return {key: rebuilt(each, run=run) for key, each in value.items()}
    if kind == 'float':
        return float(value['of'])
    if kind == 'tuple':
        return tuple(rebuilt(each, run=run) for each in value['of'])
    if kind == 'array':
        return np.array(value['of'], dtype=value['dtype'])
    if kind == 'named':
        return _found(value, run)
    made = rebuilt(value['by'], run=run)
    arguments = rebuilt(value['with'], run=run)
    if kind == 'partial':
        return functools.partial(made, *rebuilt(value['of'], run=run), **arguments)
    try:
        return made(**arguments)
    except TypeError as error:  # its fields are others now
        raise RunError(
            f'Run {run} used a {made.__qualname__} that cannot be made again: {error}. Install the versions that the '
            f'run names, or put its source back.'
        ) from error


def _found(record: Mapping[str, Any], run: str) -> Any:
    if 'fingerprint' in record:
        return find_factory(record, run=run)
    try:
        found: Any = importlib.import_module(record['module'])
        for part in record['qualname'].split('.'):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise RunError(
            f'Run {run} used {record["module"]}.{record["qualname"]}, which is not here: {error}. Install the versions '
            f'that the run names.'
        ) from error
    return found

"""Which names a piece of code uses, and which statement makes a module-level one."""

from __future__ import annotations

import ast
import dis
import functools
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmpipe.fingerprints.normal_form import normal_form, parsed


def globals_of(code: types.CodeType) -> set[str]:
    """Global names that a function reads, those of functions inside it included.

    >>> sorted(globals_of(making.__code__))[:3]
    ['OSError', 'SyntaxError', 'ValueError']
    """
    found = {str(step.argval) for step in dis.get_instructions(code) if step.opname in ('LOAD_GLOBAL', 'LOAD_NAME')}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= globals_of(constant)
    return found


def chains_of(node: ast.AST) -> dict[str, set[tuple[str, ...]]]:
    """For each name, the attributes that are read from it.

    >>> chains_of(ast.parse('np.linalg.norm(x)'))
    {'np': {('linalg', 'norm')}, 'x': {()}}
    """
    found: dict[str, set[tuple[str, ...]]] = {}
    inner: set[int] = set()
    for each in ast.walk(node):  # outer attributes come before what they hold
        if id(each) in inner:
            continue
        chain: list[str] = []
        at: ast.AST = each
        while isinstance(at, ast.Attribute):
            chain.append(at.attr)
            at = at.value
            inner.add(id(at))
        if isinstance(at, ast.Name):
            found.setdefault(at.id, set()).add(tuple(reversed(chain)))
    return found


def making(scope: Mapping[str, Any], name: str) -> str | None:
    """Normal form of the module-level statements that bind a name; None where there is none.

    >>> making(vars(ast), 'nothing') is None
    True
    """
    file = scope.get('__file__')
    if not file:
        return None
    try:
        return making_in(file, name)
    except (OSError, SyntaxError, ValueError):
        return None


def making_in(file: str, name: str) -> str | None:
    """The same of a module by its file.

    Raises:
        OSError: it cannot be read.
        SyntaxError: it is no Python.
        ValueError: it is no text.

    >>> making_in(__file__, 'name') is None
    True
    """
    stat = Path(file).stat()
    return _making_in(file, name, (stat.st_mtime_ns, stat.st_size))


@functools.lru_cache(maxsize=4096)
def _making_in(file: str, name: str, stamp: tuple[int, int]) -> str | None:
    tree, _ = parsed(file)
    return ';'.join(normal_form(statement) for statement in tree.body if name in set(_bound(statement))) or None


def _bound(statement: ast.stmt) -> Iterator[str]:
    targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, 'target', None)]
    for target in targets:
        for node in ast.walk(target) if target is not None else ():
            if isinstance(node, ast.Name):
                yield node.id

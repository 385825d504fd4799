"""What the syntax tree of a piece of code says, found once per version of its file."""

from __future__ import annotations

import ast
import functools
import types
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mmpipe.fingerprints.names import chains_of
from mmpipe.fingerprints.normal_form import definition, normal_form, parsed

DYNAMIC = ('eval', 'exec', 'compile', 'globals', 'locals', 'vars', '__import__')


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What a fingerprint needs of a piece of code.

    Args:
        text: its normal form.
        imports: (module, dots before it, names; none for `import module`) of each import in it.
        dynamic: calls that only running would resolve.
        chains: for each name, the attributes that are read from it.
    """

    text: str
    imports: tuple[tuple[str, int, tuple[str, ...]], ...]
    dynamic: tuple[str, ...]
    chains: Mapping[str, set[tuple[str, ...]]]


def facts_of_code(code: types.CodeType) -> Facts | None:
    """The facts of a running function; None where its file does not hold this code (any more).

    >>> facts_of_code(facts_of_code.__code__).dynamic
    ()
    """
    try:
        return _facts_of_code(code, code.co_filename, code.co_firstlineno, _stamp(code.co_filename))
    except OSError:
        return None


def facts_of_file(path: str) -> Facts:
    """The facts of a whole module.

    Raises:
        OSError: it cannot be read.
        SyntaxError: it is no Python.
        ValueError: it is no text.

    >>> facts_of_file(__file__).imports[0]
    ('__future__', 0, ('annotations',))
    """
    return _facts_of_file(path, _stamp(path))


@functools.lru_cache(maxsize=4096)
def _facts_of_code(code: types.CodeType, path: str, line: int, stamp: tuple[int, int]) -> Facts | None:
    node = definition(code)
    return None if node is None else _facts(node)


@functools.lru_cache(maxsize=256)
def _facts_of_file(path: str, stamp: tuple[int, int]) -> Facts:
    return _facts(parsed(path)[0])


def _stamp(path: str) -> tuple[int, int]:
    stat = Path(path).stat()
    return stat.st_mtime_ns, stat.st_size


def _facts(node: ast.AST) -> Facts:
    imports: list[tuple[str, int, tuple[str, ...]]] = []
    dynamic = []
    for inner in ast.walk(node):
        if isinstance(inner, ast.Import):
            imports += [(alias.name, 0, ()) for alias in inner.names]
        elif isinstance(inner, ast.ImportFrom):
            imports.append((inner.module or '', inner.level, tuple(alias.name for alias in inner.names)))
        elif isinstance(inner, ast.Call):
            called = inner.func.id if isinstance(inner.func, ast.Name) else getattr(inner.func, 'attr', '')
            constant = len(inner.args) > 1 and isinstance(inner.args[1], ast.Constant)
            plain = isinstance(inner.func, ast.Name)
            by_variable = called == 'getattr' and not constant
            if called == 'import_module' or (plain and (called in DYNAMIC or by_variable)):
                dynamic.append(f'{called}(...)')
    return Facts(text=normal_form(node), imports=tuple(imports), dynamic=tuple(dynamic), chains=chains_of(node))

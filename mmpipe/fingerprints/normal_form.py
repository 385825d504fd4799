"""Source code in a form that only meaning changes: no comments, docstrings, annotations or layout; locals numbered."""

from __future__ import annotations

import ast
import functools
import types
from collections.abc import Iterator
from pathlib import Path

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_SKIPPED = (
    'type_params',
    'type_comment',
    'kind',
    'type_ignores',
    'returns',
    'annotation',
    'ctx',
    'lineno',
    'end_lineno',
)


def normal_form(node: ast.AST) -> str:
    """A definition, expression or module as text that is equal for equal meaning.

    Left out: comments, docstrings, annotations, decorators (what they do is in the object they return), the arguments
    of what is raised, and the names of local variables. Parameters keep their names, since calls may use them.

    Args:
        node: parsed source; not changed.

    >>> plain = ast.parse('def f(a):\\n  x = a + 1\\n  return x')
    >>> other = ast.parse('def f(a):\\n  "doc"\\n  y=a+1; return y')
    >>> normal_form(plain) == normal_form(other)
    True
    >>> normal_form(plain) == normal_form(ast.parse('def f(a): return a + 1'))
    False
    """
    return _text(node, {name: f'_{i}' for i, name in enumerate(_local_names(node))})


def _text(node: object, names: dict[str, str]) -> str:
    if isinstance(node, list):
        return '[' + ','.join(_text(item, names) for item in node) + ']'
    if not isinstance(node, ast.AST):
        return f'{type(node).__name__}:{node!r}'
    if isinstance(node, ast.Name):
        return f'Name({names.get(node.id, node.id)})'
    if isinstance(node, ast.Raise):
        kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return f'Raise({_text(kind, names)})'
    if isinstance(node, ast.AnnAssign):
        if node.value is None:
            return ''  # a bare annotation does nothing
        node = ast.Assign(targets=[node.target], value=node.value)
    parts = []
    for field, value in ast.iter_fields(node):
        if field in _SKIPPED or value is None or value == []:
            continue
        if field == 'decorator_list':
            continue
        if field == 'name' and isinstance(value, str):
            value = names.get(value, value)
        if field == 'body' and isinstance(value, list):
            value = _without_docstring(node, value)
        parts.append(f'{field}={value if field == "name" else _text(value, names)}')
    return f'{type(node).__name__}({",".join(parts)})'


def _without_docstring(node: ast.AST, body: list[ast.stmt]) -> list[ast.stmt]:
    if isinstance(node, (*_FUNCTIONS, ast.ClassDef, ast.Module)) and body:
        first = body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            return body[1:]
    return body


def _local_names(node: ast.AST) -> list[str]:
    """Names of local variables of a function, in order of first assignment; nothing for a class or module."""
    if not isinstance(node, (*_FUNCTIONS, ast.Lambda)):
        if isinstance(node, ast.Module) and len(node.body) == 1 and isinstance(node.body[0], _FUNCTIONS):
            return _local_names(node.body[0])
        return []
    kept = {arg.arg for inner in ast.walk(node) if isinstance(inner, ast.arguments) for arg in _arguments(inner)}
    kept |= {name for inner in ast.walk(node) if isinstance(inner, ast.Global) for name in inner.names}
    found: dict[str, None] = {}
    for inner in _in_order(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            found.setdefault(inner.id)
        elif (isinstance(inner, ast.ExceptHandler) and inner.name) or (
            isinstance(inner, _FUNCTIONS) and inner is not node
        ):
            found.setdefault(str(inner.name))
    return [name for name in found if name not in kept]


def _arguments(node: ast.arguments) -> list[ast.arg]:
    more = [arg for arg in (node.vararg, node.kwarg) if arg is not None]
    return [*node.posonlyargs, *node.args, *node.kwonlyargs, *more]


def _in_order(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _in_order(child)


@functools.lru_cache(maxsize=256)
def _parsed(path: str, stamp: tuple[int, int]) -> tuple[ast.Module, types.CodeType]:
    text = Path(path).read_text(encoding='utf-8')
    tree = ast.parse(text)
    return tree, compile(text, path, 'exec', dont_inherit=True)


def parsed(path: str) -> tuple[ast.Module, types.CodeType]:
    """Syntax tree and compiled code of a Python file as it is now on the disk.

    Raises:
        OSError: it cannot be read.
        SyntaxError: it is no Python.
    """
    stat = Path(path).stat()
    return _parsed(path, (stat.st_mtime_ns, stat.st_size))


def definition(code: types.CodeType) -> ast.AST | None:
    """The syntax tree of a running function, found in its file; None where the file does not hold this code (any more).

    Args:
        code: of a function or lambda. Its file may have been edited since it was imported, so the tree is taken only
            where the same place compiles to the same code.
    """
    try:
        tree, module = parsed(code.co_filename)
    except (OSError, SyntaxError, ValueError):
        return None
    same = [inner for inner in _nested(module) if same_code(inner, code)]
    if not same:
        return None
    # It may stand on another line than when it was imported; of two alike, either will do.
    place = next((inner for inner in same if inner.co_firstlineno == code.co_firstlineno), same[0])
    nodes = [node for node in ast.walk(tree) if _first_line(node) == place.co_firstlineno]
    if place.co_name != '<lambda>':
        return next((node for node in nodes if isinstance(node, _FUNCTIONS) and node.name == place.co_name), None)
    lambdas = [node for node in nodes if isinstance(node, ast.Lambda)]
    return lambdas[0] if len(lambdas) == 1 else next((node for node in lambdas if _holds(node.body, place)), None)


def _first_line(node: ast.AST) -> int | None:
    decorators = getattr(node, 'decorator_list', [])
    return decorators[0].lineno if decorators else getattr(node, 'lineno', None)


def _holds(body: ast.expr, code: types.CodeType) -> bool:
    """Whether a lambda's code was made from this expression."""
    start, end = (body.lineno, body.col_offset), (body.end_lineno, body.end_col_offset)
    places = [(line, column) for line, _, column, until in code.co_positions() if until]  # entry and exit have no place
    return all(start <= place < end for place in places)


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield constant
            yield from _nested(constant)


def same_code(a: types.CodeType, b: types.CodeType) -> bool:
    """Whether two code objects do the same, wherever they stand."""
    if (a.co_name, a.co_code, a.co_names, a.co_varnames, a.co_freevars) != (
        b.co_name, b.co_code, b.co_names, b.co_varnames, b.co_freevars,
    ):  # fmt: skip
        return False
    if a.co_qualname != b.co_qualname or _plain(a) != _plain(b):
        return False
    inner = [[c for c in code.co_consts if isinstance(c, types.CodeType)] for code in (a, b)]
    return len(inner[0]) == len(inner[1]) and all(same_code(x, y) for x, y in zip(*inner, strict=True))


def _plain(code: types.CodeType) -> list[tuple[type, object]]:
    return [(type(constant), constant) for constant in code.co_consts if not isinstance(constant, types.CodeType)]

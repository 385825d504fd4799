"""Naming a model factory so that another process can call it again: `module:qualname`, JSON arguments, fingerprint.

A run never stores code or a pickle. It stores where the code is, and a fingerprint of the part of it that built the
model, so that a rebuild can say when the code has changed since.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import json
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mmpipe.errors import ConfigError, RunError


class ChangedSourceWarning(UserWarning):
    """The source of a model factory is not what it was when the run was made."""


def describe_factory(factory: Any, args: Mapping[str, Any] | None = None) -> tuple[dict[str, Any] | None, str | None]:
    """What a run record says about the thing that made its model.

    Args:
        factory: a function or class at the top level of a module or script, an object with a `factory_record()`
            method (such as `mm.transfer` returns), or anything else.
        args: keyword arguments the factory is called with.

    Returns:
        (record, None) with a JSON record that `find_factory` takes, or (None, reason) when no other process could
        find the factory: a closure, a lambda, a built module, something typed into a REPL.

    Raises:
        ConfigError: `args` do not survive JSON unchanged.

    >>> record, reason = describe_factory(example_factory, {'width': 3})
    >>> record['module'], record['qualname'], record['args']
    ('mmpipe.runs.factory', 'example_factory', {'width': 3})
    >>> describe_factory(lambda: None)[1]
    "'<lambda>' is not a name at the top level of a module"
    """
    args = dict(args or {})
    try:
        survives = json.loads(json.dumps(args, allow_nan=False)) == args
    except (TypeError, ValueError):
        survives = False
    if not survives:
        raise ConfigError(
            f'args={args!r} do not survive JSON, so no run could record them. '
            f'Pass numbers, strings, booleans, lists and dicts with string keys.'
        )
    if hasattr(factory, 'factory_record'):
        return factory.factory_record(), None
    name = getattr(factory, '__qualname__', None)
    module_name = getattr(factory, '__module__', None)
    if name is None or module_name is None or not callable(factory):
        return None, f'a built {type(factory).__name__} was passed, not a factory that makes one'
    if '<' in name:
        return None, f'{name!r} is not a name at the top level of a module'
    module = sys.modules.get(module_name)
    file = getattr(module, '__file__', None)
    if module_name == '__main__':
        spec = getattr(module, '__spec__', None)
        if spec is not None:  # python -m package.module: importable under its real name
            module_name = spec.name
        elif file is None:
            return None, f'{name!r} was defined in an interactive session, not in a file'
    if file is None or not Path(file).is_file():
        return None, f'the source file of {module_name!r} cannot be found'
    return {
        'kind': 'function',
        'module': module_name,
        'qualname': name,
        'file': str(Path(file).resolve()),
        'args': args,
        'fingerprint': source_fingerprint(Path(file).read_text(encoding='utf-8'), name),
    }, None


def find_factory(record: Mapping[str, Any], *, run: str = 'this run') -> Callable[..., Any]:
    """The factory that a record of kind 'function' names, imported in this process.

    A module is imported by name, and if that fails with the folder its name was relative to on `sys.path`; a script
    is loaded from its file under a name other than `__main__`, so its `if __name__ == '__main__'` part does not run.

    Args:
        record: as `describe_factory` made it.
        run: name of the run, for messages.

    Raises:
        RunError: the module, file or name is gone.

    Warns:
        ChangedSourceWarning: the factory or something it uses in its module has changed.

    >>> record, _ = describe_factory(example_factory)
    >>> find_factory(record) is example_factory
    True
    """
    module = _import_script(record, run) if record['module'] == '__main__' else _import_module(record, run)
    found: Any = module
    for part in record['qualname'].split('.'):
        if not hasattr(found, part):
            raise RunError(
                f'Run {run} was made by {record["qualname"]!r} of {record["file"]}, which no longer has that name. '
                f'Put it back (the run knows its fingerprint), or load the weights into a model you build yourself: '
                f"safetensors.torch.load_file('<run>/checkpoints/<step>/model.safetensors')."
            )
        found = getattr(found, part)
    file = Path(getattr(module, '__file__', None) or record['file'])
    if source_fingerprint(file.read_text(encoding='utf-8'), record['qualname']) != record['fingerprint']:
        warnings.warn(
            f'The source of {record["qualname"]!r} in {file} has changed since run {run} was made; its weights are '
            f'loaded into what the code builds now.',
            ChangedSourceWarning,
            stacklevel=3,
        )
    return found


def source_fingerprint(source: str, qualname: str) -> str:
    """SHA-256 of a definition and of everything it uses, directly or not, from the top level of the same file.

    Docstrings, comments and formatting do not count. Names that come from other modules count by the import
    statement only: a change inside another module is not seen.

    Args:
        source: text of the whole file.
        qualname: the definition, such as `build_model` or `Model.build`.

    Returns:
        64 hexadecimal characters.

    >>> a = source_fingerprint('def f():\\n    return g() # x\\ndef g(): return 1\\ndef h(): pass', 'f')
    >>> a == source_fingerprint('def f():\\n    "doc"\\n    return g()\\n\\ndef g():\\n    return 1', 'f')
    True
    >>> a == source_fingerprint('def f(): return g()\\ndef g(): return 2', 'f')
    False
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, 'body', None)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and ast.get_docstring(node, False):
            node.body = body[1:] or [ast.Pass()]  # type: ignore[index]
    defined: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        for name in _names_bound(statement):
            defined.setdefault(name, []).append(statement)
    waiting, seen, texts = [qualname.split('.')[0]], set(), []
    while waiting:
        name = waiting.pop()
        if name in seen or name not in defined:
            continue
        seen.add(name)
        for statement in defined[name]:
            texts.append(f'{name}:{ast.unparse(statement)}')
            waiting += [node.id for node in ast.walk(statement) if isinstance(node, ast.Name)]
    return hashlib.sha256('\n'.join(sorted(texts)).encode()).hexdigest()


def _names_bound(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield statement.name
    elif isinstance(statement, (ast.Import, ast.ImportFrom)):
        for alias in statement.names:
            yield (alias.asname or alias.name).split('.')[0]
    else:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                yield node.id


def _import_module(record: Mapping[str, Any], run: str) -> Any:
    name, file = record['module'], Path(record['file'])
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        # Only the module itself may be looked for elsewhere; a package that it imports must simply be installed.
        if missing.name is None or not (name == missing.name or name.startswith(missing.name + '.')):
            raise
    if not file.is_file():
        raise RunError(
            f'Run {run} was made by {name}:{record["qualname"]}, but there is no module {name!r} here and {file} is '
            f'gone. Run from the folder that holds it, or put the file back.'
        )
    depth = name.count('.') + (file.name == '__init__.py')
    root = str(file.parents[depth])
    sys.path.insert(0, root)
    try:
        importlib.invalidate_caches()
        return importlib.import_module(name)
    except ModuleNotFoundError as missing:
        raise RunError(
            f'Run {run} was made by {name}:{record["qualname"]}, which cannot be imported from {root}: {missing}. '
            f'Run from the folder that holds it.'
        ) from missing
    finally:
        sys.path.remove(root)


def _import_script(record: Mapping[str, Any], run: str) -> Any:
    file = Path(record['file'])
    main = sys.modules.get('__main__')
    running = getattr(main, '__file__', None)
    if running and Path(running).resolve() == file:
        return main
    if not file.is_file():
        raise RunError(
            f'Run {run} was made by {record["qualname"]!r} in the script {file}, which is gone. Put it back, or build '
            f'the model yourself and load its weights from the run.'
        )
    name = '_mmpipe_script_' + hashlib.sha256(str(file).encode()).hexdigest()[:16]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise RunError(f'Run {run} was made by the script {file}, which Python cannot load: give it a .py name.')
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(file.parent))  # as `python file.py` does, so that its neighbours import
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        sys.path.remove(str(file.parent))
    return module


def example_factory(width: int = 1) -> int:
    """A factory for the examples above.

    >>> example_factory(width=2)
    2
    """
    return width

"""Everything that a function reaches: followed object by object, and noted as parts with digests."""

from __future__ import annotations

import builtins
import datetime
import decimal
import dis
import enum
import fractions
import functools
import hashlib
import importlib.util
import inspect
import re
import sys
import types
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from mmpipe.errors import MmpipeError
from mmpipe.fingerprints.facts import Facts, facts_of_code, facts_of_file
from mmpipe.fingerprints.names import globals_of, making, making_in
from mmpipe.fingerprints.places import distribution_of, file_of, is_project

STANDS_FOR_CODE = '__fingerprint__'
"""A module-level constant that stands for the code of its module: raise it when what the code computes changes."""

_PLAIN = (type(None), bool, int, float, complex, str, bytes, type(Ellipsis))
_BY_REPR = (
    PurePath, datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, decimal.Decimal, fractions.Fraction,
    uuid.UUID, range, np.dtype, np.generic,
)  # fmt: skip


class Walk:
    """One walk over everything that a function reaches."""

    def __init__(self) -> None:
        self.parts: dict[str, str] = {}
        self.packages: dict[str, str] = {}
        self.excluded: set[str] = set()
        self.unresolved: set[str] = set()
        self.seen: dict[int, Any] = {}  # objects by id; held, so that no id is given twice

    def object(self, value: Any, name: str, *, made: str | None = None) -> None:
        """Follow one object.

        Args:
            value: the object.
            name: how the code calls it, for messages.
            made: normal form of the statement that makes it, for a module-level name.
        """
        if id(value) in self.seen and not isinstance(value, _PLAIN):
            return
        self.seen[id(value)] = value
        inner = _wrapped(value)
        if inner:
            for each in inner:
                self.object(each, name)
        elif isinstance(value, types.ModuleType):
            self.module(value, name)
        elif isinstance(value, types.FunctionType):
            self.function(value)
        elif isinstance(value, (types.BuiltinFunctionType, types.MethodDescriptorType, np.ufunc)):
            self.package(getattr(value, '__module__', None) or 'builtins', name)
        elif isinstance(value, types.MethodType):
            self.object(value.__func__, name)
            self.object(value.__self__, name)
        elif isinstance(value, functools.partial):
            for each in (value.func, value.args, tuple(sorted(value.keywords.items()))):
                self.object(each, name)
        elif isinstance(value, type):
            self.type(value)
        else:
            self.value(value, name, made)

    def value(self, value: Any, name: str, made: str | None) -> None:
        """A constant, or an object that only its making can be told of."""
        text = self.constant(value, name)
        if text is not None:
            self.note(f'constant {name}', text)
            return
        if isinstance(value, (dict, list, set, bytearray, np.ndarray)) or not is_project(type(value).__module__):
            self.package(type(value).__module__, name)
        else:
            self.type(type(value))
        self.excluded.add(name)
        if made is not None:
            self.note(f'making of {name}', made)

    def constant(self, value: Any, name: str) -> str | None:
        """An immutable value as text; None for any other."""
        if isinstance(value, enum.Enum):
            self.type(type(value))
            return f'{type(value).__qualname__}.{value.name}'
        if type(value) in _PLAIN:
            return f'{type(value).__name__}:{value!r}'
        if isinstance(value, (tuple, frozenset)):
            items = [self._item(item, name) for item in value]
            if any(item is None for item in items):
                return None
            return f'{type(value).__name__}({",".join(sorted(items) if isinstance(value, frozenset) else items)})'  # type: ignore[arg-type]
        if isinstance(value, re.Pattern):
            return f're:{value.pattern!r}:{value.flags}'
        if isinstance(value, _BY_REPR):
            return f'{type(value).__name__}:{value!r}'
        if is_dataclass(value) and not isinstance(value, type) and value.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            self.type(type(value))
            held = [(field.name, self._item(getattr(value, field.name), name)) for field in fields(value)]
            return None if any(item is None for _, item in held) else f'{type(value).__qualname__}{held}'
        return None

    def _item(self, value: Any, name: str) -> str | None:
        if callable(value) or isinstance(value, types.ModuleType):
            self.object(value, name)
            return f'object {name_of(value)}'
        return self.constant(value, name)

    def function(self, function: types.FunctionType) -> None:
        """The code of a project function and all it uses; the version of the package of any other."""
        # What `functools.wraps` copies is the name of the function inside; where the code is, only the globals tell.
        where, name = str(function.__globals__.get('__name__')), name_of(function)
        captured = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
        if not is_project(where):
            self.package(where, name)
            held = [_content(cell) for cell in captured.values()]
            for inner in (getattr(function, '__wrapped__', None), *held):  # a package's decorator over project code
                if isinstance(inner, types.FunctionType) and is_project(inner.__globals__.get('__name__')):
                    self.object(inner, name)
            return
        for variable, cell in captured.items():
            self.object(_content(cell), f'{name}.{variable}')
        for position, default in enumerate(function.__defaults__ or ()):
            self.object(default, f'{name} default {position}')
        for keyword, default in (function.__kwdefaults__ or {}).items():
            self.object(default, f'{name} default {keyword}')
        if self.pinned(where, function.__globals__):
            return
        facts = facts_of_code(function.__code__)
        if facts is None:
            self.note(f'code of {name}', _bytecode(function.__code__))
            self.unresolved.add(f'the source of {name} is not what runs: restart after an edit; its bytecode counts')
        else:
            self.facts(facts, f'code of {name}', function.__globals__.get('__package__') or '', name)
        chains = facts.chains if facts is not None else {}
        for used in sorted(globals_of(function.__code__)):
            self.name(used, function.__globals__, chains.get(used, {()}), name)

    def facts(self, facts: Facts, label: str, package: str, user: str) -> None:
        """Code, the modules it imports, and the calls in it that cannot be followed."""
        self.note(label, facts.text)
        self.unresolved |= {f'{call} in {user}' for call in facts.dynamic}
        for module, dots, names in facts.imports:
            try:
                module = importlib.util.resolve_name('.' * dots + module, package)
            except ImportError as error:
                self.unresolved.add(f'an import in {user} ({error})')
                continue
            for attribute in names or (None,):
                self.imported(module, attribute, user)

    def pinned(self, module: str, scope: Mapping[str, Any]) -> bool:
        """Whether a constant stands for the code of a module; it is noted then."""
        if STANDS_FOR_CODE not in scope:
            return False
        self.note(f'code of {module}', f'stands for itself: {scope[STANDS_FOR_CODE]!r}')
        return True

    def name(self, used: str, scope: Mapping[str, Any], chains: Iterable[tuple[str, ...]], user: str) -> None:
        """A global name, and what is reached through it: `np.log`, `helpers.clean`."""
        if used not in scope:
            if not hasattr(builtins, used):
                self.unresolved.add(f'{used} in {user}')
            return
        for chain in sorted(chains):
            value, name, owner = scope[used], f'{scope.get("__name__")}.{used}', scope
            for attribute in chain:
                if not isinstance(value, types.ModuleType) or not is_project(value.__name__):
                    break
                if not hasattr(value, attribute):
                    self.unresolved.add(f'{value.__name__}.{attribute} in {user}')
                    break
                owner, name = vars(value), f'{value.__name__}.{attribute}'
                value = getattr(value, attribute)
            if isinstance(value, types.ModuleType) and is_project(value.__name__) and value is not scope.get(used):
                self.module(value, name)
            elif isinstance(value, types.ModuleType) and not is_project(value.__name__):
                self.package(value.__name__, name)
            elif not isinstance(value, types.ModuleType):
                self.object(value, name, made=making(owner, name.rpartition('.')[2]))

    def type(self, cls: type) -> None:
        """A project class: its bases, methods and class attributes."""
        if id(cls) in self.seen and f'class {name_of(cls)}' in self.parts:
            return
        self.seen[id(cls)] = cls
        if not is_project(cls.__module__):
            self.package(cls.__module__, name_of(cls))
            return
        if self.pinned(cls.__module__, vars(sys.modules.get(cls.__module__, cls))):
            return
        self.note(f'class {name_of(cls)}', ','.join(name_of(base) for base in cls.__bases__))
        for base in cls.__bases__:
            self.type(base)
        if is_dataclass(cls):
            listed = [(field.name, field.init, field.repr, field.compare) for field in fields(cls)]
            self.note(f'fields of {name_of(cls)}', repr(listed))
        for attribute, value in vars(cls).items():
            name = f'{name_of(cls)}.{attribute}'
            if isinstance(value, property):
                for part in (value.fget, value.fset):
                    if part is not None:
                        self.object(part, name)
            elif isinstance(value, (staticmethod, classmethod)):
                self.object(value.__func__, name)
            elif isinstance(value, functools.cached_property):
                self.object(value.func, name)
            elif isinstance(value, types.FunctionType):
                # A dataclass writes methods of its own, which are in no file; its fields are above.
                if not is_dataclass(cls) or value.__code__.co_filename == getattr(
                    sys.modules.get(cls.__module__), '__file__', ''
                ):
                    self.object(value, name)
            elif not attribute.startswith('__') and type(value) in (*_PLAIN, tuple, frozenset):
                self.object(value, name)

    def imported(self, module: str, attribute: str | None, user: str) -> None:
        """A module that a function imports when it runs; one of the project counts as a whole, read from its file."""
        if not is_project(module):
            self.package(module, user)
            return
        loaded = sys.modules.get(module)
        if loaded is not None and attribute is not None and hasattr(loaded, attribute):
            name = f'{module}.{attribute}'
            self.object(getattr(loaded, attribute), name, made=making(vars(loaded), attribute))
        elif attribute is not None and file_of(f'{module}.{attribute}') is not None:
            self.whole(f'{module}.{attribute}', user)
        else:
            self.whole(module, user)

    def module(self, module: types.ModuleType, name: str) -> None:
        """A module that is handed around as an object."""
        if is_project(module.__name__):
            self.whole(module.__name__, name)
        else:
            self.package(module.__name__, name)

    def whole(self, module: str, user: str) -> None:
        """All the code of a project module, from its file, and of the project modules it imports."""
        label = f'code of {module}'
        if label in self.parts:
            return
        file = file_of(module)
        if file is None:
            self.unresolved.add(f'module {module} in {user}')
            return
        try:
            pinned = making_in(file, STANDS_FOR_CODE)
            facts = facts_of_file(file)
        except (OSError, SyntaxError, ValueError) as error:
            self.unresolved.add(f'module {module} in {user} ({error})')
            return
        if pinned is not None:
            self.note(label, pinned)
            return
        self.parts[label] = ''  # modules may import each other
        is_package = Path(file).name == '__init__.py'
        self.facts(facts, label, module if is_package else module.rpartition('.')[0], module)
        self.parts[label] = digest_of(facts.text)

    def files(self, function: Any, constants: dict[str, Any]) -> None:
        """The contents of the files that a function says it loads."""
        for each in (function, *_wrapped(function)):
            if hasattr(each, 'loads_files'):
                self.read(each, constants)

    def read(self, function: Any, constants: dict[str, Any]) -> None:
        """The contents of the files that `loads` names."""
        try:
            files = list(function.loads_files(**_taken(function.loads_files, constants)))
        except MmpipeError as error:
            self.unresolved.add(f'files of {name_of(function)} ({error})')
            return
        for file in files:
            path = Path(file)
            try:
                stat = path.stat()
                digest = _file_digest(path, (stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino))
            except OSError as error:
                self.unresolved.add(f'file {path} of {name_of(function)} ({error.strerror})')
                continue
            self.note(f'file {path.name}', digest)

    def package(self, module: str, user: str) -> None:
        """Record the version of the package that a module belongs to."""
        top = module.partition('.')[0]
        if top in sys.stdlib_module_names or top == 'builtins':
            return
        found = distribution_of(top)
        if found is None:
            self.unresolved.add(f'package {top} in {user}')
        else:
            self.packages[found[0]] = found[1]

    def note(self, label: str, text: str) -> None:
        """Keep the digest of a part; two with one name both count."""
        digest = digest_of(text)
        known = self.parts.get(label)
        self.parts[label] = digest if known in (None, digest) else digest_of(sorted((str(known), digest)))


def _taken(function: Any, constants: dict[str, Any]) -> dict[str, Any]:
    """The constants that a function has parameters for: a column has others that say nothing of its files."""
    parameters = inspect.signature(function).parameters
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters.values()):
        return constants
    return {name: value for name, value in constants.items() if name in parameters}


@functools.lru_cache(maxsize=256)
def _file_digest(path: Path, stamp: tuple[int, ...]) -> str:
    with path.open('rb') as opened:
        return hashlib.file_digest(opened, 'blake2b').hexdigest()[:32]


def digest_of(content: object) -> str:
    """32 hex digits for anything whose `repr` tells it apart.

    >>> digest_of('a') == digest_of('a') != digest_of('b')
    True
    """
    return hashlib.blake2b(repr(content).encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()


def name_of(value: Any) -> str:
    """Module and qualified name of a function, class or object; of what is inside a Pixeltable function.

    >>> name_of(name_of)
    'mmpipe.fingerprints.walk.name_of'
    """
    value = (*_wrapped(value), value)[0]
    if isinstance(value, types.FunctionType):
        return f'{value.__globals__.get("__name__")}.{value.__code__.co_qualname}'
    return f'{getattr(value, "__module__", None)}.{getattr(value, "__qualname__", type(value).__qualname__)}'


def _wrapped(value: Any) -> tuple[Any, ...]:
    """What is inside a Pixeltable function or a cache; nothing for anything else."""
    if isinstance(value, functools._lru_cache_wrapper):
        return (value.__wrapped__,)
    if not type(value).__module__.startswith('pixeltable.func.'):
        return ()
    held = [getattr(value, name, None) for name in ('py_fns', 'agg_classes', 'decorated_callable')]
    return tuple(inner for each in held if each for inner in (each if isinstance(each, list) else [each]))


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _bytecode(code: types.CodeType) -> str:
    """What a function does where its source cannot be had; another version of Python gives another one."""
    steps = [f'{step.opname} {"" if isinstance(step.argval, types.CodeType) else step.argrepr}'
             for step in dis.get_instructions(code)]  # fmt: skip
    inner = [_bytecode(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return f'{sys.version_info[:2]} {steps} {inner}'

"""A small project on disk whose source is edited between the steps of a test, and loaded as a new process would."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

PACKAGE = 'edited_shop'


@dataclass(frozen=True, kw_only=True)
class Code:
    """What the source files say: which variant of each piece, and the constants. `looks` changes no meaning.

    Args:
        deep: variant of the helper two imports away.
        step: constant beside it.
        scaled: variant of the function of `made`.
        plus: variant of the function of `more`.
        default: default of a parameter of the function of `other`.
        weigh: variant of the function of `weight`, in the component view.
        pieces: variant of the iterator of the component view.
        by: parameter in the expression of `made`.
        looks: comments, docstrings and names of local variables.
    """

    deep: int = 0
    step: int = 1
    scaled: int = 0
    plus: int = 0
    default: int = 1
    weigh: int = 0
    pieces: int = 0
    by: int = 1
    looks: int = 0


DEEP = ('x + STEP', 'x - STEP')
SCALED = ('lifted(x) * by', 'lifted(x) * by + 100')
PLUS = ('made + y', 'made - y')
WEIGH = ('piece * 10 + lifted(made)', 'piece * 20 + lifted(made)')
PIECES = ('x % 3', '(x + 1) % 3')


def sources(code: Code) -> dict[str, str]:
    """File name to source text."""
    held, comment = (('found', ''), ('kept', '    # in whole numbers\n'), ('sum_of', '    """A number."""\n'))[
        code.looks
    ]
    return {
        '__init__.py': '',
        'deep.py': f"""
STEP = {code.step}


def base(x):
{comment}    {held} = {DEEP[code.deep]}
    return {held}
""",
        'middle.py': f"""
from .deep import base


def lifted(x):
{comment}    return 2 * base(x)
""",
        'functions.py': f"""
from __future__ import annotations

from collections.abc import Iterator
from typing import TypedDict

import pixeltable as pxt

from mmpipe.functions import cached, counted

from . import deep
from .middle import lifted


@pxt.udf
@cached
@counted
async def scaled(x: int, *, by: int) -> int:
{comment}    {held} = {SCALED[code.scaled]}
    return {held}


@pxt.udf
@cached
@counted
def plus(made: int, y: int) -> int:
{comment}    return {PLUS[code.plus]}


@pxt.udf
@counted
def shifted(x: int, by: int = {code.default}) -> int:
{comment}    return x + by + deep.STEP


@pxt.udf
@counted
def minus(made: int) -> int:
    return -made


@pxt.udf
@counted
def weigh(piece: int, made: int) -> int:
{comment}    from .middle import lifted

    return {WEIGH[code.weigh]}


class Piece(TypedDict):
    piece: int


@pxt.iterator
@counted
def pieces(x: int) -> Iterator[Piece]:
    for {held} in range({PIECES[code.pieces]}):
        yield {{'piece': {held}}}
""",
        'schema.py': f"""
import pixeltable as pxt

from .functions import minus, pieces, plus, scaled, shifted, weigh


def declared():
    Tables = pxt.model_base()

    class Things(Tables, name='things'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        x: pxt.Int | None
        y: pxt.Int | None
        split: pxt.String | None
        origin: pxt.Json | None
        made = scaled(x, by={code.by})
        more = plus(made, y)
        other = shifted(x)

    class Large(Tables, name='large', base=Things.where(Things.x > 2)):
        less = minus(made)

    class Parts(Tables, name='parts', base=Things, iterator=pieces(Things.x)):
        weight = weigh(piece, made)

    return Tables
""",
    }


class Project:
    """The files of the project in a folder, as one version of the code after another."""

    def __init__(self, folder: Path, code: Code) -> None:
        self.folder = folder / PACKAGE
        self.folder.mkdir()
        self._written = 0
        self.edit(code)

    def edit(self, code: Code) -> None:
        """Write the files of another version that differ, and forget what was loaded."""
        self.code = code
        self._written += 1
        for name, text in sources(self.code).items():
            path = self.folder / name
            if not path.exists() or path.read_text() != text:
                path.write_text(text)
                # Edits of a test lie closer together than the clock of the file system can tell apart.
                os.utime(path, (1e9 + self._written, 1e9 + self._written))
        forget()

    def declared(self):
        """The base class of the table classes, declared anew: a class binds to one directory."""
        return self.schema().declared()

    def schema(self) -> ModuleType:
        """The module that declares the tables."""
        return importlib.import_module(f'{PACKAGE}.schema')


def forget() -> None:
    """Forget the loaded code of the project, and what Pixeltable has loaded with it: so begins a new process."""
    from pixeltable.func.function_registry import FunctionRegistry
    from pixeltable.runtime import reset_runtime

    names = [name for name in sys.modules if name == PACKAGE or name.startswith(f'{PACKAGE}.')]
    for name in names:
        del sys.modules[name]
        FunctionRegistry.get().deregister_module(name)
    importlib.invalidate_caches()
    reset_runtime()


@contextmanager
def project(folder: Path, code: Code | None = None) -> Iterator[Project]:
    """A project in a folder that can be imported from, while the block runs."""
    kept = sys.dont_write_bytecode
    sys.dont_write_bytecode = True  # compiled files are told apart by whole seconds
    sys.path.insert(0, str(folder))
    try:
        yield Project(folder, code or Code())
    finally:
        sys.path.remove(str(folder))
        sys.dont_write_bytecode = kept
        forget()

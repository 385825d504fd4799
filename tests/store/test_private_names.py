"""Only mmpipe/store touches what Pixeltable keeps private, and it checks for all of that at its start."""

from __future__ import annotations

import ast
import pkgutil
from collections.abc import Iterator
from pathlib import Path

import pixeltable
import pytest

import mmpipe
from mmpipe.store.engine import INTERNALS

PACKAGE = Path(mmpipe.__file__).parent
# What Pixeltable's own documentation imports from; a UDF's return type is declared with type_system, func and exprs.
PUBLIC = ('pixeltable', 'pixeltable.functions', 'pixeltable.type_system', 'pixeltable.func', 'pixeltable.exprs')
MODULES = {f'pixeltable.{module.name}' for module in pkgutil.iter_modules(pixeltable.__path__)}
PRIVATE_ATTRIBUTES = (
    '_tbl_version_path', '_tbl_version', '_tbl_path', '_from_clause', '_get_schema', '__registered_models__',
)  # fmt: skip


def imported(path: Path) -> Iterator[tuple[str, str]]:
    """(module, name) of each import from Pixeltable in a file."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.ImportFrom) and (node.module or '').split('.')[0] == 'pixeltable':
            for alias in node.names:
                whole = f'{node.module}.{alias.name}'  # `from pixeltable import exprs` imports a module
                yield (whole, '') if whole in MODULES else (node.module or '', alias.name)
        elif isinstance(node, ast.Import):
            yield from ((alias.name, '') for alias in node.names if alias.name.split('.')[0] == 'pixeltable')


OUTSIDE = [path for path in sorted(PACKAGE.rglob('*.py')) if PACKAGE / 'store' not in path.parents]


@pytest.mark.parametrize('folder', sorted({path.relative_to(PACKAGE).parts[0] for path in OUTSIDE}))
def test_nothing_outside_the_store_touches_private_names(folder):
    paths = [path for path in OUTSIDE if path.relative_to(PACKAGE).parts[0] == folder]
    allowed = PUBLIC if folder == 'functions' else PUBLIC[:-1]
    found = [(path.name, module, name) for path in paths for module, name in imported(path) if module not in allowed]
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Attribute) and node.attr in PRIVATE_ATTRIBUTES:
                found.append((path.name, str(node.lineno), node.attr))
    assert found == []


def test_the_store_checks_every_private_name_it_imports():
    checked = {entry.replace(':', '.') for entry in INTERNALS}
    private = {
        f'{module}.{name}'.removesuffix('.')
        for path in (PACKAGE / 'store').glob('*.py')
        for module, name in imported(path)
        if module not in PUBLIC[:-1]
    }
    assert len(private) > 10
    assert {name for name in private if not any(f'{entry}.'.startswith(f'{name}.') for entry in checked)} == set()

"""Where code lives: in the project, whose code counts, or in a package, whose version does."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import site
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

OWN = frozenset({'mmpipe', 'pipelines'})  # followed as project code, wherever they are installed


def is_project(module: str | None) -> bool:
    """Whether a module's code is followed: of the project, and of mmpipe itself.

    >>> is_project('mmpipe.cores'), is_project('numpy.linalg'), is_project('json')
    (True, False, False)
    """
    if not module:
        return False
    top = module.partition('.')[0]
    if top in OWN or top == '__main__':
        return True
    return _top_is_project(top)


@functools.cache
def _top_is_project(top: str) -> bool:
    if top in sys.stdlib_module_names or top in sys.builtin_module_names:
        return False
    loaded = sys.modules.get(top)
    spec = getattr(loaded, '__spec__', None) or importlib.util.find_spec(top)
    if spec is None:
        return False
    places = [spec.origin] if spec.origin else list(spec.submodule_search_locations or ())
    installed = [*site.getsitepackages(), site.getusersitepackages(), *sysconfig.get_paths().values()]
    installed = [str(Path(folder).resolve()) for folder in installed if 'lib' in Path(folder).parts[1:]]
    return not any(str(Path(place).resolve()).startswith(folder + '/') for place in places for folder in installed)


@functools.cache
def distributions() -> Mapping[str, list[str]]:
    """Top-level module name to the distributions that install it.

    >>> distributions()['PIL'][0].lower()
    'pillow'
    """
    return importlib.metadata.packages_distributions()


def file_of(module: str) -> str | None:
    """The file of a module, found without importing it.

    >>> Path(file_of('mmpipe.cores')).name, file_of('mmpipe.nothing')
    ('cores.py', None)
    """
    loaded = sys.modules.get(module)
    if loaded is not None:
        return getattr(loaded, '__file__', None)
    parent, _, last = module.rpartition('.')
    if not parent:
        spec = importlib.util.find_spec(module)
        return spec.origin if spec is not None else None
    holder = sys.modules.get(parent)
    if holder is not None:
        folders = [Path(folder) for folder in getattr(holder, '__path__', ())]
    else:
        above = file_of(parent)
        folders = [Path(above).parent] if above is not None else []
    for folder in folders:
        for candidate in (folder / f'{last}.py', folder / last / '__init__.py'):
            if candidate.is_file():
                return str(candidate)
    return None

"""Where code lives: in the project, whose code counts, or in a package, whose version does."""

from __future__ import annotations

import functools
import importlib.metadata
import importlib.util
import sys
from pathlib import Path

INSTALLED = {'site-packages', 'dist-packages'}
ALIASES = {
    'PIL': 'pillow',
    'bs4': 'beautifulsoup4',
    'cv2': 'opencv-python',
    'sklearn': 'scikit-learn',
    'yaml': 'pyyaml',
}
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
    paths = [Path(place).resolve() for place in places]
    if any(INSTALLED & set(path.parts) for path in paths):
        return False
    # Elsewhere (`pip install --target`), the record of a package lies beside it and lists its files.
    folders = {path.parent.parent if path.name == '__init__.py' else path.parent for path in paths}
    return not any(_installs(record, top) for folder in folders for record in folder.glob('*.dist-info/RECORD'))


def _installs(record: Path, top: str) -> bool:
    lines = record.read_text(encoding='utf-8', errors='replace').splitlines()
    return any(line.startswith((f'{top}/', f'{top}.')) for line in lines)


@functools.cache
def distribution_of(top: str) -> tuple[str, str] | None:
    """Name and version of the distribution that installs a top-level module; None where there is none.

    >>> distribution_of('PIL')[0], distribution_of('no_such_module')
    ('pillow', None)
    """
    name = ALIASES.get(top, top)
    try:
        return name, importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
    # Reads the records of everything that is installed, a second's work: only for names nothing else tells.
    for found in importlib.metadata.packages_distributions().get(top, ()):
        return found, importlib.metadata.version(found)
    return None


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

"""What a project settles for itself, in its `pyproject.toml` under `[tool.mmpipe]`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

from mmpipe.errors import ConfigError
from mmpipe.home import project_root

# Stands for the code of this module in fingerprints: raise it when what is computed with its help changes.
__fingerprint__ = 1

KNOWN = ('count_packages',)


def counted_packages(start: str | Path | None = None) -> tuple[str, ...]:
    """Packages whose version counts: `count_packages = ["torch"]` makes a column stale that calls another torch.

    Without it versions are recorded and do not count, since most releases change no value. `["*"]` counts all packages.

    Args:
        start: where the project is looked for; the working directory when None.

    Raises:
        ConfigError: `pyproject.toml` cannot be read, or has a setting that is not known or not of that form.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp())
    >>> _ = (root / 'pyproject.toml').write_text('[tool.mmpipe]\\ncount_packages = ["timm", "torch"]')
    >>> counted_packages(root)
    ('timm', 'torch')
    """
    file = project_root(start) / 'pyproject.toml'
    try:
        found = tomllib.loads(file.read_text(encoding='utf-8')).get('tool', {}).get('mmpipe', {})
    except FileNotFoundError:
        return ()
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"'{file}' is not TOML ({error}): correct it") from error
    unknown = [name for name in found if name not in KNOWN]
    if unknown:
        raise ConfigError(f"'{file}' sets {', '.join(unknown)} under [tool.mmpipe]; known are {', '.join(KNOWN)}")
    names = found.get('count_packages', [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f'\'{file}\': count_packages is {names!r}; give a list of names, as in ["torch"]')
    return tuple(names)


def chosen(packages: Mapping[str, str], names: Iterable[str]) -> dict[str, str]:
    """The packages among some names, '*' standing for all.

    >>> chosen({'torch': '2.14', 'numpy': '2.3'}, ['torch']), len(chosen({'torch': '2.14', 'numpy': '2.3'}, ['*']))
    ({'torch': '2.14'}, 2)
    """
    wanted = set(names)
    return {name: version for name, version in packages.items() if name in wanted or '*' in wanted}

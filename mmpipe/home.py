"""Where a project keeps its state: `.mmpipe` at the project root, never in the user's home directory."""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path

from mmpipe.errors import ConfigError

# Stands for the code of this module in fingerprints: raise it when what is computed with its help changes.
__fingerprint__ = 1

HOME_VARIABLE = 'MMPIPE_HOME'
MEDIA_VARIABLE = 'MMPIPE_MEDIA'
DATABASE_VARIABLE = 'PIXELTABLE_DB_CONNECT_STR'
DIRECTORY = re.compile(r'[A-Za-z][A-Za-z0-9_-]*(/[A-Za-z][A-Za-z0-9_-]*)*')


def project_root(start: str | os.PathLike[str] | None = None) -> Path:
    """Directory of the nearest `.mmpipe` or `pyproject.toml` at or above `start`; `start` itself when there is none.

    Args:
        start: where to look from; the working directory when None.

    >>> import tempfile
    >>> root = Path(tempfile.mkdtemp()).resolve()
    >>> (root / 'pyproject.toml').touch(); (root / 'a' / 'b').mkdir(parents=True)
    >>> project_root(root / 'a' / 'b') == root
    True
    """
    here = Path(start or Path.cwd()).resolve()
    for folder in (here, *here.parents):
        if (folder / '.mmpipe').is_dir() or (folder / 'pyproject.toml').is_file():
            return folder
    return here


def home_dir() -> Path:
    """The project's state: `$MMPIPE_HOME` when set, else `.mmpipe` at the project root. Not created here.

    Raises:
        ConfigError: the variable holds a URL.

    >>> home_dir().is_absolute()
    True
    """
    return _named(HOME_VARIABLE) or project_root() / '.mmpipe'


def _named(variable: str) -> Path | None:
    """The folder that a variable names."""
    named = os.environ.get(variable)
    if named and '://' in named:
        raise ConfigError(f'{variable}={named}: a folder of this machine is meant. Snapshots alone lie at URLs (root=)')
    return Path(named).expanduser().resolve() if named else None


def check_directory(directory: str) -> str:
    """A name of a catalog directory, as it was given; it names a folder of shards too.

    Raises:
        ConfigError: Pixeltable takes no such name, or it would leave the folder of shards.

    >>> check_directory('shop/spring-2')
    'shop/spring-2'
    """
    if not DIRECTORY.fullmatch(directory):
        raise ConfigError(
            f"'{directory}' cannot be a directory of tables: give another one (--dir), of ASCII letters, digits, _ and "
            f'-, beginning with a letter, with / between a directory and one inside it'
        )
    if directory != directory.lower():  # Pixeltable folds it, and would not find it again under this name
        raise ConfigError(f"'{directory}' has capitals, and Pixeltable's directories have none: '{directory.lower()}'")
    return directory


def shards_dir(name: str) -> Path:
    """Where the snapshots of pipeline `name` are written unless a root is given.

    >>> shards_dir('shop').parts[-2:]
    ('shards', 'shop')
    """
    return home_dir() / 'shards' / name


def runs_dir() -> Path:
    """Where training runs are written unless a directory is given.

    >>> runs_dir().name
    'runs'
    """
    return home_dir() / 'runs'


def features_dir() -> Path:
    """Where features of frozen encoders are kept (`mm.embed`) unless a folder is given.

    >>> features_dir().name
    'features'
    """
    return home_dir() / 'features'


def cache_dir() -> Path:
    """Where converted weights are kept; safe to delete.

    >>> cache_dir().name
    'cache'
    """
    return home_dir() / 'cache'


def shard_cache_dir() -> Path:
    """Where shards of object stores are kept while they are read; safe to delete when nothing reads them.

    >>> shard_cache_dir().parts[-2:]
    ('cache', 'shards')
    """
    return cache_dir() / 'shards'


def media_dir() -> Path:
    """Where files of remote sources are kept, by their content; Pixeltable refers to them, so they are not to delete.

    `$MMPIPE_MEDIA` when set, as where several machines share it, else `media` in the project's home.

    >>> media_dir().name
    'media'
    """
    return _named(MEDIA_VARIABLE) or home_dir() / 'media'


def has_own_database() -> bool:
    """Whether tables lie in a Postgres that Pixeltable starts, and not in one that `PIXELTABLE_DB_CONNECT_STR` names.

    >>> os.environ.pop('PIXELTABLE_DB_CONNECT_STR', None); has_own_database()
    True
    """
    return not os.environ.get(DATABASE_VARIABLE)


def configure_pixeltable() -> Path:
    """Point Pixeltable at the project's home, unless that is settled already. Call it before importing Pixeltable.

    Pixeltable starts its Postgres as soon as a schema with an iterator view is imported, and at its default
    verbosity prints to stdout, which would break `--json`; so both are settled through the environment here. Where
    Pixeltable runs already, as in the daemon of its own `pxt` command, nothing is touched.

    Returns:
        The Pixeltable home in force.

    Raises:
        ConfigError: the home has a space in its path; Pixeltable's Postgres does not start there.
    """
    running = running_home()
    if running is not None:
        return running
    home = pixeltable_home()
    if ' ' in str(home) and has_own_database():
        raise ConfigError(
            f"Pixeltable's Postgres cannot start in '{home}': the path has a space in it. "
            f'Set {HOME_VARIABLE} to a directory without one.'
        )
    os.environ['PIXELTABLE_HOME'] = str(home)
    os.environ.setdefault('PIXELTABLE_VERBOSITY', '0')
    # Pixeltable's Postgres asks for a runtime directory that containers do not set, and then uses one of its own.
    warnings.filterwarnings('ignore', message='XDG_RUNTIME_DIR is not set')
    home.mkdir(parents=True, exist_ok=True)
    return home


def pixeltable_home() -> Path:
    """Pixeltable's home for this project: `$PIXELTABLE_HOME` when set, else `pixeltable` in the project's home."""
    return Path(os.environ.get('PIXELTABLE_HOME') or home_dir() / 'pixeltable')


def running_home() -> Path | None:
    """The home that Pixeltable has settled on in this process; None when it has not yet."""
    config = getattr(getattr(sys.modules.get('pixeltable.config'), 'Config', None), '_Config__instance', None)
    return None if config is None else Path(config.home)

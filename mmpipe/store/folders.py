"""The folders that a shared catalog refers to: every process that opens it has to have the same ones.

    Postgres      rows, versions, the ledger, the quarantine, locks    shared by all who connect
    these folders arrays and media that columns hold, downloads        shared only where somebody shares them

Tables refer to files by their paths. A machine with other folders under these paths, or these under others, would
store rows that nobody else can read, and take everybody else's for gone. So the database keeps the paths, and a token
that lies in each folder too.
"""

from __future__ import annotations

import secrets
from pathlib import Path

import sqlalchemy as sql

from mmpipe.durable import write_bytes
from mmpipe.errors import ConfigError
from mmpipe.home import MEDIA_VARIABLE, media_dir

MARK = '.mmpipe-catalog'
_LOCK = 0x6D6D70697065  # one that makes the table at a time

_folders = sql.Table(
    'mmpipe_folders',
    sql.MetaData(),
    sql.Column('name', sql.String, primary_key=True),
    sql.Column('path', sql.String, nullable=False),
    sql.Column('token', sql.String, nullable=False),
)


def check_folders(engine: sql.Engine, stored: Path) -> None:
    """Compare this process's folders with those that a database refers to; the first process settles them.

    Args:
        engine: of the database.
        stored: where Pixeltable keeps the files of computed columns.

    Raises:
        ConfigError: another path, or another folder under that path.
    """
    mine = {'PIXELTABLE_HOME': (stored, stored.parent), MEDIA_VARIABLE: (media_dir(), media_dir())}
    # Each statement sees what others have committed, so that two who come first settle it once.
    with engine.execution_options(isolation_level='READ COMMITTED').begin() as connection:
        known = _known(connection)
        if mine.keys() - known.keys():
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(_LOCK)))
            _folders.create(connection, checkfirst=True)
            known = _known(connection)
        for variable, (folder, setting) in mine.items():
            here = folder.resolve()
            if variable not in known:
                row = {'name': variable, 'path': str(here), 'token': _token(here) or _marked(here)}
                connection.execute(_folders.insert().values(row))
                continue
            path, token = known[variable]
            if path != str(here):
                right = str(Path(path).parent) if setting != folder else path
                raise ConfigError(
                    f"the tables of this database hold files in '{path}', and here that folder would be '{here}'. "
                    f'Everybody who works on one catalog needs the same folders at the same paths: mount it there, and '
                    f'set {variable}={right}; or use another database.'
                )
            if _token(here) != token:
                raise ConfigError(
                    f"the tables of this database hold files in '{path}', and the folder of that name here is another "
                    f"one ('{MARK}' in it is missing or differs). Mount the one that the others use, or use another "
                    f'database.'
                )


def _known(connection: sql.Connection) -> dict[str, tuple[str, str]]:
    """Setting to path and token of its folder, as the database has them."""
    if not sql.inspect(connection).has_table(_folders.name):
        return {}
    return {name: (path, token) for name, path, token in connection.execute(sql.select(_folders))}


def _token(folder: Path) -> str:
    try:
        return (folder / MARK).read_text(encoding='utf-8').strip()
    except FileNotFoundError:
        return ''


def _marked(folder: Path) -> str:
    token = secrets.token_hex(16)
    write_bytes(folder / MARK, f'{token}\n'.encode())
    return token

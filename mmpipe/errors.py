"""Every error mmpipe raises on purpose, as one small tree.

    MmpipeError
    ├── ConfigError            an argument, option or project setting that cannot work
    │   └── MissingExtraError  an optional package is not installed
    ├── SchemaError            table classes that cannot be declared, or do not fit the call
    ├── PlanError              a plan that cannot be applied
    │   ├── DestructiveError   it would drop something, and nobody said yes
    │   └── FailureBudgetError too many cells of a column failed while it was computed
    ├── SourceError            a folder, file or manifest that cannot be read at all
    │   └── BadInputError      one medium or one row is bad (ingest turns these into quarantine rows)
    ├── StoreError             Pixeltable or its Postgres is not in the state we need
    │   └── BusyError          another writer holds the lock
    ├── SnapshotError          a training snapshot cannot be written
    │   ├── FieldError         rows of one field do not fit one description
    │   ├── SourceChangedError a file changed between ingest and snapshot
    │   └── StaleColumnError   a column holds rows that other code made
    ├── ShardError             stored shards or manifests are missing, damaged or of another format
    ├── DataError              a batch, sampler or transform was asked for what the snapshot does not hold
    │   └── LabelError         a label outside its vocabulary
    ├── WorkerError            a worker process died, or a function that it ran raised
    ├── ModelError             encoders, heads and weights that do not fit together
    ├── TrainError             training cannot start or go on
    └── RunError               a run record is missing, damaged or cannot do what is asked

A message says what happened, to which table, column, row, file or field, and the next move.
"""

from __future__ import annotations

import importlib.util

# Stands for the code of this module in fingerprints: raise it when what is computed with its help changes.
__fingerprint__ = 1


class MmpipeError(Exception):
    """Base of every error raised on purpose; the command line prints these in one line.

    >>> issubclass(MissingExtraError, MmpipeError)
    True
    """


class ConfigError(MmpipeError):
    """An argument, option or project setting that cannot work."""


class MissingExtraError(ConfigError, ImportError):
    """An optional package is not installed."""


class SchemaError(MmpipeError):
    """Table classes that cannot be declared, or do not fit the call."""


class PlanError(MmpipeError):
    """A plan that cannot be applied."""


class DestructiveError(PlanError):
    """The plan would drop something, and nobody said yes."""


class FailureBudgetError(PlanError):
    """Too many cells of a column failed while it was computed."""


class SourceError(MmpipeError):
    """A folder, file or manifest that cannot be read at all."""


class BadInputError(SourceError):
    """One medium or one row is bad; ingest turns it into a quarantine row."""


class StoreError(MmpipeError):
    """Pixeltable or its Postgres is not in the state we need."""


class BusyError(StoreError):
    """Another writer holds the lock."""


class SnapshotError(MmpipeError):
    """A training snapshot cannot be written."""


class FieldError(SnapshotError):
    """Rows of one field do not fit one description."""


class SourceChangedError(SnapshotError):
    """A source file changed between ingest and snapshot."""


class StaleColumnError(SnapshotError):
    """A computed column holds rows that other code, parameters, weights or inputs made."""


class ShardError(MmpipeError):
    """Stored shards or manifests are missing, damaged or of another format."""


class DataError(MmpipeError):
    """A batch, sampler or transform was asked for what the snapshot does not hold."""


class LabelError(DataError):
    """A label outside its vocabulary."""


class WorkerError(MmpipeError):
    """A worker process died, or a function that it ran raised."""


class ModelError(MmpipeError):
    """Encoders, heads and weights that do not fit together."""


class TrainError(MmpipeError):
    """Training cannot start or go on."""


class RunError(MmpipeError):
    """A run record is missing, damaged or cannot do what is asked."""


def require(extra: str, *modules: str, why: str = 'this') -> None:
    """Check that the packages of an extra are installed, without importing them.

    Args:
        extra: name of the extra in pyproject.toml, such as `vision`.
        modules: top-level module names that must be found.
        why: what needs them, to open the message with.

    Raises:
        MissingExtraError: a module is not installed; the message holds the command that installs it.

    >>> require('vision', 'json')
    >>> require('vision', 'no_such', why='this model')
    Traceback (most recent call last):
    ...
    mmpipe.errors.MissingExtraError: this model needs no_such, which is not installed: pip install 'mmpipe[vision]'
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"{why} needs {', '.join(missing)}, which is not installed: pip install 'mmpipe[{extra}]'"
        )

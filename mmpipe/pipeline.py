"""Find a pipeline by name: the modules `pipelines/<name>/{schema,views,training}.py` of the project.

schema.py    Tables = pxt.model_base() and its table classes
views.py     sources(folder) -> [(table class, source), ...];  training_view() -> arguments of mm.snapshot
training.py  train(snapshot, *, runs, continue_from, progress) -> Run;  no Pixeltable in it

Its shards lie in `.mmpipe/shards/<directory>`, and its runs have the name that `mm.Trainer` gives by itself: the last
part of that folder. So one pipeline can be applied to several directories, each with shards and runs of its own.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mmpipe.errors import ConfigError, SchemaError
from mmpipe.home import configure_pixeltable, project_root, shards_dir
from mmpipe.runs import Run, list_runs, open_run


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A pipeline of the project.

    Args:
        name: folder below `pipelines`.
        directory: Pixeltable directory of its tables; names its shards and runs too.
    """

    name: str
    directory: str

    @property
    def root(self) -> Path:
        """Where its snapshots are written unless a root is given."""
        return shards_dir(self.directory)

    @property
    def command(self) -> str:
        """What names it on a command line, for messages."""
        return self.name if self.directory == self.name else f'{self.name} --dir {self.directory}'

    def module(self, part: str) -> ModuleType:
        """One of its modules: 'schema', 'views' or 'training'.

        Raises:
            ConfigError: there is no such file.
        """
        name = f'pipelines.{self.name}.{part}'
        if part != 'training':
            configure_pixeltable()
        if importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"pipeline '{self.name}' has no pipelines/{self.name}/{part}.py: write one, or name another pipeline"
            )
        return importlib.import_module(name)

    @property
    def tables(self) -> Any:
        """The base class of its table classes.

        Raises:
            SchemaError: schema.py has no `Tables`.
        """
        tables = getattr(self.module('schema'), 'Tables', None)
        if tables is None:
            raise SchemaError(f'pipelines/{self.name}/schema.py defines no `Tables`: write Tables = pxt.model_base()')
        return tables

    def bind(self) -> Any:
        """Its tables, bound to their directory.

        Raises:
            SchemaError: the schema is not applied.
        """
        from mmpipe.plans import plan

        tables = self.tables
        pending = plan(tables, self.directory, values=False)
        if pending.pending:
            raise SchemaError(
                f"'{self.directory}' is not as pipelines/{self.name}/schema.py declares it ({len(pending.changes)} "
                f'changes). Run `mmpipe plan {self.command}`, then `mmpipe apply {self.command}`.'
            )
        tables.bind_all(self.directory)
        return tables


def find_pipeline(name: str, *, directory: str | None = None) -> Pipeline:
    """A pipeline by its name, looked for in the project first and among the installed ones then.

    Args:
        name: folder below `pipelines`.
        directory: Pixeltable directory; the pipeline's name when None.

    Raises:
        ConfigError: there is no such pipeline; names the ones there are.
    """
    root = str(project_root())
    if sys.path[0] != root:
        sys.path.insert(0, root)
    if not name.isidentifier() or importlib.util.find_spec(f'pipelines.{name}') is None:
        known = ', '.join(known_pipelines()) or 'none'
        raise ConfigError(
            f"there is no pipeline '{name}' in '{root}/pipelines' (there: {known}). Name one of these, or write "
            f'pipelines/{name}/schema.py.'
        )
    return Pipeline(name=name, directory=directory or name)


def known_pipelines() -> list[str]:
    """Names of the pipelines in the project and among the installed ones."""
    import pkgutil

    spec = importlib.util.find_spec('pipelines')
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    return sorted({module.name for module in pkgutil.iter_modules(folders)} | _namespaces(folders))


def _namespaces(folders: list[str]) -> set[str]:
    """Folders with a schema.py; `pkgutil` does not list packages without an __init__.py."""
    return {path.parent.name for folder in folders for path in Path(folder).glob('*/schema.py')}


def runs_of(root: str | Path) -> list[Run]:
    """The runs that were trained on snapshots of a root, oldest first.

    Args:
        root: directory of the snapshots; the runs have its last part as their name.

    >>> runs_of('/nowhere/shop')
    []
    """
    place = Path(root).resolve()
    return [run for run in map(open_run, list_runs(place.name)) if Path(run.snapshot['root']) == place]

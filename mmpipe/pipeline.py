"""Find a pipeline by name: the modules `pipelines/<name>/{schema,views,training}.py` of the project.

schema.py    Tables = pxt.model_base() and its table classes
views.py     sources(folder) -> [(table class, source), ...];  training_view() -> arguments of mm.snapshot
training.py  train(snapshot, *, runs, continue_from, progress) -> Run;  no Pixeltable in it
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from mmpipe.errors import ConfigError, SchemaError
from mmpipe.home import configure_pixeltable, project_root


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """A pipeline of the project.

    Args:
        name: folder below `pipelines`; names its shards and runs too.
        directory: Pixeltable directory of its tables.
    """

    name: str
    directory: str

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
        pending = plan(tables, self.directory)
        if pending.pending:
            raise SchemaError(
                f"'{self.directory}' is not as pipelines/{self.name}/schema.py declares it ({len(pending.changes)} "
                f'changes). Run `mmpipe plan {self.name}`, then `mmpipe apply {self.name}`.'
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
        raise ConfigError(f"there is no pipeline '{name}' in '{root}/pipelines' (there: {known})")
    return Pipeline(name=name, directory=directory or name)


def known_pipelines() -> list[str]:
    """Names of the pipelines in the project and among the installed ones."""
    import pkgutil

    spec = importlib.util.find_spec('pipelines')
    folders = list(spec.submodule_search_locations or []) if spec is not None else []
    return sorted({module.name for module in pkgutil.iter_modules(folders)} | _namespaces(folders))


def _namespaces(folders: list[str]) -> set[str]:
    """Folders with a schema.py; `pkgutil` does not list packages without an __init__.py."""
    from pathlib import Path

    return {path.parent.name for folder in folders for path in Path(folder).glob('*/schema.py')}

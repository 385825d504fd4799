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
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from mmpipe.errors import ConfigError, MmpipeError, SchemaError
from mmpipe.home import check_directory, configure_pixeltable, project_root, shards_dir
from mmpipe.runs import Run, list_runs, open_run
from mmpipe.wording import how_many


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
            ConfigError: there is no such file, or it cannot be imported.
            SchemaError: schema.py cannot be imported: names the file, the line and what was raised.
        """
        name = f'pipelines.{self.name}.{part}'
        if part != 'training':
            configure_pixeltable()
        try:
            if importlib.util.find_spec(name) is None:
                raise ConfigError(
                    f"pipeline '{self.name}' has no pipelines/{self.name}/{part}.py: "
                    f'write one, or name another pipeline'
                )
            return importlib.import_module(name)
        except MmpipeError:
            raise
        except Exception as error:
            kind = SchemaError if part == 'schema' else ConfigError
            raise kind(_where_it_failed(error, self.name, part)) from error

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
                f"'{self.directory}' is not as pipelines/{self.name}/schema.py declares it "
                f'({how_many(len(pending.changes), "change")}). '
                f'Run `mmpipe plan {self.command}`, then `mmpipe apply {self.command}`.'
            )
        tables.bind_all(self.directory)
        return tables


def _where_it_failed(error: Exception, pipeline: str, part: str) -> str:
    """An exception of an import in one line: the last of the pipeline's own lines that ran, and what was raised."""
    file, line, inside = f'pipelines/{pipeline}/{part}.py', 0, ''
    for frame in traceback.extract_tb(error.__traceback__):
        if Path(frame.filename).parts[-3:-1] == ('pipelines', pipeline):
            file, line, inside = '/'.join(Path(frame.filename).parts[-3:]), frame.lineno or 0, frame.name
    said = str(error)
    if isinstance(error, SyntaxError) and error.filename:  # raised before the file ran
        file, line, said, inside = '/'.join(Path(error.filename).parts[-3:]), error.lineno or 0, error.msg, ''
    place = f'{file} line {line}' if line else file
    within = f' in {inside}' if inside and not inside.startswith('<') else ''
    said = ' '.join(said.split()).rstrip('.')
    return f'{place}{within}: {type(error).__name__}: {said}. Correct it there; `mmpipe --debug ...` shows more.'


def find_pipeline(name: str, *, directory: str | None = None) -> Pipeline:
    """A pipeline by its name, looked for in the project first and among the installed ones then.

    Args:
        name: folder below `pipelines`.
        directory: Pixeltable directory; the pipeline's name when None.

    Raises:
        ConfigError: there is no such pipeline, or it or the directory has a name that cannot be used; names the
            pipelines there are.
    """
    root = str(project_root())
    if sys.path[0] != root:
        sys.path.insert(0, root)
    if not name.isidentifier() or importlib.util.find_spec(f'pipelines.{name}') is None:
        known = ', '.join(known_pipelines()) or 'none'
        raise ConfigError(
            f"there is no pipeline '{name}' in '{root}/pipelines' (there: {known}). Name one of these"
            + (
                f', or write pipelines/{name}/schema.py.'
                if name.isidentifier()
                else '; the name of a pipeline is a folder there, of letters, digits and _, not beginning with a digit.'
            )
        )
    return Pipeline(name=name, directory=check_directory(directory or name))


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
        root: directory or URL of the snapshots; the runs have its last part as their name.

    >>> runs_of('/nowhere/shop')
    []
    """
    from mmpipe.shards.root import place_of  # here, since `mmpipe --help` needs no numpy

    place = place_of(root)
    return [run for run in map(open_run, list_runs(Path(place).name)) if run.snapshot['root'] == place]

"""Commands about snapshots that are there, and about the server of the tables."""

from __future__ import annotations

import contextlib
import importlib.util
from pathlib import Path
from typing import Annotated, Any

import typer

from mmpipe.commands.app import AsJson, Directory, PipelineName, Root, app, place_of_shards, print_result
from mmpipe.errors import ConfigError


@app.command(epilog='Example: mmpipe leaks demo --json')
def leaks(
    pipeline: PipelineName,
    directory: Directory = None,
    root: Root = None,
    field: Annotated[
        list[str] | None, typer.Option(help='Input field to compare; give it again for more, all when left out.')
    ] = None,
    group: Annotated[
        str | None, typer.Option(help="Field that names what must stay in one split; 'group' when there is one.")
    ] = None,
    near: Annotated[int, typer.Option(help='How many of the 64 bits of two images may differ.')] = 8,
    as_json: AsJson = False,
) -> None:
    """Look for rows of one origin in several splits of the current snapshot. Exit status 1 when there are some."""

    def run() -> tuple[Any, str]:
        from mmpipe.leaks import check_leaks
        from mmpipe.pipeline import find_pipeline
        from mmpipe.shards import open_snapshot

        frozen = open_snapshot(place_of_shards(root, find_pipeline(pipeline, directory=directory).root))
        found = check_leaks(frozen, group=group, fields=field, near=near)
        return found.to_json(), str(found)

    if not print_result(run, as_json)['ok']:
        raise typer.Exit(1)


@app.command(epilog='Example: mmpipe log demo')
def log(
    pipeline: PipelineName,
    directory: Directory = None,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """List the pipeline's snapshots, newest first, with what each changed. Needs no Pixeltable."""

    def run() -> tuple[Any, str]:
        from mmpipe.pipeline import find_pipeline
        from mmpipe.shards import log as read_log

        place = place_of_shards(root, find_pipeline(pipeline, directory=directory).root)
        entries = read_log(place)
        lines = [str(entry) for entry in entries] or [f"no snapshots in '{place}'; `mmpipe snapshot` writes one"]
        return {'root': str(place), 'snapshots': [entry.to_json() for entry in entries]}, '\n'.join(lines)

    print_result(run, as_json)


@app.command(epilog='Example: mmpipe gc demo --dry-run')
def gc(
    pipeline: PipelineName,
    directory: Directory = None,
    root: Root = None,
    keep: Annotated[int, typer.Option(metavar='N', help='How many of the newest snapshots stay.')] = 1,
    dry_run: Annotated[bool, typer.Option('--dry-run', help='Only say what would be removed.')] = False,
    compacted: Annotated[
        bool, typer.Option('--compact', help='First write small, masked and partly replaced blocks as full ones.')
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove shards that no kept snapshot needs. Kept: the newest, those that runs name, and the last hour's files."""

    def run() -> tuple[Any, str]:
        from mmpipe.pipeline import find_pipeline
        from mmpipe.shards import collect, compact

        if compacted and dry_run:
            raise ConfigError('--compact writes a snapshot, and --dry-run changes nothing: give one of them')
        place = place_of_shards(root, find_pipeline(pipeline, directory=directory).root)
        lines = []
        with _as_writer(place):
            if compacted:
                lines.append(f'compacted: {compact(place)!r}')
            done = collect(place, keep=keep, dry_run=dry_run)
        return done.to_json(), '\n'.join([*lines, str(done)])

    print_result(run, as_json)


@app.command(epilog='Example: mmpipe stop')
def stop(as_json: AsJson = False) -> None:
    """Stop the project's Postgres, which runs on after a command; the next command starts it again."""

    def run() -> tuple[Any, str]:
        from mmpipe.home import DATABASE_VARIABLE, has_own_database, pixeltable_home
        from mmpipe.store import stop_postgres

        home = pixeltable_home()
        stopped = home.is_dir() and stop_postgres()
        said = f'stopped the Postgres of {home}' if stopped else f'no Postgres runs in {home}'
        if not has_own_database():
            said += f"; the one that {DATABASE_VARIABLE} names is not mmpipe's to stop"
        return {'stopped': stopped}, said

    print_result(run, as_json)


def _as_writer(root: str | Path, *, wait_s: float = 60.0) -> contextlib.AbstractContextManager[None]:
    """The writer lock of a root where Pixeltable is at home; elsewhere no snapshot of tables is written."""
    from mmpipe.home import has_own_database, pixeltable_home

    if importlib.util.find_spec('pixeltable') is None or (has_own_database() and not pixeltable_home().is_dir()):
        return contextlib.nullcontext()
    from mmpipe.snapshots import root_lock

    return root_lock(root, wait_s=wait_s)

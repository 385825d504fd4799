"""Steps of `incremental.py` over tables: a build, a delta, an export, what takes memory, the change feed.

Each is called in a process of its own, with the folder of one home and its files, and returns figures.
"""

from __future__ import annotations

import random
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import made_files

Figures = dict[str, tuple[float, str]]
CHUNK = 20_000  # rows per insert of plain numbers


@contextmanager
def timed(figures: Figures, name: str) -> Iterator[None]:
    """The seconds of a block are a figure."""
    started = time.perf_counter()
    yield
    figures[f'{name}_s'] = (time.perf_counter() - started, 's')


def check(name: str, found: object, wanted: object) -> None:
    """A benchmark that did not do its work has measured nothing."""
    if found != wanted:
        raise SystemExit(f'{name}: {found}, and it should be {wanted}')


def total(figures: Figures, *names: str) -> tuple[float, str]:
    """The sum of some figures in seconds."""
    return sum(figures[f'{name}_s'][0] for name in names), 's'


def peak() -> tuple[float, str]:
    """The most memory that this process has had in RAM so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 'MB'  # Linux says KiB


def start_up(work: Path) -> Figures:
    """What a process pays before its first call: the imports, and Pixeltable's start."""
    figures: Figures = {}
    with timed(figures, 'start_up'):
        import edited  # noqa: F401

        import mmpipe as mm  # noqa: F401
        from mmpipe.store import start

        start()
    return figures


def tiles_snapshot(root: Path):
    """The training view of the tiles, frozen below a root."""
    from edited import Tiles

    import mmpipe as mm

    fields = {'photo': mm.field.image(Tiles.photo, size=64), 'label': mm.field.label(Tiles.label)}
    return mm.snapshot(Tiles, root=root, fields=fields)


def all_parts(work: Path, figures: Figures, name: str, new: int) -> None:
    """Plan, apply, ingest: each a figure."""
    from edited import Tables, Tiles

    import mmpipe as mm

    with timed(figures, f'{name}_plan'):
        planned = mm.plan(Tables, 'tiles')
    with timed(figures, f'{name}_apply'):
        mm.apply(planned)
    with timed(figures, f'{name}_ingest'):
        report = mm.ingest(Tiles, mm.sources.rows(work / 'files' / 'tiles.csv'))
    check('rows ingested', (report.inserted, report.failed_cells, report.quarantined), (new, 0, 0))


def build(work: Path, *, rows: int, name: str) -> Figures:
    """Everything from nothing."""
    figures = start_up(work)
    figures.pop('start_up_s')  # of the first start of a database, which makes it
    all_parts(work, figures, name, rows)
    figures[f'{name}_ingest_peak_mb'] = peak()
    with timed(figures, f'{name}_snapshot'):
        report = tiles_snapshot(work / 'shards')
    check('rows frozen', report.inserted, rows)
    figures[f'{name}_s'] = total(figures, *(f'{name}_{part}' for part in ('plan', 'apply', 'ingest', 'snapshot')))
    return figures


def delta(work: Path, *, new: int, name: str) -> Figures:
    """Plan, apply, ingest and snapshot of a source with some new rows."""
    figures = start_up(work)
    all_parts(work, figures, name, new)
    with timed(figures, f'{name}_snapshot'):
        report = tiles_snapshot(work / 'shards')
    check('rows frozen', report.written, new)
    figures[f'{name}_without_ingest_s'] = total(figures, *(f'{name}_{part}' for part in ('plan', 'apply', 'snapshot')))
    figures[f'{name}_s'] = total(figures, f'{name}_without_ingest', f'{name}_ingest')
    return figures


def export(work: Path) -> Figures:
    """Pixeltable's own way to PyTorch: the same columns of the same rows, written to its cache of data sets.

    The tiles have the size that is trained with, so their files are copied; photos of any other would have to be
    resized on the way, and that is measured beside it.
    """
    start_up(work)
    import torchvision.transforms  # noqa: F401  (what the export imports is not what it costs)
    from edited import Tables, Tiles
    from pyarrow import parquet

    Tables.bind_all('tiles')
    figures: Figures = {}
    for name, photo in (('export', Tiles.photo), ('export_resized', Tiles.photo.resize([64, 64]))):
        with timed(figures, name):
            chosen = Tiles.table.select(key=Tiles.key, photo=photo, label=Tiles.label, split=Tiles.split)
            made = chosen.to_pytorch_dataset(image_format='np')
        rows = sum(parquet.read_metadata(part).num_rows for part in made.part_metadata)
        check('rows exported', rows, Tiles.table.count())
        shutil.rmtree(made.path)  # of no use after the next change, and Pixeltable keeps it
    return figures


def plans(work: Path, *, again: int = 3) -> Figures:
    """A plan of nothing changed: the first of a process, and one that follows."""
    figures = start_up(work)
    from edited import Tables

    import mmpipe as mm

    with timed(figures, 'no_change_plan'):
        planned = mm.plan(Tables, 'tiles')
    check('changes', planned.changes, ())
    for _ in range(again):
        with timed(figures, 'no_change_plan_again'):
            mm.plan(Tables, 'tiles')
    return figures


def whole_snapshot(work: Path, *, name: str) -> Figures:
    """A snapshot of every row into an empty root, for its memory."""
    start_up(work)
    from edited import Tables

    Tables.bind_all('tiles')
    figures = {f'{name}_start_up_mb': peak()}
    with timed(figures, f'{name}_whole_snapshot'):
        tiles_snapshot(work / 'shards-again')
    figures[f'{name}_whole_snapshot_peak_mb'] = peak()
    shutil.rmtree(work / 'shards-again')
    return figures


def backfill(work: Path, *, rows: int, name: str) -> Figures:
    """A function was edited: its column, of every row, is computed again."""
    start_up(work)
    from edited import Tables

    import mmpipe as mm

    figures: Figures = {}
    planned = mm.plan(Tables, 'tiles')
    check('stale columns', [(change.action, change.name, change.rows) for change in planned.changes],
          [('stale', 'feature', rows)])  # fmt: skip
    with timed(figures, f'{name}_backfill'):
        mm.apply(planned)
    figures[f'{name}_backfill_peak_mb'] = peak()
    check('changes left', mm.plan(Tables, 'tiles').changes, ())
    return figures


def feed(work: Path, *, rows: int, changed: int, times: int) -> dict[str, tuple[list[float], str]]:
    """Changes of a few rows among many, found by the change feed; beside it, reading the names of all rows."""
    start_up(work)
    import pixeltable as pxt

    from mmpipe.store.feed import changes_since, version_vector

    inserting: Figures = {}
    found: list[float] = []
    with timed(inserting, 'feed_insert'):
        table = pxt.create_table('ints', {'number': pxt.Int, 'value': pxt.Int})
        for start in range(0, rows, CHUNK):
            numbers = range(start, min(start + CHUNK, rows))
            table.insert([{'number': number, 'value': 0} for number in numbers])
    for time_ in range(times):
        since = version_vector(table)
        chosen = random.Random(time_).sample(range(rows), changed)
        table.update({'value': table.value + 1}, where=table.number.isin(chosen))
        taken: Figures = {}
        with timed(taken, 'feed'):
            changes = changes_since(table, since)
        check('changes', tuple(map(len, (changes.inserted, changes.updated, changes.deleted))), (0, changed, 0))
        found.append(taken['feed_s'][0])
    everything: Figures = {}
    with timed(everything, 'feed'):
        check('rows', len(changes_since(table, None).inserted), rows)
    return {
        'feed_1m_100_s': (found, 's'),
        'feed_1m_100_first_s': (found[:1], 's'),
        'feed_every_row_s': ([everything['feed_s'][0]], 's'),
        'feed_insert_s': ([inserting['feed_insert_s'][0]], 's'),
    }


def made(work: Path, *, start: int, stop: int) -> Figures:
    """Files for the source; no part of what is measured."""
    made_files.write_tiles(work / 'files', start, stop)
    return {}

"""Steps of `incremental.py` over computed columns: a model's beside a bare loop, threads beside one thread."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import made_files
from harness import rotated
from incremental_tables import Figures, check, start_up

BATCH = 32  # mmpipe.functions.batching.BATCH, for the bare loops


def photos(work: Path, *, count: int) -> Figures:
    """Photos in a table, without a column of vectors; then the column is added, in one statement of Pixeltable's."""
    made_files.write_photos(work / 'photos', count)
    start_up(work)
    import edited

    import mmpipe as mm

    mm.apply(mm.plan(edited.Bare, 'photos'))
    report = mm.ingest(edited.BarePhotos, mm.sources.rows(work / 'photos' / 'photos.csv'))
    check('photos', report.inserted, count)
    _warm_up()
    bare = max(_bare_rates(work, turn=0).values())
    rate = _rate(count, lambda: mm.apply(mm.plan(edited.Grown, 'photos')))
    return {'model_udf_added_over_bare_loop': (rate / bare, 'ratio')}


def model(work: Path, *, count: int, turn: int) -> Figures:
    """The column computed again after an edit, the photos ingested with the column, and bare loops, taking turns."""
    start_up(work)
    import edited

    import mmpipe as mm
    from mmpipe.functions import counts

    planned = mm.plan(edited.Grown, 'photos')
    check('stale columns', [(change.name, change.rows) for change in planned.changes], [('vector', count)])
    whole = f'whole_{turn}'
    mm.apply(mm.plan(edited.Whole, whole))
    _warm_up()
    rates: dict[str, float] = {}

    def again() -> None:
        before = counts().get('vector', 0)
        rates['model_udf'] = _rate(count, lambda: mm.apply(planned))
        check('cells computed', counts()['vector'] - before, count)

    def ingest() -> None:
        source = mm.sources.rows(work / 'photos' / 'photos.csv')
        rates['model_ingest'] = _rate(count, lambda: mm.ingest(edited.WholePhotos, source))

    def bare() -> None:
        rates.update(_bare_rates(work, turn))

    for each in rotated([again, bare, ingest], turn):
        each()
    best = max(rates['bare_loop'], rates['bare_threads'])
    return {
        **{f'{name}_rate': (rate, 'rows/s') for name, rate in rates.items()},
        'model_udf_over_bare_loop': (rates['model_udf'] / best, 'ratio'),
        'model_ingest_over_bare_loop': (rates['model_ingest'] / best, 'ratio'),
    }


def _warm_up() -> None:
    """Load the model and run a batch of each size that is to come."""
    import numpy as np

    from mmpipe.functions import models

    for _ in range(2):
        models.embed_images(models.DEFAULT_IMAGE_MODEL, [np.zeros((3, 160, 160), np.uint8)] * BATCH)


def _rate(rows: int, work: Callable[[], Any]) -> float:
    started = time.perf_counter()
    work()
    return rows / (time.perf_counter() - started)


def _bare_rates(work: Path, turn: int) -> dict[str, float]:
    """Photos per second without tables: prepared one after the other, and on threads while the model runs."""
    from PIL import Image

    from mmpipe.cores import cores
    from mmpipe.functions import models
    from mmpipe.functions.image import square_array

    paths = sorted(path for path in (work / 'photos').iterdir() if path.suffix != '.csv')

    def prepared(path: Path) -> Any:
        return square_array(Image.open(path), 160)

    def loop() -> None:
        for batch in _batches(paths):
            models.embed_images(models.DEFAULT_IMAGE_MODEL, [prepared(path) for path in batch])

    def threads() -> None:
        with ThreadPoolExecutor(cores()) as pool:
            for batch in _batches(pool.map(prepared, paths)):
                models.embed_images(models.DEFAULT_IMAGE_MODEL, batch)

    loops = {'bare_loop': loop, 'bare_threads': threads}
    return {name: _rate(len(paths), loops[name]) for name in rotated(list(loops), turn)}


def _batches(items: Any) -> Any:
    rest = iter(items)
    while batch := list(itertools.islice(rest, BATCH)):
        yield batch


def cpu(work: Path, *, count: int, times: int) -> dict[str, tuple[list[float], str]]:
    """A column of sounds and one of photos, by a plain function and by one of mmpipe's; and the same without tables."""
    start_up(work)
    import edited
    import pixeltable as pxt
    from PIL import Image

    from mmpipe.functions.audio import read_log_mel
    from mmpipe.functions.image import square_array

    sounds = made_files.write_sounds(work / 'sounds', count, edited.SECONDS)
    images = made_files.write_large_photos(work / 'large', count)
    table = pxt.create_table('cells', {'sound': pxt.Audio, 'photo': pxt.Image})
    table.insert([{'sound': str(sound), 'photo': str(image)} for sound, image in zip(sounds, images, strict=True)])

    def mel(path: Path) -> Any:
        return read_log_mel(str(path), edited.SECONDS, edited.BANDS)

    def pixels(path: Path) -> Any:
        return square_array(Image.open(path), edited.SQUARE)

    seconds: dict[str, list[float]] = {}
    for turn in range(-1, times):
        for name, one, paths, serial, threaded in (
            ('cpu', mel, sounds, edited.serial_log_mel(table.sound), edited.threaded_log_mel(table.sound)),
            ('cpu_photo', pixels, images, edited.serial_pixels(table.photo), edited.threaded_pixels(table.photo)),
        ):
            ways = {
                'bare': lambda one=one, paths=paths: _over(one, paths, 1),
                'bare_threads': lambda one=one, paths=paths: _over(one, paths, 2),
                'serial_udf': lambda serial=serial: _column(table, serial),
                'udf': lambda threaded=threaded: _column(table, threaded),
            }
            for way in rotated(list(ways), max(turn, 0)):
                taken = ways[way]()
                if turn >= 0:  # the first round loads what is loaded once
                    seconds.setdefault(f'{name}_{way}', []).append(taken)
    figures: dict[str, tuple[list[float], str]] = {f'{name}_s': (taken, 's') for name, taken in seconds.items()}
    for name in ('cpu', 'cpu_photo'):
        figures[f'{name}_udf_scaling'] = _ratios(seconds[f'{name}_serial_udf'], seconds[f'{name}_udf'])
        figures[f'{name}_bare_scaling'] = _ratios(seconds[f'{name}_bare'], seconds[f'{name}_bare_threads'])
    return figures


def _ratios(slow: Sequence[float], fast: Sequence[float]) -> tuple[list[float], str]:
    return [one / other for one, other in zip(slow, fast, strict=True)], 'ratio'


def _over(one: Callable[[Path], Any], paths: Sequence[Path], threads: int) -> float:
    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(one, paths):
            pass
    return time.perf_counter() - started


def _column(table: Any, expression: Any) -> float:
    started = time.perf_counter()
    status = table.add_computed_column(made=expression)
    seconds = time.perf_counter() - started
    check('cells that failed', status.num_excs, 0)
    table.drop_column('made')
    return seconds

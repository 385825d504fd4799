"""Files that benchmarks ingest: made from their number, so that every run has the same ones."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image

LABELS = ('ant', 'bee', 'cat', 'dog', 'eel', 'fox', 'gnu', 'hen', 'ibex', 'jay')
PHOTOS = Path(__file__).resolve().parents[1] / 'examples' / 'data' / 'photos'
FOLDER = 1000  # files in a folder


def tile(number: int, edge: int = 64) -> Image.Image:
    """A square of soft colours."""
    spots = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    return Image.fromarray(spots).resize((edge, edge), Image.Resampling.BICUBIC)


def write_tiles(folder: Path, start: int, stop: int) -> None:
    """JPEG files of the tiles from `start` up to `stop`, and a manifest of all from 0 on."""
    for number in range(start, stop):
        path = folder / tile_name(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        tile(number).save(path, quality=90)
    with (folder / 'tiles.csv').open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['key', 'photo', 'label'])
        writer.writerows([f'tile-{i:07}', tile_name(i), LABELS[i % len(LABELS)]] for i in range(stop))


def tile_name(number: int) -> str:
    """Path of a tile below the folder of its manifest.

    >>> tile_name(12345)
    '012/0012345.jpg'
    """
    return f'{number // FOLDER:03}/{number:07}.jpg'


def write_photos(folder: Path, count: int) -> None:
    """Copies of the bundled photos, with a manifest; more than there are become copies under another name."""
    folder.mkdir(parents=True)
    names = []
    for number, path in enumerate(islice(cycle(sorted(PHOTOS.iterdir())), count)):
        names.append(f'{number:05}{path.suffix}')
        shutil.copyfile(path, folder / names[-1])
    with (folder / 'photos.csv').open('w', newline='') as file:
        csv.writer(file).writerows([['key', 'photo'], *([Path(name).stem, name] for name in names)])


def write_large_photos(folder: Path, count: int) -> list[Path]:
    """JPEG files of 1600 x 1200 pixels, with the noise of a camera."""
    folder.mkdir(parents=True)
    return list(_large_photos(folder, count))


def _large_photos(folder: Path, count: int) -> Iterator[Path]:
    for number in range(count):
        noise = np.random.default_rng(number).normal(0, 6, (1200, 1600, 1))
        soft = np.asarray(tile(number).resize((1600, 1200), Image.Resampling.BICUBIC), np.float32)
        path = folder / f'{number:04}.jpg'
        Image.fromarray(np.clip(soft + noise, 0, 255).astype(np.uint8)).save(path, quality=85)
        yield path


def write_sounds(folder: Path, count: int, seconds: float) -> list[Path]:
    """FLAC files, stereo at 44.1 kHz: two tones in noise."""
    import soundfile

    folder.mkdir(parents=True)
    times, paths = np.arange(round(44_100 * seconds)) / 44_100, []
    for number in range(count):
        random = np.random.default_rng(number)
        waves = np.sin(2 * np.pi * np.outer(times, random.uniform(100, 5000, 2)))
        paths.append(folder / f'{number:04}.flac')
        soundfile.write(paths[-1], 0.3 * waves + random.normal(0, 0.02, waves.shape), 44_100)
    return paths

"""Cached functions for the tests of the Ray engine; what happens in a process of Ray is written down in a folder."""
# ruff: noqa: F821  (Pixeltable puts column names in scope)

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pixeltable as pxt

from mmpipe.functions import cached, counted, pixels

FOLDER = 'MMPIPE_TEST_RAY_FOLDER'  # where calls and loads are noted
PAUSE = 'MMPIPE_TEST_RAY_PAUSE'  # seconds per call
DEADLY = 'MMPIPE_TEST_RAY_DEADLY'  # the one process that survives a call with 4
UNLUCKY = 13
_model: list[int] = []


def note(what: str) -> None:
    """Write down that something happened in this process, and when it begins that it lives."""
    folder = os.environ.get(FOLDER)
    if folder:
        with (Path(folder) / f'{what}-{os.getpid()}').open('a', encoding='utf-8') as file:
            file.write('1\n')
        time.sleep(float(os.environ.get(PAUSE, '0')))


def noted(folder: Path, what: str) -> dict[int, int]:
    """Process id to how often something happened there."""
    found = {}
    for file in folder.glob(f'{what}-*'):
        found[int(file.name.rpartition('-')[2])] = len(file.read_text().splitlines())
    return found


def loaded() -> int:
    """A model, loaded once per process."""
    if not _model:
        note('load')
        _model.append(7)
    return _model[0]


@pxt.udf
@cached
@counted
def weight(x: int) -> float:
    """A number from a model; 13 is unlucky."""
    note('weight')
    if x == 4 and os.environ.get(DEADLY, str(os.getpid())) != str(os.getpid()):
        os.kill(os.getpid(), signal.SIGKILL)
    if x == UNLUCKY or x < 0:
        raise ValueError(f'{x} is unlucky')
    return x * loaded() / 3


@pxt.udf
@cached
@counted
async def heavier(weight: float, *, by: int = 1) -> pxt.Json:
    """Reads what `weight` gave."""
    note('heavier')
    return {'weight': weight + by, 'by': by}


@pxt.udf
@cached
@counted
def shout(text: str | None, x: int) -> str:
    """Takes a null for a text."""
    note('shout')
    return f'{text}!'.upper() * (x % 3)


@pxt.udf
@cached
@counted
def look(photo: pxt.Image) -> pxt.Array[(None,), np.float32]:
    """What a file's image looks like, its format and mode with it."""
    note('look')
    array = np.asarray(photo.convert('RGB'), np.float32)
    return np.append(array.mean((0, 1)), [len(photo.format or ''), len(photo.mode), array.size]).astype(np.float32)


@pxt.udf
@cached
@counted
def square_mean(square: pxt.Array[np.uint8]) -> float:
    """Of an array; needs one that can be written to."""
    square *= square.flags.writeable
    return float(square.mean())


@pxt.udf
@cached
@counted
def file_length(speech: pxt.Audio) -> int:
    """Bytes of a file."""
    note('file_length')
    return Path(speech).stat().st_size


@pxt.udf
@counted
def plain(x: int) -> int:
    """Not cached."""
    return x + 1


def declare(*names: str, by: int = 1) -> Any:
    """Tables with the computed columns that are named; all when none is."""
    Tables = pxt.model_base()
    wanted = set(names) or {'weight', 'heavy', 'loud', 'look', 'mean', 'size', 'next', 'half'}

    class Items(Tables, name='items'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        x: pxt.Int | None
        text: pxt.String | None
        photo: pxt.Image | None
        speech: pxt.Audio | None
        origin: pxt.Json | None
        if 'weight' in wanted:
            weight = weight(x)
        if 'heavy' in wanted:
            heavy = heavier(weight, by=by)
        if 'loud' in wanted:
            loud = shout(text, x)
        if 'look' in wanted:
            look = look(photo)
        if 'mean' in wanted:
            square = pixels(photo, size=8)
            mean = square_mean(square)
        if 'size' in wanted:
            size = file_length(speech)
        if 'next' in wanted:
            next = plain(x)

    class Odd(Tables, name='odd', base=Items.where(Items.x > 3)):
        if 'half' in wanted:
            half = heavier(Items.weight, by=-1) if 'weight' in wanted else heavier(1.0 * Items.x, by=-1)

    return Tables


def rows(count: int, folder: Path, *, media: bool = True, unlucky: bool = False) -> list[dict[str, Any]]:
    """Rows with nulls in each column, images of three formats, files."""
    import PIL.Image
    import soundfile

    made = []
    for number in range(count):
        row: dict[str, Any] = {
            'key': f'k{number:05}', 'x': -number if unlucky else number, 'text': f'text {number % 7}', 'photo': None,
            'speech': None,
        }  # fmt: skip
        if number % 5 == 1:
            row['text'] = None
        if number % 11 == 3:
            row['x'] = None
        if media and number % 4:
            colour = (number % 256, 3 * number % 256, 7 * number % 256)
            path = folder / f'{number}.{("png", "jpg", "gif")[number % 3]}'
            PIL.Image.new('RGB', (20 + number % 9, 16), colour).save(path)
            row['photo'] = str(path)
        if media and number % 6 == 0:
            path = folder / f'{number}.wav'
            soundfile.write(path, np.zeros(100 + number, np.float32), 8000)
            row['speech'] = str(path)
        made.append(row)
    return made


def apply_in(directory: str, *names: str) -> None:
    """Plan and apply on Ray, for a process of its own."""
    import mmpipe as mm

    mm.apply(mm.plan(declare(*names), directory), engine=mm.RayEngine(actors=2, cpus=0.5))

"""The bundled drawings, and what a snapshot holds of them."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import numpy as np
import PIL.Image

DATA = Path(__file__).parents[2] / 'examples' / 'data'
SIZE = 64


def on_white(image):
    """An image without transparency."""
    image = image.convert('RGBA')
    return PIL.Image.alpha_composite(PIL.Image.new('RGBA', image.size, 'white'), image).convert('RGB')


def square(image):
    """What mm.field.image(size=64, fit='pad') stores."""
    scale = SIZE / max(image.size)
    width, height = (max(1, round(side * scale)) for side in image.size)
    canvas = PIL.Image.new('RGB', (SIZE, SIZE), 'white')
    small = image.resize((width, height), PIL.Image.Resampling.BICUBIC)
    canvas.paste(small, ((SIZE - width) // 2, (SIZE - height) // 2))
    return np.moveaxis(np.asarray(canvas), -1, 0)


def jpeg(image, quality):
    """The bytes of an image as JPEG."""
    buffer = io.BytesIO()
    image.save(buffer, 'JPEG', quality=quality)
    return buffer.getvalue()


def read_rows():
    """The rows of items.csv, as text."""
    with (DATA / 'items.csv').open(encoding='utf-8') as file:
        return list(csv.DictReader(file))


def read_drawings():
    """(key, group, RGB image) of the bundled drawings that have a picture, every second one."""
    rows = [row for row in read_rows() if row['photo']][::2]
    return [(row['key'], row['group'], on_white(PIL.Image.open(DATA / row['photo']))) for row in rows]

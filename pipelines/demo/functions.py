"""Functions of this pipeline's own: the facts of a drawing as a vector, and its keywords as a list."""

from __future__ import annotations

import math

import numpy as np
import pixeltable as pxt

from mmpipe.functions import counted

EDITORS = ('inkscape', 'sodipodi', 'illustrator', 'other')


@pxt.udf
@counted
def facts(
    width: int, height: int, png_bytes: int, editor: str | None, uploaded: str | None
) -> pxt.Array[(10,), pxt.Float]:
    """What the table says of a drawing, as a vector of numbers about 1 in size.

    Args:
        width: of the rendering, in pixels.
        height: of the rendering, in pixels.
        png_bytes: size of the rendering as a PNG file, in bytes.
        editor: program that made it.
        uploaded: date of its upload; null where it is not known.

    Returns:
        float32 (10,): log2 of the aspect ratio; log10 of width and height over 100 pixels, of bytes over 10,000, and of
        bytes per pixel; 1 for its editor among `EDITORS`, else 0; 1 when the date is known, else 0.

    >>> facts.py_fn(100, 100, 10_000, 'inkscape', None).tolist()
    [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """
    size = max(png_bytes, 1)
    sides = [math.log2(width / height), math.log10(width / 100), math.log10(height / 100)]
    weight = [math.log10(size / 10_000), math.log10(size / (width * height))]
    flags = [*(float(editor == name) for name in EDITORS), float(uploaded is not None)]
    return np.array([*sides, *weight, *flags], dtype=np.float32)


@pxt.udf
@counted
def words(text: str) -> pxt.Json:
    """Keywords separated by semicolons, as a list.

    >>> words.py_fn('animal;insect')
    ['animal', 'insect']
    """
    return [word.strip() for word in text.split(';') if word.strip()]

"""Where an image is cut, and how it is turned: boxes in whole pixels, from random numbers that are given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

TRIES = 10  # as torchvision's RandomResizedCrop
DRAWS = 2 * TRIES + 2  # area and ratio of each try, then the place
# EXIF 2.3, tag 274: whether stored rows and columns are in reverse, and then rows and columns exchanged.
TURNS = {
    1: (False, False, False),
    2: (False, True, False),
    3: (True, True, False),
    4: (True, False, False),
    5: (False, False, True),
    6: (True, False, True),
    7: (True, True, True),
    8: (False, True, True),
}


class Box(NamedTuple):
    """A part of an image, in pixels from its upper left corner."""

    left: int
    top: int
    width: int
    height: int


def random_box(width: int, height: int, draws: np.ndarray, scale: Sequence[float], ratio: Sequence[float]) -> Box:
    """A part of random area, proportions and place, as torchvision's RandomResizedCrop chooses it.

    Args:
        width: of the image, in pixels.
        height: of the image, in pixels.
        draws: `[22]` in [0, 1): area and proportions of ten tries, then the place, whichever try fits.
        scale: smallest and largest part of the image's area.
        ratio: smallest and largest width / height; even over their logarithms.

    Returns:
        The first try that fits in the image; when none does, its largest central part with a ratio that is allowed.

    >>> random_box(500, 375, np.full(22, 0.5), (0.08, 1), (3 / 4, 4 / 3))
    Box(left=91, top=29, width=318, height=318)
    """
    values = draws.tolist()
    logs = math.log(ratio[0]), math.log(ratio[1])
    for i in range(TRIES):
        area = width * height * (scale[0] + values[2 * i] * (scale[1] - scale[0]))
        proportion = math.exp(logs[0] + values[2 * i + 1] * (logs[1] - logs[0]))
        w, h = round(math.sqrt(area * proportion)), round(math.sqrt(area / proportion))
        if 0 < w <= width and 0 < h <= height:
            return Box(int(values[-1] * (width - w + 1)), int(values[-2] * (height - h + 1)), w, h)
    w, h = width, height
    if width / height < min(ratio):
        h = max(1, round(width / min(ratio)))
    elif width / height > max(ratio):
        w = max(1, round(height * max(ratio)))
    return Box((width - w) // 2, (height - h) // 2, w, h)


def central_box(width: int, height: int, part: float) -> Box:
    """The central square with `part` of the shorter side, in whole pixels.

    >>> central_box(500, 375, 224 / 256)
    Box(left=86, top=23, width=328, height=328)
    """
    edge = max(1, round(min(width, height) * part))
    return Box((width - edge) // 2, (height - edge) // 2, edge, edge)


def stored_box(box: Box, width: int, height: int, orientation: int) -> Box:
    """Where a part of the upright image is in the stored one.

    Args:
        box: in the upright image.
        width: of the stored image, in pixels.
        height: of the stored image, in pixels.
        orientation: EXIF orientation, 1 to 8.

    >>> stored_box(Box(0, 0, 3, 1), 4, 6, 6)  # turned by 90 degrees to the right: its first row is the left column
    Box(left=0, top=3, width=1, height=3)
    """
    rows, columns, exchanged = TURNS[orientation]
    if exchanged:
        box = Box(box.top, box.left, box.height, box.width)
    left = width - box.left - box.width if columns else box.left
    top = height - box.top - box.height if rows else box.top
    return Box(left, top, box.width, box.height)


def shrunk_box(box: Box, width: int, height: int, shrink: int) -> Box:
    """The same part of an image that is `shrink` times smaller, rounded to whole pixels of that.

    Args:
        box: in the large image.
        width: of the small image, in pixels.
        height: of the small image, in pixels.
        shrink: how many times smaller it is.

    >>> shrunk_box(Box(11, 20, 451, 600), 800, 600, 2)
    Box(left=6, top=10, width=225, height=300)
    """
    if shrink == 1:
        return box
    left, top = round(box.left / shrink), round(box.top / shrink)
    right, bottom = round((box.left + box.width) / shrink), round((box.top + box.height) / shrink)
    left, top = min(left, width - 1), min(top, height - 1)
    return Box(left, top, max(1, min(right, width) - left), max(1, min(bottom, height) - top))


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """One channel of a stored image as a view that is upright: `[h, w]`, or `[w, h]` where rows become columns.

    >>> turned(np.array([[1, 2], [3, 4]]), 6).tolist()  # by 90 degrees to the right
    [[3, 1], [4, 2]]
    """
    rows, columns, exchanged = TURNS[orientation]
    pixels = pixels[:: -1 if rows else 1, :: -1 if columns else 1]
    return pixels.T if exchanged else pixels

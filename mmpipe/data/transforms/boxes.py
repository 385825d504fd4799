"""Rectangles of samples, drawn on the host: int64 `[B, 4]` of (top, left, height, width) in pixels.

The rules are those of torchvision 0.29, `transforms.v2.RandomResizedCrop` and `RandomErasing`: ten attempts at an area
and an aspect ratio, of which the first that fits counts. Here all samples make their ten attempts at once.
"""

from __future__ import annotations

import numpy as np

ATTEMPTS = 10
AREA_NUMBERS = 2 * ATTEMPTS + 2
"""Random numbers per sample that `random_resized` and `random_erased` take."""
Range = tuple[float, float]


def centre(height: int, width: int, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """The central window of a size, as `torchvision.transforms.v2.functional.center_crop` places it.

    >>> centre(5, 8, (2, 2))
    (2, 3, 2, 2)
    """
    return round((height - size[0]) / 2), round((width - size[1]) / 2), *size


def random_window(numbers: np.ndarray, height: int, width: int, size: tuple[int, int]) -> np.ndarray:
    """Windows of one size, every place equally likely.

    Args:
        numbers: `[2, B]` in [0, 1).
        height: of the images.
        width: of the images.
        size: (height, width) of the windows, no larger.

    >>> random_window(np.array([[0.0, 0.99], [0.5, 0.0]]), 4, 5, (4, 3)).tolist()
    [[0, 1, 4, 3], [0, 0, 4, 3]]
    """
    boxes = np.empty((numbers.shape[1], 4), dtype=np.int64)
    boxes[:, 2:] = size
    boxes[:, 0] = numbers[0] * (height - size[0] + 1)
    boxes[:, 1] = numbers[1] * (width - size[1] + 1)
    return boxes


def random_resized(numbers: np.ndarray, height: int, width: int, *, scale: Range, ratio: Range) -> np.ndarray:
    """Windows of a random share of the area and a random aspect ratio.

    Where none of ten attempts fits into the image, the window is the largest central one of an allowed ratio.

    Args:
        numbers: `[AREA_NUMBERS, B]` in [0, 1).
        height: of the images.
        width: of the images.
        scale: lowest and highest share of the area.
        ratio: lowest and highest width over height; its logarithm is uniform.

    >>> random_resized(np.zeros((AREA_NUMBERS, 1)), 100, 100, scale=(0.25, 1), ratio=(1, 1)).tolist()
    [[0, 0, 50, 50]]
    """
    heights, widths, fits = _attempts(numbers, height, width, scale, ratio, widths_first=True)
    fits &= (heights > 0) & (widths > 0) & (heights <= height) & (widths <= width)
    found = fits.any(axis=0)
    chosen = fits.argmax(axis=0), np.arange(numbers.shape[1])
    largest = largest_central(height, width, ratio)
    high = np.where(found, heights[chosen], largest[2])
    wide = np.where(found, widths[chosen], largest[3])
    top = np.where(found, np.floor(numbers[-2] * (height - high + 1)), largest[0])
    left = np.where(found, np.floor(numbers[-1] * (width - wide + 1)), largest[1])
    return np.stack([top, left, high, wide], axis=1).astype(np.int64)


def random_erased(
    numbers: np.ndarray, height: int, width: int, *, probability: float, scale: Range, ratio: Range
) -> np.ndarray:
    """Rectangles to erase; of height and width 0 for samples that nothing is erased of.

    Args:
        numbers: `[1 + AREA_NUMBERS, B]` in [0, 1).
        height: of the images.
        width: of the images.
        probability: that anything is erased.
        scale: lowest and highest share of the area.
        ratio: lowest and highest height over width; its logarithm is uniform.

    >>> erased = random_erased(np.zeros((1 + AREA_NUMBERS, 1)), 8, 8, probability=1, scale=(0.25, 1), ratio=(1, 1))
    >>> erased.tolist()
    [[0, 0, 4, 4]]
    """
    heights, widths, fits = _attempts(numbers[1:], height, width, scale, ratio, widths_first=False)
    fits &= (heights < height) & (widths < width) & (numbers[0] < probability)
    found = fits.any(axis=0)
    chosen = fits.argmax(axis=0), np.arange(numbers.shape[1])
    high, wide = heights[chosen] * found, widths[chosen] * found
    top, left = np.floor(numbers[-2] * (height - high + 1)), np.floor(numbers[-1] * (width - wide + 1))
    return np.stack([top, left, high, wide], axis=1).astype(np.int64)


def largest_central(height: int, width: int, ratio: Range) -> tuple[int, int, int, int]:
    """The largest central window whose width over height is in a range.

    >>> largest_central(100, 400, (0.75, 2.0))
    (0, 100, 100, 200)
    """
    high, wide = height, width
    if width / height < ratio[0]:
        high = round(width / ratio[0])
    elif width / height > ratio[1]:
        wide = round(height * ratio[1])
    return (height - high) // 2, (width - wide) // 2, high, wide


def shorter_side(height: int, width: int, size: int | tuple[int, int]) -> tuple[int, int]:
    """(height, width) of an image whose shorter side is resized to `size`; or `size` itself, where it names both.

    >>> shorter_side(375, 500, 256), shorter_side(375, 500, (10, 10))
    ((256, 341), (10, 10))
    """
    if not isinstance(size, int):
        return size
    long = size * max(height, width) // min(height, width)
    return (size, long) if height <= width else (long, size)


def _attempts(
    numbers: np.ndarray, height: int, width: int, scale: Range, ratio: Range, *, widths_first: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    area = height * width * (scale[0] + numbers[:ATTEMPTS] * (scale[1] - scale[0]))
    low, high = np.log(ratio)
    aspect = np.exp(low + numbers[ATTEMPTS : 2 * ATTEMPTS] * (high - low))
    long, short = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    heights, widths = (short, long) if widths_first else (long, short)
    return heights, widths, np.ones(area.shape, dtype=bool)

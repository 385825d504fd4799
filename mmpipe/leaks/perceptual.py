"""Perceptual hashes of images: 64 bits that few changes of size, encoding or brightness turn.

The DCT hash of C. Zauner, "Implementation and benchmarking of perceptual image hash functions" (2010), section 3.2:
grey values at 32 x 32, their discrete cosine transform, a bit per low frequency, 1 above the median. Chosen otherwise:
the image is averaged down over whole cells, which does the work of the blur before it; and the 64 frequencies are the
lowest of the zigzag order without the mean, not a square away from both axes, where an image of stripes is silent.
"""

from __future__ import annotations

import functools
import io
import warnings

import numpy as np
import PIL.Image
import PIL.ImageOps

SIDE = 32
FLAT = 2.0  # grey levels of 255, root mean square over the 64 frequencies: below it there is no picture to compare
WEIGHTS = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


def hashes(grey: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of images of one size.

    Args:
        grey: `[n, height, width]`, 0 to 255.

    Returns:
        Hashes, uint64 `[n]`, and whether each image has enough contrast for its hash to mean anything, bool `[n]`.

    >>> image = np.random.default_rng(0).uniform(0, 255, (64, 64))
    >>> bits, clear = hashes(np.stack([image, 0.9 * image, image.T, 0 * image]))
    >>> np.bitwise_count(bits[0] ^ bits[:3]).tolist(), clear.tolist()
    ([0, 0, 28], [True, True, True, False])
    """
    rows, columns, edge = _zigzag()
    down, across = _transform(grey.shape[1], edge), _transform(grey.shape[2], edge)
    found = (down @ grey.astype(np.float32) @ across.T)[:, rows, columns]
    bits = found > np.median(found, axis=1, keepdims=True)
    packed = np.ascontiguousarray(np.packbits(bits, axis=1)).view('>u8').reshape(-1).astype(np.uint64)
    return packed, np.sqrt((found**2).sum(axis=1)) / SIDE >= FLAT


def grey_of_tensor(images: np.ndarray) -> np.ndarray:
    """Grey values of stored pixels: `[n, 3, h, w]`, `[n, h, w, 3]`, one channel, or none; a fourth is left out.

    >>> grey_of_tensor(np.full((1, 3, 8, 8), 255, np.uint8)).shape
    (1, 8, 8)
    """
    if images.ndim == 4 and images.shape[1] in (1, 3, 4):
        images = np.moveaxis(images, 1, -1)
    if images.ndim == 3:
        return images
    return images[..., 0] if images.shape[-1] == 1 else images[..., :3] @ WEIGHTS


def grey_of_file(data: bytes) -> np.ndarray | None:
    """Grey values `[32, 32]` of an encoded image, transparent parts white; None for bytes that are none."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            with PIL.Image.open(io.BytesIO(data)) as opened:
                opened.draft('RGB', (4 * SIDE, 4 * SIDE))
                image = PIL.ImageOps.exif_transpose(opened).convert('RGBA')
    except Exception:  # noqa: BLE001 (decoders raise anything on bytes that are no image)
        return None
    white = PIL.Image.new('RGBA', image.size, 'white')
    grey = PIL.Image.alpha_composite(white, image).convert('L')
    return np.asarray(grey.resize((SIDE, SIDE), PIL.Image.Resampling.BOX))


def is_image(kind: str, dtype: str, shape: tuple[int, ...]) -> bool:
    """Whether a tensor field holds pixels, by its form.

    >>> is_image('tensor', 'uint8', (3, 64, 64)), is_image('tensor', 'float32', (1280,))
    (True, False)
    """
    if kind != 'tensor' or dtype != 'uint8' or len(shape) not in (2, 3):
        return False
    sides = shape if len(shape) == 2 else shape[1:] if shape[0] in (1, 3, 4) else shape[:2]
    return min(sides) >= 8 and (len(shape) == 2 or shape[0] in (1, 3, 4) or shape[2] in (1, 3, 4))


@functools.cache
def _zigzag() -> tuple[list[int], list[int], int]:
    """Row and column of the 64 lowest frequencies but the mean, and how many a side they take."""
    lowest = sorted((i + j, i, j) for i in range(SIDE) for j in range(SIDE))[1:65]
    return [i for _, i, _ in lowest], [j for _, _, j in lowest], 1 + max(total for total, _, _ in lowest)


@functools.cache
def _transform(size: int, count: int) -> np.ndarray:
    """`[count, size]`: averages `size` values into 32 cells, then takes their `count` lowest cosine frequencies."""
    edges = np.arange(SIDE + 1) * size / SIDE
    pixel = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    cells = np.maximum(overlap, 0) * SIDE / size
    frequency = np.arange(count)[:, None]
    cosines = np.cos(np.pi * frequency * (2 * np.arange(SIDE) + 1) / (2 * SIDE)) * np.sqrt(2 / SIDE)
    cosines[0] /= np.sqrt(2)
    return (cosines @ cells).astype(np.float32)

"""Small pictures of a few rows."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from mmpipe.data.loader import DataLoader
from mmpipe.errors import ConfigError, DataError

SIDE = 128  # pixels, at most


def thumbnails_of(loader: Any, field: str, keys: Sequence[str]) -> dict[str, np.ndarray]:
    """Pictures of rows as they are stored, no more than 128 pixels wide and high.

    Args:
        loader: an `mm.DataLoader`, for its rows.
        field: encoded images (binary), or tensors `[1, H, W]` or `[3, H, W]`: uint8, or numbers that are stretched from
            black to white.
        keys: of the rows; those without an image are left out, and so is what cannot be decoded.

    Returns:
        {key: uint8 `[H, W, 3]`}

    Raises:
        ConfigError: rows without an `mm.DataLoader`.
        DataError: no such field, or none of images.
    """
    if not isinstance(loader, DataLoader):
        raise ConfigError(f'images={field!r} needs an mm.DataLoader, whose rows are known.')
    described = loader.rows.fields.get(field)
    encoded = described is not None and described.kind == 'binary'
    tensor = described is not None and described.kind == 'tensor' and _drawable(described.shape)
    if not encoded and not tensor:
        has = 'there is none' if described is None else f'it is {described.kind} {list(described.shape)}'
        raise DataError(
            f'images={field!r}: a field of encoded images or of tensors [3, H, W] is meant, and {has}. '
            f'Fields are {", ".join(loader.rows.fields)}.'
        )
    place = {key: i for i, key in enumerate(loader.rows.keys.tolist())}
    values, valid = loader.rows.read(field, [place[key] for key in keys])
    drawn = {
        key: _decoded(value) if encoded else _small(_as_image(np.asarray(value)))
        for key, value, there in zip(keys, values, valid, strict=True)
        if there
    }
    return {key: image for key, image in drawn.items() if image is not None}


def _drawable(shape: tuple[int, ...]) -> bool:
    return len(shape) == 3 and shape[0] in (1, 3)


def _decoded(value: bytes) -> np.ndarray | None:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(value)) as image:
            image.draft('RGB', (SIDE, SIDE))
            return _small(np.asarray(image.convert('RGB')))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _as_image(value: np.ndarray) -> np.ndarray:
    """uint8 `[H, W, 3]` of a tensor `[1 or 3, H, W]`."""
    if value.dtype != np.uint8:
        value = value.astype(np.float64)
        low, high = value.min(), value.max()
        value = (255 * (value - low) / (high - low if high > low else 1)).astype(np.uint8)
    return np.repeat(value, 3 // len(value), axis=0).transpose(1, 2, 0)


def _small(image: np.ndarray) -> np.ndarray:
    from PIL import Image

    picture = Image.fromarray(np.ascontiguousarray(image))
    picture.thumbnail((SIDE, SIDE))
    return np.asarray(picture)

"""Images of any mode into uint8 squares, and into vectors of a pretrained backbone."""

from __future__ import annotations

import functools

import numpy as np
import PIL.Image
import PIL.ImageOps
import pixeltable as pxt
import pixeltable.type_system as ts

from mmpipe.decode.image_modes import upright_rgb
from mmpipe.errors import BadInputError, ConfigError, DataError
from mmpipe.fingerprints import loads
from mmpipe.functions import models
from mmpipe.functions.batching import in_batches
from mmpipe.functions.caching import cached
from mmpipe.functions.counting import counted
from mmpipe.functions.parallel import in_pool
from mmpipe.functions.types import array_type

WHITE = (255, 255, 255)
FITS = ('crop', 'pad')


@pxt.udf
@counted
async def pixels(image: pxt.Image, *, size: int = 128, fit: str = 'crop') -> pxt.Array[(3, None, None), np.uint8]:
    """An image as a uint8 RGB square, ready to be stored in shards and moved to a device.

    A uint8 array, because Pixeltable stores computed images as JPEG, which changes every pixel. EXIF orientation is
    applied; see `to_rgb` for how the modes become RGB, and `square` for the resize.

    Args:
        image: any Pillow image.
        size: edge of the square in pixels, at least 1.
        fit: 'crop' scales the shorter side to `size` and cuts the centre; 'pad' scales the longer side and fills with
            white.

    Returns:
        uint8 (3, size, size): channels R, G, B in [0, 255], rows from the top.

    Raises:
        ConfigError: `size` or `fit` cannot work; raised when the column is declared.
        BadInputError: the image has no known value range (mode F and others).

    >>> import asyncio
    >>> red = PIL.Image.new('RGB', (40, 20), 'red')
    >>> array = asyncio.run(pixels.py_fn(red, size=8))
    >>> array.shape, array.dtype, array[:, 0, 0].tolist()
    ((3, 8, 8), dtype('uint8'), [255, 0, 0])
    """
    return await in_pool(square_array, image, size, fit)


@pixels.conditional_return_type
def _(size: int, fit: str) -> ts.ColumnType:
    _check(size, fit)
    return array_type((3, size, size), 'uint8')


@pxt.udf
@cached
@counted
@loads(models.image_files)
async def embed_image(
    image: pxt.Image, *, model: str = models.DEFAULT_IMAGE_MODEL, size: int = 160, fit: str = 'crop'
) -> pxt.Array[(None,), np.float32]:
    """The vector of a pretrained timm backbone, pooled, before its classifier. Frames of a video are images too.

    Images are prepared on a thread pool, go through the model up to 32 at a time, and are normalised with the constants
    its weights were trained with. A bad image fails its own cell only.

    Args:
        image: any Pillow image; prepared as in `pixels`.
        model: a timm model. 'tf_efficientnet_lite0' comes with a package; timm downloads others at their first use.
        size: edge in pixels that the backbone sees. The packaged one was trained at 224; 160 halves the work.
        fit: 'crop' or 'pad', as in `pixels`.

    Returns:
        float32 (features,); (1280,) for the packaged model. Not normalised.

    Raises:
        ConfigError: `size` or `fit` cannot work; raised when the column is declared.
        BadInputError: the image has no known value range.
        ModelError: the model is unknown, cannot be downloaded or does not take this size.
        MissingExtraError: timm or the weights' package is not installed.

    >>> import asyncio
    >>> vector = asyncio.run(embed_image.py_fn(PIL.Image.new('RGB', (40, 20), 'red'), size=64))
    >>> vector.shape, vector.dtype
    ((1280,), dtype('float32'))
    """
    return await image_vector(image, model, size, fit)


@embed_image.conditional_return_type
def _(model: str, size: int, fit: str) -> ts.ColumnType:
    return vector_type(model, size, fit)


async def image_vector(image: PIL.Image.Image, model: str, size: int, fit: str) -> np.ndarray:
    """What `embed_image` and `embed_frame` compute; cells of both may share a model call."""
    prepare = functools.partial(square_array, image, size, fit)
    return await in_batches(('image', model, size), prepare, functools.partial(models.embed_images, model))


def vector_type(model: str, size: int, fit: str) -> ts.ColumnType:
    """Column type of `embed_image` and `embed_frame`, after checking their constants."""
    _check(size, fit)
    return array_type((models.IMAGE_FEATURES.get(model),), 'float32')


def to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image upright and in mode RGB.

    Transparency (LA, PA, RGBA, or a transparent colour of L, P and RGB) is composited on white. 16-bit grey (I;16, and
    I when its values are in 0..65535) is scaled by 255/65535. CMYK, YCbCr and HSV are converted by Pillow without
    colour profiles.

    Args:
        image: any Pillow image.

    Returns:
        An RGB image; the same object when nothing had to change.

    Raises:
        BadInputError: the mode has no known value range (F, wider I) or no conversion (LAB).

    >>> to_rgb(PIL.Image.new('LA', (1, 1), (0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    try:
        return upright_rgb(image)
    except DataError as error:
        name = getattr(image, 'filename', '') or 'an image in memory'
        raise BadInputError(f'{name}{str(error).removeprefix("the image")}') from None


def square(image: PIL.Image.Image, size: int, fit: str = 'crop') -> PIL.Image.Image:
    """An RGB image scaled to `size` x `size`, aspect kept, with Pillow's antialiased bicubic filter.

    Args:
        image: an RGB image.
        size: edge in pixels.
        fit: 'crop' cuts the longer side's ends off; 'pad' fills the shorter side's ends with white.

    Raises:
        ConfigError: `size` or `fit` cannot work.
        BadInputError: the image has no pixels.

    >>> square(PIL.Image.new('RGB', (30, 10), 'red'), 3, 'pad').getpixel((1, 0))
    (255, 255, 255)
    """
    _check(size, fit)
    if not image.width or not image.height:
        raise BadInputError(f'{getattr(image, "filename", "") or "an image"} is {image.width} x {image.height} pixels.')
    if fit == 'crop':
        return PIL.ImageOps.fit(image, (size, size), PIL.Image.Resampling.BICUBIC)
    scale = size / max(image.size)
    # At least one pixel: a line of 1 x 4000 would otherwise vanish.
    scaled = image.resize([max(1, round(edge * scale)) for edge in image.size], PIL.Image.Resampling.BICUBIC)
    canvas = PIL.Image.new('RGB', (size, size), WHITE)
    canvas.paste(scaled, ((size - scaled.width) // 2, (size - scaled.height) // 2))
    return canvas


def square_array(image: PIL.Image.Image, size: int, fit: str = 'crop') -> np.ndarray:
    """`to_rgb`, `square`, and channels first: uint8 (3, size, size).

    >>> square_array(PIL.Image.new('1', (5, 5), 1), 2).tolist()[0]
    [[255, 255], [255, 255]]
    """
    return np.ascontiguousarray(np.asarray(square(to_rgb(image), size, fit)).transpose(2, 0, 1))


def _check(size: int, fit: str) -> None:
    if size < 1:
        raise ConfigError(f'size={size}: an image needs at least one pixel; 128 is usual.')
    if fit not in FITS:
        raise ConfigError(f"fit={fit!r}: it is 'crop' or 'pad'.")

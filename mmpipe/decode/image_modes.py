"""Images of any mode into RGB, without Pixeltable: what `mmpipe.functions.pixels` does before it scales."""

from __future__ import annotations

import numpy as np
import PIL.Image
import PIL.ImageOps

from mmpipe.errors import DataError

WHITE = (255, 255, 255)
_ORIENTATION = 0x0112  # EXIF 2.3, tag 274
_SIXTEEN_BIT = ('I;16', 'I;16L', 'I;16B', 'I;16N')
_PLAIN = ('1', 'L', 'RGB', 'CMYK', 'YCbCr', 'HSV', 'P', 'RGBX')
_ALPHA = ('LA', 'PA', 'RGBA', 'La', 'RGBa')


def upright_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    """The image upright and in mode RGB, with the same pixels as `mmpipe.functions.image.to_rgb`.

    Args:
        image: any Pillow image; of an animation, the frame it is at.

    Returns:
        An RGB image; transparency on white, 16-bit grey scaled to 8.

    Raises:
        DataError: the mode has no known value range (F, wider I) or no conversion (LAB).

    >>> upright_rgb(PIL.Image.new('LA', (1, 1), (0, 0))).getpixel((0, 0))
    (255, 255, 255)
    """
    if image.getexif().get(_ORIENTATION, 1) != 1:
        image = PIL.ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BIT or image.mode == 'I':
        grey = np.asarray(image).astype(np.int64)
        if grey.size and (grey.min() < 0 or grey.max() > 65535):
            raise DataError(
                f'the image is in mode I with values in [{grey.min()}, {grey.max()}], beyond 16 bits, so what counts '
                f'as white is unknown. Save it as 8 or 16-bit grey.'
            )
        return PIL.Image.fromarray(((grey * 255 + 32767) // 65535).astype(np.uint8)).convert('RGB')
    if image.mode in _ALPHA or (image.mode in _PLAIN and 'transparency' in image.info):
        if image.mode == 'La':
            image = image.convert('LA')
        layer = image.convert('RGBA')
        flat = PIL.Image.new('RGBA', layer.size, WHITE)
        flat.alpha_composite(layer)
        return flat.convert('RGB')
    if image.mode in _PLAIN:
        return image if image.mode == 'RGB' else image.convert('RGB')
    raise DataError(
        f'the image is in mode {image.mode}, whose value range is unknown, so it cannot become 8-bit RGB. '
        f'Save it as 8 or 16-bit.'
    )

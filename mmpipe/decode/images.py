"""Encoded images to RGB squares: random crops for training, central ones or whole images for evaluation."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import PIL.Image

from mmpipe.decode import jpeg
from mmpipe.decode.image_boxes import DRAWS, TURNS, Box, central_box, random_box, shrunk_box, stored_box
from mmpipe.decode.image_modes import upright_rgb
from mmpipe.decode.image_resize import memory, resize_into
from mmpipe.errors import ConfigError, DataError

Crop = Literal['random', 'center']


def image(
    *,
    size: int = 224,
    crop: Crop | None = 'random',
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    resize: int | None = None,
) -> ImageDecoder:
    """Decode JPEG, PNG, WebP and whatever else Pillow reads, to uint8 RGB squares.

    Every crop is scaled with antialias, in two to four times less time than by Pillow; threads decode at once. Of a
    JPEG, rows below the crop are left out, and where the crop is twice `size` or more, it is decoded at a half, a
    quarter or an eighth (edges are then whole pixels of that). EXIF orientation is applied, transparency is put on
    white, and other modes become RGB as in `mmpipe.functions.pixels`. Of an animation, the first frame is taken.
    Flips and colours are better changed on the device.

    Args:
        size: edge of the result in pixels.
        crop: 'random', a part of random area, proportions and place in each epoch, as torchvision's
            RandomResizedCrop; 'center', the central square; None, the whole image, squeezed to a square.
        scale: smallest and largest part of the image's area, for 'random'.
        ratio: smallest and largest width / height, for 'random'.
        resize: for 'center', what the shorter side counts as, in pixels of which `size` are kept: 256 with size=224
            keeps 7/8 of it. None keeps all of it.

    Returns:
        A decoder to uint8 `[3, size, size]`: channels R, G, B in [0, 255], rows from the top.

    Raises:
        ConfigError: an argument cannot work.

    >>> file = io.BytesIO()
    >>> PIL.Image.new('RGB', (500, 375), 'red').save(file, 'png')
    >>> decoder = image(size=4, crop='center', resize=5)
    >>> decoder.decode(file.getvalue(), np.empty(0, np.float32), None)[:, 0, 0].tolist()
    [255, 0, 0]
    """
    return ImageDecoder(size=size, crop=crop, scale=tuple(scale), ratio=tuple(ratio), resize=resize)


@dataclass(frozen=True, kw_only=True)
class ImageDecoder:
    """What `mm.decode.image` makes; see there. Holds only its arguments, so it pickles and serves any thread."""

    size: int
    crop: Crop | None
    scale: tuple[float, ...]
    ratio: tuple[float, ...]
    resize: int | None

    def __post_init__(self) -> None:
        if self.size < 1 or self.size != int(self.size):
            raise ConfigError(f'mm.decode.image(size={self.size}): the edge is a whole number of pixels, such as 224.')
        if self.crop not in ('random', 'center', None):
            raise ConfigError(f"mm.decode.image(crop={self.crop!r}): choose 'random', 'center' or None.")
        if len(self.scale) != 2 or not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ConfigError(f'mm.decode.image(scale={self.scale}): two parts of the area, such as (0.08, 1).')
        if len(self.ratio) != 2 or not 0 < self.ratio[0] <= self.ratio[1] < math.inf:
            raise ConfigError(f'mm.decode.image(ratio={self.ratio}): two of width / height, such as (3/4, 4/3).')
        if self.resize is not None and (self.crop != 'center' or self.resize < self.size):
            raise ConfigError(
                f'mm.decode.image(resize={self.resize}, size={self.size}, crop={self.crop!r}): it goes with '
                f"crop='center', and is at least `size`."
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of a result."""
        return 3, self.size, self.size

    @property
    def rest(self) -> tuple[int, ...]:
        """Nothing varies."""
        return ()

    @property
    def dtype(self) -> str:
        """Always uint8."""
        return 'uint8'

    @property
    def draws(self) -> int:
        """Random numbers of a random crop: two for each of ten tries, two for the place."""
        return DRAWS if self.crop == 'random' else 0

    def decode(self, data: bytes, draws: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        """Pixels of one image; see `mmpipe.decode.Decoder`.

        Raises:
            DataError: the bytes are no image, end too early, or have no known way to RGB.
        """
        if not isinstance(data, bytes):
            data = bytes(data)
        if not data:
            raise DataError('there are no bytes to decode as an image.')
        if out is None:
            out = np.empty(self.shape, np.uint8)
        try:
            head = jpeg.header(data)
            if head is None:
                self._decode_any(data, draws, out)
            else:
                self._decode_jpeg(data, head, draws, out)
        except DataError:
            raise
        except Exception as error:  # Pillow raises anything on damaged bytes: SyntaxError, KeyError, struct.error, ...
            said = str(error).strip() or type(error).__name__
            raise DataError(f'the image cannot be decoded: Pillow says "{said}". {jpeg.NEXT}') from error
        return out

    def box(self, width: int, height: int, draws: np.ndarray) -> Box:
        """Which part of an upright image of this size is taken, in pixels."""
        if self.crop == 'random':
            return random_box(width, height, draws, self.scale, self.ratio)
        if self.crop == 'center':
            return central_box(width, height, self.size / (self.resize or self.size))
        return Box(0, 0, width, height)

    def _decode_jpeg(self, data: bytes, head: jpeg.Header, draws: np.ndarray, out: np.ndarray) -> None:
        """The part is cut and scaled as it is stored, and only then turned: fewer pixels move."""
        sides = head.width, head.height
        upright = sides[::-1] if TURNS[head.orientation][2] else sides
        box = self.box(*upright, draws)
        box = stored_box(box, *sides, head.orientation)
        shrink = jpeg.shrink_for(head, box, self.size)
        box = shrunk_box(box, -(-head.width // shrink), -(-head.height // shrink), shrink)
        resize_into(jpeg.part(data, head, box, shrink), out, head.orientation)

    def _decode_any(self, data: bytes, draws: np.ndarray, out: np.ndarray) -> None:
        with PIL.Image.open(io.BytesIO(data)) as opened:
            upright = upright_rgb(opened)
            left, top, width, height = self.box(*upright.size, draws)
            found = upright.crop((left, top, left + width, top + height))
        pixels = memory(height * width * 3).reshape(height, width, 3)
        pixels[:] = np.asarray(found)
        resize_into(pixels, out)

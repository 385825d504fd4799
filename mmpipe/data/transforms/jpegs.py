"""JPEG images that cross as they are stored, and become squares on the device: by nvJPEG, where that is CUDA.

On CUDA not yet run: no test machine had one. On the CPU the same code runs by libjpeg, slower than `mm.decode.image`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mmpipe.data.device import resolve
from mmpipe.data.transforms import boxes
from mmpipe.data.transforms.draw import Draw
from mmpipe.decode.cuda import decode_jpegs
from mmpipe.errors import ConfigError

Range = tuple[float, float]


def jpeg(
    size: int, *, scale: Range | None = None, ratio: Range = (3 / 4, 4 / 3), device: str | torch.device = 'auto'
) -> JpegSquares:
    """Decode a field of JPEG files on the device, instead of in the threads that read.

    For a fast device beside few cores: only the files' bytes cross. Put it first in the list of the field's transforms,
    and leave the field out of `decode=`. EXIF orientation is not applied.

    Args:
        size: edge of the squares in pixels.
        scale: smallest and largest share of the area of random crops, as in `mm.transforms.image`; the largest central
            square when None.
        ratio: smallest and largest width over height of random crops.
        device: where to, the loader's.

    Returns:
        A transform of lists of B files (empty ones where the value is missing) to uint8 `[B, 3, size, size]`.

    Raises:
        ConfigError: a size below 1, or no such device.

    >>> jpeg(8, device='cpu')([b'']).shape
    torch.Size([1, 3, 8, 8])
    """
    if size < 1:
        raise ConfigError(f'transforms.jpeg(size={size}): at least 1 pixel.')
    return JpegSquares(size, scale, ratio, resolve(device))


@dataclass(frozen=True)
class JpegSquares:
    """What `jpeg` returns."""

    size: int
    scale: Range | None
    ratio: Range
    device: torch.device

    @property
    def random(self) -> bool:
        """Whether crops are."""
        return self.scale is not None

    def __call__(self, files: Sequence[bytes], *, draw: Draw | None = None) -> torch.Tensor:
        """Decode one batch.

        Args:
            files: B whole files; empty ones become zeros.
            draw: random numbers for the crops.

        Raises:
            DataError: one of them cannot be decoded.
        """
        from torchvision.transforms.v2 import functional as F

        there = [i for i, file in enumerate(files) if file]
        images = dict(zip(there, decode_jpegs([files[i] for i in there], self.device), strict=True))
        out = torch.zeros(len(files), 3, self.size, self.size, dtype=torch.uint8, device=self.device)
        numbers = (draw or Draw()).numbers(0, boxes.AREA_NUMBERS, len(files)) if self.random else None
        for i, image in images.items():
            height, width = image.shape[1:]
            if numbers is None:
                top, left, high, wide = boxes.largest_central(height, width, (1.0, 1.0))
            else:
                assert self.scale is not None
                window = boxes.random_resized(numbers[:, i : i + 1], height, width, scale=self.scale, ratio=self.ratio)
                top, left, high, wide = window[0].tolist()
            out[i] = F.resized_crop(image, top, left, high, wide, [self.size, self.size], antialias=True)
        return out

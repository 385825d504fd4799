"""JPEG images decoded on a CUDA device by nvJPEG, whole.

Not run on a device so far; its test is marked `gpu`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmpipe.errors import DataError

if TYPE_CHECKING:
    import torch


def decode_jpegs(data: Sequence[bytes], device: torch.device | str = 'cuda') -> list[torch.Tensor]:
    """Decode JPEG images on a CUDA device, by one call of nvJPEG for all of them.

    For images that are stored larger than a batch wants them and a device that has time left: only bytes are moved to
    it. Crop and scale there, with `mm.transforms`. EXIF orientation is not applied.

    Args:
        data: whole files, of 8-bit grey or colour.
        device: a CUDA device.

    Returns:
        uint8 `[3, height, width]` on the device, one for each file: channels R, G, B in [0, 255].

    Raises:
        DataError: nvJPEG cannot decode one of them.
    """
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    if not data:
        return []
    # A copy, since torch takes writable memory only.
    files = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in data]
    try:
        return decode_jpeg(files, mode=ImageReadMode.RGB, device=device)
    except RuntimeError as error:
        raise DataError(
            f'nvJPEG cannot decode one of {len(data)} images: {str(error).strip().splitlines()[0]}. '
            f'Decode them with mm.decode.image, which says which one.'
        ) from error

"""Transforms of whole batches on the device, after the transfer.

A transform is called with a field's tensor, and one whose `random` attribute is true also with `draw=`, a `Draw`
that gives each sample random numbers of its own: functions of (seed, epoch, key), whatever batch the sample is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from mmpipe.data.order import uniform
from mmpipe.errors import ConfigError, DataError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's training images per RGB channel, of values in [0, 1]; as torchvision's weights declare it:
https://docs.pytorch.org/vision/stable/models.html"""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation to `IMAGENET_MEAN`, from the same place."""


@dataclass(frozen=True)
class Draw:
    """Random numbers for the samples of one batch.

    Args:
        hashes: uint64 `[B]`, key hashes of the samples; None to draw from torch's global generator instead.
        seed: of the loader.
        epoch: from 0.

    >>> draw = Draw(np.arange(3, dtype=np.uint64), seed=0, epoch=1)
    >>> draw.uniform(0, 3, torch.device('cpu')).shape
    torch.Size([3])
    """

    hashes: np.ndarray | None = None
    seed: int = 0
    epoch: int = 0

    def uniform(self, stream: int, count: int, device: torch.device) -> torch.Tensor:
        """float32 `[count]` in [0, 1); another `stream` gives other, independent numbers."""
        if self.hashes is None:
            return torch.rand(count, device=device)
        return torch.from_numpy(uniform(self.hashes, self.seed, self.epoch, stream)).to(device)


def image(
    *,
    crop: int | None = None,
    flip: bool = False,
    resize: int | None = None,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    random: bool | None = None,
) -> ImageTransform:
    """Crop, flip, resize and normalise a uint8 image batch on its device.

    Args:
        crop: side of a square crop in pixels; random per sample, or central when `random` is false.
        flip: mirror each sample left to right with probability 1/2.
        resize: side in pixels that crops (or whole images) are resized to, bilinear with antialiasing.
        mean: per channel, of values in [0, 1].
        std: per channel, of values in [0, 1].
        random: whether crops are random; as `flip` when None, so that a validation transform is the same call
            without `flip`.

    Raises:
        ConfigError: a size below 1, or a std that is not positive.

    >>> image(crop=2)(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)).shape
    torch.Size([1, 3, 2, 2])
    """
    return ImageTransform(
        crop=crop, flip=flip, resize=resize, mean=tuple(mean), std=tuple(std), random=flip if random is None else random
    )


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """What `image` returns: a callable from uint8 `[B, C, H, W]` to float32 `[B, C, h, w]`."""

    crop: int | None
    flip: bool
    resize: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    random: bool

    def __post_init__(self) -> None:
        for name, side in (('crop', self.crop), ('resize', self.resize)):
            if side is not None and side < 1:
                raise ConfigError(f'transforms.image({name}={side}): a side is at least 1 pixel.')
        if min(self.std) <= 0 or len(self.mean) != len(self.std):
            raise ConfigError(
                f'transforms.image(mean={self.mean}, std={self.std}): one positive std per channel, please.'
            )

    def __call__(self, images: torch.Tensor, *, draw: Draw | None = None) -> torch.Tensor:
        """Transform one batch.

        Args:
            images: uint8 `[B, C, H, W]`.
            draw: random numbers for its samples; torch's global generator when None.

        Raises:
            DataError: not uint8 images with as many channels as `mean`, or smaller than the crop.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != len(self.mean):
            raise DataError(
                f'transforms.image takes uint8 [B, {len(self.mean)}, H, W], but was given {images.dtype} '
                f'{list(images.shape)}. Give it the name of an image field in transforms=.'
            )
        draw = draw or Draw()
        if self.crop is not None:
            images = self._cropped(images, draw)
        # uint8 is moved about as long as possible; one float32 copy is made, at the final size where it is smaller.
        values = images.float()
        if self.resize is not None and tuple(values.shape[2:]) != (self.resize, self.resize):
            values = F.interpolate(
                values, (self.resize, self.resize), mode='bilinear', antialias=True, align_corners=False
            )
        if self.flip:
            mirrored = draw.uniform(2, len(values), values.device) < 0.5
            values = torch.where(mirrored[:, None, None, None], values.flip(3), values)
        mean, std = (
            torch.tensor(constants, device=values.device)[:, None, None] * 255 for constants in (self.mean, self.std)
        )
        return (values - mean) / std

    def _cropped(self, images: torch.Tensor, draw: Draw) -> torch.Tensor:
        side = self.crop
        assert side is not None
        count, _, height, width = images.shape
        if height < side or width < side:
            raise DataError(
                f'transforms.image(crop={side}) was given images of {height}x{width}. Use a smaller crop, or store '
                f'the field at a larger size.'
            )
        if not self.random:
            top, left = (height - side) // 2, (width - side) // 2
            return images[:, :, top : top + side, left : left + side]
        device = images.device
        tops = (draw.uniform(0, count, device) * (height - side + 1)).long()
        lefts = (draw.uniform(1, count, device) * (width - side + 1)).long()
        offsets = torch.arange(side, device=device)
        # One gather for the whole batch: [B, 1, 1], [B, side, 1] and [B, 1, side] broadcast to a pixel grid per sample.
        sample = torch.arange(count, device=device)[:, None, None]
        picked = images.permute(0, 2, 3, 1)[
            sample, (tops[:, None] + offsets)[:, :, None], (lefts[:, None] + offsets)[:, None]
        ]
        return picked.permute(0, 3, 1, 2)


def apply(transform: Any, values: torch.Tensor, draw: Draw) -> torch.Tensor:
    """Call a transform, with `draw` if it says that it is random.

    >>> apply(lambda x: x + 1, torch.zeros(1), Draw())
    tensor([1.])
    """
    return transform(values, draw=draw) if getattr(transform, 'random', False) else transform(values)

"""Which part of each image goes where: windows, sizes and mirroring of a batch, planned on the host.

Two ways to the same pixels. On the CPU, torch's own kernel for uint8 images, called for one sample after another: it is
vectorised for bytes, and what it works on stays in the cache. On other devices a gather, or two matrix products with a
matrix of filter weights per sample and direction, for the whole batch at once; no number is asked back from the device.

Resizing antialiases always, and rounds to whole numbers, as torchvision does with uint8 images.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch.amp.autocast_mode import is_autocast_available
from torch.nn import functional as F

from mmpipe.data.transforms.draw import on_device

Size = tuple[int, int]


@dataclass(frozen=True)
class Placement:
    """Where the pixels of a batch go.

    Attributes:
        boxes: int64 `[B, 4]` of (top, left, height, width), the window of each image.
        full: (height, width) that each window is resized to.
        cut: (top, left, height, width) that is kept of the resized window; None for all.
        mirrored: bool `[B]`, left to right at last.
    """

    boxes: np.ndarray
    full: Size
    cut: tuple[int, int, int, int] | None
    mirrored: np.ndarray

    @property
    def size(self) -> Size:
        """(height, width) of the result."""
        return self.full if self.cut is None else self.cut[2:]

    def __getitem__(self, part: slice) -> Placement:
        return Placement(self.boxes[part], self.full, self.cut, self.mirrored[part])


def place(images: torch.Tensor, out: torch.Tensor, placement: Placement, interpolation: str) -> None:
    """Write the windows of images into floats.

    Args:
        images: uint8 `[B, T, C, H, W]`.
        out: float `[B, T, C, *placement.size]` on the same device; gets whole numbers from 0 to 255.
        placement: of these images.
        interpolation: 'bilinear' or 'bicubic'.

    >>> images, out = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 1, 1, 4), torch.empty(1, 1, 1, 1, 2)
    >>> place(images, out, Placement(np.array([[0, 1, 1, 2]]), (1, 2), None, np.array([True])), 'bilinear')
    >>> out.flatten()
    tensor([2., 1.])
    """
    if images.device.type == 'cpu' and placement.full != (1, 1):  # torch's kernel fails at a single pixel
        _place_each(images, out, placement, interpolation)
    elif (placement.boxes[:, 2:] == placement.full).all():
        out.copy_(gathered(images, placement))
    else:
        out.copy_(multiplied(images, placement, interpolation))


def _place_each(images: torch.Tensor, out: torch.Tensor, placement: Placement, interpolation: str) -> None:
    boxes, mirrored = placement.boxes.tolist(), placement.mirrored.tolist()
    for image, target, (top, left, high, wide), mirror in zip(images, out, boxes, mirrored, strict=True):
        window = image[..., top : top + high, left : left + wide]
        if (high, wide) != placement.full:
            window = F.interpolate(window, placement.full, mode=interpolation, antialias=True, align_corners=False)
        if placement.cut is not None:
            top, left, high, wide = placement.cut
            window = window[..., top : top + high, left : left + wide]
        target.copy_(window.flip(-1) if mirror else window)


def gathered(images: torch.Tensor, placement: Placement) -> torch.Tensor:
    """Windows that keep their size: one gather for the batch.

    >>> images = torch.arange(4).reshape(1, 1, 1, 1, 4)
    >>> gathered(images, Placement(np.array([[0, 1, 1, 2]]), (1, 2), None, np.array([True]))).flatten()
    tensor([2, 1])
    """
    top, left, high, wide = placement.cut or (0, 0, *placement.full)
    boxes, across = placement.boxes, np.arange(left, left + wide)
    if (boxes == (0, 0, *images.shape[-2:])).all() and not placement.mirrored.any():
        return images[..., top : top + high, left : left + wide]
    rows = on_device(boxes[:, :1] + np.arange(top, top + high), images.device)
    columns = on_device(boxes[:, 1:2] + np.where(placement.mirrored[:, None], across[::-1], across), images.device)
    sample = torch.arange(len(images), device=images.device)[:, None, None]
    picked = images.permute(0, 3, 4, 1, 2)[sample, rows[:, :, None], columns[:, None]]
    return picked.permute(0, 3, 4, 1, 2)


def multiplied(images: torch.Tensor, placement: Placement, interpolation: str) -> torch.Tensor:
    """Windows that are resized: each line of the result is a weighted sum of stored lines, in both directions.

    >>> images = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 1, 1, 4)
    >>> multiplied(images, Placement(np.array([[0, 0, 1, 4]]), (1, 2), None, np.array([False])), 'bilinear').flatten()
    tensor([1., 2.])
    """
    top, left, high, wide = placement.cut or (0, 0, *placement.full)
    boxes, mirrored = on_device(placement.boxes, images.device), on_device(placement.mirrored, images.device)
    down = filter_weights(boxes[:, 0], boxes[:, 2], images.shape[-2], placement.full[0], interpolation)
    across = filter_weights(boxes[:, 1], boxes[:, 3], images.shape[-1], placement.full[1], interpolation)
    down, across = down[:, top : top + high], across[:, left : left + wide]
    across = torch.where(mirrored[:, None, None], across.flip(1), across)
    device = images.device.type
    with torch.autocast(device, enabled=False) if is_autocast_available(device) else nullcontext():
        # Under autocast the products would be made in bfloat16. Rounded in between, as the kernel for bytes does it.
        lines = torch.matmul(images.float(), across[:, None, None].mT).round_().clamp_(0, 255)
        return torch.matmul(down[:, None, None], lines).round_().clamp_(0, 255)


def filter_weights(
    start: torch.Tensor, length: torch.Tensor, stored: int, wanted: int, interpolation: str
) -> torch.Tensor:
    """How much each stored pixel of a line counts for each pixel of the resized one.

    The filter is stretched where the line gets shorter, which is the antialiasing, and cut off at the window's ends:
    Pillow's `Resample.c`, which torch follows with `antialias=True` (bicubic with a = -0.5).

    Args:
        start: int64 `[B]`, first pixel of each window.
        length: int64 `[B]`, its pixels.
        stored: pixels of a stored line.
        wanted: pixels of a resized line.
        interpolation: 'bilinear' or 'bicubic'.

    Returns:
        float32 `[B, wanted, stored]`; each line sums to 1.

    >>> filter_weights(torch.tensor([0]), torch.tensor([4]), 4, 2, 'bilinear')
    tensor([[[0.4286, 0.4286, 0.1429, 0.0000],
             [0.0000, 0.1429, 0.4286, 0.4286]]])
    """
    start, length = start[:, None, None].float(), length[:, None, None].float()
    step = length / wanted
    middle = start + (torch.arange(wanted, device=start.device) + 0.5)[:, None] * step
    pixels = torch.arange(stored, device=start.device)
    distance = (pixels + 0.5 - middle).abs() / step.clamp(min=1)
    if interpolation == 'bilinear':
        weights = (1 - distance).clamp(min=0)
    else:  # Keys, "Cubic convolution interpolation for digital image processing", 1981
        near = (1.5 * distance - 2.5) * distance**2 + 1
        far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
        weights = torch.where(distance < 1, near, torch.where(distance < 2, far, 0.0))
    weights = weights * ((pixels >= start) & (pixels < start + length))
    return weights / weights.sum(dim=-1, keepdim=True)

"""Colours of whole batches, changed in place: float `[..., 3, H, W]` with values from 0 to 255, a factor per sample.

The formulas are those of torchvision 0.29, `transforms.v2.functional.adjust_*` on float images, whose functions take
one factor for all samples. Hue is turned without going to HSV and back: for hue H in sixths, value V and chroma C,
channel n of (red 5, green 3, blue 1) is V - C * clamp(2 - |d|, 0, 1), d the distance of (n + H) from 2 on a circle of 6
(https://en.wikipedia.org/wiki/HSL_and_HSV#HSV_to_RGB_alternative, with its min(k, 4 - k, 1) written as a distance).
"""

from __future__ import annotations

import torch

WHITE = 255.0
GREY = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in grey, as torchvision has them (ITU-R BT.601)."""


def grey(images: torch.Tensor) -> torch.Tensor:
    """Grey values `[..., 1, H, W]`.

    >>> grey(torch.full((3, 1, 1), 10.0))
    tensor([[[9.9990]]])
    """
    red, green, blue = (images.narrow(-3, channel, 1) for channel in range(3))
    return (red * GREY[0]).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])


def brighten(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Multiply by a factor: 0 is black, 1 changes nothing.

    Args:
        images: changed in place.
        factors: that broadcast over them, such as `[B, 1, 1, 1]`.

    >>> brighten(torch.full((1, 3, 1, 1), 100.0), torch.tensor(3.0)).flatten()
    tensor([255., 255., 255.])
    """
    return images.mul_(factors).clamp_(0, WHITE)


def contrast(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Away from the mean grey of each image by a factor: 0 is plain grey, 1 changes nothing.

    Args:
        images: changed in place.
        factors: that broadcast over them, such as `[B, 1, 1, 1]`.

    >>> contrast(torch.tensor([0.0, 200.0]).expand(3, 1, 2).clone(), torch.tensor(0.5))[0]
    tensor([[ 49.9950, 149.9950]])
    """
    means = grey(images).mean((-2, -1), keepdim=True)
    return images.mul_(factors).add_(means.mul_(1 - factors)).clamp_(0, WHITE)


def saturate(images: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Away from each pixel's grey by a factor: 0 is a grey picture, 1 changes nothing.

    Args:
        images: changed in place.
        factors: that broadcast over them, such as `[B, 1, 1, 1]`.

    >>> saturate(torch.tensor([100.0, 0.0, 0.0]).reshape(3, 1, 1), torch.tensor(0.0)).flatten()
    tensor([29.8900, 29.8900, 29.8900])
    """
    greys = grey(images)
    return images.mul_(factors).add_(greys.mul_(1 - factors)).clamp_(0, WHITE)


def turn_hue(images: torch.Tensor, turns: torch.Tensor) -> torch.Tensor:
    """Turn the hue by a part of the circle.

    Args:
        images: changed in place.
        turns: from -0.5 to 0.5, that broadcast over them, such as `[B, 1, 1, 1]`.

    >>> turn_hue(torch.tensor([200.0, 100.0, 100.0]).reshape(3, 1, 1), torch.tensor(1 / 3)).round().flatten()
    tensor([100., 200., 100.])
    """
    red, green, blue = (images.narrow(-3, channel, 1) for channel in range(3))
    value = images.amax(-3, keepdim=True)
    chroma = value - images.amin(-3, keepdim=True)
    # Without chroma the hue is anything: it is multiplied by 0.
    divisor = chroma.clamp(min=1e-6)
    hue = torch.where(
        value == red,
        (green - blue).div_(divisor),
        torch.where(value == green, (blue - red).div_(divisor).add_(2), (red - green).div_(divisor).add_(4)),
    )
    hue.add_(turns * 6)
    for start, channel in ((5, red), (3, green), (1, blue)):
        distance = hue + (start - 2)
        distance.sub_((distance / 6).round_().mul_(6)).abs_().neg_().add_(2).clamp_(0, 1)
        torch.sub(value, distance.mul_(chroma), out=channel)
    return images


CHANGES = (brighten, contrast, saturate, turn_hue)
"""In the order in which they are made."""

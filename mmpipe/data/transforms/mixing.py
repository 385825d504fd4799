"""Two rows of a batch into one, with targets in between: for `'*'` in the transforms of a loader.

Each row is mixed with the one before it in its batch, so what comes out depends on the batch; how much of each is a
function of (seed, epoch, key) as always, so that the batch can be made again. A row is left alone where it or its
partner lacks the images or any of the targets.

Targets become floats: a class becomes `[B, classes]` with what each class has, numbers and several labels become the
mean with the same weights.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmpipe.data.transforms.draw import Draw, on_device
from mmpipe.data.transforms.images import inside
from mmpipe.errors import ConfigError, DataError

SHARE, PLACE = range(2)  # streams of random numbers


def mixup(images: str, targets: Mapping[str, int | None], *, alpha: float = 0.2, probability: float = 1.0) -> Mix:
    """Images as weighted means of two: Zhang et al. 2018, "mixup: beyond empirical risk minimization".

    Args:
        images: field of float images, after `image`.
        targets: {field: classes} of label fields, and {field: None} of numbers and of several labels.
        alpha: the share of a row is drawn from Beta(alpha, alpha); small ones leave most rows nearly alone.
        probability: that a row is mixed at all.

    Returns:
        Transform of a whole batch.

    Raises:
        ConfigError: an alpha or probability that cannot be.

    >>> batch = {'photo': torch.rand(4, 3, 8, 8), 'kind': torch.tensor([0, 1, 1, 0]), '_mask': {}}
    >>> mixup('photo', {'kind': 2})(batch, draw=Draw())['kind'].sum(1)
    tensor([1., 1., 1., 1.])
    """
    return Mix(images=images, targets=tuple(targets.items()), alpha=alpha, probability=probability, cut=False)


def cutmix(images: str, targets: Mapping[str, int | None], *, alpha: float = 1.0, probability: float = 1.0) -> Mix:
    """A rectangle of each image out of another one: Yun et al. 2019, "CutMix".

    Args:
        images: field of float images, after `image`.
        targets: {field: classes} of label fields, and {field: None} of numbers and of several labels.
        alpha: the share of a row is drawn from Beta(alpha, alpha); 1 makes all shares equally likely.
        probability: that a row is mixed at all.

    Returns:
        Transform of a whole batch.

    Raises:
        ConfigError: an alpha or probability that cannot be.

    >>> batch = {'photo': torch.rand(4, 3, 8, 8), 'kind': torch.tensor([0, 1, 1, 0]), '_mask': {}}
    >>> cutmix('photo', {'kind': 2})(batch, draw=Draw())['kind'].sum(1)
    tensor([1., 1., 1., 1.])
    """
    return Mix(images=images, targets=tuple(targets.items()), alpha=alpha, probability=probability, cut=True)


@dataclass(frozen=True, kw_only=True)
class Mix:
    """What `mixup` and `cutmix` return."""

    images: str
    targets: tuple[tuple[str, int | None], ...]
    alpha: float
    probability: float
    cut: bool

    random = True

    def __post_init__(self) -> None:
        name = 'cutmix' if self.cut else 'mixup'
        if not self.alpha > 0 or not 0 <= self.probability <= 1:
            raise ConfigError(
                f'transforms.{name}(alpha={self.alpha}, probability={self.probability}): alpha is positive, and a '
                f'probability is from 0 to 1.'
            )
        for field, classes in self.targets:
            if classes is not None and classes < 1:
                raise ConfigError(f'transforms.{name}({{{field!r}: {classes}}}): at least one class.')

    @property
    def fields(self) -> tuple[str, ...]:
        """Fields that it needs in the batch."""
        return (self.images, *(field for field, _ in self.targets))

    def __call__(self, batch: dict[str, Any], *, draw: Draw | None = None) -> dict[str, Any]:
        """Mix one batch.

        Args:
            batch: in the layout of `mmpipe.data.batch`; changed in place.
            draw: random numbers for its samples; torch's global generator when None.

        Raises:
            DataError: images that are not floats.
        """
        draw, images = draw or Draw(), batch[self.images]
        if not images.is_floating_point() or images.ndim < 4:
            raise DataError(
                f'{self.images!r} holds {images.dtype} {list(images.shape)}, and float images [B, ..., H, W] are '
                f'mixed. Give the field to mm.transforms.image in transforms= too; that runs before.'
            )
        count, device = len(images), images.device
        there = torch.ones(count, dtype=torch.bool, device=device)
        for field in self.fields:
            there = there & batch.get('_mask', {}).get(field, there)
        there = there & there.roll(1)
        chance, place = draw.numbers(SHARE, 2, count)
        # The share of the row itself; the rest is the one's before it.
        shares = np.where(chance < self.probability, beta_quantile(place, self.alpha), 1.0)
        if self.cut:
            boxes, shares = _boxes(draw.numbers(PLACE, 2, count), shares, *images.shape[-2:])
            own = on_device(shares.astype(np.float32), device).where(there, 1.0)
            other = inside(boxes, images.shape, device) & _along(there, images)
            batch[self.images] = torch.where(other, images.roll(1, 0), images)
        else:
            own = on_device(shares.astype(np.float32), device).where(there, 1.0)
            batch[self.images] = images.roll(1, 0).lerp_(images, _along(own, images).to(images.dtype))
        for field, classes in self.targets:
            values = _as_floats(batch[field], classes, field)
            batch[field] = values.roll(1, 0).lerp_(values, _along(own, values))
        return batch


def beta_quantile(numbers: np.ndarray, alpha: float) -> np.ndarray:
    """Uniform numbers as numbers with the distribution Beta(alpha, alpha): the inverse of its cumulative function.

    A function of each number alone, which rejection sampling is not.

    Args:
        numbers: in [0, 1).
        alpha: positive.

    >>> beta_quantile(np.array([0.1, 0.5, 0.9]), 1.0).round(3)
    array([0.1, 0.5, 0.9])
    """
    # The distribution is its own mirror image, so its lower half is enough.
    low = np.interp(np.minimum(numbers, 1 - numbers), *_beta_table(alpha)) ** (1 / min(alpha, 1))
    return np.where(numbers <= 0.5, low, 1 - low)


@functools.lru_cache(maxsize=16)
def _beta_table(alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """Cumulative probabilities up to 1/2, and x to the power of min(alpha, 1) at each."""
    # Below 1 the density x**(alpha - 1) (1 - x)**(alpha - 1) dx has a pole at 0. In p = x**alpha it is
    # (1 - x)**(alpha - 1) dp / alpha, which has none, so trapezoids will do.
    powers = np.linspace(0, 0.5 ** min(alpha, 1), 1 << 14)
    x = powers ** (1 / min(alpha, 1))
    density = (1 - x) ** (alpha - 1) * x ** max(alpha - 1, 0)
    cumulative = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    return cumulative / cumulative[-1] / 2, powers


def _boxes(numbers: np.ndarray, shares: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Rectangles (top, left, height, width) around a random middle, cut off at the edges, and the shares they leave.

    As torchvision 0.29, `transforms.v2.CutMix`.
    """
    middle_x, middle_y = np.floor(numbers[0] * width), np.floor(numbers[1] * height)
    half = 0.5 * np.sqrt(1 - shares)
    half_x, half_y = np.floor(half * width), np.floor(half * height)
    left, right = np.maximum(middle_x - half_x, 0), np.minimum(middle_x + half_x, width)
    top, bottom = np.maximum(middle_y - half_y, 0), np.minimum(middle_y + half_y, height)
    boxes = np.stack([top, left, bottom - top, right - left], axis=1).astype(np.int64)
    return boxes, 1 - boxes[:, 2] * boxes[:, 3] / (height * width)


def _as_floats(values: torch.Tensor, classes: int | None, field: str) -> torch.Tensor:
    if classes is None or (values.ndim == 2 and values.is_floating_point()):
        return values.float()
    if values.ndim != 1:
        raise DataError(
            f'{field!r} holds {list(values.shape)}, and classes are [B]. Pass {{{field!r}: None}} for numbers and '
            f'several labels.'
        )
    return torch.zeros(len(values), classes, device=values.device).scatter_(1, values.long()[:, None], 1.0)


def _along(each: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """One number per row, so that it broadcasts over `values`."""
    return each.reshape(-1, *[1] * (values.ndim - 1))

"""Images and clips of a batch: window, size, mirror, colours, mean and deviation, erased rectangles, in one pass.

On the CPU a few samples at a time go through all of it while they are in the cache, and the float32 result is written
once, at its final size. On other devices the same code takes the whole batch at once.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmpipe.data.transforms import boxes, colours
from mmpipe.data.transforms.calling import Allocate
from mmpipe.data.transforms.constants import IMAGENET_MEAN, IMAGENET_STD, preprocessing
from mmpipe.data.transforms.draw import Draw, on_device
from mmpipe.data.transforms.geometry import Placement, Size, place
from mmpipe.errors import ConfigError, DataError

CHUNK_BYTES = 4 << 20  # of float32 results that are worked on at once on the CPU: fits into a second-level cache or two
WINDOW, MIRROR, COLOURS, ERASE = range(4)  # streams of random numbers
UNCHANGED = (1.0, 1.0, 1.0, 0.0)  # brightness, contrast, saturation, hue
ERASED_SHARE, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)  # torchvision's; Zhong et al. 2017, "Random erasing"
Range = tuple[float, float]


def image(
    *,
    crop: int | Size | None = None,
    flip: bool | float = False,
    resize: int | Size | None = None,
    scale: Range | None = None,
    ratio: Range = (3 / 4, 4 / 3),
    brightness: float | Range = 0.0,
    contrast: float | Range = 0.0,
    saturation: float | Range = 0.0,
    hue: float | Range = 0.0,
    erase: float = 0.0,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    weights: Any = None,
    interpolation: str | None = None,
    random: bool | None = None,
) -> ImageTransform:
    """Crop, resize, flip, recolour, normalise and erase: uint8 images of a batch on its device.

    What is random is drawn for each sample from its key, so it does not depend on the batch.

    Args:
        crop: a window of so many pixels (square, or (height, width)), cut out at random, or centrally when `random` is
            false.
        flip: mirror left to right with this probability; True is 1/2.
        resize: side in pixels, or (height, width), that windows or whole images are resized to, with antialiasing.
        scale: lowest and highest share of the image's area that a random window has, which is then resized to `resize`
            (torchvision's RandomResizedCrop, with (0.08, 1.0)). When `random` is false, the largest central window.
        ratio: lowest and highest width over height of such a window.
        brightness: factors from 1 - brightness to 1 + brightness, or (lowest, highest); as torchvision's ColorJitter,
            in this order: brightness, contrast, saturation, hue.
        contrast: as brightness.
        saturation: as brightness.
        hue: turned by up to this part of the circle, at most 0.5 either way, or (lowest, highest).
        erase: probability that a rectangle is set to the mean, as torchvision's RandomErasing does with its own area
            (2 to 33 %) and ratio (0.3 to 3.3).
        mean: per channel, of values in [0, 1]; of the weights, or else of ImageNet, when None.
        std: per channel, of values in [0, 1]; as `mean`.
        weights: what the model was trained with: a timm name, torchvision weights or their name, or the model. They
            give mean, std and interpolation; and size, where neither `crop` nor `resize` is given: then images are
            resized and cropped centrally as for the evaluation of those weights, or with `scale` at random.
        interpolation: 'bilinear' or 'bicubic'; of the weights, or else 'bilinear', when None.
        random: False to leave out everything that is random, so that a validation transform is the same call; when
            None, as anything of `flip`, `scale`, the colours and `erase` is asked for.

    Returns:
        Transform of uint8 `[B, C, H, W]`, or clips `[B, T, C, H, W]` whose frames share what is drawn, to float32 of
        the final size.

    Raises:
        ConfigError: a size below 1, a std that is not positive, a range upside down, or `scale` without a size.
        MissingExtraError: see `weights`.
        ModelError: the weights are not known, or say nothing of their images.

    >>> image(crop=2)(torch.zeros(1, 3, 4, 4, dtype=torch.uint8)).shape
    torch.Size([1, 3, 2, 2])
    >>> train = image(weights='ResNet18_Weights.IMAGENET1K_V1', scale=(0.08, 1), flip=True)
    >>> train(torch.zeros(1, 3, 256, 300, dtype=torch.uint8)).shape
    torch.Size([1, 3, 224, 224])
    """
    known = None if weights is None else preprocessing(weights)
    before = None
    if known is not None and crop is None and resize is None:
        resize, before = known.size, known.resize
    mean = mean or (known.mean if known else IMAGENET_MEAN)
    std = std or (known.std if known else IMAGENET_STD)
    turns = (-float(hue), float(hue)) if isinstance(hue, (int, float)) else (float(hue[0]), float(hue[1]))
    jitter = _ends(brightness), _ends(contrast), _ends(saturation), turns
    asked = bool(flip or erase or scale is not None) or any(
        ends != (still, still) for ends, still in zip(jitter, UNCHANGED, strict=True)
    )
    return ImageTransform(
        crop=_size(crop),
        resize=_size(resize),
        before=before,
        scale=scale,
        ratio=ratio,
        flip=0.5 if flip is True else float(flip),
        jitter=jitter,
        erase=erase,
        mean=tuple(mean),
        std=tuple(std),
        interpolation=interpolation or (known.interpolation if known else 'bilinear'),
        random=asked if random is None else random,
    )


@dataclass(frozen=True, kw_only=True)
class ImageTransform:
    """What `image` returns: a callable from uint8 `[B, C, H, W]` to float32 `[B, C, h, w]`."""

    crop: Size | None
    resize: Size | None
    before: int | Size | None
    scale: Range | None
    ratio: Range
    flip: float
    jitter: tuple[Range, Range, Range, Range]
    erase: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str
    random: bool

    takes_memory = True

    def __post_init__(self) -> None:
        for name, size in (('crop', self.crop), ('resize', self.resize)):
            if size is not None and min(size) < 1:
                raise ConfigError(f'transforms.image({name}={size}): a side is at least 1 pixel.')
        if min(self.std) <= 0 or len(self.mean) != len(self.std):
            raise ConfigError(
                f'transforms.image(mean={self.mean}, std={self.std}): one positive std per channel, please.'
            )
        for name, probability in (('flip', self.flip), ('erase', self.erase)):
            if not 0 <= probability <= 1:
                raise ConfigError(f'transforms.image({name}={probability}): a probability is from 0 to 1.')
        if self.scale is not None and (self.resize is None or self.crop is not None):
            raise ConfigError(
                f'transforms.image(scale={self.scale}): its windows need one size to be resized to. Pass resize=, and '
                f'no crop=.'
            )
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1]:
            raise ConfigError(f'transforms.image(scale={self.scale}): shares of the area, the lower one first.')
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ConfigError(f'transforms.image(ratio={self.ratio}): widths over heights, the lower one first.')
        for name, (low, high), (least, most) in zip(
            ('brightness', 'contrast', 'saturation', 'hue'), self.jitter, (*[(0, float('inf'))] * 3, (-0.5, 0.5)),
            strict=True,
        ):  # fmt: skip
            if not least <= low <= high <= most:
                raise ConfigError(
                    f'transforms.image({name}={(low, high)}): the lower one first, from {least} to {most}.'
                )
        if self.interpolation not in ('bilinear', 'bicubic'):
            raise ConfigError(f"transforms.image(interpolation={self.interpolation!r}): 'bilinear' or 'bicubic'.")
        if any(self._recoloured) and len(self.mean) != 3:
            raise ConfigError(
                f'transforms.image(mean={self.mean}): colours are changed of red, green and blue. Leave out '
                f'brightness=, contrast=, saturation= and hue= for images of {len(self.mean)} channels.'
            )

    def __call__(
        self, images: torch.Tensor, *, draw: Draw | None = None, allocate: Allocate | None = None
    ) -> torch.Tensor:
        """Transform one batch.

        Args:
            images: uint8 `[B, C, H, W]`, or `[B, T, C, H, W]`.
            draw: random numbers for its samples; torch's global generator when None.
            allocate: memory for the result, where that is on the CPU.

        Raises:
            DataError: not uint8 images with as many channels as `mean`, or smaller than the crop.
        """
        if images.dtype != torch.uint8 or images.ndim not in (4, 5) or images.shape[-3] != len(self.mean):
            raise DataError(
                f'transforms.image takes uint8 [B, {len(self.mean)}, H, W] or [B, T, {len(self.mean)}, H, W], but was '
                f'given {images.dtype} {list(images.shape)}. Give it the name of an image field in transforms=.'
            )
        draw, count, (height, width) = draw or Draw(), len(images), images.shape[-2:]
        placement = self._placement(draw, count, height, width)
        factors, erased = self._factors(draw, count), self._erased(draw, count, placement.size)
        shape = (*images.shape[:-2], *placement.size)
        if images.device.type == 'cpu':
            done = torch.empty(shape) if allocate is None else torch.from_numpy(allocate(shape, 'float32'))
            step = max(1, CHUNK_BYTES // max(1, 4 * done[:1].numel()))
        else:
            done = torch.empty(shape, device=images.device)
            step = max(1, count)
        stored, out = (images, done) if images.ndim == 5 else (images[:, None], done[:, None])
        for start in range(0, count, step):
            part = slice(start, start + step)
            place(stored[part], out[part], placement[part], self.interpolation)
            if factors is not None:
                self._recolour(out[part], factors[part])
            factor, offset = _normalisation(self.mean, self.std, done.device)
            out[part].mul_(factor).add_(offset)
            if erased is not None:
                erase_boxes(out[part], erased[part])
        return done

    def _placement(self, draw: Draw, count: int, height: int, width: int) -> Placement:
        mirrored = np.zeros(count, dtype=bool)
        if self.random and self.flip:
            mirrored = draw.numbers(MIRROR, 1, count)[0] < self.flip
        if self.crop is not None and (height < self.crop[0] or width < self.crop[1]):
            raise DataError(
                f'transforms.image(crop={self.crop}) was given images of {height}x{width}. Use a smaller crop, or '
                f'store the field at a larger size.'
            )
        if self.random and self.scale is not None:
            assert self.resize is not None
            numbers = draw.numbers(WINDOW, boxes.AREA_NUMBERS, count)
            windows = boxes.random_resized(numbers, height, width, scale=self.scale, ratio=self.ratio)
            return Placement(windows, self.resize, None, mirrored)
        if self.random and self.crop is not None:
            windows = boxes.random_window(draw.numbers(WINDOW, 2, count), height, width, self.crop)
            return Placement(windows, self.resize or self.crop, None, mirrored)
        window, cut = (0, 0, height, width), None
        full = self.resize or (height, width)
        if self.before is not None:
            full = boxes.shorter_side(height, width, self.before)
            cut = None if self.resize is None else boxes.centre(*full, self.resize)
        elif self.crop is not None:
            window = boxes.centre(height, width, self.crop)
            full = self.resize or self.crop
        elif self.scale is not None and self.resize is not None:
            aspect = self.resize[1] / self.resize[0]
            window = boxes.largest_central(height, width, (aspect, aspect))
        return Placement(np.tile(np.array(window), (count, 1)), full, cut, mirrored)

    def _factors(self, draw: Draw, count: int) -> np.ndarray | None:
        """float32 `[B, 4]`: a factor each for brightness, contrast and saturation, and a part of the circle for hue."""
        if not any(self._recoloured):
            return None
        lows, highs = (np.array(ends)[:, None] for ends in zip(*self.jitter, strict=True))
        return (lows + draw.numbers(COLOURS, 4, count) * (highs - lows)).T.astype(np.float32)

    def _erased(self, draw: Draw, count: int, size: Size) -> np.ndarray | None:
        if not self.random or not self.erase:
            return None
        numbers = draw.numbers(ERASE, 1 + boxes.AREA_NUMBERS, count)
        return boxes.random_erased(numbers, *size, probability=self.erase, scale=ERASED_SHARE, ratio=ERASED_RATIO)

    def _recolour(self, images: torch.Tensor, factors: np.ndarray) -> None:
        each = on_device(np.ascontiguousarray(factors.T), images.device)[:, :, None, None, None, None]
        for change, wanted, factor in zip(colours.CHANGES, self._recoloured, each, strict=True):
            if wanted:
                change(images, factor)

    @property
    def _recoloured(self) -> tuple[bool, ...]:
        """Which of brightness, contrast, saturation and hue are changed."""
        return tuple(self.random and ends != (still, still) for ends, still in zip(self.jitter, UNCHANGED, strict=True))


def erase_boxes(values: torch.Tensor, rectangles: np.ndarray) -> None:
    """Set a rectangle of each sample to 0, which after normalisation is the mean; in place.

    Args:
        values: `[B, ..., H, W]`.
        rectangles: int64 `[B, 4]` of (top, left, height, width).

    >>> values = torch.ones(1, 2, 2)
    >>> erase_boxes(values, np.array([[0, 1, 2, 1]])); values
    tensor([[[1., 0.],
             [1., 0.]]])
    """
    if values.device.type == 'cpu':
        for sample, (top, left, high, wide) in zip(values, rectangles.tolist(), strict=True):
            sample[..., top : top + high, left : left + wide] = 0
        return
    values.masked_fill_(inside(rectangles, values.shape, values.device), 0)


def inside(rectangles: np.ndarray, shape: torch.Size, device: torch.device) -> torch.Tensor:
    """Which pixels are in the rectangle of their sample: bool `[B, 1, ..., H, W]`.

    Args:
        rectangles: int64 `[B, 4]` of (top, left, height, width).
        shape: of the samples, `[B, ..., H, W]`.
        device: of the result.

    >>> inside(np.array([[0, 1, 1, 1]]), torch.Size([1, 1, 2]), torch.device('cpu'))
    tensor([[[False,  True]]])
    """
    edges = on_device(rectangles, device)
    top, left, high, wide = (edges[:, side].reshape(-1, *[1] * (len(shape) - 1)) for side in range(4))
    rows = torch.arange(shape[-2], device=device)[:, None]
    columns = torch.arange(shape[-1], device=device)
    return (rows >= top) & (rows < top + high) & (columns >= left) & (columns < left + wide)


@functools.lru_cache(maxsize=64)
def _normalisation(
    mean: tuple[float, ...], std: tuple[float, ...], device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """(x / 255 - mean) / std as one product and one sum; kept, so that a step sends nothing to the device for it."""
    means, stds = np.array(mean), np.array(std)
    factor, offset = (1 / (255 * stds)).astype(np.float32), (-means / stds).astype(np.float32)
    return on_device(factor[:, None, None], device), on_device(offset[:, None, None], device)


def _size(side: int | Size | None) -> Size | None:
    return (side, side) if isinstance(side, int) else side if side is None else (int(side[0]), int(side[1]))


def _ends(spread: float | Range) -> Range:
    if isinstance(spread, (int, float)):
        return max(0.0, 1 - spread), 1.0 + spread
    return float(spread[0]), float(spread[1])

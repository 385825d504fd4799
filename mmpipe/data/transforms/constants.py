"""What trained weights say of the images they were trained on: size, interpolation, mean and deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mmpipe.errors import ConfigError, ModelError, require

IMAGENET_MEAN = (0.485, 0.456, 0.406)
"""Mean of ImageNet's training images per RGB channel, of values in [0, 1]; as torchvision's weights declare it:
https://docs.pytorch.org/vision/stable/models.html"""
IMAGENET_STD = (0.229, 0.224, 0.225)
"""Standard deviation to `IMAGENET_MEAN`, from the same place."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """How the images of some weights are prepared for evaluation.

    Attributes:
        mean: per channel, of values in [0, 1].
        std: per channel, of values in [0, 1].
        size: (height, width) that the model takes; None for any.
        resize: what images are resized to before the central crop of `size`: pixels of the shorter side, or (height,
            width); None where there is no such step.
        interpolation: 'bilinear' or 'bicubic'.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: tuple[int, int] | None = None
    resize: int | tuple[int, int] | None = None
    interpolation: str = 'bilinear'


def preprocessing(weights: Any) -> Preprocessing:
    """What weights declare about themselves.

    Args:
        weights: the name of a timm model ('resnet50.a1_in1k'), a torchvision weights enum or its name
            ('ResNet50_Weights.IMAGENET1K_V2'), or a model or encoder that carries a timm `pretrained_cfg`.

    Raises:
        MissingExtraError: a timm name, and timm is not installed.
        ModelError: neither library knows the name, or the weights say nothing about mean and deviation.
        ConfigError: an interpolation other than bilinear or bicubic.

    >>> preprocessing('ResNet18_Weights.IMAGENET1K_V1').resize
    256
    """
    if isinstance(weights, str):
        weights = _named(weights)
    if callable(getattr(weights, 'transforms', None)):  # a torchvision enum
        return _of_torchvision(weights.transforms(), what=str(weights))
    for owner in (weights, getattr(weights, 'backbone', None)):
        config = getattr(owner, 'pretrained_cfg', None)
        if config is not None:
            return _of_timm(config)
    if isinstance(weights, Mapping):
        return _of_timm(weights)
    raise ModelError(
        f'transforms.image(weights={type(weights).__name__}): it says nothing of how its images were prepared. Give '
        f'the name of a timm model, torchvision weights or a timm model; or mean=, std= and resize= yourself.'
    )


def _named(name: str) -> Any:
    if '_Weights' in name:
        from torchvision.models import get_weight

        try:
            return get_weight(name)
        except (AttributeError, KeyError, ValueError) as error:
            raise ModelError(
                f'torchvision knows no weights {name!r}; `torchvision.models.get_model_weights(model)` lists those of '
                f'a model.'
            ) from error
    require('vision', 'timm', why=f'transforms.image(weights={name!r})')
    import timm

    try:
        config = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    except RuntimeError:  # a model it knows, trained in a way it does not know
        config = None
    if config is None:
        raise ModelError(
            f'timm {timm.__version__} knows no weights {name!r}; '
            f"`timm.list_pretrained('*{name.split('.')[0][:6]}*')` shows close ones."
        )
    return config.to_dict()


def _of_timm(config: Mapping[str, Any]) -> Preprocessing:
    # As timm's `create_transform` does for evaluation: resize to size / crop_pct, then a central crop.
    height, width = (config.get('input_size') or (3, 224, 224))[1:]
    share = config.get('crop_pct') or 0.875
    larger = math.floor(height / share), math.floor(width / share)
    squash = config.get('crop_mode') == 'squash' or height != width
    return Preprocessing(
        mean=tuple(config.get('mean') or IMAGENET_MEAN),
        std=tuple(config.get('std') or IMAGENET_STD),
        size=(height, width),
        resize=larger if squash else larger[0],
        interpolation=_interpolation(config.get('interpolation') or 'bicubic'),
    )


def _of_torchvision(preset: Any, *, what: str) -> Preprocessing:
    mean, std = getattr(preset, 'mean', None), getattr(preset, 'std', None)
    if mean is None or std is None:
        raise ModelError(
            f'{what} declares no mean and deviation; its `transforms()` are {type(preset).__name__}. Give mean= and '
            f'std= yourself.'
        )
    crop, resize = _sides(getattr(preset, 'crop_size', None)), _sides(getattr(preset, 'resize_size', None))
    return Preprocessing(
        mean=tuple(mean),
        std=tuple(std),
        size=None if crop is None else (crop[0], crop[-1]),
        resize=None if resize is None else resize[0] if len(resize) == 1 else (resize[0], resize[1]),
        interpolation=_interpolation(getattr(preset.interpolation, 'value', 'bilinear')),
    )


def _sides(size: Any) -> list[int] | None:
    return size if size is None or isinstance(size, list) else list(size) if isinstance(size, tuple) else [size]


def _interpolation(name: str) -> str:
    if name not in ('bilinear', 'bicubic'):
        raise ConfigError(
            f"these weights were trained with {name!r} interpolation, and image has 'bilinear' and 'bicubic': "
            f'pass interpolation=, mean= and std= instead of weights=.'
        )
    return name

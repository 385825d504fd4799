"""Encoders: one `nn.Module` per modality, from a field's batch tensor to features.

The contract: `out_features: int`, and `forward(values [B, ...]) -> [B, out_features]`. An encoder may
have `layers()`, its layers from input to output (`mmpipe.models.contract`). An encoder with
`takes_lengths = True` is also given int64 `[B]` lengths of a ragged field. An encoder with a `fit_buffers(chunks)`
method has buffers, which the trainer lets it fit once on the present values of the training rows (see
`mmpipe.models.standardize`). Any module that keeps the contract is an encoder; nothing needs to be registered.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import nn

from mmpipe.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from mmpipe.errors import ConfigError, ModelError, require
from mmpipe.models.contract import layers_of
from mmpipe.models.standardize import Chunks, Standardize

_weights_follow: ContextVar[bool] = ContextVar('weights_follow', default=False)


@contextmanager
def weights_follow() -> Iterator[None]:
    """Inside, encoders skip loading pretrained weights: a checkpoint is about to replace them anyway.

    >>> with weights_follow():
    ...     _weights_follow.get()
    True
    """
    token = _weights_follow.set(True)
    try:
        yield
    finally:
        _weights_follow.reset(token)


def timm(name: str, *, pretrained: bool = False, **options: Any) -> TimmEncoder:
    """An image backbone of the timm library, without its classifier.

    Args:
        name: a timm model name, such as 'tf_efficientnet_lite0' or 'resnet18'.
        pretrained: load trained weights: those that a package brings (`mmpipe.weights`) where there are any, else
            those that timm downloads.
        options: passed to `timm.create_model`.

    Returns:
        Encoder of images: float [B, 3, H, W], normalised (mm.transforms.image takes `mean` and `std`), or uint8, which
        it normalises with the constants of the backbone.

    Raises:
        MissingExtraError: timm is not installed.
        ModelError: timm knows no such model.

    >>> timm('test_resnet').out_features
    96
    """
    require('vision', 'timm', why='encoders.timm')
    return TimmEncoder(name, pretrained=pretrained, **options)


def image(out_features: int = 128, *, channels: int = 3, width: int = 32) -> ImageEncoder:
    """A small convolutional network for images, trained from scratch.

    Args:
        out_features: size of the features.
        channels: of the images.
        width: channels of the first of its four stages; each later one has twice as many.

    Returns:
        Encoder of images: float [B, channels, H, W] or uint8, which it normalises; sides of 8 pixels and more.

    >>> image(16)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 16])
    """
    return ImageEncoder(out_features, channels=channels, width=width)


def spectrogram(n_mels: int, out_features: int = 128, *, width: int = 32) -> SpectrogramEncoder:
    """A small convolutional network for log-mel spectrograms, which standardises each mel band.

    Args:
        n_mels: mel bands.
        out_features: size of the features.
        width: channels of the first of its four stages.

    Returns:
        Encoder of float [B, n_mels, T], any T from 8 on.

    >>> spectrogram(64, 16)(torch.zeros(2, 64, 100)).shape
    torch.Size([2, 16])
    """
    return SpectrogramEncoder(n_mels, out_features, width=width)


def vector(in_features: int = 1, out_features: int = 128, *, dropout: float = 0.1) -> VectorEncoder:
    """Embeddings, tabular vectors or plain numbers: standardise, one linear layer, GELU, dropout.

    Args:
        in_features: size of the vectors; 1 also takes a scalar field [B].
        out_features: size of the features.
        dropout: probability in [0, 1).

    Returns:
        Encoder of numbers [B, in_features] of any dtype, or [B].

    >>> vector(8, 16)(torch.zeros(2, 8)).shape
    torch.Size([2, 16])
    """
    return VectorEncoder(in_features, out_features, dropout=dropout)


def sequence(in_features: int, out_features: int = 128, *, dropout: float = 0.1) -> SequenceEncoder:
    """A varying number of vectors per row, such as the frames of a clip: each as by `vector`, then their mean.

    Args:
        in_features: size of each vector.
        out_features: size of the features.
        dropout: probability in [0, 1).

    Returns:
        Encoder of a ragged field [B, L, in_features] with its lengths; padding does not count.

    >>> sequence(8, 16)(torch.zeros(2, 5, 8), torch.tensor([5, 1])).shape
    torch.Size([2, 16])
    """
    return SequenceEncoder(in_features, out_features, dropout=dropout)


def category(classes: int, out_features: int = 16) -> CategoryEncoder:
    """One word of a vocabulary as an input: a learned vector per word.

    Args:
        classes: size of the vocabulary.
        out_features: size of the features.

    Returns:
        Encoder of a label field, int64 [B].

    >>> category(3, 4)(torch.tensor([0, 2])).shape
    torch.Size([2, 4])
    """
    return CategoryEncoder(classes, out_features)


class TimmEncoder(nn.Module):
    """What `timm` returns. `out_features` is the width of the pooled features."""

    def __init__(self, name: str, *, pretrained: bool, **options: Any) -> None:
        super().__init__()
        import timm as library

        if name.split('.')[0] not in library.list_models():
            raise ModelError(
                f"timm {library.__version__} knows no {name!r}; `timm.list_models('*{name[:6]}*')` shows close ones."
            )
        wanted = pretrained and not _weights_follow.get()
        packaged = _packaged_weights(name) if wanted else None
        self.backbone = library.create_model(name, pretrained=wanted and packaged is None, num_classes=0, **options)
        if packaged is not None:
            # The packaged file has a classifier, which this backbone has not; everything else must fit exactly.
            own = self.backbone.state_dict()
            missing = [key for key in own if key not in packaged]
            if missing:
                raise ModelError(
                    f'The packaged weights of {name!r} lack {missing[0]!r} and {len(missing) - 1} more: install the '
                    f'timm they were packaged for, or use pretrained=False.'
                )
            self.backbone.load_state_dict({key: packaged[key] for key in own})
        backbone: Any = self.backbone
        self.out_features = int(getattr(backbone, 'head_hidden_size', None) or backbone.num_features)
        # What this backbone was trained with; EfficientNet-lite, for one, does not use ImageNet's own constants.
        config = backbone.pretrained_cfg
        _add_normalisation(self, config.get('mean', IMAGENET_MEAN), config.get('std', IMAGENET_STD))

    def layers(self) -> list[nn.Module]:
        """Those of the backbone: stem, blocks, norm."""
        return layers_of(self.backbone)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] -> [B, out_features]."""
        return self.backbone(_normalised(self, images))


class ImageEncoder(nn.Module):
    """What `image` returns."""

    def __init__(self, out_features: int, *, channels: int, width: int) -> None:
        super().__init__()
        _check_sizes('encoders.image', out_features=out_features, channels=channels, width=width)
        self.out_features = out_features
        self.stages = _stages(channels, width)
        self.project = nn.Linear(width * 8, out_features)
        known = channels == 3
        _add_normalisation(
            self, IMAGENET_MEAN if known else (0.5,) * channels, IMAGENET_STD if known else (0.5,) * channels
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, channels, H, W] -> [B, out_features]."""
        return self.project(self.stages(_normalised(self, images)).mean((2, 3)))


class SpectrogramEncoder(nn.Module):
    """What `spectrogram` returns."""

    def __init__(self, n_mels: int, out_features: int, *, width: int) -> None:
        super().__init__()
        _check_sizes('encoders.spectrogram', n_mels=n_mels, out_features=out_features, width=width)
        self.out_features = out_features
        self.standardize = Standardize(n_mels)
        self.stages = _stages(1, width)
        self.project = nn.Linear(width * 8, out_features)

    def fit_buffers(self, chunks: Chunks) -> None:
        """Fit mean and deviation per mel band, over rows and time."""
        self.standardize.fit_buffers(chunk.swapaxes(1, 2).reshape(-1, chunk.shape[1]) for chunk in chunks)

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        """[B, n_mels, T] -> [B, out_features]."""
        values = self.standardize(mels.transpose(1, 2)).transpose(1, 2)
        return self.project(self.stages(values[:, None]).mean((2, 3)))


class VectorEncoder(nn.Module):
    """What `vector` returns."""

    def __init__(self, in_features: int, out_features: int, *, dropout: float) -> None:
        super().__init__()
        _check_sizes('encoders.vector', in_features=in_features, out_features=out_features)
        self.in_features = in_features
        self.out_features = out_features
        self.standardize = Standardize(in_features)
        self.project = nn.Sequential(nn.Linear(in_features, out_features), nn.GELU(), nn.Dropout(dropout))

    def fit_buffers(self, chunks: Chunks) -> None:
        """Fit mean and deviation per feature."""
        self.standardize.fit_buffers(chunk.reshape(len(chunk), -1) for chunk in chunks)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        """[B, in_features] or, for one feature, [B] -> [B, out_features]."""
        return self.project(self.standardize(values.reshape(len(values), self.in_features)))


class SequenceEncoder(nn.Module):
    """What `sequence` returns."""

    takes_lengths = True

    def __init__(self, in_features: int, out_features: int, *, dropout: float) -> None:
        super().__init__()
        self.each = VectorEncoder(in_features, out_features, dropout=dropout)
        self.out_features = out_features

    def fit_buffers(self, chunks: Chunks) -> None:
        """Fit mean and deviation per feature, over all vectors of all rows."""
        self.each.fit_buffers(chunks)

    def forward(self, values: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[B, L, in_features], int64 [B] -> [B, out_features]; zeros for a row of length 0."""
        batch, longest, _ = values.shape
        features = self.each(values.reshape(batch * longest, -1)).reshape(batch, longest, -1)
        inside = torch.arange(longest, device=values.device) < lengths[:, None]
        return (features * inside[:, :, None]).sum(1) / lengths.clamp(min=1)[:, None]


class CategoryEncoder(nn.Module):
    """What `category` returns."""

    def __init__(self, classes: int, out_features: int) -> None:
        super().__init__()
        _check_sizes('encoders.category', classes=classes, out_features=out_features)
        self.classes = classes
        self.out_features = out_features
        self.embedding = nn.Embedding(classes, out_features)

    def fit_buffers(self, chunks: Chunks) -> None:
        """Check that no training row holds a word beyond `classes`; there is nothing to fit."""
        highest = max((int(np.max(chunk)) for chunk in chunks if len(chunk)), default=0)
        if highest >= self.classes:
            raise ModelError(
                f'it holds label {highest}, but encoders.category({self.classes}) knows 0..{self.classes - 1}: '
                f'give it as many classes as the vocabulary has'
            )

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        """int64 [B] -> [B, out_features]."""
        return self.embedding(labels)


def _stages(channels: int, width: int) -> nn.Sequential:
    # GroupNorm, not BatchNorm: small batches, missing modalities and accumulation leave its statistics alone.
    layers: list[nn.Module] = []
    for stage in range(4):
        wide = width * 2**stage
        layers += [
            nn.Conv2d(channels, wide, 3, stride=2 if stage else 1, padding=1, bias=False),
            nn.GroupNorm(math.gcd(8, wide), wide),  # the most groups up to 8 that divide any width
            nn.GELU(),
        ]
        channels = wide
    return nn.Sequential(*layers)


def _add_normalisation(module: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
    # Not persistent: constants, of which a checkpoint need not speak.
    module.register_buffer('pixel_mean', torch.tensor(mean)[:, None, None] * 255, persistent=False)
    module.register_buffer('pixel_std', torch.tensor(std)[:, None, None] * 255, persistent=False)


def _normalised(module: nn.Module, images: torch.Tensor) -> torch.Tensor:
    if images.dtype == torch.uint8:  # no transform normalised it: uint8 can be nothing but pixels
        return (images.float() - module.pixel_mean) / module.pixel_std  # type: ignore[operator]
    return images


def _packaged_weights(name: str) -> dict[str, torch.Tensor] | None:
    from mmpipe import weights

    return weights.load(name)[0] if weights.packaged(name) else None


def _check_sizes(what: str, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ConfigError(f'{what}({name}={size}): a size is at least 1.')

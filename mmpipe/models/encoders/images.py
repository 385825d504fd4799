"""Images to features: backbones of timm and torchvision, and a small network from scratch."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from mmpipe.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from mmpipe.data.transforms.constants import preprocessing
from mmpipe.errors import ConfigError, ModelError, require
from mmpipe.models.contract import InputSpec, layers_of
from mmpipe.models.cut import Piece, spans
from mmpipe.models.encoders.parts import add_normalisation, check_sizes, normalised, stages
from mmpipe.models.encoders.pretrained import (
    cached_weights,
    do_weights_follow,
    packaged_weights,
    stored_weights,
    take_weights,
)
from mmpipe.models.init import initialise

AFTER_BLOCKS = ('norm', 'attn_pool', 'fc_norm', 'head_drop', 'head')
"""What timm's `VisionTransformer` has behind its blocks, where it has it."""


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


def torchvision(
    name: str, *, weights: Any = None, file: str | os.PathLike[str] | None = None, **options: Any
) -> TorchvisionEncoder:
    """An image backbone of torchvision, without the last layer of its classifier.

    Args:
        name: a classification model of torchvision, such as 'resnet18' or 'mobilenet_v2'.
        weights: its trained weights: 'DEFAULT', a name such as 'ResNet18_Weights.IMAGENET1K_V1' or 'IMAGENET1K_V1', or
            torchvision's enum. They are read from torch's cache on this machine, never downloaded; they say how images
            are normalised, and the size they were trained with.
        file: a `state_dict` of the model instead of the one in the cache, as `.safetensors` or as torch saves it;
            `weights` then only says how images are normalised.
        options: passed to torchvision's builder, such as `dropout=0.0`.

    Returns:
        Encoder of images: float [B, 3, H, W], normalised, or uint8, which it normalises itself.

    Raises:
        ModelError: torchvision knows no such model or weights, they are not on this machine or do not fit, or the model
            does not end in a linear layer.

    >>> torchvision('shufflenet_v2_x0_5').out_features
    1024
    """
    return TorchvisionEncoder(name, weights=weights, file=file, **options)


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


class TimmEncoder(nn.Module):
    """What `timm` returns. `out_features` is the width of the pooled features."""

    def __init__(self, name: str, *, pretrained: bool, **options: Any) -> None:
        super().__init__()
        import timm as library

        if name.split('.')[0] not in library.list_models():
            raise ModelError(
                f"timm {library.__version__} knows no {name!r}; `timm.list_models('*{name[:6]}*')` shows close ones."
            )
        wanted = pretrained and not do_weights_follow()
        packaged = packaged_weights(name) if wanted else None
        self.backbone = library.create_model(name, pretrained=wanted and packaged is None, num_classes=0, **options)
        if packaged is not None:
            take_weights(self.backbone, packaged, source=f'The packaged file of {name!r}')
        backbone: Any = self.backbone
        self.out_features = int(getattr(backbone, 'head_hidden_size', None) or backbone.num_features)
        # What this backbone was trained with; EfficientNet-lite, for one, does not use ImageNet's own constants.
        config = backbone.pretrained_cfg
        channels = int(options.get('in_chans', 3))
        mean = _of_channels(config.get('mean') or IMAGENET_MEAN, channels)
        std = _of_channels(config.get('std') or IMAGENET_STD, channels)
        height, width = (config.get('input_size') or (3, 224, 224))[1:]
        add_normalisation(self, mean, std)
        patches: Any = getattr(backbone, 'patch_embed', None)
        fixed = tuple(patches.img_size) if getattr(patches, 'strict_img_size', False) else (None, None)
        self._spec = InputSpec(
            encoder=f'encoders.timm({name!r})', kind='an image', shape=(channels, *fixed), dtypes=('uint8', 'float'),
            mean=mean, std=std, size=(height, width), weights=name if pretrained else None,
        )  # fmt: skip

    def input_spec(self) -> InputSpec:
        """Images, of one size where the backbone has positions for that size alone."""
        return self._spec

    def tensor_plan(self) -> dict[str, Any]:
        """Of a transformer's blocks: which products tensor parallelism does in parts (Shoeybi et al. 2019, section 3).

        Each MLP's first layer by columns and its second by rows, so that they need one sum between processes. timm's
        attention makes queries, keys and values in one product, which cannot be cut by heads; it stays whole.
        """
        from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

        names = [name for name, part in self.named_modules() if type(part).__name__ == 'Mlp']
        return {
            f'{name}.{layer}': style()
            for name in names
            for layer, style in (('fc1', ColwiseParallel), ('fc2', RowwiseParallel))
        }

    def pipeline_plan(self, stages: int) -> list[Piece]:
        """Of a vision transformer: its blocks in rows; the stem goes to the first stage, norm and pooling to the last.

        Raises:
            ConfigError: another kind of backbone, or fewer blocks than stages.
        """
        backbone: Any = self.backbone
        if type(backbone).__name__ != 'VisionTransformer':
            raise ConfigError(
                f'{self._spec.encoder} is no vision transformer, and only those are cut: leave out Parallel(pp=...).'
            )

        def start(images: torch.Tensor) -> torch.Tensor:
            tokens = backbone.patch_drop(backbone._pos_embed(backbone.patch_embed(normalised(self, images))))
            return backbone.norm_pre(tokens)

        rows = [backbone.blocks[span] for span in spans(len(backbone.blocks), stages)]
        calls: list[list[Callable[..., Any]]] = [list(row) for row in rows]
        uses: list[list[nn.Module]] = [list(row) for row in rows]
        calls[0].insert(0, start)
        calls[-1] += [backbone.norm, backbone.forward_head]
        after = [getattr(backbone, name, None) for name in AFTER_BLOCKS]
        uses[-1] += [part for part in after if isinstance(part, nn.Module)]
        return [
            Piece(call=functools.partial(_in_turn, tuple(called)), uses=tuple(used))
            for called, used in zip(calls, uses, strict=True)
        ]

    def layers(self) -> list[nn.Module]:
        """Those of the backbone: stem, blocks, norm."""
        return layers_of(self.backbone)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] -> what the backbone pools: maps [B, C, h, w], or tokens [B, N, C] of a transformer."""
        return self.backbone.forward_features(normalised(self, images))  # type: ignore[operator]

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] -> [B, out_features]."""
        return self.backbone(normalised(self, images))


def _in_turn(calls: Sequence[Callable[..., torch.Tensor]], values: torch.Tensor) -> torch.Tensor:
    for call in calls:
        values = call(values)
    return values


class TorchvisionEncoder(nn.Module):
    """What `torchvision` returns. `out_features` is what the last linear layer of the model takes."""

    def __init__(self, name: str, *, weights: Any, file: str | os.PathLike[str] | None, **options: Any) -> None:
        super().__init__()
        import torchvision as library
        from torchvision import models

        if name not in models.list_models(module=models):
            raise ModelError(
                f'torchvision {library.__version__} knows no classification model {name!r}; '
                f"`torchvision.models.list_models(torchvision.models, include='{name[:4]}*')` shows close ones."
            )
        chosen = None if weights is None else _weights_of(name, weights)
        if name in ('googlenet', 'inception_v3'):  # their second outputs serve their own training alone
            options = {'aux_logits': False, 'init_weights': False, 'transform_input': chosen is not None, **options}
        elif getattr(chosen, 'meta', {}).get('min_size') and name.startswith('vit_'):
            options = {'image_size': chosen.meta['min_size'][0], **options}  # type: ignore[union-attr]
        self.backbone = models.get_model(name, weights=None, **options)
        self.out_features = _without_classifier(self.backbone, name)
        if (chosen is not None or file is not None) and not do_weights_follow():
            state = cached_weights(chosen) if file is None else stored_weights(file)
            take_weights(self.backbone, _renamed(state), source=str(chosen if file is None else file))
        known = preprocessing(chosen) if chosen is not None else None
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if known is None else (known.mean, known.std)
        add_normalisation(self, mean, std)
        side = getattr(self.backbone, 'image_size', None)
        self._spec = InputSpec(
            encoder=f'encoders.torchvision({name!r})', kind='an image', shape=(3, side, side),
            dtypes=('uint8', 'float'), mean=mean, std=std, size=None if known is None else known.size,
            weights=None if chosen is None else str(chosen),
        )  # fmt: skip

    def input_spec(self) -> InputSpec:
        """Images, of one size where the backbone has positions for that size alone."""
        return self._spec

    def layers(self) -> list[nn.Module]:
        """Those of the backbone, blocks one by one."""
        return layers_of(self.backbone)

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] -> the maps that the backbone pools, [B, C, h, w].

        Raises:
            ModelError: the backbone does not go through its parts one after another, as a transformer does not.
        """
        values = normalised(self, images)
        features = getattr(self.backbone, 'features', None)
        if features is not None:
            return features(values)
        parts = dict(self.backbone.named_children())
        if 'fc' not in parts or getattr(self.backbone, 'transform_input', False):
            raise ModelError(
                f'{self._spec.encoder} has no maps to give: its backbone does not go through its parts one after '
                f'another. Use encoders.timm, which has forward_features for every model.'
            )
        for name, part in parts.items():
            if name in ('avgpool', 'fc'):
                break
            values = part(values)
        return values

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] -> [B, out_features]."""
        return self.backbone(normalised(self, images))


class ImageEncoder(nn.Module):
    """What `image` returns."""

    def __init__(self, out_features: int, *, channels: int, width: int) -> None:
        super().__init__()
        check_sizes('encoders.image', out_features=out_features, channels=channels, width=width)
        self.out_features = out_features
        self.channels = channels
        self.stages = stages(channels, width)
        self.project = initialise(nn.Linear(width * 8, out_features))
        known = channels == 3
        add_normalisation(
            self, IMAGENET_MEAN if known else (0.5,) * channels, IMAGENET_STD if known else (0.5,) * channels
        )

    def input_spec(self) -> InputSpec:
        """Images of any size."""
        return InputSpec(
            encoder=f'encoders.image({self.out_features}, channels={self.channels})', kind='an image',
            shape=(self.channels, None, None), dtypes=('uint8', 'float'),
        )  # fmt: skip

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        """[B, channels, H, W] -> maps [B, 8 * width, H / 8, W / 8]."""
        return self.stages(normalised(self, images))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, channels, H, W] -> [B, out_features]."""
        return self.project(self.forward_features(images).mean((2, 3)))


def _of_channels(constants: Sequence[float], channels: int) -> tuple[float, ...]:
    """Constants of three colours for another number of channels: their mean."""
    return tuple(constants) if len(constants) == channels else (sum(constants) / len(constants),) * channels


def _weights_of(name: str, weights: Any) -> Any:
    """The torchvision enum that somebody means."""
    from torchvision import models

    if not isinstance(weights, str):
        return weights
    known = models.get_model_weights(name)
    short = weights.rsplit('.', 1)[-1]
    if short != 'DEFAULT' and short not in known.__members__:
        raise ModelError(
            f'torchvision knows no weights {weights!r} of {name}; there are {", ".join(known.__members__)}.'
        )
    return getattr(known, short)


def _without_classifier(backbone: nn.Module, name: str) -> int:
    """Take the last linear layer of a model out; how many features it took."""
    for part in ('fc', 'classifier', 'heads', 'head'):
        found = [key for key, module in backbone.named_modules() if key.split('.')[0] == part]
        linear = [key for key in found if isinstance(backbone.get_submodule(key), nn.Linear)]
        if linear:
            layer: Any = backbone.get_submodule(linear[-1])
            backbone.set_submodule(linear[-1], nn.Identity())
            return int(layer.in_features)
    raise ModelError(
        f'torchvision has {name!r} without a linear layer at its end, so it has no features to take from there. Choose '
        f'another model, or wrap it in a module of your own with out_features.'
    )


def _renamed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names as the modules have them: files of DenseNet have a dot more, since they are older (as torchvision does)."""
    return {re.sub(r'(denselayer\d+\.(?:norm|conv))\.([12]\.)', r'\1\2', name): each for name, each in state.items()}

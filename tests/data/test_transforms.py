"""Image transforms on batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms import v2

from mmpipe.data import transforms
from mmpipe.data.transforms import IMAGENET_MEAN, IMAGENET_STD, Draw
from mmpipe.errors import ConfigError, DataError

IMAGES = torch.randint(0, 256, (6, 3, 20, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_the_central_crop_and_normalisation_equal_torchvision():
    reference = v2.Compose(
        [v2.CenterCrop(12), v2.ToDtype(torch.float32, scale=True), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    )
    torch.testing.assert_close(transforms.image(crop=12)(IMAGES), reference(IMAGES), rtol=1e-5, atol=1e-5)


def test_resizing_equals_torchvision():
    reference = v2.Compose(
        [v2.ToDtype(torch.float32, scale=True), v2.Resize((10, 10)), v2.Normalize(IMAGENET_MEAN, IMAGENET_STD)]
    )
    torch.testing.assert_close(transforms.image(resize=10)(IMAGES), reference(IMAGES), rtol=1e-4, atol=1e-4)


def test_a_random_crop_is_a_window_of_its_own_image_perhaps_mirrored():
    draw = Draw(np.arange(6, dtype=np.uint64) * np.uint64(977), seed=0, epoch=0)
    plain = transforms.image(mean=(0, 0, 0), std=(1, 1, 1))(IMAGES)
    views = transforms.image(crop=9, flip=True, mean=(0, 0, 0), std=(1, 1, 1))(IMAGES, draw=draw)
    for image, view in zip(plain, views, strict=True):
        windows = image.unfold(1, 9, 1).unfold(2, 9, 1)
        found = [(windows == v[:, None, None]).all(dim=(0, 3, 4)).any() for v in (view, view.flip(2))]
        assert any(found)


def test_crops_and_flips_differ_between_samples():
    same = IMAGES[:1].expand(64, -1, -1, -1)
    draw = Draw(np.arange(64, dtype=np.uint64), seed=0, epoch=0)
    views = transforms.image(crop=9, flip=True)(same, draw=draw)
    assert len({view.numpy().tobytes() for view in views}) > 30


def test_what_is_no_uint8_image_or_too_small_is_refused():
    with pytest.raises(DataError, match='uint8'):
        transforms.image()(IMAGES.float())
    with pytest.raises(DataError, match='20x24'):
        transforms.image(crop=22)(IMAGES)
    with pytest.raises(ConfigError):
        transforms.image(crop=0)
    with pytest.raises(ConfigError):
        transforms.image(std=(1, 1, 0))

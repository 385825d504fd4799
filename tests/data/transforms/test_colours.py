"""Colours of whole batches: torchvision on each image with its own factor."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as oracle

from mmpipe.data.transforms import colours

CASES = {
    'brightness': (colours.brighten, oracle.adjust_brightness, (0.0, 2.5)),
    'contrast': (colours.contrast, oracle.adjust_contrast, (0.0, 2.5)),
    'saturation': (colours.saturate, oracle.adjust_saturation, (0.0, 2.5)),
    'hue': (colours.turn_hue, oracle.adjust_hue, (-0.5, 0.5)),
}


@pytest.mark.parametrize('name', CASES)
@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 4), side=st.integers(1, 9), seed=st.integers(0, 10_000), levels=st.sampled_from([2, 4, 256])
)
def test_each_image_is_changed_by_its_own_factor_as_torchvision_does(name, count, side, seed, levels):
    change, reference, (low, high) = CASES[name]
    generator = torch.Generator().manual_seed(seed)
    # Few levels: many pixels without chroma, with two equal channels, black and white.
    images = torch.randint(0, levels, (count, 3, side, side), generator=generator).mul(255).div(levels - 1).floor()
    factors = low + torch.rand(count, generator=generator) * (high - low)
    expected = torch.stack(
        [reference(image / 255, factor) for image, factor in zip(images, factors.tolist(), strict=True)]
    )
    changed = change(images.clone(), factors[:, None, None, None])
    torch.testing.assert_close(changed / 255, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(('name', 'still'), [('brightness', 1), ('contrast', 1), ('saturation', 1), ('hue', 0)])
def test_the_neutral_factor_changes_nothing(name, still):
    images = torch.rand(2, 3, 5, 5) * 255
    changed = CASES[name][0](images.clone(), torch.full((2, 1, 1, 1), float(still)))
    torch.testing.assert_close(changed, images, rtol=0, atol=1e-3)

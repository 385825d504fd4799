"""Windows, resized and mirrored: torchvision on each sample with the same window, whichever way they are made."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as oracle

from mmpipe.data.transforms.geometry import Placement, filter_weights, gathered, multiplied, place


@st.composite
def placements(draw, *, resized):
    """Images `[B, T, C, H, W]` and where they go."""
    count, frames, height, width = (draw(st.integers(1, limit)) for limit in (4, 2, 40, 40))
    seed = draw(st.integers(0, 1000))
    rng = np.random.default_rng(seed)
    images = torch.from_numpy(rng.integers(0, 256, (count, frames, 3, height, width), dtype=np.uint8))
    # Not to a single pixel, where torch's kernel for bytes fails.
    size = (draw(st.integers(1, 30)), draw(st.integers(2, 30))) if resized else None
    if size is None:
        size = draw(st.integers(1, height)), draw(st.integers(1, width))
        high, wide = np.full(count, size[0]), np.full(count, size[1])
    else:
        high, wide = rng.integers(1, height + 1, count), rng.integers(1, width + 1, count)
    boxes = np.stack([rng.integers(0, height - high + 1), rng.integers(0, width - wide + 1), high, wide], axis=1)
    cut = None
    if draw(st.booleans()):
        kept = draw(st.integers(1, size[0])), draw(st.integers(1, size[1]))
        cut = draw(st.integers(0, size[0] - kept[0])), draw(st.integers(0, size[1] - kept[1])), *kept
    return images, Placement(boxes, size, cut, rng.random(count) < 0.5)


def one_by_one(images, placement, mode):
    each = []
    for image, box, mirror in zip(images, placement.boxes.tolist(), placement.mirrored, strict=True):
        done = oracle.resized_crop(image, *box, list(placement.full), interpolation=mode, antialias=True)
        done = done if placement.cut is None else oracle.crop(done, *placement.cut)
        each.append(oracle.horizontal_flip(done) if mirror else done)
    return torch.stack(each).float()


@settings(deadline=None, max_examples=60)
@given(placements(resized=True), st.sampled_from([InterpolationMode.BILINEAR, InterpolationMode.BICUBIC]))
def test_on_the_cpu_it_is_what_torchvision_makes_of_each(case, mode):
    images, placement = case
    out = torch.empty(*images.shape[:3], *placement.size)
    place(images, out, placement, mode.value)
    torch.testing.assert_close(out, one_by_one(images, placement, mode), rtol=0, atol=0)


@settings(deadline=None, max_examples=60)
@given(placements(resized=True), st.sampled_from([InterpolationMode.BILINEAR, InterpolationMode.BICUBIC]))
def test_the_products_for_whole_batches_differ_by_rounding_only(case, mode):
    images, placement = case
    out = multiplied(images, placement, mode.value)
    # Both round after each direction: a half that goes the other way first can count for two steps at last.
    expected = one_by_one(images, placement, mode)
    torch.testing.assert_close(out, expected, rtol=0, atol=2)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sampled_from(['bilinear', 'bicubic']))
def test_the_weights_of_a_line_are_those_of_torch(data, mode):
    stored = data.draw(st.integers(1, 60))
    wanted = data.draw(st.integers(2, 60))
    length = data.draw(st.integers(1, stored))
    start = data.draw(st.integers(0, stored - length))
    weights = filter_weights(torch.tensor([start]), torch.tensor([length]), stored, wanted, mode)[0]
    line = torch.rand(stored, generator=torch.Generator().manual_seed(stored))
    window = line[start : start + length].expand(1, 1, 2, -1)
    expected = functional.interpolate(window, (2, wanted), mode=mode, antialias=True)[0, 0, 0]
    torch.testing.assert_close(weights @ line, expected, rtol=0, atol=2e-5)


def test_an_image_can_become_a_single_pixel():
    images = torch.full((2, 1, 3, 4, 5), 7, dtype=torch.uint8)
    out = torch.empty(2, 1, 3, 1, 1)
    boxes = np.array([[0, 0, 4, 5], [1, 1, 2, 2]])
    place(images, out, Placement(boxes, (1, 1), None, np.array([True, False])), 'bilinear')
    assert (out == 7).all()


@settings(deadline=None, max_examples=60)
@given(placements(resized=False))
def test_windows_that_keep_their_size_are_plain_slices(case):
    images, placement = case
    expected = one_by_one(images, placement, InterpolationMode.BILINEAR)
    torch.testing.assert_close(gathered(images, placement).float(), expected, rtol=0, atol=0)
    out = torch.empty(*images.shape[:3], *placement.size)
    place(images, out, placement, 'bilinear')
    torch.testing.assert_close(out, expected, rtol=0, atol=0)


@pytest.mark.parametrize('full', [(5, 6), (9, 4)])
def test_off_the_cpu_nothing_is_asked_back(full):
    """A tensor without data cannot answer: whoever asks it for a number gets an error."""
    images = torch.empty(3, 1, 3, 10, 12, dtype=torch.uint8, device='meta')
    boxes = np.array([[0, 1, 5, 6], [2, 2, 5, 6], [5, 6, 5, 6]])
    out = torch.empty(3, 1, 3, *full, device='meta')
    place(images, out, Placement(boxes, full, None, np.array([True, False, True])), 'bilinear')

"""Windows and rectangles: what torchvision's loops over attempts find, for all samples at once."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms import v2

from mmpipe.data.transforms import boxes
from mmpipe.data.transforms.boxes import AREA_NUMBERS, ATTEMPTS

SIDES = st.integers(1, 400)
SCALES = st.tuples(st.floats(0.01, 1.5), st.floats(0.01, 1.5)).map(lambda pair: (min(pair), max(pair)))
RATIOS = st.tuples(st.floats(0.2, 5), st.floats(0.2, 5)).map(lambda pair: (min(pair), max(pair)))
SEEDS = st.integers(0, 2**32 - 1)


def by_attempts(numbers, height, width, scale, ratio):
    """torchvision's RandomResizedCrop, with these numbers instead of its own."""
    for attempt in range(ATTEMPTS):
        area = height * width * (scale[0] + numbers[attempt] * (scale[1] - scale[0]))
        low, high = math.log(ratio[0]), math.log(ratio[1])
        aspect = math.exp(low + numbers[ATTEMPTS + attempt] * (high - low))
        wide, tall = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < tall <= height:
            top, left = int(numbers[-2] * (height - tall + 1)), int(numbers[-1] * (width - wide + 1))
            return [top, left, tall, wide]
    return None


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, SCALES, RATIOS, SEEDS)
def test_the_first_attempt_that_fits_counts(height, width, scale, ratio, seed):
    numbers = np.random.default_rng(seed).random((AREA_NUMBERS, 8))
    found = boxes.random_resized(numbers, height, width, scale=scale, ratio=ratio).tolist()
    for sample, box in enumerate(found):
        wanted = by_attempts(numbers[:, sample], height, width, scale, ratio)
        assert box == (wanted or list(boxes.largest_central(height, width, ratio)))


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, RATIOS)
def test_where_nothing_fits_it_is_the_window_that_torchvision_falls_back_to(height, width, ratio):
    crop = v2.RandomResizedCrop(8, scale=(30, 30), ratio=ratio)  # no area of 30 images fits into one
    theirs = crop.make_params([np_image(height, width)])
    found = boxes.random_resized(np.zeros((AREA_NUMBERS, 1)), height, width, scale=(30, 30), ratio=ratio)[0]
    assert found.tolist() == [theirs['top'], theirs['left'], theirs['height'], theirs['width']]


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, SEEDS, st.data())
def test_windows_of_one_size_lie_inside_and_reach_every_edge(height, width, seed, data):
    size = data.draw(st.integers(1, height)), data.draw(st.integers(1, width))
    numbers = np.random.default_rng(seed).random((2, 50))
    numbers[:, 0], numbers[:, 1] = 0, 1 - 2**-53
    found = boxes.random_window(numbers, height, width, size)
    assert (found[:, :2] >= 0).all()
    assert (found[:, :2] + found[:, 2:] <= (height, width)).all()
    assert found[0, :2].tolist() == [0, 0]
    assert (found[1, :2] + found[1, 2:]).tolist() == [height, width]


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, SEEDS, st.floats(0, 1))
def test_erased_rectangles_lie_inside_and_come_as_often_as_asked(height, width, seed, probability):
    numbers = np.random.default_rng(seed).random((1 + AREA_NUMBERS, 40))
    found = boxes.random_erased(numbers, height, width, probability=probability, scale=(0.02, 0.33), ratio=(0.3, 3.3))
    top, left, high, wide = found.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + high <= height).all()
    assert (left + wide <= width).all()
    assert ((high > 0)[numbers[0] >= probability] == False).all()  # noqa: E712
    if min(height, width) > 60:  # something of 2 to 33 % and ratio 0.3 to 3.3 fits at the first attempt nearly always
        there = numbers[0] < probability
        share = high * wide / (height * width)
        assert ((share > 0.01) & (share < 0.35))[there].all()


@settings(deadline=None, max_examples=60)
@given(SIDES, SIDES, SIDES)
def test_the_shorter_side_is_resized_as_by_torchvision(height, width, side):
    long = side * max(height, width) // min(height, width)
    if long > 1000:
        return
    resized = v2.functional.resize(np_image(height, width), [side])
    assert boxes.shorter_side(height, width, side) == tuple(resized.shape[-2:])


def np_image(height, width):
    import torch

    return torch.zeros(1, height, width, dtype=torch.uint8)

"""Transforms of a loader: what each asks for it is given, field by field, and then the whole batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmpipe.data import transforms
from mmpipe.data.transforms import Draw
from mmpipe.errors import DataError

HASHES = np.arange(3, dtype=np.uint64)


def batch():
    return {
        'speech': torch.arange(6.0).reshape(3, 2),
        'price': torch.ones(3),
        '_mask': {'speech': torch.tensor([True, False, True]), 'price': torch.ones(3, dtype=torch.bool)},
        '_length': {'speech': torch.tensor([2, 0, 1])},
        '_key': ['a', 'b', 'c'],
    }


class Wants:
    """Notes what it is given."""

    def __init__(self, **attributes):
        self.given = None
        for name in attributes:
            setattr(self, name, True)

    def __call__(self, values, **given):
        self.given = given
        return (values + 1, given['lengths'] + 1) if 'lengths' in given else values + 1


def test_each_is_given_what_it_asks_for_and_nothing_else():
    everything = Wants(random=1, takes_mask=1, takes_lengths=1, takes_memory=1)
    plain = Wants()
    lend = np.empty
    before, draw = batch(), Draw(HASHES, seed=3)
    after = transforms.apply_all({'speech': [plain, everything]}, batch(), draw, allocate=lend)
    assert plain.given == {}
    assert everything.given['mask'] is after['_mask']['speech']
    assert torch.equal(everything.given['lengths'], before['_length']['speech'])
    assert everything.given['allocate'] is lend
    assert everything.given['draw'] == draw.fork('speech', 1)
    assert torch.equal(after['speech'], before['speech'] + 2)
    assert torch.equal(after['_length']['speech'], before['_length']['speech'] + 1)
    assert torch.equal(after['price'], before['price'])


def test_a_field_that_is_not_ragged_has_no_lengths_and_gets_none():
    wants = Wants(takes_mask=1)
    after = transforms.apply_all(
        {'price': [wants, transforms.gain(3), torch.neg]}, {**batch(), 'price': torch.ones(3, 2)}, Draw(HASHES)
    )
    assert 'price' not in after['_length']
    shifted = transforms.apply_all({'price': transforms.shift(1, rate=1)}, {'price': torch.ones(3, 2)}, Draw(HASHES))
    assert '_length' not in shifted


def test_the_whole_batch_comes_last_whatever_the_order_of_the_mapping():
    seen = []

    def whole(given, *, draw):
        seen.append((given['price'].tolist(), draw))
        return {**given, 'extra': 1}

    after = transforms.apply_all({'*': [whole, whole], 'price': lambda x: x * 5}, batch(), Draw(HASHES))
    assert [values for values, _ in seen] == [[5, 5, 5]] * 2
    assert seen[0][1] != seen[1][1]
    assert after['extra'] == 1


def test_fields_and_places_draw_numbers_of_their_own():
    views = {'left': torch.ones(3, 4), 'right': torch.ones(3, 4)}
    loud = transforms.gain(6)
    once = transforms.apply_all({'left': loud, 'right': loud}, dict(views), Draw(HASHES))
    assert not torch.equal(once['left'], once['right'])
    twice = transforms.apply_all({'left': [loud, loud]}, dict(views), Draw(HASHES))
    assert not torch.allclose(twice['left'], once['left'] ** 2)
    torch.testing.assert_close((twice['left'] / once['left']).std(1), torch.zeros(3), atol=1e-6, rtol=0)


def test_names_that_are_not_loaded_are_refused():
    mix = transforms.mixup('photo', {'kind': 2})
    transforms.check({'photo': [abs], '*': mix}, ['photo', 'kind'])
    with pytest.raises(DataError, match="'phto'"):
        transforms.check({'phto': abs}, ['photo'])
    with pytest.raises(DataError, match="'kind'"):
        transforms.check({'*': [mix]}, ['photo'])
    with pytest.raises(DataError, match='cannot be called'):
        transforms.check({'photo': [None]}, ['photo'])


def test_with_fewer_fields_only_those_transforms_stay_that_can_run():
    mix, other = transforms.mixup('photo', {'kind': 2}), transforms.cutmix('photo', {})
    chosen = {'photo': abs, 'price': abs, '*': [mix, other]}
    assert transforms.select(chosen, ['photo', 'kind']) == {'photo': abs, '*': [mix, other]}
    assert transforms.select(chosen, ['photo']) == {'photo': abs, '*': [other]}
    assert transforms.select(chosen, ['price']) == {'price': abs}

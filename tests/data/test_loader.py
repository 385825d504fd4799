"""The loader: order, state, what crosses to the device."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmpipe.data import DataLoader, epoch_order, transforms
from mmpipe.data import batches as batches_module
from mmpipe.errors import ConfigError, DataError


def keys_of(loader):
    return [key for batch in loader for key in batch['_key']]


def make(rows, **options):
    return DataLoader(rows, device='cpu', fields=['kind'], **{'batch_size': 7, 'shuffle': True, **options})


def test_epochs_follow_epoch_order(shop):
    rows = shop.split('train')
    loader = make(rows, seed=3)
    for epoch in range(2):
        assert keys_of(loader) == [rows.keys[i] for i in epoch_order(rows.hashes, 3, epoch)]
    loader.set_epoch(0)
    assert keys_of(loader) == [rows.keys[i] for i in epoch_order(rows.hashes, 3, 0)]


def test_without_shuffle_rows_come_as_stored_and_drop_last_drops(shop):
    rows = shop.split('train')
    assert keys_of(make(rows, shuffle=False)) == list(rows.keys)
    loader = make(rows, shuffle=False, drop_last=True)
    assert len(keys_of(loader)) == len(rows) // 7 * 7
    assert len(loader) == len(rows) // 7


def test_looking_at_one_batch_does_not_move_the_next_pass(shop):
    loader = make(shop.split('train'))
    first = next(iter(loader))['_key']
    assert next(iter(loader))['_key'] == first


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_state_loads_under_any_world_size_and_no_sample_is_lost_or_repeated(shop, data):
    rows = shop.split('train').take(np.arange(data.draw(st.integers(1, 40))))
    first_world, second_world = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 5))
    first_size, second_size = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    steps = data.draw(st.integers(0, 12))

    def run(world_size, size, state, stop):
        """Keys per rank and the states they end in, of `stop` steps."""
        keys, states = [], []
        for rank in range(world_size):
            with mock.patch.object(batches_module, 'world', lambda rank=rank: (rank, world_size)):
                loader = make(rows, batch_size=size)
                if state is not None:
                    loader.load_state_dict(state)
                for _, batch in zip(range(stop), loader, strict=False):
                    keys += batch['_key']
                states.append(loader.state_dict())
        return keys, states

    before, states = run(first_world, first_size, None, steps)
    assert all(state == states[0] for state in states)
    whole_epochs = states[0]['epoch']
    after, _ = run(second_world, second_size, states[0], 10**6)
    if whole_epochs == 0 and states[0]['consumed'] < len(rows):
        assert sorted(before + after) == sorted(rows.keys)
    else:  # the epoch was over: the next one is whole
        assert sorted(before) == sorted(after) == sorted(rows.keys)


def test_a_state_of_other_rows_or_another_seed_is_refused(shop):
    state = make(shop.split('train')).state_dict()
    for other in (make(shop.split('val')), make(shop.split('train'), seed=1), make(shop.split('train').take(range(3)))):
        with pytest.raises(DataError, match='state of a loader'):
            other.load_state_dict(state)


def test_the_global_generators_neither_matter_nor_move(shop):
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    one = keys_of(make(shop.split('train')))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(1)
    assert keys_of(make(shop.split('train'))) == one


def test_images_cross_to_the_device_as_uint8_and_are_normalised_there(shop):
    """What a float batch would have cost is four times as much."""
    crossed = []
    rows = shop.split('train')
    loader = DataLoader(
        rows,
        batch_size=len(rows),
        device='cpu',
        fields=['photo', 'kind'],
        transforms={'photo': transforms.image(crop=8)},
        on_transfer=lambda name, dtype, size, device: crossed.append((name, dtype, size, device.type)),
    )
    (batch,) = loader
    assert [item for item in crossed if item[0] == 'photo'] == [('photo', torch.uint8, len(rows) * 3 * 16 * 16, 'cpu')]
    assert not any(dtype.is_floating_point for _, dtype, _, _ in crossed)
    assert batch['photo'].dtype == torch.float32
    assert batch['photo'].shape == (len(rows), 3, 8, 8)


def test_an_augmented_sample_is_the_same_in_any_batch_and_another_in_the_next_epoch(shop):
    rows = shop.split('train')
    views = []
    for size, shuffle in ((5, True), (9, False)):
        loader = DataLoader(
            rows, batch_size=size, shuffle=shuffle, device='cpu', fields=['photo'],
            transforms={'photo': transforms.image(crop=8, flip=True)},
        )  # fmt: skip
        for _ in range(2):
            views.append(
                {key: image for batch in loader for key, image in zip(batch['_key'], batch['photo'], strict=True)}
            )
    for key in rows.keys:
        assert torch.equal(views[0][key], views[2][key])
        assert torch.equal(views[1][key], views[3][key])
    assert sum(not torch.equal(views[0][key], views[1][key]) for key in rows.keys) > len(rows) / 2


def test_a_fresh_copy_shares_no_state_and_reads_only_what_it_is_asked_for(shop):
    loader = DataLoader(
        shop.split('train'), batch_size=7, device='cpu', shuffle=True, transforms={'photo': transforms.image()}
    )
    list(loader)
    copy = loader.fresh(fields=['kind'])
    assert copy.state_dict()['epoch'] == 0
    assert loader.state_dict()['epoch'] == 1
    assert {name for name in next(iter(copy)) if not name.startswith('_')} == {'kind'}


def test_spawned_workers_give_the_same_batches_in_the_same_order(shop):
    rows = shop.split('train')
    loader = make(rows, num_workers=1)
    alone = make(rows)
    for _ in range(2):
        assert keys_of(loader) == keys_of(alone)
    state = None
    for step, _ in enumerate(loader):
        if step == 2:
            state = loader.state_dict()
            break
    assert state['consumed'] == 21


def test_arguments_that_cannot_work_are_refused_early(shop):
    rows = shop.split('train')
    for options in ({'batch_size': 0}, {'num_workers': -1}, {'pin_memory': True}):
        with pytest.raises(ConfigError):
            make(rows, **options)
    with pytest.raises(DataError, match="'photo', which is not loaded"):
        make(rows, transforms={'photo': transforms.image()})


@pytest.mark.gpu
def test_on_cuda_batches_are_pinned_cross_as_uint8_and_equal_those_of_the_cpu(shop):
    crossed = {}
    options = {'batch_size': 16, 'shuffle': True, 'transforms': {'photo': transforms.image(crop=8, flip=True)}}
    loader = DataLoader(
        shop.split('train'), device='cuda', on_transfer=lambda name, dtype, *_: crossed.update({name: dtype}), **options
    )
    assert loader.pin_memory
    for there, here in zip(loader, DataLoader(shop.split('train'), device='cpu', **options), strict=True):
        assert there['photo'].is_cuda
        torch.testing.assert_close(there['photo'].cpu(), here['photo'])
        assert there['_key'] == here['_key']
    assert crossed['photo'] == torch.uint8

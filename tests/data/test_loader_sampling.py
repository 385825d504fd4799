"""The loader with every sampling: in any world, resumed at any step, and in a training."""

from __future__ import annotations

from collections import Counter
from unittest import mock

import numpy as np
import pytest
from shop_snapshot import FIELDS, shop_block

from mmpipe.data import DataLoader, sampling, transforms
from mmpipe.data import batches as module
from mmpipe.errors import ConfigError, DataError
from mmpipe.models import MultitaskModel, encoders
from mmpipe.runs import open_run
from mmpipe.shards import Block, Field, Snapshot, compact, open_snapshot, write_block, write_snapshot
from mmpipe.shards.collect import collect
from mmpipe.shards.writer import commit
from mmpipe.train import Trainer, classification


@pytest.fixture(scope='module')
def sources(tmp_path_factory) -> dict[str, Snapshot]:
    folder = tmp_path_factory.mktemp('sources')
    return {
        name: write_snapshot(folder / name, FIELDS, shop_block(rows)) for name, rows in (('books', 40), ('web', 96))
    }


def made(sources, which, **options):
    """A loader over a sampling; `options` without a batch size where it cuts batches itself."""
    web, books = sources['web'].rows(), sources['books'].rows()
    size = {'global_batch_size': options.pop('size', 10)}
    rows, sampler = {
        'shuffle': (web, sampling.Shuffle()),
        'blocks': (web, sampling.BlockShuffle(window=1)),
        'balanced': (web, sampling.Balanced('kind', samples=70)),
        'mixture': (sampling.mixture({'web': web, 'books': books}, weights={'web': 1, 'books': 2}, samples=90), None),
        'since': (sampling.since(web, before=sources['books'], replay=0.3), None),
        'buckets': (web, sampling.Buckets('frames', global_budget=40)),
    }[which]
    size = {} if which == 'buckets' else size
    return DataLoader(rows, sampler=sampler, device='cpu', fields=['kind', 'frames'], seed=2, **size, **options)


def in_world(loader_of, world_size, *, state=None, stop=10**6):
    """Keys of each global batch, in order of ranks, and the state at the end."""
    ranks, states = [], []
    for rank in range(world_size):
        with mock.patch.object(module, 'world', lambda rank=rank: (rank, world_size)):
            loader = loader_of()
            if state is not None:
                loader.load_state_dict(state)
            ranks.append([batch['_key'] for _, batch in zip(range(stop), loader, strict=False)])
            states.append(loader.state_dict())
    assert all(each['consumed'] == states[0]['consumed'] for each in states)
    return [[key for part in parts for key in part] for parts in zip(*ranks, strict=True)], states[0]


every = pytest.mark.parametrize('which', ['shuffle', 'blocks', 'balanced', 'mixture', 'since', 'buckets'])


@every
def test_global_batches_are_the_same_in_any_world_and_with_any_threads(sources, which):
    alone, _ = in_world(lambda: made(sources, which, num_workers=0), 1)
    assert len(alone) == len(made(sources, which))
    for world_size, workers in ((2, 1), (3, 0), (4, 2), (8, 0)):
        found, _ = in_world(lambda workers=workers: made(sources, which, num_workers=workers), world_size)
        assert [sorted(step) for step in found] == [sorted(step) for step in alone]


@every
def test_a_state_of_any_step_goes_on_in_another_world_with_another_batch_size(sources, which):
    whole = Counter(key for step in in_world(lambda: made(sources, which), 1)[0] for key in step)
    for stop in range(0, len(made(sources, which)), 3):
        before, state = in_world(lambda: made(sources, which, num_workers=1), 2, stop=stop)
        after, _ = in_world(lambda: made(sources, which, size=7), 3, state=state)
        assert Counter(key for step in before + after for key in step) == whole


@pytest.mark.parametrize('which', ['shuffle', 'mixture'])
def test_three_epochs_are_the_same_in_every_world_with_any_number_of_threads(sources, which):
    def epochs(world_size, workers):
        found = [[] for _ in range(3)]
        for rank in range(world_size):
            with mock.patch.object(module, 'world', lambda rank=rank: (rank, world_size)):
                loader = made(sources, which, num_workers=workers)
                for epoch in range(3):
                    parts = [batch['_key'] for batch in loader]
                    found[epoch] = [a + b for a, b in zip(found[epoch] or [[]] * len(parts), parts, strict=True)]
        return found

    alone = epochs(1, 0)
    assert alone[0] != alone[1] != alone[2]
    for world_size in (1, 2, 3, 4, 6, 8):
        for workers in (0, 1, 2, 4):
            assert epochs(world_size, workers) == alone, (world_size, workers)


@pytest.mark.parametrize('which', ['shuffle', 'mixture'])
def test_every_step_of_an_epoch_of_fifty_goes_on_in_every_other_world(sources, which):
    """Steps of two rows of 96 (48 to 45 of them), resumed by other numbers of ranks, threads and rows."""

    def loader(**options):
        return made(sources, which, **{'size': 2, **options})

    (whole, _), length = in_world(loader, 1), len(loader())
    sequence = [key for step in whole for key in step]
    assert length >= 45
    for stop in range(length):
        world_size = (1, 2, 3, 4, 6, 8)[stop % 6]
        before, state = in_world(
            lambda stop=stop: loader(num_workers=stop % 3), (8, 6, 4, 3, 2, 1)[stop % 6], stop=stop
        )
        after, _ = in_world(
            lambda stop=stop: loader(size=2 + stop % 7, num_workers=(0, 1, 2, 4)[stop % 4]), world_size, state=state
        )
        assert [key for step in before + after for key in step] == sequence


def test_a_state_of_another_sampling_is_refused(sources):
    state = made(sources, 'balanced').state_dict()
    with pytest.raises(DataError, match='sampling'):
        made(sources, 'shuffle').load_state_dict(state)


def test_padded_batches_stay_within_their_budget(sources):
    for batch in made(sources, 'buckets'):
        lengths = batch['_length']['frames']
        assert len(lengths) * int(lengths.max()) <= 40 or len(lengths) == 1


def test_what_a_sampling_decides_is_not_given_beside_it(sources):
    rows = sources['web'].rows()
    with pytest.raises(ConfigError, match='cuts batches itself'):
        DataLoader(rows, sampler=sampling.Buckets('frames', budget=40), batch_size=3)
    with pytest.raises(ConfigError, match='a sampler decides'):
        DataLoader(rows, sampler=sampling.Shuffle(), shuffle=True, batch_size=3)
    with pytest.raises(ConfigError, match='sampling of their own'):
        DataLoader(sampling.mixture({'a': rows}), shuffle=True, batch_size=3)


@pytest.mark.parametrize('which', ['mixture', 'buckets'])
def test_a_training_resumed_in_the_middle_of_such_epochs_ends_as_one_that_was_not(sources, which, tmp_path):
    def build():
        return MultitaskModel(
            encoders={'frames': encoders.sequence(4, 8, dropout=0.0)},
            tasks=[classification('kind', 3)], hidden=8, dropout=0.0,
        )  # fmt: skip

    def train(folder, **options):
        options = {'epochs': 3, 'runs': tmp_path / folder, 'log_every': 1, 'schedule': 'constant', **options}
        return Trainer(**options).fit(build, made(sources, which), name='mixed', resume='auto')

    whole = train('whole')
    part = train('parts', max_steps=len(made(sources, which)) + 2)
    # What a finished run of fewer steps leaves is gone on from.
    resumed = Trainer(epochs=3, runs=tmp_path / 'parts', log_every=1, schedule='constant').fit(
        build, made(sources, which), name='mixed', resume=part
    )
    assert resumed.id == part.id
    for file in ('model.safetensors', 'optimizer.safetensors'):
        assert (resumed.checkpoint() / file).read_bytes() == (whole.checkpoint() / file).read_bytes(), file
    if which == 'mixture':
        parts = open_run(whole.path).snapshot['parts']
        assert {name: part['id'] for name, part in parts.items()} == {n: s.id for n, s in sources.items()}
        for snapshot in sources.values():  # a run names it, so it stays
            collect(snapshot.root, keep=1, runs=tmp_path / 'whole', grace_s=0)
            assert np.all(snapshot.rows().system('_split') != '')


def test_a_state_in_the_middle_of_an_order_that_storage_decides_is_refused_after_compaction(tmp_path):
    field = Field(name='x', kind='scalar', dtype='float32')
    shards = [
        write_block(tmp_path, [field], Block(keys=[f'{i}/{n}' for n in range(20)], columns={'x': [0.0] * 20}), index=i)
        for i in range(8)
    ]
    none = np.zeros((0, 2), dtype=np.int64)
    commit(tmp_path, [field], shards, dropped=none, splits={'': 160}, source={'table': 'a'})

    def loader():
        rows = open_snapshot(tmp_path).rows()
        return DataLoader(rows, sampler=sampling.BlockShuffle(window=2), batch_size=16, device='cpu')

    first = loader()
    for _, _ in zip(range(5), first, strict=False):
        pass
    state = first.state_dict()
    loader().load_state_dict(state)
    compact(tmp_path)
    with pytest.raises(DataError, match=r'whose order is another one now: BlockShuffle .* set_epoch\(0\)'):
        loader().load_state_dict(state)
    loader().load_state_dict({**state, 'consumed': 0, 'order': None})


def test_a_row_that_comes_again_in_an_epoch_is_augmented_anew(sources):
    rows = sources['web'].rows().take(range(4))
    loader = DataLoader(
        rows, sampler=sampling.Weighted(np.ones(4), samples=40), batch_size=7, device='cpu', fields=['photo'],
        transforms={'photo': transforms.image(crop=8, random=True)},
    )  # fmt: skip
    seen: dict[str, list] = {}
    for batch in loader:
        for key, image, there in zip(batch['_key'], batch['photo'], batch['_mask']['photo'], strict=True):
            if there:
                seen.setdefault(key, []).append(image)
    assert len(seen) > 1
    for images in seen.values():
        assert len(images) == 10
        assert len({image.numpy().tobytes() for image in images}) > 5
    loader.set_epoch(0)
    again = [image for batch in loader for image in batch['photo']]
    loader.set_epoch(0)
    assert all(np.array_equal(a, b) for a, b in zip(again, (i for b in loader for i in b['photo']), strict=True))

"""Batches made by threads: the same as read one by one, whoever keeps them, and where decoding fails."""

from __future__ import annotations

import gc
import io
import threading

import numpy as np
import pytest
import soundfile
import torch
from batches import same_batch

from mmpipe.data import DataLoader, ShardDataset
from mmpipe.data.batch import BatchTask, Request
from mmpipe.errors import ConfigError, DataError
from mmpipe.shards import Block, Field, compact, open_snapshot, write_block, write_snapshot
from mmpipe.shards.collect import collect
from mmpipe.shards.writer import commit


class Sound:
    """The contract of a decoder, by a user: samples of a WAV file, louder by a random number."""

    shape, rest, dtype, draws = None, (), 'float32', 1

    def decode(self, data: bytes, draws: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        try:
            values, _ = soundfile.read(io.BytesIO(data), dtype='float32')
        except soundfile.LibsndfileError as error:
            raise DataError(f'these bytes are no sound ({error.error_string})') from error
        return values * (1 + draws[0])


class Square:
    """Another: the bytes as a picture of fixed size."""

    shape, rest, dtype, draws = (3, 64, 64), (), 'uint8', 0

    def decode(self, data: bytes, draws: np.ndarray, out: np.ndarray | None) -> np.ndarray:
        values = np.frombuffer(data, dtype=np.uint8)
        if values.size != 3 * 64 * 64:
            raise DataError(f'{len(data)} bytes are no picture of 64x64')
        assert out is not None
        out[:] = values.reshape(self.shape)
        return out


def wav(seconds: float, pitch: float) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, 0.4 * np.sin(np.arange(int(seconds * 8000)) * pitch), 8000, format='WAV', subtype='FLOAT')
    return file.getvalue()


@pytest.fixture(scope='module')
def media(tmp_path_factory):
    """60 rows with a sound, a picture and a number; every tenth sound and every seventh picture is damaged."""
    rng = np.random.default_rng(0)
    sounds = [b'noise' if i % 10 == 3 else None if i % 10 == 4 else wav(0.05 + 0.01 * (i % 5), 0.1) for i in range(60)]
    pictures = [rng.integers(0, 255, 100 if i % 7 == 5 else 3 * 64 * 64, dtype=np.uint8).tobytes() for i in range(60)]
    fields = [
        Field(name='sound', kind='binary'), Field(name='picture', kind='binary'),
        Field(name='number', kind='scalar', dtype='float32'),
    ]  # fmt: skip
    columns = {'sound': sounds, 'picture': pictures, 'number': [float(i) for i in range(60)]}
    block = Block(keys=[f'k{i}' for i in range(60)], columns=columns)
    return write_snapshot(tmp_path_factory.mktemp('media'), fields, block).rows()


def loader_of(media, **options):
    options = {'batch_size': 7, 'shuffle': True, 'seed': 5, 'device': 'cpu', 'on_error': 'mask', **options}
    return DataLoader(media, decode={'sound': Sound(), 'picture': Square()}, **options)


def test_any_number_of_threads_makes_the_same_batches(media):
    first = None
    for workers in (0, 1, 2, 4):
        loader = loader_of(media, num_workers=workers)
        epochs = [list(loader) for _ in range(2)]
        first = first or epochs
        for one, other in zip(epochs, first, strict=True):
            assert len(one) == len(other) == len(loader)
            assert all(same_batch(a, b) for a, b in zip(one, other, strict=True))
    assert not same_batch(first[0][0], first[1][0])


def test_what_cannot_be_decoded_counts_as_missing_and_is_told(media):
    loader = loader_of(media, num_workers=2)
    batches = list(loader)
    damaged = {f'k{i}' for i in range(60) if i % 10 == 3}
    assert {key for key, field in loader.failed if field == 'sound'} == damaged
    assert {key for key, field in loader.failed if field == 'picture'} == {f'k{i}' for i in range(60) if i % 7 == 5}
    assert 'no sound' in loader.failed['k3', 'sound']
    missing = damaged | {f'k{i}' for i in range(60) if i % 10 == 4}
    for batch in batches:
        for key, there, length, values in zip(
            batch['_key'], batch['_mask']['sound'], batch['_length']['sound'], batch['sound'], strict=True
        ):
            assert there == (key not in missing)
            assert bool(length) == bool(there)
            assert not values[length:].any()
        assert not batch['picture'][~batch['_mask']['picture']].any()
        assert batch['_present']['sound'].tolist() == batch['_mask']['sound'].nonzero().flatten().tolist()


@pytest.mark.parametrize('workers', [0, 2])
def test_else_the_first_one_is_an_error_that_names_it(media, workers):
    loader = loader_of(media, on_error='raise', num_workers=workers, shuffle=False)
    with pytest.raises(DataError, match=r"field 'sound' of row 'k3' .* no sound .*on_error='mask'"):
        list(loader)


def test_a_batch_that_is_kept_does_not_change(full_shop):
    loader = DataLoader(full_shop.rows(), batch_size=8, shuffle=True, device='cpu', num_workers=2, pool_bytes=1 << 16)
    task = BatchTask(full_shop.rows(), loader.fields)
    kept = []
    for epoch in range(5):
        order = loader.batches.sequence(epoch)
        kept += [(order[8 * i : 8 * i + 8], batch) for i, batch in enumerate(loader)]
    assert len(kept) >= 50
    assert loader.pool.beyond > 0  # more was kept than may be lent
    for positions, batch in kept:
        for name, values in task(Request(positions)).items():
            if isinstance(values, np.ndarray):
                assert torch.equal(batch[name], torch.from_numpy(values)), name


def test_memory_that_is_let_go_is_used_again(full_shop):
    loader = DataLoader(full_shop.rows(), batch_size=16, shuffle=True, device='cpu', num_workers=2)
    for _ in loader:
        pass
    made, held = loader.pool.allocations, loader.pool.held_bytes
    for _ in range(20):
        for _ in loader:
            pass
    assert loader.pool.held_bytes <= 2 * held
    assert loader.pool.allocations <= 2 * made


def test_a_pass_that_is_left_leaves_no_thread(full_shop):
    before = threading.active_count()
    loader = DataLoader(full_shop.rows(), batch_size=4, device='cpu', num_workers=4)
    for _ in range(5):
        for _ in loader:
            break
    gc.collect()
    for thread in threading.enumerate():
        if thread.name.startswith('mmpipe-read'):
            thread.join(5)
    assert threading.active_count() <= before


def test_resuming_at_every_step_of_an_epoch_with_any_batch_size_and_threads(media):
    loader = DataLoader(media, batch_size=1, shuffle=True, device='cpu', fields=['number'], num_workers=2)
    whole = [key for batch in loader for key in batch['_key']]
    for step in range(len(whole) - 1):
        loader.set_epoch(0)
        taken = [batch['_key'][0] for _, batch in zip(range(step + 1), loader, strict=False)]
        other = DataLoader(
            media, batch_size=1 + step % 9, shuffle=True, device='cpu', fields=['number'], num_workers=step % 3
        )
        other.load_state_dict(loader.state_dict())
        assert taken + [key for batch in other for key in batch['_key']] == whole


def test_plain_torch_loaders_give_the_same_samples(media):
    dataset = ShardDataset(media, decode={'sound': Sound(), 'picture': Square()}, seed=5, on_error='mask')
    loader = loader_of(media, num_workers=2)
    for epoch in range(2):
        dataset.set_epoch(epoch)
        order = loader.batches.sequence(epoch)
        plain = torch.utils.data.DataLoader(
            dataset, sampler=[order[at : at + 7] for at in range(0, 60, 7)], batch_size=None
        )
        for ours, theirs in zip(loader, plain, strict=True):
            theirs.pop('_failed', None)
            assert same_batch({name: value for name, value in ours.items() if name != '_present'}, theirs)


def test_decoders_that_cannot_work_are_refused_early(media, shop):
    with pytest.raises(ConfigError, match=r"'nothing', which is not loaded"):
        DataLoader(media, batch_size=1, decode={'nothing': Sound()})
    with pytest.raises(ConfigError, match='stored decoded'):
        DataLoader(media, batch_size=1, decode={'number': Sound()})
    with pytest.raises(ConfigError, match='on_error'):
        DataLoader(media, batch_size=1, on_error='skip')


def test_an_epoch_goes_on_after_compaction_and_collection(tmp_path):
    """Many blocks with masked rows become full ones: the order does not change, nor what is in the batches."""
    field = Field(name='vector', kind='tensor', dtype='float32', shape=(400,))
    shards = [
        write_block(
            tmp_path,
            [field],
            Block(
                keys=[f'k{n}' for n in range(10 * i, 10 * i + 10)],
                columns={'vector': [np.full(400, n, dtype=np.float32) for n in range(10 * i, 10 * i + 10)]},
            ),
            index=i,
        )
        for i in range(12)
    ]
    dropped = np.array([(block, row) for block in range(12) for row in (0, 7)])
    old = commit(tmp_path, [field], shards, dropped=dropped, splits={'': 96}, source={'table': 'a'})
    loader = DataLoader(old.rows(), batch_size=9, shuffle=True, device='cpu')
    before = [(batch['_key'], batch['vector'][:, 0].tolist()) for batch in loader]
    assert all([float(key[1:]) for key in keys] == values for keys, values in before)
    for taken in range(len(before)):
        loader.set_epoch(0)
        for _, _ in zip(range(taken), loader, strict=False):
            pass
        state = loader.state_dict()
        if taken == 3:
            compact(tmp_path)
            collect(tmp_path, keep=1, grace_s=0)
            assert len(open_snapshot(tmp_path).manifest.shards) == 1
        other = DataLoader(open_snapshot(tmp_path).rows(), batch_size=9, shuffle=True, device='cpu', num_workers=1)
        other.load_state_dict(state)
        assert [(batch['_key'], batch['vector'][:, 0].tolist()) for batch in other] == before[taken:]

"""Mixtures of snapshots, and new rows with a replay of old ones."""

from __future__ import annotations

import json
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from selection import Selection, visited
from shop_snapshot import FIELDS, shop_block, write_shop

from mmpipe.data.batch import BatchTask, Request
from mmpipe.data.many import ManyRows
from mmpipe.data.sampling import Mixture, Since, mixture, since
from mmpipe.data.sampling.draws import interleave, shares
from mmpipe.errors import ConfigError, DataError
from mmpipe.shards import Block, Field, write_snapshot

SEED, EPOCH = st.integers(-(2**70), 2**70), st.integers(0, 10**4)
SIZES = st.dictionaries(st.sampled_from(['web', 'books', 'x', 'lab-2']), st.integers(1, 12), min_size=1)


def sources(sizes):
    return {name: Selection(f'{i:02d}' for i in range(size)) for name, size in sizes.items()}


# --- mixtures


@given(SIZES, SEED, EPOCH, st.data())
def test_every_source_comes_in_its_share_and_pass_after_pass_over_epochs(sizes, seed, epoch, data):
    weights = {name: data.draw(st.integers(1, 9)) for name in sizes}
    samples = data.draw(st.integers(1, 60))
    mixed = mixture(sources(sizes), weights=weights, samples=samples)
    keys = [visited(mixed.sampling, mixed.rows, seed=seed, epoch=at) for at in range(epoch, epoch + 4)]
    for name, size in sizes.items():
        drawn = [[key for key in keys_of if key.startswith(f'{name}/')] for keys_of in keys]
        share = samples * weights[name] / sum(weights.values())
        assert {len(each) for each in drawn} <= {int(share), int(share) + 1}
        assert len({len(each) for each in drawn}) == 1
        per_epoch, flat = len(drawn[0]), [key for each in drawn for key in each]
        first = epoch * per_epoch  # the number of the first of these draws
        skip = -first % size
        for start in range(skip, len(flat) - size + 1, size):
            assert len(set(flat[start : start + size])) == size  # a whole pass
        if skip <= len(flat):
            assert len(set(flat[:skip])) == skip  # the end of one


@given(SIZES, SEED, EPOCH, st.randoms())
def test_a_mixture_depends_neither_on_places_nor_on_the_order_of_the_sources(sizes, seed, epoch, random):
    weights = {name: 1 + len(name) for name in sizes}
    parts = sources(sizes)
    names = random.sample(list(parts), len(parts))
    moved = {name: parts[name].take(random.sample(range(sizes[name]), sizes[name])) for name in names}
    one, other = mixture(parts, weights=weights), mixture(moved, weights={name: weights[name] for name in names})
    keys = visited(one.sampling, one.rows, seed=seed, epoch=epoch)
    assert keys == visited(other.sampling, other.rows, seed=seed, epoch=epoch)
    shuffled = one.rows.take(random.sample(range(len(one.rows)), len(one.rows)))
    assert keys == visited(one.sampling, shuffled, seed=seed, epoch=epoch)
    assert one.sampling.identity() == other.sampling.identity() == json.loads(json.dumps(one.sampling.identity()))


@given(SIZES, SEED, EPOCH)
def test_without_weights_an_epoch_is_every_row_once(sizes, seed, epoch):
    mixed = mixture(sources(sizes))
    assert sorted(visited(mixed.sampling, mixed.rows, seed=seed, epoch=epoch)) == sorted(mixed.rows.keys)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=4), SEED, EPOCH)
def test_any_stretch_holds_the_sources_in_their_shares(counts, seed, epoch):
    slots = interleave(counts, range(len(counts)), seed, epoch)
    assert np.bincount(slots, minlength=len(counts)).tolist() == counts
    for number, count in enumerate(counts):
        expected = np.arange(1, len(slots) + 1) * count / max(len(slots), 1)
        # A place lies up to one part of its own source, and each other source is up to one draw off there.
        assert (np.abs(np.cumsum(slots == number) - expected) <= 1 + len(counts)).all()


@given(st.integers(0, 1000), st.lists(st.floats(0, 100), min_size=1, max_size=9).filter(lambda x: sum(x) > 1e-9))
def test_shares_are_whole_and_less_than_one_off(total, weights):
    found = shares(total, weights)
    assert sum(found) == total
    assert all(abs(n - total * w / sum(weights)) < 1 + 1e-9 for n, w in zip(found, weights, strict=True))


def test_sources_are_drawn_independently():
    mixed = mixture(sources({'a': 50, 'b': 50}))
    keys = visited(mixed.sampling, mixed.rows)
    one, other = ([key[2:] for key in keys if key.startswith(name)] for name in 'ab')
    assert one != other


@pytest.mark.parametrize(
    ('make', 'error', 'message'),
    [
        (lambda parts: mixture(parts, weights={'web': 1}), ConfigError, 'for web, and the sources are books, web'),
        (lambda parts: mixture(parts, weights={'web': -1, 'books': 1}), ConfigError, 'numbers from 0 up'),
        (lambda parts: mixture(parts, weights={'web': 0, 'books': 0}), ConfigError, 'at least one above 0'),
        (lambda parts: mixture(parts, samples=0), ConfigError, 'at least 1'),
        (lambda parts: mixture({**parts, 'none': Selection([])}, weights={'web': 1, 'books': 1, 'none': 1}),
         DataError, "'none' has no rows, and 1 samples"),
        (lambda parts: mixture({'none': Selection([])}), DataError, 'None of none has a row'),
        (lambda parts: Mixture().length(parts['web']) and Mixture().draws(parts['web']), DataError, 'of one snapshot'),
        (lambda parts: mixture({}), ConfigError, 'at least one'),
        (lambda parts: mixture({'a/b': parts['web']}), ConfigError, "hold no '/'"),
    ],
)  # fmt: skip
def test_mixtures_that_cannot_be_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make(sources({'web': 2, 'books': 2}))


def test_a_source_of_weight_zero_is_left_out():
    mixed = mixture(sources({'web': 3, 'books': 2}), weights={'web': 1, 'books': 0})
    assert {key.split('/')[0] for key in visited(mixed.sampling, mixed.rows)} == {'web'}


# --- rows of several snapshots


@pytest.fixture(scope='module')
def shops(tmp_path_factory):
    """Two shops that share some keys; the second lacks two fields and knows more words."""
    root = tmp_path_factory.mktemp('many')
    fields = [field for field in FIELDS if field.name not in ('mel', 'note')]
    fields = [field.grown(['zoo']) if field.name in ('kind', 'tags') else field for field in fields]
    block = shop_block(40, seed=1, first=60)
    columns = {name: list(block.columns[name]) for name in [field.name for field in fields]}
    columns['kind'][0], columns['tags'][1] = 'zoo', ['old', 'zoo']
    small = Block(keys=block.keys, columns=columns, splits=block.splits)
    return {'main': write_shop(root / 'main'), 'new': write_snapshot(root / 'new', fields, small)}


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_many_rows_read_what_their_sources_read(shops, data):
    parts = {name: snapshot.rows() for name, snapshot in shops.items()}
    rows = ManyRows(parts)
    assert (len(rows), rows.names, set(rows.fields)) == (136, ('main', 'new'), {field.name for field in FIELDS})
    where = [('main', i) for i in range(96)] + [('new', i) for i in range(40)]
    taken = data.draw(st.lists(st.integers(0, 135), min_size=1, max_size=20))
    rows, where = rows.take(taken), [where[i] for i in taken]
    chosen = data.draw(st.lists(st.integers(0, len(taken) - 1), max_size=12))
    assert rows.keys.tolist() == [f'{name}/{parts[name].keys[i]}' for name, i in where]
    for field in FIELDS:
        values, valid = rows.read(field.name, chosen)
        assert len(values) == len(valid) == len(chosen)
        for value, ok, (name, i) in zip(values, valid, [where[i] for i in chosen], strict=True):
            if field.name not in parts[name].fields:
                assert not ok
                assert np.array_equal(value, np.zeros_like(value) if field.dense_shape is not None else '')
                continue
            (plain,), (there,) = parts[name].read(field.name, [i])
            assert ok == there
            if field.kind == 'labels':
                plain = np.append(plain, [0] * (5 - len(plain)))
            assert np.array_equal(value, plain)
            assert type(value) is type(plain) or np.asarray(value).dtype == np.asarray(plain).dtype


def test_many_rows_are_batched_like_rows_and_survive_pickling(shops):
    rows = mixture({name: snapshot.split('train') for name, snapshot in shops.items()}).rows
    rows = pickle.loads(pickle.dumps(rows))
    batch = BatchTask(rows, rows.fields)(Request(np.arange(len(rows))[::-1]))
    assert batch['tags'].shape[1] == batch['_mask']['photo'].shape[0] - len(rows) + 5
    words = np.array(['cup', 'hat', 'map', 'zoo'])[batch['kind']]
    assert [w if ok else None for w, ok in zip(words, batch['_mask']['kind'], strict=True)] == rows.words('kind')[::-1]
    assert rows.where('kind', 'zoo').keys.tolist() == ['new/sku-0060']
    assert rows.words('price')[0] == shops['main'].split('train').words('price')[0]
    assert not batch['_mask']['mel'][: len(shops['new'].split('train'))].any()
    assert set(rows.system('_split')) == {'train'}
    assert rows.snapshot.splits == {'train': 102, 'val': 34}
    assert len(rows.snapshot.id) == 16
    assert len(set(map(tuple, rows.places.tolist()))) == len(rows)


def test_a_key_of_two_sources_is_two_rows(shops):
    rows = ManyRows({name: snapshot.rows() for name, snapshot in shops.items()})
    assert len(set(shops['main'].rows().keys) & set(shops['new'].rows().keys)) == 36
    assert len(set(rows.keys)) == len(set(rows.hashes.tolist())) == len(rows) == 136
    alone = ManyRows({'new': shops['new'].rows()})
    assert (alone.hashes == rows.hashes[96:]).all()  # whatever else there is
    assert (rows.system('_hash') == rows.hashes).all()


def test_fields_that_do_not_fit_together_are_told(tmp_path):
    def rows(name, field, value):
        return write_snapshot(tmp_path / name, [field], Block(keys=['a'], columns={'x': [value]})).rows()

    number = rows('number', Field(name='x', kind='scalar', dtype='float32'), 1.0)
    whole = rows('whole', Field(name='x', kind='scalar', dtype='int64'), 1)
    cat = rows('cat', Field(name='x', kind='label', vocabulary=('cat', 'dog')), 'cat')
    dog = rows('dog', Field(name='x', kind='label', vocabulary=('dog', 'cat', 'eel')), 'cat')
    with pytest.raises(DataError, match=r"scalar int64 \[\] in 'b' and scalar float32 \[\] in 'a'.*fields="):
        mixture({'a': number, 'b': whole})
    with pytest.raises(DataError, match=r"Label 0 of field 'x' is 'cat' in 'a' and 'dog' in 'b'"):
        mixture({'a': cat, 'b': dog})
    slow, fast, unsaid = (
        rows(f'at {rate}', Field(name='x', kind='ragged', dtype='float32', rate=rate), np.zeros(3, np.float32))
        for rate in (8000, 16_000, None)
    )
    with pytest.raises(DataError, match=r'ragged float32 \[\] at 16000 Hz in .* at 8000 Hz in'):
        mixture({'a': slow, 'b': fast})
    assert mixture({'a': unsaid, 'b': fast}).rows.fields['x'].kind == 'ragged'
    assert list(mixture({'a': cat, 'b': dog}, fields=[]).rows.fields) == []
    with pytest.raises(DataError, match="None of a has a field 'y'; there are x"):
        mixture({'a': cat}, fields=['y'])
    with pytest.raises(DataError, match="field 'y'"):
        mixture({'a': cat}).rows.read('y')


# --- new rows and a replay of old ones


@given(st.integers(1, 30), st.integers(0, 30), st.floats(0, 0.9), SEED, EPOCH, st.randoms())
def test_new_rows_come_once_and_old_ones_take_turns(new, old, replay, seed, epoch, random):
    rows = Selection([*(f'new-{i:02d}' for i in range(new)), *(f'old-{i:02d}' for i in range(old))])
    sampling = Since(np.sort(rows.hashes[:new]), before='x', replay=replay)
    wanted = round(new * replay / (1 - replay)) if old else 0
    flat = []
    for at in range(epoch, epoch + 3):
        keys = visited(sampling, rows, seed=seed, epoch=at)
        assert sorted(key for key in keys if key[0] == 'n') == rows.keys[:new].tolist()
        assert len(keys) == new + wanted == sampling.length(rows)
        flat += [key for key in keys if key[0] == 'o']
        moved = rows.take(random.sample(range(len(rows)), len(rows)))
        assert visited(sampling, moved, seed=seed, epoch=at) == keys
    if old:
        skip = -(epoch * wanted) % old
        for start in range(skip, len(flat) - old + 1, old):
            assert len(set(flat[start : start + old])) == old


def test_new_are_rows_that_came_changed_or_moved_to_another_split(tmp_path):
    before = write_shop(tmp_path / 'a', 96)
    block = shop_block(120)
    columns = {name: list(values) for name, values in block.columns.items()}
    columns['price'][8], columns['note'][9] = 1.25, 'another'
    splits = list(block.splits)
    splits[3] = 'train'  # was in 'val'
    now = write_snapshot(tmp_path / 'b', FIELDS, Block(keys=block.keys, columns=columns, splits=splits))
    rows = now.split('train')

    def new_keys(**options):
        sampled = since(rows, before=before, replay=0.0, **options)
        assert sampled.rows is rows
        return set(visited(sampled.sampling, rows))

    came = {f'sku-{i:04d}' for i in range(96, 120) if i % 4 != 3}
    assert new_keys() == came | {'sku-0008', 'sku-0009', 'sku-0003'}
    assert new_keys(fields=['price', 'kind']) == came | {'sku-0008', 'sku-0003'}
    half = since(rows, before=before, replay=0.5).sampling
    assert half.length(rows) == 2 * len(new_keys())
    assert half.identity()['before'] == before.id
    turned = Block(
        keys=block.keys[::-1], columns={k: v[::-1] for k, v in columns.items()}, splits=splits[::-1]
    )  # fmt: skip
    moved = write_snapshot(tmp_path / 'c', FIELDS, turned).split('train')
    again = since(moved, before=before, replay=0.5)
    assert again.sampling.identity() == half.identity()
    assert visited(again.sampling, moved, epoch=2) == visited(half, rows, epoch=2)


def test_nothing_new_and_shares_that_cannot_be_are_refused(tmp_path):
    snapshot = write_shop(tmp_path, 8)
    with pytest.raises(DataError, match=f'None of the 6 rows is new or changed since snapshot {snapshot.id}'):
        since(snapshot.split('train'), before=snapshot)
    with pytest.raises(DataError, match="names 'colour'"):
        since(snapshot.split('train'), before=snapshot, fields=['colour'])
    for replay in (1.0, -0.1, np.nan):
        with pytest.raises(ConfigError, match='from 0 to below 1'):
            Since(np.zeros(1, dtype=np.uint64), before='x', replay=replay)


def test_samplings_of_the_same_options_have_one_identity():
    assert Mixture(weights={'a': 1, 'b': 2}).identity() == Mixture(weights={'b': 2.0, 'a': 1.0}).identity()
    assert Mixture(samples=3).identity() != Mixture().identity()
    found = Counter(
        json.dumps(Since(np.array(new, dtype=np.uint64), before=before, replay=replay).identity())
        for new, before, replay in (([1], 'x', 0.1), ([2], 'x', 0.1), ([1], 'y', 0.1), ([1], 'x', 0.2))
    )
    assert len(found) == 4

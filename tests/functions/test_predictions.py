"""A run written back: equal to what the run says of a snapshot, computed on insert, and priced when it changes."""
# ruff: noqa: F821  (Pixeltable puts column names in scope)

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pixeltable as pxt
import pytest
import torch

import mmpipe as mm
from mmpipe.errors import ConfigError, RunError, SnapshotError
from mmpipe.functions import counts, embed_text, predict, predict_vector, reset, split_of
from mmpipe.models.serve import Served
from mmpipe.runs import update_run

from . import media

KINDS = ('cup', 'hat', 'map')


def shop(directory, run=None):
    """A table of photos, titles and numbers; with a run, what it says of each row."""
    Tables = pxt.model_base()

    class Items(Tables, name='items'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        photo: pxt.Image | None
        title: pxt.String | None
        size: pxt.Float | None
        kind: pxt.String | None
        price: pxt.Float | None
        split = split_of(key, val=0.3, test=0.0, seed=1)
        words = embed_text(title)
        if run is not None:
            guess = predict(run=run, photo=photo, words=words, size=size)
            vector = predict_vector(run=run, photo=photo, words=words, size=size)
            guessed = guess.kind.label

    return Tables, Items


def rows(folder, first, count):
    found = []
    for number in range(first, first + count):
        shape = (40, 30) if number % 2 else (20, 50)
        found.append(
            {
                'key': f'k{number:03}',
                'photo': None if number % 5 == 4 else str(media.photo(folder / f'{number}.png', shape, seed=number)),
                'title': None if number % 7 == 6 else f'a {KINDS[number % 3]} number {number}',
                'size': None if number % 4 == 3 else float(number),
                'kind': KINDS[number % 3],
                'price': 10.0 * number,
            }
        )
    found[-1] |= {'photo': None, 'title': None, 'size': None}  # nothing at all
    return found


def fields(Items):
    return {
        'photo': mm.field.image(Items.photo, size=24, fit='pad'),
        'words': Items.words,
        'size': Items.size,
        'kind': mm.field.label(Items.kind, vocabulary=KINDS),
        'price': Items.price,
    }


def build():
    return mm.MultitaskModel(
        encoders={
            'photo': mm.encoders.image(8, width=8), 'words': mm.encoders.vector(256, 8),
            'size': mm.encoders.vector(1, 4),
        },
        tasks=[mm.classification('kind', KINDS), mm.regression('price')],
        hidden=16,
    )  # fmt: skip


def loaders(snapshot):
    train, val = (
        mm.DataLoader(
            snapshot.split(name), batch_size=8, shuffle=shuffle, device='cpu',
            transforms={'photo': mm.transforms.image(crop=16, flip=shuffle)},
        )
        for name, shuffle in (('train', True), ('val', False))
    )  # fmt: skip
    return train, val


@pytest.fixture
def trained(directory, tmp_path):
    Tables, Items = shop(directory)
    mm.apply(mm.plan(Tables, directory))
    pxt.get_table(f'{directory}/items').insert(rows(tmp_path, 0, 30))
    snapshot = mm.snapshot(Items, root=tmp_path / 'shards', fields=fields(Items)).snapshot
    runs = [mm.Trainer(epochs=2, seed=seed, runs=tmp_path / 'runs').fit(build, *loaders(snapshot)) for seed in (0, 1)]
    return SimpleNamespace(snapshot=snapshot, runs=runs, Tables=Tables)


def said_of(run, snapshot):
    """{key: outputs per task} as the torch side gives them, with transforms as of the validation rows."""
    loader = loaders(snapshot)[1].over(snapshot.rows())
    found = mm.predict(mm.load_model(run), loader)
    return {
        key: {'kind': torch.from_numpy(found['kind'][i]).softmax(0).numpy(), 'price': found['price'][i]}
        for i, key in enumerate(found['_key'])
    }


def asked():
    """Rows that models were asked for; rows that mmpipe did not insert are computed again by an apply."""
    return {name: count for name, count in counts().items() if name.startswith('_')}


def check_equal(table, expected):
    stored = {row['key']: row for row in table.select(table.key, table.guess, table.vector, table.guessed).collect()}
    for key, outputs in expected.items():
        guess = stored[key]['guess']
        np.testing.assert_allclose(list(guess['kind']['probabilities'].values()), outputs['kind'], atol=1e-6)
        assert list(guess['kind']['probabilities']) == list(KINDS)
        assert guess['kind']['label'] == stored[key]['guessed'] == KINDS[int(outputs['kind'].argmax())]
        assert guess['price']['value'] == pytest.approx(float(outputs['price']), rel=1e-5)
        assert stored[key]['vector'].shape == (16,)
    return stored


def test_what_is_written_back_is_what_the_run_says_of_the_snapshot_and_promoting_another_is_priced(
    trained, directory, tmp_path
):
    first, second = trained.runs
    Tables, Items = shop(directory, str(first.path))
    plan = mm.plan(Tables, directory)
    assert 'guess' in str(plan)
    reset()
    mm.apply(plan)
    assert asked() == {'_predict': 30, '_vector': 30}
    table = pxt.get_table(f'{directory}/items')
    stored = check_equal(table, said_of(first, trained.snapshot))
    assert stored['k029']['guess']['kind']['label'] in KINDS  # a row that has nothing is predicted from nothing

    reset()
    table.insert(rows(tmp_path, 30, 4))
    assert asked() == {'_predict': 4, '_vector': 4}
    with pytest.raises(SnapshotError, match=r"'guessed' comes from predictions: .*items\.guess <- predict\(run="):
        mm.snapshot(Items, root=tmp_path / 'own', fields={**fields(Items), 'guessed': Items.guessed})
    with pytest.raises(SnapshotError, match=r"'vector' comes from predictions.*allow_predictions=True"):
        mm.snapshot(Items, root=tmp_path / 'own', fields={'vector': Items.vector, 'kind': mm.field.label(Items.kind)})
    later = mm.snapshot(Items, root=tmp_path / 'shards', fields=fields(Items)).snapshot
    check_equal(table, said_of(first, later))
    own = {'vector': Items.vector, 'kind': mm.field.label(Items.kind)}
    assert len(mm.snapshot(Items, root=tmp_path / 'own', fields=own, allow_predictions=True).snapshot) == 34

    Tables, Items = shop(directory, str(second.path))
    plan = mm.plan(Tables, directory)
    # Of what mmpipe recorded, only these two; the four rows of the plain insert are unrecorded in all columns.
    promoted = f'run {first.path} -> {second.path}'
    assert {(c.name, c.action, c.detail, c.rows) for c in plan.changes if c.action != 'unrecorded'} == {
        (name, 'alter', promoted, 34) for name in ('guess', 'vector')
    }
    reset()
    mm.apply(plan)
    assert asked() == {'_predict': 34, '_vector': 34}
    check_equal(table, said_of(second, later))
    reset()
    mm.apply(mm.plan(Tables, directory))
    assert asked() == {}


def test_what_cannot_be_served_is_refused_where_it_is_declared(trained, directory):
    first = trained.runs[0]
    pxt_table = pxt.get_table(f'{directory}/items')
    with pytest.raises(ConfigError, match='the model reads photo, size, words, and was given photo, title'):
        predict(run=str(first.path), photo=pxt_table.photo, title=pxt_table.title)
    with pytest.raises(RunError, match="no run 'shop/9999'"):
        predict(run='shop/9999', photo=pxt_table.photo)
    inputs = {**first.record['inputs'], 'val': None}
    update_run(first, inputs=inputs, cannot={'resume': "val: transform of 'photo': a lambda"})
    with pytest.raises(RunError, match=r"cannot be served: val: transform of 'photo'.*frozen dataclasses"):
        predict(run=str(first.path), photo=pxt_table.photo, words=pxt_table.words, size=pxt_table.size)
    update_run(first, inputs={**first.record['inputs'], 'val': first.record['inputs']['train']}, cannot={})
    with pytest.raises(RunError, match=r"transforms of 'photo' in training draw at random"):
        Served(first.path)

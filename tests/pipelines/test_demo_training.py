"""Training and comparing in the demo, on a made-up snapshot of its fields: no Pixeltable."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import mmpipe as mm
from mmpipe.errors import LabelError
from mmpipe.runs import open_run, update_run
from mmpipe.shards import Block, Field, write_snapshot
from pipelines.demo import baselines, training

CATEGORIES, WORDS = ('bug', 'flag', 'plant'), ('old', 'red')
VECTORS = {'photo_vector': 1280, 'caption_vector': 256, 'clip_vector': 1280, 'document_vector': 256, 'facts': 10}
FIELDS = [
    Field(name='photo', kind='tensor', dtype='uint8', shape=(3, 64, 64)),
    *(Field(name=name, kind='tensor', dtype='float32', shape=(size,)) for name, size in VECTORS.items()),
    Field(name='speech_mel', kind='tensor', dtype='float32', shape=(32, 20)),
    Field(name='group', kind='string'),
    Field(name='detail', kind='scalar', dtype='float32'),
]


def items(root, *, categories=CATEGORIES, count=40, detail=True):
    """A snapshot like the demo's, of noise in which the category stands; without one label in each task."""
    draw = np.random.default_rng(0)
    kinds = draw.integers(3, size=count)
    columns = {
        'photo': list(draw.integers(0, 256, size=(count, 3, 64, 64), dtype=np.uint8)),
        'speech_mel': list(draw.normal(size=(count, 32, 20)).astype(np.float32)),
        'group': [f'g{i // 2}' for i in range(count)],
        'category': [None, *(CATEGORIES[kind] for kind in kinds[1:])],
        'words': [None, *(['red'] if kind else ['old', 'red'] for kind in kinds[1:])],
        'detail': [None, *(float(kind) + 1 for kind in kinds[1:])] if detail else [None] * count,
    }
    columns['category'][1] = categories[-1]
    for name, size in VECTORS.items():
        columns[name] = [row + kind for row, kind in zip(draw.normal(size=(count, size)), kinds, strict=True)]
        columns[name] = [row.astype(np.float32) for row in columns[name]]
    labels = [
        Field(name='category', kind='label', vocabulary=categories),
        Field(name='words', kind='labels', vocabulary=WORDS),
    ]
    splits = ['val' if i % 5 == 4 else 'train' for i in range(count)]
    block = Block(keys=[f'k{i:02}' for i in range(count)], columns=columns, splits=splits)
    return write_snapshot(root, [*FIELDS, *labels], block)


@pytest.fixture(scope='module')
def snapshot(tmp_path_factory):
    return items(tmp_path_factory.mktemp('items'))


class Stop(Exception):
    pass


def stop_at(rows):
    def stop(stage, done, total, unit):
        if done >= rows:
            raise Stop

    return stop


def test_a_training_that_was_stopped_goes_on_in_its_run_and_ends_as_one_that_was_not(snapshot, tmp_path):
    name = Path(snapshot.root).name  # what the trainer calls its runs
    with pytest.raises(Stop):
        training.train(snapshot, runs=tmp_path / 'a', epochs=2, progress=stop_at(40))
    update_run(open_run(name, runs=tmp_path / 'a'), status='running')  # as a kill leaves it
    run = training.train(snapshot, runs=tmp_path / 'a', epochs=2)
    whole = training.train(snapshot, runs=tmp_path / 'b', epochs=2)
    assert (run.id, run.status) == (f'{name}/0001', 'finished')
    wanted = mm.load_model(whole).state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in mm.load_model(run).state_dict().items())

    with pytest.raises(Stop):
        training.train(snapshot, runs=tmp_path / 'a', epochs=2, continue_from=run, progress=stop_at(40))
    assert training.train(snapshot, runs=tmp_path / 'a', epochs=2).id == f'{name}/0003'  # from another parent: none
    further = training.train(snapshot, runs=tmp_path / 'a', epochs=2, continue_from=run)
    assert (further.id, further.parent['run']) == (f'{name}/0002', f'{name}/0001')


def test_a_run_knows_its_classes_by_name_and_refuses_others_in_their_place(snapshot, tmp_path):
    run = training.train(snapshot, runs=tmp_path, epochs=1)
    assert run.record['factory']['args'] == {'category': list(CATEGORIES), 'words': list(WORDS)}
    assert [task.get('classes') for task in run.tasks] == [list(CATEGORIES), list(WORDS), None]

    grown = items(tmp_path / 'grown', categories=(*CATEGORIES, 'vehicle'))
    further = training.train(grown, runs=tmp_path, epochs=1, continue_from=run)
    assert further.tasks[0]['classes'] == [*CATEGORIES, 'vehicle']
    with pytest.raises(LabelError, match="row 'k01' of the evaluation rows has category = 3, which is not a class"):
        mm.evaluate(mm.load_model(run), training.loader(grown.rows(), train=False))
    other = items(tmp_path / 'other', categories=('plant', 'flag', 'bug'))
    with pytest.raises(LabelError, match="calls class 0 'bug', but the vocabulary of 'category' has 'plant' there"):
        mm.evaluate(mm.load_model(run), training.loader(other.split('val'), train=False))


def test_a_comparison_leaves_no_run_behind_and_a_task_without_labels_has_no_score(snapshot, tmp_path):
    (tmp_path / 'demo').mkdir()
    done = []
    model, probes = baselines.compare(
        snapshot, runs=tmp_path, seeds=1, epochs=1, progress=lambda *what: done.append(what)
    )
    assert [path.name for path in tmp_path.iterdir()] == ['demo']
    assert done == [('compare', 1, 2, 'fits'), ('compare', 2, 2, 'fits')]
    assert model.keys() == probes.keys() == training.TASKS.keys()
    assert list(probes['category']) == ['majority', *baselines.MODALITIES, 'all']
    assert probes['category']['all'] == {'mean': 1.0, 'std': 0.0}


def test_what_is_not_defined_is_none_and_no_zero(tmp_path):
    rows = items(tmp_path, detail=False).rows()
    labelled, bare = rows.take(range(1, 40)), rows.take([0])
    assert set(baselines.baselines(labelled, labelled)['detail'].values()) == {None}
    for found in (baselines.baselines(labelled, bare), baselines.baselines(bare, labelled)):
        assert {value for by_name in found.values() for value in by_name.values()} == {None}
    assert baselines._summary([None, None]) == {'mean': None, 'std': None}
    assert baselines._summary([None, 0.5, 1.0]) == {'mean': 0.75, 'std': 0.25}

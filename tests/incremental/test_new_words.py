"""A new class in the data: what it costs, what the old indices mean then, and how training goes on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pixeltable as pxt
import pyarrow as pa
import pytest
import torch
from snapshots import content, files

import mmpipe as mm
from mmpipe.data import DataLoader
from mmpipe.errors import LabelError
from mmpipe.models import MultitaskModel, encoders, load_model
from mmpipe.shards import open_snapshot
from mmpipe.train import Trainer, classification, evaluate


@dataclass
class Zoo:
    """A table of animals, and where it is frozen."""

    table: Any
    root: Path

    def come(self, *rows: tuple[str, str, list[str] | None]) -> None:
        """New rows: key, animal and marks; those with a key that ends in 9 are for validation."""
        self.table.insert(
            [
                {'key': key, 'animal': animal, 'marks': marks, 'x': float(ord(key[0])), 'split': split_of(key)}
                for key, animal, marks in rows
            ]
        )

    def fields(self, **vocabularies: Any) -> dict[str, Any]:
        return {
            'animal': mm.field.label(self.table.animal, vocabulary=vocabularies.get('animal')),
            'marks': mm.field.labels(self.table.marks, vocabulary=vocabularies.get('marks')),
            'x': self.table.x,
        }

    def freeze(self, **vocabularies: Any) -> Any:
        report = mm.snapshot(self.table, root=self.root, fields=self.fields(**vocabularies))
        report.snapshot.verify()
        return report


def split_of(key: str) -> str:
    return 'val' if key.endswith('9') else 'train'


def indices(snapshot: Any) -> dict[str, tuple]:
    """Key to the index of the animal, and the indices of the marks."""
    rows = snapshot.rows()
    animals, marks = rows.read('animal')[0], rows.read('marks')[0]
    return {
        key: (int(animal), np.flatnonzero(mark).tolist())
        for key, animal, mark in zip(rows.keys, animals, marks, strict=True)
    }


def words(snapshot: Any) -> dict[str, tuple]:
    """The same as words, by the vocabularies of the snapshot."""
    animal, marks = (snapshot.fields[name].vocabulary for name in ('animal', 'marks'))
    return {key: (animal[one], [marks[i] for i in many]) for key, (one, many) in indices(snapshot).items()}


def columns(root: Path, names: set[str]) -> set[str]:
    """Which fields some new files of a root hold, and of how many rows."""
    found = set()
    for name in names:
        if name.startswith('shards/'):
            table = pa.ipc.open_file(root / name).read_all()
            found |= {f'{column} of {len(table)}' for column in table.column_names if column[0] != '_'}
    return found


@pytest.fixture
def zoo(directory: str, tmp_path: Path) -> Zoo:
    schema = {
        'key': {'type': pxt.String, 'primary_key': True}, 'animal': pxt.String | None, 'marks': pxt.Json | None,
        'x': pxt.Float, 'split': pxt.String,
    }  # fmt: skip
    zoo = Zoo(pxt.create_table(f'{directory}/zoo', schema), tmp_path / 'shards')
    zoo.come(('a1', 'cat', ['red']), ('a2', 'dog', []), ('a3', 'cat', ['red', 'tall']), ('a9', 'dog', ['tall']))
    return zoo


def test_a_new_class_goes_to_the_end_and_costs_its_rows_alone(zoo: Zoo) -> None:
    first = zoo.freeze().snapshot
    before, old = files(zoo.root), indices(first)
    assert [first.fields[name].vocabulary for name in ('animal', 'marks')] == [('cat', 'dog'), ('red', 'tall')]

    zoo.come(('b1', 'bee', ['big', 'red']), ('b9', 'ant', ['blue']))
    zoo.table.where(zoo.table.key == 'a2').update({'animal': 'ape'})
    report = zoo.freeze()
    grown, after = report.snapshot, files(zoo.root)
    assert grown.fields['animal'].vocabulary == ('cat', 'dog', 'ape', 'bee', 'ant')  # of training rows first
    assert grown.fields['marks'].vocabulary == ('red', 'tall', 'big', 'blue')
    assert {key: value for key, value in indices(grown).items() if key in old and key != 'a2'} == {
        key: value for key, value in old.items() if key != 'a2'
    }
    assert indices(grown)['a2'] == (2, [])
    assert (report.inserted, report.updated, dict(report.cells)) == (2, 1, {'animal': 1})
    assert columns(zoo.root, after.keys() - before.keys()) == {
        'animal of 1', 'animal of 2', 'marks of 2', 'x of 2'
    }  # fmt: skip
    assert {name: after[name] for name in before if name != 'LATEST'} == {
        name: before[name] for name in before if name != 'LATEST'
    }
    assert words(open_snapshot(zoo.root, first.id)) == words(first)  # the old one reads as it did


def test_a_class_that_went_keeps_its_index_until_it_comes_back(zoo: Zoo) -> None:
    zoo.come(('b1', 'ant', ['big']))
    first = zoo.freeze().snapshot
    assert first.fields['animal'].vocabulary == ('ant', 'cat', 'dog')
    zoo.table.delete(where=zoo.table.key == 'b1')
    zoo.come(('c1', 'eel', ['wet']))
    second = zoo.freeze().snapshot
    assert second.fields['animal'].vocabulary == ('ant', 'cat', 'dog', 'eel')
    assert second.fields['marks'].vocabulary == ('big', 'red', 'tall', 'wet')
    zoo.come(('d1', 'ant', ['big']))
    third = zoo.freeze().snapshot
    assert third.fields == second.fields
    assert indices(third)['d1'] == indices(first)['b1'] == (0, [0])
    assert indices(third) == {**indices(second), 'd1': (0, [0])}


def test_a_declared_vocabulary_that_lacks_the_new_word_refuses_its_row_and_takes_it_once_declared(zoo: Zoo) -> None:
    known, marks = ['cat', 'dog'], ['red', 'tall']
    first = zoo.freeze(animal=known, marks=marks).snapshot
    zoo.come(('b1', 'bee', ['red']))
    with pytest.raises(LabelError, match=r"'.*zoo': label 'bee' of field 'animal' in row 'b1'.*\(cat, dog\)"):
        zoo.freeze(animal=known, marks=marks)
    zoo.table.where(zoo.table.key == 'b1').update({'animal': 'cat', 'marks': ['blue']})
    with pytest.raises(LabelError, match=r"'.*zoo': label 'blue' of field 'marks' in row 'b1'.*\(red, tall\)"):
        zoo.freeze(animal=known, marks=marks)
    assert open_snapshot(zoo.root).id == first.id
    zoo.table.where(zoo.table.key == 'b1').update({'animal': 'bee'})
    before = files(zoo.root)
    report = zoo.freeze(animal=[*known, 'bee'], marks=[*marks, 'blue'])
    assert (report.inserted, report.updated) == (1, 0)
    assert columns(zoo.root, files(zoo.root).keys() - before.keys()) == {'animal of 1', 'marks of 1', 'x of 1'}
    assert words(report.snapshot) == {**words(first), 'b1': ('bee', ['blue'])}


def test_a_vocabulary_in_another_order_writes_its_field_again_and_no_other(zoo: Zoo) -> None:
    first = zoo.freeze().snapshot
    before = files(zoo.root)
    report = zoo.freeze(animal=['dog', 'emu', 'cat'])
    made = columns(zoo.root, files(zoo.root).keys() - before.keys())
    assert made == {'animal of 4'}
    assert dict(report.cells) == {'animal': 4}
    assert report.snapshot.fields['animal'].vocabulary == ('dog', 'emu', 'cat')
    assert words(report.snapshot) == words(first)
    assert indices(report.snapshot)['a1'] == (2, [0])
    assert words(open_snapshot(zoo.root, first.id)) == words(first)

    zoo.come(('b1', 'bee', None))  # left to grow again, it grows from the order that was declared
    last = zoo.freeze().snapshot
    assert last.fields['animal'].vocabulary == ('dog', 'emu', 'cat', 'bee')
    scratch = mm.snapshot(zoo.table, root=zoo.root / 'scratch', fields=zoo.fields()).snapshot
    assert content(last) == content(scratch)


def build(animals: list[str]) -> MultitaskModel:
    return MultitaskModel(encoders={'x': encoders.vector(1, 4)}, tasks=[classification('animal', animals)], hidden=4)


@pytest.mark.slow
def test_training_goes_on_with_a_new_class_once_the_head_is_told_of_it(zoo: Zoo, tmp_path: Path) -> None:
    def loader(snapshot: Any, split: str) -> DataLoader:
        return DataLoader(snapshot.split(split), batch_size=4, device='cpu')

    trainer = Trainer(epochs=1, runs=tmp_path / 'runs')
    old = zoo.freeze().snapshot
    first = trainer.fit(build, loader(old, 'train'), args={'animals': ['cat', 'dog']})
    zoo.come(('b9', 'ant', None))  # in validation alone: it cannot be learned, and is not passed over
    seen = zoo.freeze().snapshot
    trainer.fit(build, loader(seen, 'train'), args={'animals': ['cat', 'dog']}, continue_from=first)
    with pytest.raises(LabelError, match=r"'animal': row 'b9' .*give the task the classes it needs"):
        evaluate(load_model(first), loader(seen, 'val'))

    zoo.come(('b1', 'bee', None))
    new = zoo.freeze().snapshot
    with pytest.raises(LabelError, match=r"'animal': row 'b1' of the train rows .*give the task the classes it needs"):
        trainer.fit(build, loader(new, 'train'), args={'animals': ['cat', 'dog']}, continue_from=first)
    animals = list(new.fields['animal'].vocabulary)
    assert animals == ['cat', 'dog', 'ant', 'bee']
    still = Trainer(epochs=1, max_steps=1, lr=1e-12, weight_decay=0, runs=tmp_path / 'runs')
    second = still.fit(build, loader(new, 'train'), args={'animals': animals}, continue_from=first)
    before, after = (load_model(run).state_dict()['heads.animal.linear.weight'] for run in (first, second))
    assert after.shape[0] == 4
    torch.testing.assert_close(after[:2], before, atol=1e-6, rtol=1e-6)
    assert evaluate(load_model(second), loader(new, 'val'))['animal']['n'] == 2

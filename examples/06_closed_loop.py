"""Train, write back, ask about the rows it is least sure of, and train on, on the answers alone.

Drawings of the bundled set: a third of them have a category, the others wait for somebody to say one. A model learns
from those that have one, and is written back as a column, so that each waiting drawing gets its guess when the column
is added. The drawings it is least sure of get their category next (here from the set itself, elsewhere from a person),
and the training goes on with these and a share of the old ones.

    python examples/06_closed_loop.py [--quick] [--home DIR]
"""
# ruff: noqa: F821  (Pixeltable puts column names into the scope of a table class)

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import pixeltable as pxt
from home import project_home

import mmpipe as mm

DATA = Path(__file__).parent / 'data'
ASKED = 30  # drawings a round


def declare(run: str | None) -> tuple[Any, Any]:
    """The table; with a run, what it says of each drawing. Elsewhere this is an edit of schema.py."""
    from mmpipe.functions import embed_image, predict, split_of

    Tables = pxt.model_base()

    class Drawings(Tables, name='drawings'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        photo: pxt.Image
        category: pxt.String | None
        split = split_of(key, val=0.2, test=0.0)
        vector = embed_image(photo, size=96)
        if run is not None:
            guess = predict(run=run, vector=vector)

    return Tables, Drawings


def build_model(category: list[str]) -> mm.MultitaskModel:
    """A small head on vectors of a pretrained network."""
    return mm.MultitaskModel(
        encoders={'vector': mm.encoders.vector(1280, 64, dropout=0.2)},
        tasks=[mm.classification('category', category)],
        hidden=64,
    )


def main(home: Path, count: int) -> None:
    from mmpipe.functions import counts, reset

    with (DATA / 'items.csv').open(encoding='utf-8') as file:
        items = [row for row in csv.DictReader(file) if row['photo'] and row['category']][:count]
    answers = {row['key']: row['category'] for row in items}
    words = sorted(set(answers.values()))

    Tables, Drawings = declare(None)
    mm.apply(mm.plan(Tables, 'loop'))
    table = pxt.get_table('loop/drawings')
    table.insert(
        {'key': row['key'], 'photo': str(DATA / row['photo']), 'category': row['category'] if i % 3 == 0 else None}
        for i, row in enumerate(items)
    )
    mm.apply(mm.plan(Tables, 'loop'))

    def freeze() -> Any:
        labelled = Drawings.where(Drawings.category != None)  # noqa: E711 (Pixeltable overloads it)
        fields = {'vector': Drawings.vector, 'category': mm.field.label(Drawings.category, vocabulary=words)}
        return mm.snapshot(labelled, root=home / 'shards', fields=fields).snapshot

    def loader(rows: Any, *, train: bool) -> mm.DataLoader:
        return mm.DataLoader(rows, batch_size=32, shuffle=train, device='cpu')

    snapshot = freeze()
    trainer = mm.Trainer(epochs=30, lr=3e-3, runs=home / 'runs', evaluate_every=30)
    run = trainer.fit(
        build_model, loader(snapshot.split('train'), train=True), loader(snapshot.split('val'), train=False),
        args={'category': words}, allow_unseen=True, name='loop',
    )  # fmt: skip
    print(f'{run.id}: trained on {len(snapshot.split("train"))} drawings, accuracy {accuracy(run):.3f}')

    Tables, Drawings = declare(str(run.path))
    plan = mm.plan(Tables, 'loop')
    print(plan)
    reset()
    mm.apply(plan)
    print(f'    cells computed: {counts()["_predict"]}')

    waiting = table.where(table.category == None).select(table.key, table.guess).collect()  # noqa: E711
    sure = {row['key']: row['guess']['category']['probability'] for row in waiting}
    asked = sorted(sure, key=sure.__getitem__)[:ASKED]
    right = sum(row['guess']['category']['label'] == answers[row['key']] for row in waiting if row['key'] in asked)
    print(f'least sure of {len(asked)} of {len(waiting)}, and right about {right} of them; now they get their answer')
    for key in asked:
        table.update({'category': answers[key]}, where=table.key == key)

    later = freeze()
    continued = mm.continue_training(run, later, replay=0.5, epochs=10, lr=1e-3, evaluate_every=10)
    new = continued.parent['new_rows'] if continued.parent else 0
    print(f'{continued.id}: went on from {run.id} with {new} new drawings, accuracy {accuracy(continued):.3f}')
    print(mm.lineage(continued))


def accuracy(run: Any) -> float:
    return run.metrics['category']['accuracy']


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='fewer drawings')
    parser.add_argument('--home', help='keep tables, shards and runs in this folder')
    arguments = parser.parse_args()
    with project_home(arguments.home) as where:
        main(where, 120 if arguments.quick else 400)

"""From files to a trained model: declare, plan, apply, ingest, freeze, train.

Up to the snapshot it is Pixeltable, from there on it is PyTorch, and the two meet in shards on disk. The data is the
bundled clip art: pictures with a title, and for most of them a category.

    python examples/01_first_table_to_model.py [--quick] [--home DIR]
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


ROWS = {}
for manifest in ('items.csv', 'held_back.csv'):
    with (DATA / manifest).open(encoding='utf-8') as file:
        ROWS |= {row['photo']: row for row in csv.DictReader(file)}


def about(photo: Path) -> dict[str, Any]:
    """What the manifests say of a photo: the further columns of its row."""
    row = ROWS[f'photos/{photo.name}']
    return {name: row[name] or None for name in ('group', 'caption', 'category')}


def build_model(categories: list[str]) -> mm.MultitaskModel:
    """An encoder per input, a head per task. At the top of a file, so that a run can find it again."""
    return mm.MultitaskModel(
        encoders={'photo': mm.encoders.image(32, width=8), 'caption_vector': mm.encoders.vector(256, 64)},
        tasks=[mm.classification('category', categories)],
        hidden=64,
    )


def main(home: Path, quick: bool) -> None:
    from mmpipe.functions import counts, embed_text, split_of

    # 1. Declare: plain Pixeltable. What computes a column lives in a module, never in the script itself.
    Tables = pxt.model_base()

    class Drawings(Tables, name='drawings'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        group: pxt.String  # drawings of one series stay in one split
        photo: pxt.Image
        caption: pxt.String | None
        category: pxt.String | None
        origin: pxt.Json | None  # mm.ingest records each row's files here
        split = split_of(group, val=0.25, test=0.0)
        caption_vector = embed_text(caption)  # photo_vector = embed_image(photo) would be one line more

    plan = mm.plan(Tables, 'first')  # reads only
    print(plan)
    mm.apply(plan)

    # 2. Ingest: every file is opened and hashed first; what is bad goes into quarantine with the reason.
    photos = DATA / 'photos' / ('a*' if quick else '*')
    print(mm.ingest(Drawings, mm.sources.files(photos, values=about)))
    print('computed cells:', counts())

    # 3. Freeze: an immutable snapshot, named by its content.
    report = mm.snapshot(
        Drawings.where(Drawings.category != None),  # noqa: E711
        root=home / 'shards' / 'first',
        fields={
            'photo': mm.field.image(Drawings.photo, size=64, fit='pad'),  # uint8
            'caption_vector': Drawings.caption_vector,
            'category': mm.field.label(Drawings.category),
        },
    )
    print(report)

    # 4. Train: from here on no Pixeltable. Elsewhere, mm.open_snapshot(root) opens the same snapshot.
    snapshot = report.snapshot
    augmented, plain = ({'photo': mm.transforms.image(crop=56, flip=flip)} for flip in (True, False))  # on the device
    train = mm.DataLoader(snapshot.split('train'), batch_size=32, shuffle=True, transforms=augmented)
    val = mm.DataLoader(snapshot.split('val'), batch_size=256, transforms=plain)
    trainer = mm.Trainer(epochs=2 if quick else 20, evaluate_every=20, runs=home / 'runs')
    categories = list(snapshot.fields['category'].vocabulary or ())
    run = trainer.fit(build_model, train, val, args={'categories': categories})
    print(f'run {run.id}, on snapshot {run.snapshot["id"]}: {run.metrics["category"]}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='some of the drawings, fewer epochs')
    parser.add_argument('--home', help='keep tables, shards and runs in this folder')
    arguments = parser.parse_args()
    with project_home(arguments.home) as project:
        main(project, arguments.quick)

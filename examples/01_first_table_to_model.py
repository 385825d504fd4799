"""From files to a trained model: declare, plan, apply, ingest, freeze, train.

Up to the snapshot it is Pixeltable, from there on it is PyTorch, and the two meet in shards on disk. The data is the
bundled clip art: pictures with a title, and for most of them a category.

    python examples/01_first_table_to_model.py [--quick] [--home DIR]
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import pixeltable as pxt
from home import project_home

import mmpipe as mm

DATA = Path(__file__).parent / 'data'


MANIFESTS = (DATA / 'items.csv', DATA / 'held_back.csv')
ROWS = {row['photo']: row for path in MANIFESTS for row in csv.DictReader(path.read_text(encoding='utf-8').splitlines())}


def about(photo: Path) -> dict[str, Any]:
    """What the manifests say of a photo: the further columns of its row."""
    row = ROWS[f'photos/{photo.name}']
    return {name: row[name] or None for name in ('group', 'caption', 'category')}


def build_model(classes: int) -> mm.MultitaskModel:
    """Two encoders, one head. At the top of a file, so that a run can find it again."""
    return mm.MultitaskModel(
        encoders={'photo_vector': mm.encoders.vector(1280, 64), 'caption_vector': mm.encoders.vector(256, 64)},
        tasks=[mm.classification('category', classes)],
        hidden=64,
    )


def main(home: Path, quick: bool) -> None:
    from mmpipe.functions import counts, embed_image, embed_text, split_of

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
        photo_vector = embed_image(photo, size=64 if quick else 160)
        caption_vector = embed_text(caption)

    plan = mm.plan(Tables, 'first')  # reads only
    print(plan)
    mm.apply(plan)

    # 2. Ingest: every file is opened and hashed first; what is bad goes into quarantine with the reason.
    photos = DATA / 'photos' / ('[a]*' if quick else '*')
    print(mm.ingest(Drawings, mm.sources.files(photos, values=about)))
    print('computed cells:', counts())

    # 3. Freeze: an immutable snapshot, named by its content.
    report = mm.snapshot(
        Drawings.where(Drawings.category != None),  # noqa: E711
        root=home / 'shards' / 'first',
        fields={
            'photo_vector': Drawings.photo_vector,
            'caption_vector': Drawings.caption_vector,
            'category': mm.field.label(Drawings.category),
        },
    )
    print(report)

    # 4. Train: from here on no Pixeltable. Elsewhere, mm.open_snapshot(root) opens the same snapshot.
    snapshot = report.snapshot
    train = mm.DataLoader(snapshot.split('train'), batch_size=32, shuffle=True, device='auto')
    val = mm.DataLoader(snapshot.split('val'), batch_size=256, device='auto')
    trainer = mm.Trainer(epochs=5 if quick else 20, evaluate_every=5, runs=home / 'runs')
    run = trainer.fit(build_model, train, val, args={'classes': len(snapshot.fields['category'].vocabulary or ())})
    print(f'run {run.id}, on snapshot {run.snapshot["id"]}: {run.metrics["category"]}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='some of the drawings, seen at 64 pixels')
    parser.add_argument('--home', help='keep tables, shards and runs in this folder')
    arguments = parser.parse_args()
    with project_home(arguments.home) as project:
        main(project, arguments.quick)

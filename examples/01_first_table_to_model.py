"""From files to a trained model: declare, plan, apply, ingest, freeze, train.

Everything up to the snapshot is Pixeltable with real files; from there on it is PyTorch, and the two meet in shards on
disk. The data is the bundled clip art: a picture and its title, with the category for some of them.

    python examples/01_first_table_to_model.py [--quick] [--home DIR]
"""

from __future__ import annotations

import argparse
import csv
import os
import tempfile
from pathlib import Path

DATA = Path(__file__).parent / 'data'


def build_model(classes: int):
    """Two encoders, one head. At the top of a file, so that a run can find it again."""
    import mmpipe as mm

    return mm.MultitaskModel(
        encoders={'photo_vector': mm.encoders.vector(1280, 64), 'caption_vector': mm.encoders.vector(256, 64)},
        tasks=[mm.classification('category', classes)],
        hidden=64,
    )


def main(*, quick: bool) -> None:
    import pixeltable as pxt

    import mmpipe as mm
    from mmpipe.functions import counts, embed_image, embed_text, split_of

    # 1. Declare: plain Pixeltable. The functions of computed columns live in modules, never in the script itself.
    Tables = pxt.model_base()

    class Drawings(Tables, name='drawings'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        group: pxt.String  # near duplicates and series; all of a group lies in one split
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

    # 2. Ingest: a manifest whose media column holds paths. Each file is opened and hashed before it goes in.
    with (DATA / 'items.csv').open(encoding='utf-8') as file:
        items = [row for row in csv.DictReader(file) if row['photo']][:: 8 if quick else 1]
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / 'drawings.csv'
        with manifest.open('w', encoding='utf-8', newline='') as file:
            columns = ['key', 'group', 'photo', 'caption', 'category']
            writer = csv.DictWriter(file, columns, extrasaction='ignore')
            writer.writeheader()
            writer.writerows(items)
        print(mm.ingest(Drawings, mm.sources.rows(manifest, root=DATA)))
    print('computed cells:', counts())

    # 3. Freeze: an immutable snapshot, named by its content.
    report = mm.snapshot(
        Drawings.where(Drawings.category != None),  # noqa: E711
        root=mm.status.__globals__['shards_dir']('first'),
        fields={
            'photo_vector': Drawings.photo_vector,
            'caption_vector': Drawings.caption_vector,
            'category': mm.field.label(Drawings.category),
        },
    )
    print(report)

    # 4. Train: from here on no Pixeltable.
    snapshot = report.snapshot
    classes = len(snapshot.fields['category'].vocabulary)
    train = mm.DataLoader(snapshot.split('train'), batch_size=32, shuffle=True)
    val = mm.DataLoader(snapshot.split('val'), batch_size=256)
    run = mm.Trainer(epochs=5 if quick else 20, evaluate_every=5).fit(build_model, train, val, args={'classes': classes})
    print(f'run {run.id}: {run.metrics["category"]}')


if __name__ == '__main__':
    pass

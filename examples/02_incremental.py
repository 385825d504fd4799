"""The cost of a change is proportional to the change: edit one file, add one, and only those two are computed.

The counts are of what the functions really computed, and of rows really written. `pixels` stands for any function: a
model's embedding, or a spectrogram, is counted and spared in the same way.

    python examples/02_incremental.py [--quick] [--home DIR]
"""
# ruff: noqa: F821  (Pixeltable puts column names into the scope of a table class)

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import pixeltable as pxt
from home import project_home
from PIL import Image, ImageDraw

import mmpipe as mm

PHOTOS = Path(__file__).parent / 'data' / 'photos'


def main(home: Path, count: int) -> None:
    from mmpipe.functions import counts, pixels, reset, split_of

    Tables = pxt.model_base()

    class Photos(Tables, name='photos'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        photo: pxt.Image
        origin: pxt.Json | None
        split = split_of(key)
        thumbnail = pixels(photo, size=64)

    mm.apply(mm.plan(Tables, 'incremental'))
    folder = home / 'photos'
    folder.mkdir(exist_ok=True)
    originals = sorted(path for path in PHOTOS.iterdir() if path.suffix == '.jpg')[: count + 1]
    for path in originals[:-1]:
        shutil.copy(path, folder)

    def bring_up_to_date(what: str) -> Any:
        reset()
        report = mm.ingest(Photos, mm.sources.files(folder))
        frozen = mm.snapshot(Photos, root=home / 'shards', fields={'thumbnail': Photos.thumbnail})
        print(f'{what}: {report.inserted} new, {report.replaced} with changed files, {report.unchanged} unchanged')
        print(f'    cells computed: {counts() or "none"}')
        written = f'{frozen.inserted + frozen.updated} of {len(frozen.snapshot)} rows written, {frozen.dropped} masked'
        print(f'    snapshot {frozen.snapshot.id}: {written}')
        return frozen.snapshot

    first = bring_up_to_date(f'{count} files')
    bring_up_to_date('the same again')

    edited = folder / originals[0].name
    with Image.open(edited) as image:
        image = image.convert('RGB')
        ImageDraw.Draw(image).line((0, 0, *image.size), fill='red', width=3)
        image.save(edited)
    shutil.copy(originals[-1], folder)
    last = bring_up_to_date('one edited, one added')

    # Shards are only ever added to, so the first snapshot is as it was, and a model trained on it can be trained on.
    kept = mm.open_snapshot(first.root, first.id)
    print(f'shards: {len(kept.manifest.shards)} of snapshot {kept.id}, {len(last.manifest.shards)} of {last.id}')


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='12 files instead of 60')
    parser.add_argument('--home', help='keep tables and shards in this folder')
    arguments = parser.parse_args()
    with project_home(arguments.home) as project:
        main(project, 12 if arguments.quick else 60)

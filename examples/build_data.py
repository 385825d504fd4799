"""Build examples/data: a small real data set of five modalities with labels, from the Open Clip Art Library.

    apt install openclipart-png openclipart-svg espeak-ng
    pip install reportlab          # beside mmpipe itself
    python examples/build_data.py --clipart /usr/share/openclipart --out examples/data

Pictures, titles, descriptions, authors, dates and keywords are real; speech, clips and the lay-out of the documents
are made from them (see examples/data/README.md). The same packages give the same bytes: nothing depends on the clock.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from build_drawings import Drawing, read_drawings
from build_media import BuildError, draw, voice_of, write_clip, write_markdown, write_pdf, write_photo, write_speech
from PIL import Image

COLUMNS = (
    'key',
    'group',
    'photo',
    'caption',
    'speech',
    'clip',
    'document',
    'width',
    'height',
    'png_bytes',
    'editor',
    'uploaded',
    'voice',
    'category',
    'keywords',
    'detail',
)
CREDITS = ('key', 'author', 'source')

# The labels of the multi-label task: keywords of at least 8 drawings that are no other name of a category.
KEYWORDS = (
    'america',
    'animal',
    'car',
    'cat',
    'computer',
    'dog',
    'festive',
    'flower',
    'fruit',
    'icecream',
    'menu',
    'oceania',
    'sign',
    'transport',
    'tree',
)
SAME_KEYWORD = {
    'canada': 'america',
    'north_america': 'america',
    'northamerica': 'america',
    'feline': 'cat',
    'transportation': 'transport',
    'automobile': 'car',
    'flowers': 'flower',
    'fruits': 'fruit',
}
# Taken out of every title and description, also inside longer words and in the library's other languages: what names
# a category or a keyword.
NAMING = re.compile(
    r'\w*(mammal|animal|insect|insett|\bbugs?\b|ladybug|boat|sail|dessert|desert\b|flag|hardware|computer|plants?\b'
    r'|vehicle|automobile|\bcars?\b|redcar|\bcats?\b|gatt[oi]|feline|\bdogs?\b|festiv|flower|fior[ei]|fruit|ice ?cream'
    r'|glace|gelato|menu|oceania|america|canad|\bsigns?\b|transport|trees?\b|albero|arbre)\w*',
    re.IGNORECASE,
)
GENERIC_TITLE = re.compile(r'^(clipart by|etiquette icons$|svg road signs$|$)', re.IGNORECASE)

# Shares of the items that have a modality, and of the labels that are held back; each is drawn from a hash of the key.
WITH_SPEECH, WITH_CLIP, WITH_PDF, WITH_MARKDOWN = 0.60, 0.36, 0.50, 0.12
SPOKEN_ONLY, CLIP_ONLY = 0.15, 0.12
HIDDEN = {'category': 0.20, 'keywords': 0.0, 'detail': 0.30}
LATER_GROUPS, LATER_ITEMS, LATER_GROUP_SIZE = 0.07, 0.03, 4


def redact(text: str) -> str:
    """The text without the words that name a category or a keyword.

    >>> redact('Deer beside a tree (flags)')
    'Deer beside a'
    """
    text = NAMING.sub(' ', text.replace('_', ' '))
    text = re.sub(r'\(\s*\)|\[\s*\]', ' ', text)
    return re.sub(r'\s+', ' ', text).strip(' -,.;:&/')


def caption_of(drawing: Drawing) -> str:
    """The drawing's title, or its file name where one title was given to a whole series; redacted."""
    title = drawing.title
    if GENERIC_TITLE.match(title):
        title = re.sub(r'(-(r|md|v?\d*))+$', '', drawing.name).replace('-', ' ')
    return redact(title)


def keywords_of(drawing: Drawing) -> list[str]:
    """The drawing's own keywords that belong to `KEYWORDS`, sorted; empty where its record has none of them."""
    return sorted({SAME_KEYWORD.get(word, word) for word in drawing.keywords} & set(KEYWORDS))


def uploaded_of(drawing: Drawing) -> str:
    """The record's date as YYYY-MM-DD, empty where it has none or none that can be read without guessing."""
    match = re.fullmatch(r'(200\d)[-/](\d\d)[-/](\d\d)', drawing.date)
    return '-'.join(match.groups()) if match else ''


def record_of(drawing: Drawing, size: tuple[int, int]) -> list[tuple[str, str]]:
    """The lines of a document about the drawing; what is not known is left out, and so is every label."""
    lines = [
        ('By', drawing.author),
        ('Published by', drawing.publisher),
        ('Date', drawing.date),
        ('Description', drawing.description),
        ('Drawn with', drawing.editor.title().removesuffix('Other')),
        ('Size', f'{size[0]} x {size[1]} pixels'),
        ('Licence', 'Public domain'),
    ]
    return [(name, redact(text)) for name, text in lines if redact(text)]


def build_row(drawing: Drawing, out: Path) -> dict[str, str]:
    """Write the media of one drawing below `out` and return its row of the table."""
    key = drawing.key
    with Image.open(drawing.png) as opened:
        opened.load()
        image = opened.copy()
    caption = caption_of(drawing)
    row = dict.fromkeys(COLUMNS, '') | {
        'key': key,
        'group': drawing.group,
        'caption': caption,
        'width': str(image.width),
        'height': str(image.height),
        'png_bytes': str(drawing.png.stat().st_size),
        'editor': drawing.editor,
        'uploaded': uploaded_of(drawing),
    }
    media: dict[str, Path] = {}
    if draw(key, 'clip') < WITH_CLIP:
        media['clip'] = write_clip(image, key, out / 'clips')
    if 'clip' not in media or draw(key, 'clip only') >= CLIP_ONLY:
        media['photo'] = write_photo(image, key, out / 'photos')
    if caption and draw(key, 'speech') < WITH_SPEECH:
        media['speech'] = write_speech(caption, key, out / 'speech')
        row['voice'] = voice_of(key)
        if draw(key, 'spoken only') < SPOKEN_ONLY:
            row['caption'] = ''
    if draw(key, 'document') < WITH_PDF + WITH_MARKDOWN:
        write = write_pdf if draw(key, 'document') < WITH_PDF else write_markdown
        media['document'] = write(caption or 'Untitled', record_of(drawing, image.size), key, out / 'documents')
    row |= {name: path.relative_to(out).as_posix() for name, path in media.items()}
    labels = {
        'category': drawing.category,
        'keywords': ';'.join(keywords_of(drawing)),
        'detail': f'{math.log10(drawing.segments):.3f}' if drawing.segments else '',
    }
    return row | {name: label for name, label in labels.items() if draw(key, f'hidden {name}') >= HIDDEN[name]}


def held_back(drawings: list[Drawing]) -> set[str]:
    """Keys of the items that arrive later: some whole small groups, and some single items of groups already there."""
    sizes = Counter(drawing.group for drawing in drawings)
    return {
        drawing.key
        for drawing in drawings
        if (sizes[drawing.group] <= LATER_GROUP_SIZE and draw(drawing.group, 'later group') < LATER_GROUPS)
        or draw(drawing.key, 'later item') < LATER_ITEMS
    }


def write_csv(path: Path, columns: Iterable[str], rows: Iterable[dict[str, str]]) -> None:
    """Write a UTF-8 table with a header, sorted by key."""
    with path.open('w', encoding='utf-8', newline='') as file:
        writer = csv.DictWriter(file, list(columns), lineterminator='\n', extrasaction='ignore')
        writer.writeheader()
        writer.writerows(sorted(rows, key=lambda row: row['key']))


def build(clipart: Path, out: Path) -> dict[str, int]:
    """Build the whole data set in a temporary folder, then put its tables and media folders in place of the old ones.

    Returns:
        Rows per table.

    Raises:
        BuildError: the clip art or espeak-ng is missing.
    """
    if shutil.which('espeak-ng') is None:
        raise BuildError('espeak-ng is not installed: run `apt install espeak-ng`.')
    drawings = read_drawings(clipart)
    later = held_back(drawings)
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        fresh = Path(folder)
        for name in ('photos', 'speech', 'clips', 'documents'):
            (fresh / name).mkdir()
        rows: dict[bool, list[dict[str, str]]] = {False: [], True: []}
        for done, drawing in enumerate(drawings, start=1):
            rows[drawing.key in later].append(build_row(drawing, fresh))
            if done % 50 == 0 or done == len(drawings):
                print(f'{done}/{len(drawings)} items', file=sys.stderr)
        write_csv(fresh / 'items.csv', COLUMNS, rows[False])
        write_csv(fresh / 'held_back.csv', COLUMNS, rows[True])
        credits = [
            {'key': drawing.key, 'author': drawing.author, 'source': drawing.png.relative_to(clipart).as_posix()}
            for drawing in drawings
        ]
        write_csv(fresh / 'credits.csv', CREDITS, credits)
        for path in sorted(fresh.iterdir()):
            target = out / path.name
            if target.is_dir():
                shutil.rmtree(target)
            target.unlink(missing_ok=True)
            shutil.move(path, target)
    return {'items.csv': len(rows[False]), 'held_back.csv': len(rows[True])}


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--clipart', type=Path, default=Path('/usr/share/openclipart'), help='folder with png/ and svg/'
    )
    parser.add_argument('--out', type=Path, default=Path(__file__).parent / 'data', help='folder to write')
    arguments = parser.parse_args()
    try:
        counts = build(arguments.clipart, arguments.out)
    except BuildError as error:
        sys.exit(f'build_data: {error}')
    size = sum(path.stat().st_size for path in arguments.out.rglob('*') if path.is_file())
    print(f'{arguments.out}: {counts}, {size / 1e6:.2f} MB')


if __name__ == '__main__':
    main()

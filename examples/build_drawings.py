"""The source of the bundled demo data: the Open Clip Art Library's drawings with what their authors wrote about them.

Used by `build_data.py` only. Reads Debian's `openclipart-png` (pixels) and `openclipart-svg` (metadata, vector paths).
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
import xml.etree.ElementTree as ElementTree
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from build_media import BuildError, content_box, on_white
from PIL import Image

# Globs below the png folder. Flags: signals at sea, Canada's provinces, Oceania, some towns; no parties, no disputes.
CATEGORIES: dict[str, tuple[str, ...]] = {
    'boat': ('transportation/boating/*',),
    'bug': ('animals/bugs/*',),
    'dessert': ('food/desserts/*',),
    'flag': tuple(
        f'signs_and_symbols/flags/{name}'
        for name in (
            'signalflag_*',
            '*/canada/*',
            'oceania/**/*',
            'golf_*',
            'vancouver_*',
            'florence_*',
            'cymru_*',
            'uk-guernsey_*',
            'saint_helena*',
        )
    ),
    'hardware': ('computer/hardware/*',),
    'mammal': ('animals/mammals/**/*',),
    'plant': ('plants/**/*',),
    'vehicle': ('transportation/vehicles/*',),
}
# Left out after looking at them: weapons, party or religious signs, others' trade marks, drawings of something else
# than their folder says.
LEFT_OUT = re.compile(
    r'/(hummer_0[12]|m1_abrams|military_|the_mad_little|trawler|lighthouse|crossroads|curve_ahead|quay_sign'
    r'|parking_|wing_|cat_scrathing|emule|cartoon_vgcats|porcinet|gatto_nero|schermo_mac|laptop_0|gameboy|christmas_|cannabis'
    r'|lightly_decorated|human_|bowsaw|bypasspruner|.*(aborigin|maori|torres|trust_territory|acadia))'
)
MAX_PIXELS = 40_000_000
MAX_PER_CATEGORY = 96
MAX_PER_GROUP = 12
SAME_PICTURE = 0.90  # cosine of two thumbnails, see `thumbnail`

Image.MAX_IMAGE_PIXELS = None  # the library holds posters of 170 megapixels; MAX_PIXELS is checked before decoding

# Parameters a command of an SVG path takes per segment: https://www.w3.org/TR/SVG11/paths.html#PathData
ARITY = {'m': 2, 'l': 2, 'h': 1, 'v': 1, 'c': 6, 's': 4, 'q': 4, 't': 2, 'a': 7}
HIDDEN_PARTS = {'defs', 'marker', 'clipPath', 'pattern', 'symbol', 'metadata', 'namedview'}


@dataclass
class Drawing:
    """One drawing with what its SVG says about it, before anything is left out of the text."""

    png: Path
    name: str
    category: str
    title: str = ''
    description: str = ''
    author: str = ''
    publisher: str = ''
    date: str = ''
    editor: str = 'other'
    keywords: set[str] = field(default_factory=set)
    segments: int | None = None
    group: str = ''
    key: str = ''


def read_drawings(clipart: Path) -> list[Drawing]:
    """All drawings of the categories, without exact duplicates, each with its key and its group.

    Raises:
        BuildError: the clip art is not there, or a picture has no SVG of the same name.
    """
    if not (clipart / 'png').is_dir() or not (clipart / 'svg').is_dir():
        raise BuildError(
            f'No clip art in {str(clipart)!r}: it needs the folders png and svg. '
            'Run `apt install openclipart-png openclipart-svg`, or name another folder with --clipart.'
        )
    seen: dict[str, Drawing] = {}
    for category, patterns in CATEGORIES.items():
        files = {path for pattern in patterns for path in (clipart / 'png').glob(pattern + '.png')}
        for path in sorted(files):
            relative = path.relative_to(clipart / 'png')
            with Image.open(path) as image:
                if LEFT_OUT.search(f'/{relative}') or image.width * image.height > MAX_PIXELS:
                    continue
                pixels = image.convert('RGBA')
            drawing = read_svg(path, (clipart / 'svg' / relative).with_suffix('.svg'), category)
            digest = hashlib.sha256(repr(pixels.size).encode() + pixels.tobytes()).hexdigest()
            first = seen.setdefault(digest, drawing)
            # The same picture filed twice: one record, with what either of its authors wrote.
            first.keywords |= drawing.keywords
    drawings = sorted(seen.values(), key=lambda drawing: (drawing.name, drawing.category))
    for drawing in drawings:
        drawing.key = drawing.name
    for name in {drawing.name for drawing in drawings}:
        for number, drawing in enumerate([d for d in drawings if d.name == name][1:], start=2):
            drawing.key = f'{name}-{number}'
    assign_groups(drawings)
    return list(balance(drawings))


def read_svg(png: Path, svg: Path, category: str) -> Drawing:
    """The metadata and the number of path segments of one drawing.

    Raises:
        BuildError: no SVG has the picture's name.
    """
    if not svg.is_file():
        raise BuildError(f'{png} has no drawing {svg}: openclipart-png and openclipart-svg differ in version.')
    text = svg.read_text(encoding='utf-8', errors='replace')
    root = ElementTree.fromstring(re.sub(r'^<\?xml[^>]*\?>', '', text.lstrip('\ufeff')))
    about: dict[str, str] = {}
    keywords: set[str] = set()
    work = next((element for element in root.iter() if tag(element) == 'Work'), None)
    for element in work if work is not None else []:
        words = [part.strip() for part in element.itertext() if part.strip()]
        if tag(element) == 'subject':
            keywords = {word.lower() for word in words}
        about[tag(element)] = clean(' '.join(words))
    lower = text.lower()
    editor = next((name for name in ('inkscape', 'sodipodi', 'illustrator') if name in lower), 'other')
    return Drawing(
        png=png,
        name=slug(png.stem),
        category=category,
        title=about.get('title', ''),
        date=about.get('date', ''),
        description=about.get('description', ''),
        author=about.get('creator', ''),
        publisher=about.get('publisher', ''),
        editor=editor,
        keywords=keywords,
        segments=count_segments(root),
    )


def count_segments(root: ElementTree.Element) -> int | None:
    """Drawn segments (lines, curves, sides) of an SVG; None where it holds a bitmap or nothing that can be counted.

    >>> count_segments(ElementTree.fromstring('<svg><path d="M0 0 L1 1 2 2z"/><rect/><defs><rect/></defs></svg>'))
    8
    """
    total = 0
    pending = [root]
    while pending:
        element = pending.pop()
        name = tag(element)
        if name in HIDDEN_PARTS:
            continue
        if name == 'image':
            return None
        if name == 'path':
            total += path_segments(element.get('d', ''))
        elif name in ('rect', 'circle', 'ellipse'):
            total += 4
        elif name == 'line':
            total += 1
        elif name in ('polygon', 'polyline'):
            total += len(numbers(element.get('points', ''))) // 2
        pending.extend(element)
    return total or None


def path_segments(path: str) -> int:
    """Segments of one path, also those which repeat a command without its letter.

    >>> path_segments('M0,0C1,1,2,2,3,3,4,4,5,5,6,6z')
    4
    """
    parts = re.findall(r'([mlhvcsqtaz])([^mlhvcsqtaz]*)', path, flags=re.IGNORECASE)
    return sum(max(1, len(numbers(rest)) // ARITY.get(letter.lower(), 1)) for letter, rest in parts)


def numbers(text: str) -> list[str]:
    """The numbers in an SVG attribute, which need no space between them."""
    return re.findall(r'[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?', text, flags=re.IGNORECASE)


def tag(element: ElementTree.Element) -> str:
    """The element's name without its namespace."""
    return element.tag.rpartition('}')[2] if isinstance(element.tag, str) else ''


def clean(text: str) -> str:
    """One line of text without mark-up, addresses and the `HASH(0x...)` which a bug in the library left there."""
    unwanted = r'HASH\(0x[0-9a-f]+\)|\(?\S+@\S+\)?|<[^>]*>|\[?(https?://|www\.)\S+'
    return re.sub(r'\s+', ' ', re.sub(unwanted, ' ', text.replace('&#39;', "'"), flags=re.IGNORECASE)).strip()


def slug(text: str) -> str:
    """Lower-case ASCII words joined by hyphens.

    >>> slug('Cono_Gelato (B & W)')
    'cono-gelato-b-w'
    """
    plain = unicodedata.normalize('NFKD', text).encode('ascii', 'ignore').decode().lower()
    return re.sub(r'[^a-z0-9]+', '-', plain).strip('-')


def stem(text: str) -> str:
    """The first word of a title or file name without its number, which an author's series shares.

    >>> stem('Tigre04') == stem('tigre_05_architetto_franc')
    True
    """
    return re.sub(r'[0-9]+', '', slug(text).lstrip('0123456789-')).partition('-')[0]


def thumbnail(path: Path) -> np.ndarray:
    """A drawing cut to its content, as a unit vector float32 [768]; copies with other margins come out close."""
    with Image.open(path) as image:
        flat = on_white(image)
    small = flat.crop(content_box(flat)).resize((16, 16), Image.Resampling.BOX)
    vector = np.asarray(small, dtype=np.float32).reshape(-1)
    vector = vector - vector.mean()
    return vector / max(float(np.linalg.norm(vector)), 1e-6)


def assign_groups(drawings: list[Drawing]) -> None:
    """Give near duplicates and drawings of one series the same group: the smallest key among them.

    Joined are an author's drawings of one category whose titles or file names start with the same word, and drawings
    whose thumbnails have a cosine above `SAME_PICTURE`. A union-find over these pairs gives the groups.
    """
    parent = list(range(len(drawings)))

    def find(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    series: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, drawing in enumerate(drawings):
        for word in {stem(drawing.title), stem(drawing.name)} - {''}:
            series[(drawing.category, slug(drawing.author), word)].append(index)
    pairs = [(members[0], other) for members in series.values() for other in members[1:]]
    vectors = np.stack([thumbnail(drawing.png) for drawing in drawings])
    pairs += [(int(a), int(b)) for a, b in np.argwhere(np.triu(vectors @ vectors.T > SAME_PICTURE, k=1))]
    for a, b in pairs:
        low, high = sorted((find(a), find(b)))
        parent[high] = low
    for index, drawing in enumerate(drawings):
        drawing.group = drawings[find(index)].key


def balance(drawings: list[Drawing]) -> Iterator[Drawing]:
    """Leave out what exceeds `MAX_PER_GROUP` and `MAX_PER_CATEGORY`, in an order drawn from the key."""
    counts: dict[str, int] = defaultdict(int)
    kept = set()
    for drawing in sorted(drawings, key=lambda drawing: hashlib.sha256(drawing.key.encode()).digest()):
        group, category = f'group {drawing.group}', f'category {drawing.category}'
        if counts[group] < MAX_PER_GROUP and counts[category] < MAX_PER_CATEGORY:
            counts[group] += 1
            counts[category] += 1
            kept.add(drawing.key)
    yield from (drawing for drawing in drawings if drawing.key in kept)

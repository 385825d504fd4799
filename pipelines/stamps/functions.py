"""Functions of this pipeline's own: stamps that belong together, captions without labels' names, rules as a list."""

from __future__ import annotations

import re

import numpy as np
import pixeltable as pxt

from mmpipe.functions import counted

SERIES = (
    'seasonal/hanukkah',
    'space/moon',
    'space/planets',
    'symbols/alphabets/asl',
    'symbols/alphabets',
    'symbols/chess',
    'symbols/faces',
    'symbols/math',
    'symbols/money',
    'symbols/music',
    'symbols/shapes',
    'town/flags',
)
"""Folders drawn as one set, whose members differ in a sign only: letters, digits, coins, chessmen, notes, planets."""

RULES = ('colorable', 'nomirror', 'noflip', 'tintable')
"""What a stamp's author allows or forbids in its .dat file. Tux Paint ignores case, and what follows the word."""

_LABEL_WORDS = re.compile(
    r'\b(animal|bird|christmas|cloth|clothe|clothing|dish|dishe|easter|electronic|fish|flower|food|fruit|halloween|hat|hobby|'
    r'hobbie|household|house|insect|mammal|medical|military|money|monument|music|naturalforce|people|plant|road ?sign|'
    r'seasonal|space|sport|symbol|tool|town|vegetable|vehicle)s?\b',
    re.IGNORECASE,
)


@pxt.udf
@counted
def series(key: str) -> str:
    """Which stamps are kept in one split: a whole folder of `SERIES`, else all whose names begin with the same word.

    Across folders too, since 'lion' is drawn in several of them, and 'tender_mirror' is 'tender' the other way round.

    Args:
        key: path below the stamps' folder, without its ending.

    >>> [series.py_fn(key) for key in ('space/planets/4_mars', 'food/fruit/apple_red', 'food/fruit/cartoon/apple')]
    ['space/planets', 'apple', 'apple']
    """
    for folder in SERIES:
        if key.startswith(folder + '/'):
            return folder
    name = key.rsplit('/', 1)[-1].lower()
    words = [word for word in re.split(r'[^a-z]+', name) if word]
    return words[0] if words else name


@pxt.udf
@counted
def unnamed(caption: str) -> str:
    """A caption without any word that names a category or kind: the same words for all rows, whatever their label.

    >>> unnamed.py_fn('A yellow flower.')
    'A yellow .'
    """
    return _LABEL_WORDS.sub('', caption)


@pxt.udf
@counted
def rules(text: str) -> pxt.Json:
    """The words of `RULES` that a .dat file has, in the order of `RULES`; an empty list for none.

    >>> rules.py_fn('nomirror\\r\\nscale 15%')
    ['nomirror']
    """
    lines = [line.strip().lower() for line in text.splitlines()]
    return [rule for rule in RULES if any(line.startswith(rule) for line in lines)]


@pxt.udf
@counted
def bands(mel: pxt.Array[(40, None), np.float32]) -> pxt.Array[(80,), np.float32]:
    """Mean and deviation of each mel band over time: the colour of a voice, without what it says.

    Args:
        mel: float32 (40, T), natural log.

    Returns:
        float32 (80,): 40 means, 40 standard deviations.

    >>> bands.py_fn(np.full((40, 200), -4.6, dtype=np.float32))[[0, 40]].tolist()
    [-4.599999904632568, 0.0]
    """
    return np.concatenate([mel.mean(axis=1), mel.std(axis=1)], dtype=np.float32)

"""Tables whose functions write down each call; the sources they are filled from; and what they should hold then."""
# ruff: noqa: F821  (Pixeltable puts column names in scope)

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import PIL.Image
import pixeltable as pxt
from calls import note
from schemas import write_csv

import mmpipe as mm
from mmpipe.functions import split_of
from mmpipe.shards import collect
from mmpipe.snapshots import root_lock
from mmpipe.store import start

FACTOR = 2
UNLUCKY = 13
LARGE = 500
KINDS = ('cup', 'hat', 'map', 'pot', 'jar')


@pxt.udf
def times(key: str, x: int) -> int:
    note('times', key, x, FACTOR)
    if x % 100 == UNLUCKY:
        raise ValueError(f'{x} is unlucky')
    return FACTOR * x


@pxt.udf
def plus(key: str, made: int) -> int:
    note('plus', key, made)
    return made + 1


@pxt.udf
def minus(key: str, made: int) -> int:
    note('minus', key, made)
    return -made


@pxt.udf
def shade(key: str, photo: pxt.Image) -> float:
    number = float(np.asarray(photo.convert('L')).mean())
    note('shade', key, number)
    return number


@pxt.udf
def letters(key: str, word: str) -> int:
    note('letters', key, word)
    return len(word)


class Piece(TypedDict):
    """One word."""

    word: str


@pxt.iterator
def words_of(text: str) -> Iterator[Piece]:
    """A row per word of a text."""
    for word in text.split():
        yield {'word': word}


def declared(directory: str) -> Any:
    """The base class of Things with a filter view and a component view."""
    Tables = pxt.model_base()

    class Things(Tables, name='things'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        x: pxt.Int | None
        kind: pxt.String | None
        text: pxt.String | None
        photo: pxt.Image | None
        origin: pxt.Json | None
        split = split_of(key)
        made = times(key, x)
        more = plus(key, made)
        grey = shade(key, photo)

    class Large(Tables, name='large', base=Things.where(Things.x > LARGE)):
        less = minus(Things.key, Things.made)

    class Words(Tables, name='words', base=Things, iterator=words_of(Things.text)):
        length = letters(Things.key, word)

    return Tables


def fields_of(directory: str) -> dict[str, Any]:
    """Fields for a snapshot of things."""
    things = pxt.get_table(f'{directory}/things')
    return {
        'x': things.x, 'made': things.made, 'more': things.more, 'kind': mm.field.label(things.kind),
        'photo': mm.field.image(things.photo, size=8), 'grey': things.grey,
    }  # fmt: skip


@dataclass
class Source:
    """A manifest with photos, which changes from generation to generation.

    Args:
        folder: where they lie.
        rows: key to (x, kind, text, grey level of its photo).
    """

    folder: Path
    rows: dict[str, tuple[int, str, str, int]] = field(default_factory=dict)
    made: int = 0

    @property
    def manifest(self) -> Path:
        """The CSV file."""
        return self.folder / 'things.csv'

    def add(self, count: int, draw: random.Random) -> None:
        """New rows at the end."""
        for _ in range(count):
            self.made += 1
            self.rows[f'k{self.made:05d}'] = self._values(draw, unlucky=True)

    def drop(self, count: int) -> None:
        """The oldest rows go."""
        for key in list(self.rows)[:count]:
            del self.rows[key]

    def change(self, count: int, draw: random.Random) -> None:
        """Half of these rows get another photo, the other half other numbers alone, as an update takes them."""
        for place, key in enumerate(draw.sample(sorted(self.rows), count)):
            _, kind, text, grey = self.rows[key]
            if place % 2:
                self.rows[key] = self._values(draw, unlucky=True)
            else:
                self.rows[key] = (self._values(draw, unlucky=False)[0], kind, text, grey)

    def write(self) -> Path:
        """Make the files as they are said to be; photos are overwritten where they lie."""
        for key, (_, _, _, grey) in self.rows.items():
            path = self.folder / f'{key}.png'
            if not path.exists() or PIL.Image.open(path).getpixel((0, 0)) != grey:
                PIL.Image.new('L', (12, 8), grey).save(path)
        rows = [
            {'key': key, 'x': x, 'kind': kind, 'text': text, 'photo': f'{key}.png'}
            for key, (x, kind, text, _) in self.rows.items()
        ]
        return write_csv(self.manifest, rows)

    def _values(self, draw: random.Random, *, unlucky: bool) -> tuple[int, str, str, int]:
        """New for each call, but for a few that are equal by chance."""
        x = draw.randrange(1, 1_000_000)
        if x % 100 == UNLUCKY and not unlucky:  # an update whose function raises is refused
            x += 1
        text = ' '.join(f'w{draw.randrange(10**9)}' for _ in range(draw.randrange(3)))
        return x, draw.choice(KINDS), text, draw.randrange(256)


Held = dict[str, dict[Any, Any]]
"""Table to key (and place) to what its row holds."""


def should_hold(rows: dict[str, tuple[int, str, str, int]], factor: int) -> Held:
    """What the tables hold once a source is in, made with a factor."""
    made = {key: None if x % 100 == UNLUCKY else factor * x for key, (x, *_) in rows.items()}
    return {
        'things': {
            key: (x, kind, text or None, float(grey), made[key], None if made[key] is None else made[key] + 1)
            for key, (x, kind, text, grey) in rows.items()
        },
        'large': {
            key: None if made[key] is None else -made[key] for key, (x, *_) in rows.items() if x > LARGE
        },
        'words': {
            (key, place): (word, len(word))
            for key, (_, _, text, _) in rows.items()
            for place, word in enumerate(text.split())
        },
    }  # fmt: skip


def holds(directory: str) -> Held:
    """What the tables hold now; fails when a key is there twice."""
    things, large, words = (pxt.get_table(f'{directory}/{name}') for name in ('things', 'large', 'words'))
    found: Held = {
        'things': _once(
            (row['key'], (row['x'], row['kind'], row['text'], row['grey'], row['made'], row['more']))
            for row in things.select(
                things.key, things.x, things.kind, things.text, things.grey, things.made, things.more
            ).collect()
        ),
        'large': _once((row['key'], row['less']) for row in large.select(large.key, large.less).collect()),
        'words': _once(
            ((row['key'], row['pos']), (row['word'], row['length']))
            for row in words.select(words.key, words.pos, words.word, words.length).collect()
        ),
    }
    assert things.count() == len(found['things'])
    return found


def _once(items: Any) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for key, value in items:
        assert key not in found, f'{key} is there twice'
        found[key] = value
    return found


def set_factor(factor: int) -> None:
    """Edit the code of `times`."""
    globals()['FACTOR'] = factor


Work = Callable[[], Any]
"""What a child does once it is ready; the functions below make it."""


def _as_asked(factor: int, strict: bool) -> None:
    """Set up a child.

    Args:
        factor: of the code.
        strict: small chunks, as they are with slow work.
    """
    import mmpipe.ledger.book as book
    import mmpipe.plans.backfill as filling

    set_factor(factor)
    if strict:
        filling.FIRST_CHUNK = filling.LARGEST_CHUNK = 16
    real_save = book.Book.save

    def save(self: Any) -> bool:
        saved = real_save(self)
        note('recorded')
        return saved

    book.Book.save = save  # type: ignore[method-assign]
    start()


def ingesting(directory: str, manifest: str, *, factor: int, strict: bool = False, prune: bool = True) -> Work:
    """An ingest of a manifest in chunks of eight rows."""
    _as_asked(factor, strict)
    target, source = pxt.get_table(f'{directory}/things'), mm.sources.rows(manifest)
    return lambda: str(mm.ingest(target, source, chunk_rows=8, threads=1, prune=prune)).splitlines()[0]


def applying(directory: str, *, factor: int, strict: bool = False) -> Work:
    """An apply of the plan that was there when the child was prepared."""
    _as_asked(factor, strict)
    planned = mm.plan(declared(directory), directory)
    return lambda: mm.apply(planned).pending


def snapshotting(directory: str, root: str, *, factor: int, strict: bool = False) -> Work:
    """A snapshot of things."""
    _as_asked(factor, strict)
    things, fields = pxt.get_table(f'{directory}/things'), fields_of(directory)

    def work() -> dict[str, Any]:
        report = mm.snapshot(things, root=root, fields=fields, page_rows=16)
        return {**report.to_json(), 'versions': report.snapshot.versions}

    return work


def collecting(root: str, runs: str, *, factor: int, strict: bool = False) -> Work:
    """A collection, on a disk that takes two milliseconds to remove a file, so that a kill finds it at it."""
    import os
    import time

    _as_asked(factor, strict)
    real = os.unlink

    def slowly(*args: Any, **kwargs: Any) -> None:
        time.sleep(0.002)
        real(*args, **kwargs)

    os.unlink = slowly

    def work() -> int:
        with root_lock(root):
            return len(collect(root, keep=1, runs=runs, grace_s=0).files)

    return work


def making(directory: str) -> Work:
    """The tables, without rows."""
    start()
    return lambda: mm.apply(mm.plan(declared(directory), directory)).pending


def looking(directory: str) -> Work:
    """What a directory holds, and whether it is all recorded."""
    start()
    things = pxt.get_table(f'{directory}/things')
    return lambda: {
        'rows': things.count(),
        'pending': mm.plan(declared(directory), directory).pending,
        'quarantined': len(mm.quarantined(things)),
    }

"""Tables and functions for the tests of the store side; a class binds to one directory, so a call declares new ones."""
# ruff: noqa: F821  (Pixeltable puts column names in scope)

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypedDict

import numpy as np
import pixeltable as pxt

import mmpipe as mm
from mmpipe.functions import counted, document_chunks, document_text, log_mel, pixels, split_of


@pxt.udf
@counted
def doubled(x: int) -> int:
    """Twice a number; 13 is unlucky."""
    if x == 13:
        raise ValueError('13 is unlucky')
    return 2 * x


@pxt.udf
@counted
def tripled(x: int) -> int:
    """Three times a number."""
    return 3 * x


@pxt.udf
def words(text: str) -> pxt.Json:
    """Words of a text."""
    return text.split()


@pxt.udf
def spread(x: int) -> pxt.Array[(None,), np.float32]:
    """A vector of a length that varies with its value."""
    return np.full(1 + x % 3, x, dtype=np.float32)


class Piece(TypedDict):
    """One word."""

    word: str


@pxt.iterator
def pieces(text: str) -> Iterator[Piece]:
    """A row per word of a text; a text that holds 'trap' raises."""
    if 'trap' in text:
        raise RuntimeError('fell into the trap')
    for word in text.split():
        yield {'word': word}


def numbers(directory: str) -> SimpleNamespace:
    """Numbers with a filter view, a component view, and a filter view over that; applied."""
    Tables = pxt.model_base()

    class Numbers(Tables, name='numbers'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        x: pxt.Int | None
        text: pxt.String | None
        origin: pxt.Json | None
        split = split_of(key)
        twice = doubled(x)

    class Positive(Tables, name='positive', base=Numbers.where(Numbers.x > 0)):
        thrice = tripled(x)

    class Small(Tables, name='small', base=Positive.where(Positive.x < 5)):
        pass

    class Words(Tables, name='words', base=Numbers, iterator=pieces(Numbers.text)):
        pass

    class LongWords(Tables, name='long_words', base=Words.where(Words.x > 0)):
        pass

    mm.apply(mm.plan(Tables, directory))
    return SimpleNamespace(
        Tables=Tables, Numbers=Numbers, Positive=Positive, Small=Small, Words=Words, LongWords=LongWords
    )


def media_table(directory: str) -> SimpleNamespace:
    """A table with a column of each medium, and computed columns over some; applied."""
    Tables = pxt.model_base()

    class Items(Tables, name='items'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        photo: pxt.Image | None
        speech: pxt.Audio | None
        clip: pxt.Video | None
        document: pxt.Document | None
        caption: pxt.String | None
        price: pxt.Float | None
        origin: pxt.Json | None
        square = pixels(photo, size=8)
        mel = log_mel(speech, seconds=0.1, n_mels=8)
        body = document_text(document)

    class Pages(Tables, name='pages', base=Items, iterator=document_chunks(Items.document, by='page')):
        pass

    mm.apply(mm.plan(Tables, directory))
    return SimpleNamespace(Tables=Tables, Items=Items, Pages=Pages)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> Path:
    """A CSV file of some rows; None is an empty field."""
    import csv

    with path.open('w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for row in rows for name in row)))
        writer.writeheader()
        writer.writerows(rows)
    return path

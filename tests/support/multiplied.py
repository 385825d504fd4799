"""Columns whose values hang on a constant of this module, which a test can edit."""

from __future__ import annotations

import pixeltable as pxt

from mmpipe.functions import counted

FACTOR = 2
PLUS = 1
UNLUCKY = 13


@pxt.udf
@counted
def times(x: int) -> int:
    if x == UNLUCKY:
        raise ValueError(f'{x} is unlucky')
    return FACTOR * x


@pxt.udf
@counted
def plus(x: int) -> int:
    return x + PLUS


@pxt.udf
@counted
def minus(x: int) -> int:
    return -x


def declared(directory: str):
    """The base class of Things: `made` from x, `more` from made; and of a view with `less` from made."""
    Tables = pxt.model_base()

    class Things(Tables, name='things'):
        key = pxt.Column(type=pxt.String, primary_key=True)
        x: pxt.Int | None
        note: pxt.String | None
        origin: pxt.Json | None
        made = times(x)  # noqa: F821
        more = plus(made)
        other = minus(x)  # noqa: F821

    class Large(Tables, name='large', base=Things.where(Things.x > 2)):
        less = minus(made)  # noqa: F821

    return Tables

"""Features of one row's own numbers and strings; what needs other rows is fitted on the training split instead."""

from __future__ import annotations

import hashlib
import math
import re

import pixeltable as pxt
import pixeltable.type_system as ts

from mmpipe.errors import ConfigError
from mmpipe.functions.counting import counted

_NUMBER = re.compile(r'[+-]?(?:\d[\d\s\u00a0\u202f\',.]*)?(?:\d|[.,]\d+)(?:[eE][+-]?\d+)?')


@pxt.udf
@counted
def parse_number(text: str, *, decimal: str = '.') -> float | None:
    """The one number written in a string such as '€ 1,234.50' or '−3 °C'.

    Currency signs, units and thousands separators are ignored and nothing is scaled: '45 %' is 45. Separators between
    thousands (`,` or `.` whichever is not `decimal`, spaces, apostrophes) must stand before groups of three digits.

    Args:
        text: any string.
        decimal: the decimal sign, '.' or ','.

    Returns:
        The number; None where the string holds none, more than one ('3 of 5', '2024-05-01'), or one too large for a
        float.

    Raises:
        ConfigError: `decimal` is neither '.' nor ','; raised when the column is declared.

    >>> [parse_number.py_fn(t) for t in ('€ 1,234.50', '\u22123 °C', 'n/a', '3 of 5')]
    [1234.5, -3.0, None, None]
    >>> parse_number.py_fn('1.234,50', decimal=',')
    1234.5
    """
    # U+2212 is the typographic minus; the rest of the string keeps its own signs.
    found = _NUMBER.findall(text.replace('\u2212', '-'))
    if len(found) != 1:
        return None
    thousands = ',' if decimal == '.' else r'\.'
    whole = rf"[+-]?(?:\d+|\d{{1,3}}(?:[{thousands}\s\u00a0\u202f']\d{{3}})+)?"
    if not re.fullmatch(rf'{whole}(?:{re.escape(decimal)}\d+)?(?:[eE][+-]?\d+)?', found[0]):
        return None
    plain = re.sub(rf"[{thousands}\s\u00a0\u202f']", '', found[0]).replace(decimal, '.')
    value = float(plain)
    return value if math.isfinite(value) else None


@parse_number.conditional_return_type
def _(decimal: str) -> ts.ColumnType:
    if decimal not in ('.', ','):
        raise ConfigError(f"parse_number(decimal={decimal!r}): the decimal sign is '.' or ','.")
    return ts.FloatType(nullable=True)


@pxt.udf
@counted
def ratio(numerator: float, denominator: float) -> float | None:
    """`numerator / denominator`; None where the denominator is 0 or the result is not finite.

    >>> ratio.py_fn(3.0, 4.0), ratio.py_fn(3.0, 0.0)
    (0.75, None)
    """
    value = numerator / denominator if denominator else math.nan
    return value if math.isfinite(value) else None


@pxt.udf
@counted
def log1p(value: float) -> float | None:
    """Natural log of `1 + value`, for skewed amounts such as prices; None where it is undefined (`value` <= -1 or NaN).

    >>> log1p.py_fn(0.0), log1p.py_fn(-2.0)
    (0.0, None)
    """
    return math.log1p(value) if value > -1 and math.isfinite(value) else None


@pxt.udf
@counted
def hash_bucket(text: str, *, buckets: int, seed: int = 0) -> int:
    """A stable bucket for a category that has no fixed vocabulary (the hashing trick, Weinberger et al. 2009).

    Args:
        text: the category.
        buckets: how many buckets, at least 1.
        seed: any integer; another seed collides other pairs.

    Returns:
        An integer in [0, buckets), the same on every machine (BLAKE2b).

    Raises:
        ConfigError: `buckets` is below 1; raised when the column is declared.

    >>> hash_bucket.py_fn('acme', buckets=16) == hash_bucket.py_fn('acme', buckets=16)
    True
    """
    digest = hashlib.blake2b(f'{seed}:{text}'.encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'big') % buckets


@hash_bucket.conditional_return_type
def _(buckets: int) -> ts.ColumnType:
    if buckets < 1:
        raise ConfigError(f'hash_bucket(buckets={buckets}): at least one bucket is needed.')
    return ts.IntType()

"""Check one raw value against the type of its column."""

from __future__ import annotations

import json
import math
from datetime import date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np

from mmpipe.errors import BadInputError
from mmpipe.store import default_time_zone

TRUE, FALSE = ('true', '1', 'yes'), ('false', '0', 'no')
INT64 = range(-(2**63), 2**63)
NAN = 'is NaN: leave the field empty where the value is missing'


def parse(value: Any, kind: Any, *, text: bool = True) -> Any:
    """A value as the column's type wants it.

    Args:
        value: text of a CSV field, or a JSON or Parquet value; None for null.
        kind: Pixeltable column type.
        text: whether the value is text in which JSON and arrays are spelled out; otherwise a string is a JSON string.

    Returns:
        A plain Python value (Pixeltable refuses numpy scalars); an array for array columns. A time without a zone is in
        Pixeltable's default zone.

    Raises:
        BadInputError: text that is not of that type, NaN or infinity, or null where the column forbids it.

    >>> import pixeltable.type_system as ts
    >>> parse('3', ts.IntType()), parse('0.5', ts.FloatType()), parse(None, ts.StringType(nullable=True))
    (3, 0.5, None)
    >>> parse('nan', ts.FloatType(nullable=True))
    Traceback (most recent call last):
    ...
    mmpipe.errors.BadInputError: is NaN: leave the field empty where the value is missing
    """
    if type(value) is str and value.isascii() and kind.is_string_type() and '\x00' not in value:
        return value  # what most values are, and all that is checked below
    if isinstance(value, np.generic):
        value = value.item()
    if value is None:
        if not kind.nullable:
            raise BadInputError('is empty, and the column may not be null: fill it, or declare the column as `| None`')
        return None
    if isinstance(value, (float, Decimal, datetime)) and value != value:  # NaN, also pandas' NaT
        raise BadInputError(NAN)
    try:
        return _parse(value, kind, text)
    except (ValueError, TypeError, OverflowError) as error:
        raise BadInputError(f'is {value!r:.60}, and the column holds {kind}: correct the value ({error})') from error


def _parse(value: Any, kind: Any, text: bool) -> Any:
    if kind.is_int_type():
        if isinstance(value, (bool, float)) and value != int(value):
            raise ValueError('not a whole number')
        if int(value) not in INT64:
            raise ValueError('beyond 64 bits')
        return int(value)
    if kind.is_float_type():
        number = float(value)
        if not math.isfinite(number):
            raise BadInputError(NAN if math.isnan(number) else NAN.replace('NaN', str(number)))
        return number
    if kind.is_bool_type():
        if isinstance(value, bool):
            return value
        word = str(value).strip().lower()
        if word not in TRUE + FALSE:
            raise ValueError(f'not one of {", ".join(TRUE + FALSE)}')
        return word in TRUE
    if kind.is_json_type():
        value = json.loads(value) if text and isinstance(value, str) else value
        json.dumps(value, allow_nan=False)
        return value
    if kind.is_array_type():
        listed = json.loads(value) if isinstance(value, str) else value
        with np.errstate(over='ignore'):
            array = np.asarray(listed, dtype=kind.dtype)
        if array.dtype.kind == 'f' and not np.isfinite(array).all():
            raise ValueError('holds null, NaN or infinity')
        return array
    if kind.is_timestamp_type():
        return _in_zone(value if isinstance(value, datetime) else datetime.fromisoformat(str(value)))
    if kind.is_date_type():
        return value if type(value) is date else date.fromisoformat(str(value))
    if kind.is_uuid_type():
        return value if isinstance(value, UUID) else UUID(str(value))
    if kind.is_string_type():
        if isinstance(value, (list, dict, bytes)):
            raise ValueError('not text')
        return _characters(str(value))
    return value


def _characters(text: str) -> str:
    if '\x00' in text:
        raise ValueError('a NUL character, which Postgres cannot store')
    if has_surrogates(text):
        raise ValueError('half of a surrogate pair, which is no character')
    return text


def has_surrogates(text: str) -> bool:
    """Whether a text holds half of a surrogate pair: nothing else cannot be written as UTF-8.

    >>> has_surrogates('Größe'), has_surrogates('Gr\\udcf6\\udcdfe')
    (False, True)
    """
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _in_zone(time: datetime) -> datetime:
    """Pixeltable gives times back with a zone; without one here, an unchanged time would look changed."""
    return time if time.tzinfo is not None else time.replace(tzinfo=default_time_zone())

"""Check one raw value against the type of its column."""

from __future__ import annotations

import json
import math
from datetime import datetime
from typing import Any

import numpy as np

from mmpipe.errors import BadInputError

TRUE, FALSE = ('true', '1', 'yes'), ('false', '0', 'no')


def parse(value: Any, kind: Any) -> Any:
    """A value as the column's type wants it.

    Args:
        value: text of a CSV field, or a JSON or Parquet value; None for null.
        kind: Pixeltable column type.

    Returns:
        A plain Python value (Pixeltable refuses numpy scalars).

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
    if value is None:
        if not kind.nullable:
            raise BadInputError('is empty, and the column may not be null: fill it, or declare the column as `| None`')
        return None
    if isinstance(value, np.generic):
        value = value.item()
    try:
        return _parse(value, kind)
    except (ValueError, TypeError) as error:
        raise BadInputError(f'is {value!r:.60}, and the column holds {kind}: correct the value ({error})') from error


def _parse(value: Any, kind: Any) -> Any:
    if kind.is_int_type():
        if isinstance(value, (bool, float)) and value != int(value):
            raise ValueError('not a whole number')
        return int(value)
    if kind.is_float_type():
        number = float(value)
        if not math.isfinite(number):
            raise BadInputError(f'is {"NaN" if math.isnan(number) else number}: leave the field empty where the value is missing')
        return number
    if kind.is_bool_type():
        if isinstance(value, bool):
            return value
        word = str(value).strip().lower()
        if word not in TRUE + FALSE:
            raise ValueError(f'not one of {", ".join(TRUE + FALSE)}')
        return word in TRUE
    if kind.is_json_type():
        return json.loads(value) if isinstance(value, str) else value
    if kind.is_timestamp_type():
        return value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    if kind.is_string_type():
        text = str(value)
        if '\x00' in text:
            raise ValueError('a NUL character, which Postgres cannot store')
        return text
    return value

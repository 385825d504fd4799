"""Array column types whose shape depends on a function's constants."""

from __future__ import annotations

import numpy as np
import pixeltable.type_system as ts


def array_type(shape: tuple[int | None, ...], dtype: str) -> ts.ColumnType:
    """A non-null array type, as `conditional_return_type` wants it.

    Args:
        shape: sizes; None where rows may differ.
        dtype: numpy name.

    >>> str(array_type((3, 8, 8), 'uint8'))
    'Array[(3, 8, 8), uint8]'
    """
    return ts.ArrayType(shape, np.dtype(dtype))

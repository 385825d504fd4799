"""Declare a field of a snapshot: a Pixeltable expression, and how its values are stored for training.

A plain expression is enough where its type says it all: arrays become tensors, numbers scalars, strings strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmpipe.errors import FieldError
from mmpipe.shards import Field


@dataclass(frozen=True, kw_only=True)
class FieldSpec:
    """What `mm.snapshot(fields=...)` holds per field. Made by the functions of this module.

    Args:
        expression: Pixeltable expression over the table or view; an aggregate when `pooled`.
        kind: kind of `mmpipe.shards.Field`; '' to take it from the expression's type.
        size: edge in pixels of an image field.
        fit: 'crop' or 'pad', for an image field.
        vocabulary: words of a label field; None to collect them.
        pooled: whether the expression aggregates the rows of a component view, such as the frames of a video.
        is_file: whether the stored value is the content of the medium's file.
    """

    expression: Any
    kind: str = ''
    size: int | None = None
    fit: str = 'crop'
    vocabulary: tuple[str, ...] | None = None
    pooled: bool = False
    is_file: bool = False

    def identity(self) -> dict[str, Any]:
        """What defines the field, as JSON values."""
        return {
            'expression': str(self.expression),
            'kind': self.kind,
            'size': self.size,
            'fit': self.fit,
            'vocabulary': None if self.vocabulary is None else list(self.vocabulary),
            'pooled': self.pooled,
            'is_file': self.is_file,
        }


def image(expression: Any, *, size: int, fit: str = 'crop') -> FieldSpec:
    """An image as uint8 `[3, size, size]`, RGB, resized when the snapshot is written.

    Args:
        expression: image expression.
        size: edge in pixels, at least 1.
        fit: 'crop' scales the shorter side to `size` and cuts the centre; 'pad' scales the longer side and fills with
            white.

    Raises:
        FieldError: a size below 1 or another `fit`.
    """
    if size < 1 or fit not in ('crop', 'pad'):
        raise FieldError(f"mm.field.image(size={size}, fit='{fit}'): size is at least 1, fit is 'crop' or 'pad'")
    return FieldSpec(expression=expression, kind='tensor', size=size, fit=fit)


def label(expression: Any, *, vocabulary: Sequence[str] | None = None) -> FieldSpec:
    """One word per row, stored as its index.

    Args:
        expression: string expression.
        vocabulary: the words in index order; any other is an error. When None, the words of the training split in
            alphabetical order, then those only other rows have; later snapshots append new words at the end.
    """
    return FieldSpec(expression=expression, kind='label', vocabulary=_words(vocabulary))


def labels(expression: Any, *, vocabulary: Sequence[str] | None = None) -> FieldSpec:
    """Several words per row, read back as 0 and 1 per word of the vocabulary.

    Args:
        expression: JSON expression that gives a list of strings; null where the labels are unknown, `[]` for none.
        vocabulary: as in `label`.
    """
    return FieldSpec(expression=expression, kind='labels', vocabulary=_words(vocabulary))


def ragged(expression: Any) -> FieldSpec:
    """An array whose first dimension differs from row to row, such as a waveform."""
    return FieldSpec(expression=expression, kind='ragged')


def pooled(aggregate: Any) -> FieldSpec:
    """An aggregate over the rows of a component view: `mm.field.pooled(mean_pool(Frames.embedding))`.

    Args:
        aggregate: Pixeltable aggregate over columns of a view made by an iterator over the snapshot's base table. A row
            without any such rows, such as one without a video, gets null.
    """
    return FieldSpec(expression=aggregate, pooled=True)


def file(expression: Any) -> FieldSpec:
    """The bytes of a medium's file as they are, to be decoded when they are loaded.

    Args:
        expression: image, video, audio or document column.
    """
    return FieldSpec(expression=expression, kind='binary', is_file=True)


def _words(vocabulary: Sequence[str] | None) -> tuple[str, ...] | None:
    if vocabulary is None:
        return None
    words = tuple(vocabulary)
    if isinstance(vocabulary, str) or len(set(words)) != len(words) or not words:
        raise FieldError(f'the vocabulary {vocabulary!r:.60} is not a list of different words')
    return words


def as_spec(name: str, value: Any) -> FieldSpec:
    """A field spec from what the user gave: a spec, or a plain expression."""
    return value if isinstance(value, FieldSpec) else FieldSpec(expression=value)


def resolve(name: str, spec: FieldSpec, example: Any) -> tuple[FieldSpec, Field]:
    """The spec with its kind settled, and the stored field it becomes.

    Args:
        name: field name.
        spec: as given.
        example: the first value that is not null; None when there is none. Arrays of an open shape are described by it.

    Raises:
        FieldError: the type of the expression needs a choice that the user has to make.
    """
    kind = spec.expression.col_type
    said = spec.kind
    if spec.size is not None:
        if not kind.is_image_type():
            raise FieldError(f"field '{name}': mm.field.image() wants an image, the expression is {kind}")
        return spec, Field(name=name, kind='tensor', dtype='uint8', shape=(3, spec.size, spec.size))
    if spec.is_file:
        if not kind.is_media_type():
            raise FieldError(f"field '{name}': mm.field.file() wants a media column, the expression is {kind}")
        return spec, Field(name=name, kind='binary')
    if said == 'label' and not kind.is_string_type():
        raise FieldError(f"field '{name}': mm.field.label() wants a string, the expression is {kind}")
    if said == 'labels' and not kind.is_json_type():
        raise FieldError(f"field '{name}': mm.field.labels() wants JSON (a list of strings), the expression is {kind}")
    if said in ('label', 'labels'):
        return spec, Field(name=name, kind=said, vocabulary=spec.vocabulary or ())
    if kind.is_array_type():
        shape, dtype = kind.shape, kind.numpy_dtype if hasattr(kind, 'numpy_dtype') else kind.dtype
        if shape is None or dtype is None or any(n is None for n in (shape[1:] if said == 'ragged' else shape)):
            if example is None:
                raise FieldError(
                    f"field '{name}' is {kind}, no row has a value yet, and its shape is open: declare the column with "
                    f'its shape, as in pxt.Array[(1280,), pxt.Float]'
                )
            shape, dtype = example.shape, example.dtype
        shape = shape[1:] if said == 'ragged' else shape
        return replace(spec, kind=said or 'tensor'), Field(
            name=name, kind=said or 'tensor', dtype=np.dtype(dtype).name, shape=tuple(shape)
        )
    scalar = {'is_int_type': 'int64', 'is_float_type': 'float32', 'is_bool_type': 'bool'}
    for test, dtype in scalar.items():
        if getattr(kind, test)():
            return replace(spec, kind='scalar'), Field(name=name, kind='scalar', dtype=dtype)
    if kind.is_string_type():
        return replace(spec, kind='string'), Field(name=name, kind='string')
    hint = 'mm.field.image(expression, size=...)' if kind.is_image_type() else 'mm.field.file(expression)'
    if kind.is_json_type():
        hint = 'mm.field.labels(expression) for a list of words, or a computed column that gives numbers'
    raise FieldError(f"field '{name}' is {kind}, which has no fixed form for training: use {hint}")


def encode_value(spec: FieldSpec, value: Any) -> Any:
    """A selected value as it is stored: images resized, files read, the rest as it is."""
    if value is None:
        return None
    if spec.size is not None:
        from mmpipe.functions.image import square_array

        return square_array(value, size=spec.size, fit=spec.fit)
    if spec.is_file:
        return Path(value).read_bytes()
    return value

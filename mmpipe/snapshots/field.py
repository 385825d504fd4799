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
from mmpipe.shards.field import SCALAR_DTYPES


@dataclass(frozen=True, kw_only=True)
class FieldSpec:
    """What `mm.snapshot(fields=...)` holds per field. Made by the functions of this module.

    Args:
        expression: Pixeltable expression over the table or view; an aggregate when `pooled`.
        kind: kind of `mmpipe.shards.Field`; '' to take it from the expression's type.
        dtype: numpy name of what a number is stored as; '' to take it from the expression's type.
        size: edge in pixels of an image field.
        fit: 'crop' or 'pad', for an image field.
        vocabulary: words of a label field; None to collect them.
        pooled: whether the expression aggregates rows of a component view, such as frames, or of a joined table.
        is_file: whether the stored value is the content of the medium's file.
        rate: of samples of sound, in Hz; None where nothing says so.
    """

    expression: Any
    kind: str = ''
    dtype: str = ''
    size: int | None = None
    fit: str = 'crop'
    vocabulary: tuple[str, ...] | None = None
    pooled: bool = False
    is_file: bool = False
    rate: int | None = None

    def identity(self) -> dict[str, Any]:
        """What defines the field, as JSON values."""
        return {
            'expression': str(self.expression),
            'kind': self.kind,
            'dtype': self.dtype,
            'size': self.size,
            'fit': self.fit,
            'vocabulary': None if self.vocabulary is None else list(self.vocabulary),
            'pooled': self.pooled,
            'is_file': self.is_file,
            **({} if self.rate is None else {'rate': self.rate}),  # fields without one stay what they were
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

    >>> image('Items.photo', size=64, fit='pad').size                       # in a view: Items.photo itself
    64
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

    Raises:
        FieldError: a vocabulary that is empty, a string, or has a word twice.

    >>> label('Items.kind', vocabulary=['cat', 'dog']).vocabulary           # in a view: Items.kind itself
    ('cat', 'dog')
    """
    return FieldSpec(expression=expression, kind='label', vocabulary=_words(vocabulary))


def labels(expression: Any, *, vocabulary: Sequence[str] | None = None) -> FieldSpec:
    """Several words per row, read back as 0 and 1 per word of the vocabulary.

    Args:
        expression: JSON expression that gives a list of strings; null where the labels are unknown, `[]` for none.
        vocabulary: as in `label`.

    Raises:
        FieldError: as `label` does.

    >>> labels('words(Items.caption)').kind                                 # in a view: words(Items.caption) itself
    'labels'
    """
    return FieldSpec(expression=expression, kind='labels', vocabulary=_words(vocabulary))


def number(expression: Any, *, dtype: str) -> FieldSpec:
    """A number per row, stored as a given type. A plain expression stores floats as float32 and integers as int64.

    Args:
        expression: integer, float or boolean expression.
        dtype: 'float32', 'float64', 'int64' or 'bool'. A value that does not fit is an error that names its row.

    Raises:
        FieldError: another dtype.

    >>> number('Items.seconds', dtype='float64').dtype                      # in a view: Items.seconds itself
    'float64'
    """
    if dtype not in SCALAR_DTYPES:
        raise FieldError(f"mm.field.number(dtype='{dtype}'): use one of {', '.join(SCALAR_DTYPES)}")
    return FieldSpec(expression=expression, kind='scalar', dtype=dtype)


def ragged(expression: Any, *, rate: int | None = None) -> FieldSpec:
    """An array whose first dimension differs from row to row, such as a waveform.

    Args:
        expression: array expression; all rows have one dtype and the same dimensions behind the first.
        rate: of samples of sound, in Hz: recorded in the snapshot, and compared with what an encoder takes before
            anything is trained. `mmpipe.functions.waveform` gives 16000.

    Raises:
        FieldError: a rate below 1.

    >>> ragged('waveform(Items.speech)', rate=16_000).kind                  # in a view: waveform(Items.speech) itself
    'ragged'
    """
    if rate is not None and rate < 1:
        raise FieldError(f'mm.field.ragged(rate={rate}): samples a second, such as 16000.')
    return FieldSpec(expression=expression, kind='ragged', rate=rate)


def pooled(aggregate: Any) -> FieldSpec:
    """An aggregate over rows of a component view or a joined table: `mm.field.pooled(mean_pool(Frames.embedding))`.

    Args:
        aggregate: Pixeltable aggregate over columns of a view made by an iterator over the snapshot's base table, or of
            a table that the query joins. A row without any such rows, such as one without a video, gets null.

    >>> pooled('mean_pool(Frames.embedding)').pooled                        # in a view: the aggregate itself
    True
    """
    return FieldSpec(expression=aggregate, pooled=True)


def file(expression: Any) -> FieldSpec:
    """The bytes of a medium's file as they are, to be decoded when they are loaded.

    Args:
        expression: image, video, audio or document column.

    >>> file('Items.photo').kind                                            # in a view: Items.photo itself
    'binary'
    """
    return FieldSpec(expression=expression, kind='binary', is_file=True)


def _words(vocabulary: Sequence[str] | None) -> tuple[str, ...] | None:
    if vocabulary is None:
        return None
    words = tuple(vocabulary)
    if isinstance(vocabulary, str) or len(set(words)) != len(words) or not words:
        raise FieldError(
            f"the vocabulary {vocabulary!r:.60} is not a list of different words: give one, as in ['a', 'b']"
        )
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
        _require(name, kind, kind.is_image_type(), 'mm.field.image() wants an image', 'name an image column')
        return spec, Field(name=name, kind='tensor', dtype='uint8', shape=(3, spec.size, spec.size))
    if spec.is_file:
        _require(name, kind, kind.is_media_type(), 'mm.field.file() wants a media column', 'give the expression alone')
        return spec, Field(name=name, kind='binary')
    if said == 'label':
        _require(
            name,
            kind,
            kind.is_string_type(),
            'mm.field.label() wants a string',
            'add a computed column that gives its word',
        )
    if said == 'labels':
        _require(name, kind, kind.is_json_type(), 'mm.field.labels() wants JSON (a list of strings)',
                 'use mm.field.label() for a single word')  # fmt: skip
    if said in ('label', 'labels'):
        return spec, Field(name=name, kind=said, vocabulary=spec.vocabulary or ())
    if said == 'scalar':
        is_number = kind.is_int_type() or kind.is_float_type() or kind.is_bool_type()
        _require(
            name,
            kind,
            is_number,
            'mm.field.number() wants a number',
            'give the expression alone, or one that computes a number',
        )
        return spec, Field(name=name, kind='scalar', dtype=spec.dtype)
    if kind.is_array_type():
        shape, dtype = kind.shape, kind.dtype
        if shape is None or dtype is None or any(n is None for n in (shape[1:] if said == 'ragged' else shape)):
            if example is None:
                raise FieldError(
                    f"field '{name}' is {kind}, no row has a value yet, and its shape is open: declare the column with "
                    f'its shape, as in pxt.Array[(1280,), pxt.Float]'
                )
            shape, dtype = example.shape, example.dtype
        shape = shape[1:] if said == 'ragged' else shape
        return replace(spec, kind=said or 'tensor'), Field(
            name=name, kind=said or 'tensor', dtype=np.dtype(dtype).name, shape=tuple(shape), rate=spec.rate
        )
    _require(name, kind, said != 'ragged', 'mm.field.ragged() wants an array', 'give the expression alone')
    scalar = {'is_int_type': 'int64', 'is_float_type': 'float32', 'is_bool_type': 'bool'}
    for test, dtype in scalar.items():
        if getattr(kind, test)():
            return replace(spec, kind='scalar'), Field(name=name, kind='scalar', dtype=dtype)
    if kind.is_string_type():
        return replace(spec, kind='string'), Field(name=name, kind='string')
    hint = next((hint for test, hint in HINTS.items() if getattr(kind, test)()), 'a computed column that gives numbers')
    raise FieldError(f"field '{name}' is {kind}, which has no fixed form for training: use {hint}")


HINTS = {
    'is_image_type': 'mm.field.image(expression, size=...) for pixels, or mm.field.file(expression) for its bytes',
    'is_video_type': 'mm.field.pooled(mean_pool(...)) over a view of its frames, or mm.field.file(expression)',
    'is_audio_type': 'a computed column such as log_mel(expression), or mm.field.file(expression) for its bytes',
    'is_document_type': 'a computed column such as embed_text(document_text(expression)), or mm.field.file(expression)',
    'is_json_type': 'mm.field.labels(expression) for a list of words, or a computed column that gives numbers',
    'is_timestamp_type': 'mm.field.number(expression.posix_timestamp(), dtype="float64") for seconds since 1970',
    'is_date_type': 'expression.toordinal() for a number of days, or expression.isoformat() for text',
    'is_uuid_type': 'expression.to_string() for text',
    'is_binary_type': 'a computed column that gives an array, such as np.frombuffer in a function of yours',
}
"""What to write instead of an expression that has no fixed form, by a test of its type."""


def _require(name: str, kind: Any, holds: bool, wanted: str, move: str) -> None:
    if not holds:
        raise FieldError(f"field '{name}': {wanted}, and the expression is {kind}: {move}")


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

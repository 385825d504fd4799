"""What one field of a snapshot holds, and how its values become an Arrow array and come back as numpy.

| kind   | a row's value                     | Arrow type                         | read back as                      |
|--------|-----------------------------------|------------------------------------|-----------------------------------|
| tensor | array of one shape                | fixed_shape_tensor                 | [n, *shape]                       |
| ragged | array, first dimension varies     | large_list of the flattened values | n arrays [length_i, *shape]       |
| scalar | int, float or bool                | int64, float32, float64, bool      | [n]                               |
| string | str                               | large_string                       | n strings                         |
| label  | one word of the vocabulary        | int32 index                        | int64 [n]                         |
| labels | several words of the vocabulary   | list of int32 indices              | uint8 [n, words], 1 where present |
| binary | bytes of an encoded medium        | large_binary                       | n bytes objects                   |

A null stays a null in Arrow; reading gives zeros, '' or b'' in its place and False in the validity mask.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from mmpipe.errors import FieldError, LabelError

KINDS = ('tensor', 'ragged', 'scalar', 'string', 'label', 'labels', 'binary')
SCALAR_DTYPES = ('int64', 'float32', 'float64', 'bool')
TENSOR_DTYPES = (
    'uint8', 'int8', 'uint16', 'int16', 'uint32', 'int32', 'uint64', 'int64', 'float16', 'float32', 'float64',
)  # fmt: skip
DIGEST_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class Field:
    """Description of one field, the same for every shard of a snapshot.

    Args:
        name: field name; a leading underscore is reserved.
        kind: one of `KINDS`.
        dtype: numpy dtype name of one element (`'uint8'`, `'float32'`, ...); 'str', 'bytes' and 'int64' for the kinds
            that have no choice.
        shape: tensor: the whole shape of a row's value; ragged: the shape behind the varying first dimension.
        vocabulary: the words of a label or labels field, in index order; it only ever grows at its end.
        rate: of samples of sound, how many a second, in Hz; None where nothing says so.

    Raises:
        FieldError: an unknown kind or dtype, a reserved name, or a rate that cannot be.

    >>> Field(name='photo', kind='tensor', dtype='uint8', shape=(3, 128, 128)).bytes_per_row
    49152
    """

    name: str
    kind: str
    dtype: str = ''
    shape: tuple[int, ...] = ()
    vocabulary: tuple[str, ...] | None = None
    rate: int | None = None

    def __post_init__(self) -> None:
        if self.name.startswith('_') or not self.name:
            raise FieldError(f"field '{self.name}': names are not empty and do not start with '_'; choose another name")
        if self.kind not in KINDS:
            raise FieldError(
                f"field '{self.name}' has the unknown kind '{self.kind}'; one of {', '.join(KINDS)} is meant"
            )
        fixed = {'string': 'str', 'label': 'int64', 'labels': 'uint8', 'binary': 'bytes'}.get(self.kind)
        if fixed is not None:
            object.__setattr__(self, 'dtype', fixed)
        allowed = {'tensor': TENSOR_DTYPES, 'ragged': TENSOR_DTYPES, 'scalar': SCALAR_DTYPES}.get(self.kind)
        if allowed is not None and self.dtype not in allowed:
            raise FieldError(
                f"field '{self.name}' of kind {self.kind} cannot hold dtype '{self.dtype}'; use {', '.join(allowed)}"
            )
        if self.kind in ('label', 'labels') and self.vocabulary is None:
            raise FieldError(
                f"field '{self.name}' of kind {self.kind} has no vocabulary: pass its words in order of their indices"
            )
        if self.rate is not None and (self.kind not in ('tensor', 'ragged') or self.rate < 1):
            raise FieldError(
                f"field '{self.name}' of kind {self.kind} has the rate {self.rate}: arrays of samples have one, in Hz"
            )
        object.__setattr__(self, 'shape', tuple(int(n) for n in self.shape))
        if self.vocabulary is not None:
            object.__setattr__(self, 'vocabulary', tuple(self.vocabulary))

    @property
    def bytes_per_row(self) -> int | None:
        """Bytes one row takes in memory; None where rows differ.

        >>> Field(name='price', kind='scalar', dtype='float32').bytes_per_row
        4
        """
        if self.kind in ('tensor', 'scalar'):
            return math.prod(self.shape) * np.dtype(self.dtype).itemsize
        return 8 if self.kind == 'label' else None

    @property
    def dense_shape(self) -> tuple[int, ...] | None:
        """Shape of one row where all rows have the same; None for ragged, string and binary.

        >>> Field(name='tags', kind='labels', vocabulary=('red', 'blue')).dense_shape
        (2,)
        """
        if self.kind == 'labels':
            return (len(self.vocabulary or ()),)
        return {'tensor': self.shape, 'label': (), 'scalar': ()}.get(self.kind)

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values; `from_json` gives the field back.

        >>> Field.from_json(Field(name='x', kind='string').to_json()) == Field(name='x', kind='string')
        True
        """
        return {
            'name': self.name,
            'kind': self.kind,
            'dtype': self.dtype,
            'shape': list(self.shape),
            'vocabulary': None if self.vocabulary is None else list(self.vocabulary),
            **({} if self.rate is None else {'rate': self.rate}),  # ids of manifests without one stay as they are
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Field:
        """The field that `to_json` described."""
        return cls(**{**value, 'shape': tuple(value['shape'])})

    def grown(self, words: Sequence[str]) -> Field:
        """The same field with `words` it did not know appended to its vocabulary; old indices keep their meaning.

        >>> Field(name='kind', kind='label', vocabulary=('cat',)).grown(['dog', 'cat']).vocabulary
        ('cat', 'dog')
        """
        known = list(self.vocabulary or ())
        return replace(self, vocabulary=tuple(known + sorted(set(words) - set(known))))


def encode(field: Field, values: Sequence[Any], *, keys: Sequence[str] | None = None) -> pa.Array:
    """Values of one field as an Arrow array.

    Args:
        field: what they must be.
        values: one per row; None for null. Labels as words of the vocabulary, several labels as a list of words.
        keys: row keys, for messages.

    Raises:
        FieldError: a value has another shape or dtype than the field; the message names field and row.
        LabelError: a word outside the vocabulary.

    >>> encode(Field(name='kind', kind='label', vocabulary=('cat', 'dog')), ['dog', None]).to_pylist()
    [1, None]
    """

    def row(i: int) -> str:
        return f"row '{keys[i]}'" if keys is not None else f'row {i}'

    if field.kind in ('tensor', 'ragged'):
        return _encode_arrays(field, values, row)
    if field.kind in ('label', 'labels'):
        return _encode_words(field, values, row)
    arrow_type = {'string': pa.large_string(), 'binary': pa.large_binary()}.get(field.kind)
    if arrow_type is None:
        arrow_type = pa.bool_() if field.dtype == 'bool' else pa.from_numpy_dtype(np.dtype(field.dtype))
        for i, value in enumerate(values):
            if isinstance(value, float) and field.dtype == 'int64' and not value.is_integer():  # Arrow would cut it off
                raise FieldError(
                    f"field '{field.name}' is {value} in {row(i)}, and int64 holds whole numbers: declare it as float64"
                )
            if isinstance(value, float) and not _fits(value, field.dtype):
                raise FieldError(
                    f"field '{field.name}' is {value} in {row(i)}, which as {field.dtype} is no number. "
                    f'Store a missing value as null (None): it becomes a mask.'
                )
    try:
        return pa.array(values, type=arrow_type)
    except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError) as error:
        for i, value in enumerate(values):
            try:
                pa.array([value], type=arrow_type)
            except (pa.ArrowInvalid, pa.ArrowTypeError, TypeError, OverflowError):
                raise FieldError(
                    f"field '{field.name}' is {arrow_type}, but {row(i)} holds {value!r:.60} ({type(value).__name__}). "
                    f'Cast the expression, or declare the field with another kind.'
                ) from error
        raise


def _fits(value: float, dtype: str) -> bool:
    """Whether a float is finite, also as the dtype it is stored in."""
    with np.errstate(over='ignore'):
        return math.isfinite(value) and (dtype != 'float32' or bool(np.isfinite(np.float32(value))))


def _encode_arrays(field: Field, values: Sequence[Any], row: Any) -> pa.Array:
    dtype = np.dtype(field.dtype)
    valid = np.array([value is not None for value in values], dtype=bool)
    rest = field.shape
    for i, value in enumerate(values):
        if value is None:
            continue
        array = np.asarray(value)
        shape = array.shape[1:] if field.kind == 'ragged' else array.shape
        if shape != rest or array.dtype != dtype or (field.kind == 'ragged' and array.ndim == 0):
            wanted = ['*', *rest] if field.kind == 'ragged' else list(rest)
            move = 'Resize or pad it in the computed column'
            if array.dtype != dtype:
                move = f'Cast it to {dtype.name} in the computed column'
            elif field.kind == 'tensor' and shape[1:] == rest[1:]:
                move += ', or declare the field with mm.field.ragged()'
            raise FieldError(
                f"field '{field.name}' holds {dtype.name} arrays of shape {wanted}, "
                f'but {row(i)} has {array.dtype.name} {list(array.shape)}. {move}.'
            )
    if field.kind == 'tensor':
        size = math.prod(field.shape)
        flat = np.zeros((len(values), size), dtype=dtype)
        for i, value in enumerate(values):
            if value is not None:
                flat[i] = np.asarray(value).reshape(-1)
        kind = pa.fixed_shape_tensor(pa.from_numpy_dtype(dtype), field.shape)
        storage = pa.FixedSizeListArray.from_arrays(pa.array(flat.reshape(-1)), size, mask=pa.array(~valid))
        return pa.ExtensionArray.from_storage(kind, storage)
    lengths = np.array([0 if value is None else np.asarray(value).size for value in values], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    parts = [np.ascontiguousarray(value).reshape(-1) for value in values if value is not None]
    flat_values = np.concatenate(parts) if parts else np.zeros(0, dtype=dtype)
    return pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(flat_values), mask=pa.array(~valid))


def _encode_words(field: Field, values: Sequence[Any], row: Any) -> pa.Array:
    index = {word: i for i, word in enumerate(field.vocabulary or ())}
    coded: list[Any] = []
    for i, value in enumerate(values):
        if value is None:
            coded.append(None)
            continue
        words = [value] if field.kind == 'label' else value
        if not isinstance(words, (list, tuple)) or not all(isinstance(word, str) for word in words):
            wanted = 'a string' if field.kind == 'label' else 'a list of strings'
            raise LabelError(
                f"field '{field.name}' holds {value!r:.60} in {row(i)}, and it wants {wanted}. Correct the row."
            )
        for word in words:
            if word not in index:
                raise LabelError(
                    f"label {word!r:.60} of field '{field.name}' in {row(i)} is not in its vocabulary "
                    f'({", ".join(field.vocabulary or ()):.120}). Correct the label, or declare the vocabulary with it.'
                )
        coded.append(index[value] if field.kind == 'label' else sorted({index[word] for word in words}))
    return pa.array(coded, type=pa.int32() if field.kind == 'label' else pa.list_(pa.int32()))


class Column:
    """One field of one shard, as numpy views over the mapped file.

    Args:
        field: what the snapshot says of it; its vocabulary may be longer than when the shard was written.
        array: the Arrow array of the shard.
    """

    def __init__(self, field: Field, array: pa.Array) -> None:
        self.field = field
        self.array = array
        self.valid: np.ndarray | None = None
        if array.null_count:
            self.valid = array.is_valid().to_numpy(zero_copy_only=False)
        self.values: np.ndarray | None = None
        if field.kind == 'tensor':
            flat = array.storage.values.to_numpy(zero_copy_only=True)
            self.values = flat.reshape(len(array), *field.shape)
        elif field.kind == 'label':
            self.values = array.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        elif field.kind == 'scalar':
            filled = array.fill_null(False if field.dtype == 'bool' else 0)
            self.values = filled.to_numpy(zero_copy_only=False)
        elif field.kind == 'ragged':
            self.values = array.values.to_numpy(zero_copy_only=True)
            self.offsets = array.offsets.to_numpy()

    def gather(self, rows: np.ndarray) -> Any:
        """Values of the given rows of this shard: an array for the dense kinds, a list for the others."""
        if self.field.kind in ('tensor', 'label', 'scalar'):
            assert self.values is not None
            return self.values[rows]
        if self.field.kind == 'labels':
            hot = np.zeros((len(rows), len(self.field.vocabulary or ())), dtype=np.uint8)
            for i, words in enumerate(self.array.take(pa.array(rows)).to_pylist()):
                hot[i, words or []] = 1
            return hot
        if self.field.kind == 'ragged':
            assert self.values is not None
            return [
                self.values[self.offsets[r] : self.offsets[r + 1]].reshape(-1, *self.field.shape) for r in rows.tolist()
            ]
        empty = '' if self.field.kind == 'string' else b''
        return [empty if value is None else value for value in self.array.take(pa.array(rows)).to_pylist()]


def content_digest(field: Field, value: Any) -> bytes:
    """16-byte BLAKE2b digest of one value, the same whatever shard or machine it lies on; null has a digest of its own.

    >>> number = Field(name='x', kind='scalar', dtype='float32')
    >>> content_digest(number, 1.5) == content_digest(number, 1.5), len(content_digest(number, None))
    (True, 16)
    """
    digest = hashlib.blake2b(digest_size=DIGEST_BYTES)
    if value is None:
        digest.update(b'null')
    elif field.kind in ('tensor', 'ragged'):
        array = np.ascontiguousarray(value)
        digest.update(f'{array.dtype.str}{array.shape}'.encode())
        digest.update(array.view(np.uint8).data if array.size else b'')
    elif field.kind == 'binary':
        digest.update(b'b')
        digest.update(value)
    elif field.kind == 'labels':
        digest.update(repr(sorted(set(value))).encode())
    elif field.kind == 'scalar':
        # A number that does not fit its dtype is refused when it is encoded.
        with np.errstate(over='ignore', invalid='ignore'), suppress(OverflowError, ValueError):
            value = np.dtype(field.dtype).type(value).item()
        digest.update(repr(value).encode())
    else:
        digest.update(b's')  # so that the word 'null' is not a null
        digest.update(str(value).encode())
    return digest.digest()

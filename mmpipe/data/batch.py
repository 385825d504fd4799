"""The batch layout, in numpy: rows of a snapshot gathered, decoded and padded. Imports no torch, for worker processes.

batch['photo']      uint8 [B, 3, H, W]        tensor field, in its stored dtype, or what its decoder gives
batch['speech']     float32 [B, L]            ragged field, zeros behind each row's length
batch['clip']       uint8 [B, T, 3, H, W]     video, decoded
batch['category']   int64 [B]                 label: index into the vocabulary
batch['tags']       uint8 [B, words]          several labels: 1 where present
batch['price']      float32 [B]               scalar
batch['title']      list of B str             string (bytes for binary)
batch['_mask']      {field: bool [B]}         True where the value is there; a missing one is zeros
batch['_length']    {ragged field: int64 [B]}
batch['_key']       list of B str
batch['_failed']    list of (key, field, why) of values that could not be decoded, only where there are any
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from mmpipe.data.order import sample_hashes, uniform
from mmpipe.decode import Decoder
from mmpipe.errors import ConfigError, DataError
from mmpipe.shards import Rows

Allocate = Callable[[tuple[int, ...], Any], np.ndarray]
"""Gives an array of a shape and dtype, with any content."""
Range = Callable[[int, int], None]
"""Does the samples from one position to another of a batch."""
PIECE_BYTES = 1 << 20  # at least, of what is only copied: handing a piece over costs as much as copying some 100 KB
STREAM = 0x6465636F  # of the first random number that a decoder draws, apart from those of the transforms


@dataclass(frozen=True)
class Request:
    """One batch to make.

    Args:
        positions: int64 `[B]` in the rows.
        epoch: from 0; random numbers of decoders differ between epochs.
        padded: how many of the last positions only fill the batch; all of their values count as missing.
        repeats: int64 `[B]`, how often each row came before in the epoch; None where none comes twice.
        keys: of the rows, where somebody may have to name one of them without being able to make the batch.
    """

    positions: np.ndarray
    epoch: int = 0
    padded: int = 0
    repeats: np.ndarray | None = None
    keys: Sequence[str] | None = None


class _Made:
    """What there is so far of one batch.

    Args:
        rows: of the batch.
        keys: of these rows.
    """

    def __init__(self, rows: int, keys: list[str]) -> None:
        self.rows, self.keys = rows, keys
        self.values: dict[str, Any] = {}
        self.masks: dict[str, np.ndarray] = {}
        self.failed: dict[tuple[int, str], str] = {}  # by sample and field


class BatchTask:
    """Makes batches: called by threads, by worker processes, or right here.

    Args:
        rows: where to read.
        fields: names to read.
        decode: {field: decoder} for binary fields (and string fields that become tokens).
        host: {field: function of one sample's array, on the CPU}, run after decoding.
        seed: of the decoders' random numbers.
        on_error: 'raise', or 'mask' to count a value that cannot be decoded as missing and tell it in `_failed`.

    Raises:
        ConfigError: a decoder or function for a field that is not read or cannot be decoded, or another `on_error`.

    >>> from mmpipe.data.collate import example_rows
    >>> batch = BatchTask(example_rows(), ['price', 'kind'])(Request(np.array([1, 0])))
    >>> batch['price'], batch['_mask']['price'], batch['kind'], batch['_key']
    (array([0. , 1.5], dtype=float32), array([False,  True]), array([0, 1]), ['b', 'a'])
    """

    def __init__(
        self,
        rows: Rows,
        fields: Iterable[str],
        *,
        decode: Mapping[str, Decoder] | None = None,
        host: Mapping[str, Callable[[np.ndarray], np.ndarray]] | None = None,
        seed: int = 0,
        on_error: Literal['raise', 'mask'] = 'raise',
    ) -> None:
        self.rows = rows
        self.fields = list(fields)
        self.decode = dict(decode or {})
        self.host = dict(host or {})
        self.seed = seed
        self.on_error = on_error
        if on_error not in ('raise', 'mask'):
            raise ConfigError(f"on_error={on_error!r}: 'raise', or 'mask' to count what cannot be decoded as missing.")
        for option, names in (('decode', self.decode), ('host_transforms', self.host)):
            unknown = [name for name in names if name not in self.fields]
            if unknown:
                raise ConfigError(
                    f'{option}= names the field {unknown[0]!r}, which is not loaded; loaded are '
                    f'{", ".join(self.fields)}. Correct the name, or add it to fields=.'
                )
        for name in self.decode:
            if rows.fields[name].kind not in ('binary', 'string'):
                raise ConfigError(
                    f'decode= names the field {name!r}, which is stored decoded ({rows.fields[name].kind}). '
                    f'Leave it out; decoders are for fields of encoded files.'
                )

    def only(self, fields: Iterable[str], *, rows: Rows | None = None) -> BatchTask:
        """The same for some of the fields.

        Args:
            fields: names; of others than are read, nothing is made.
            rows: others of the same fields; the same when None.
        """
        names = set(fields)
        return BatchTask(
            self.rows if rows is None else rows,
            [name for name in self.fields if name in names],
            decode={name: each for name, each in self.decode.items() if name in names},
            host={name: each for name, each in self.host.items() if name in names},
            seed=self.seed,
            on_error=self.on_error,
        )

    def __call__(self, request: Request, allocate: Allocate = np.empty) -> dict[str, Any]:
        """One batch in the layout above.

        Raises:
            DataError: a value cannot be decoded; names field, key and cause.
        """
        pieces, finish = self.begin(request, allocate)
        for piece in pieces:
            piece()
        return finish()

    def begin(
        self, request: Request, allocate: Allocate = np.empty, *, parts: int = 1
    ) -> tuple[list[Callable[[], None]], Callable[[], dict[str, Any]]]:
        """A batch in pieces. Reads nothing yet.

        Args:
            request: which batch.
            allocate: gives its memory.
            parts: how many pieces to make of what takes long.

        Returns:
            Pieces, which may be done by several threads in any order; and what gives the batch when all are done.
        """
        made = _Made(len(request.positions), self.rows.keys_at(request.positions).tolist())
        large: list[Callable[[], None]] = []
        small: list[Callable[[], None]] = []
        for name in self.fields:
            field, count = self.rows.fields[name], 1
            if name in self.decode:
                work, count = self._decoding(name, request, made, allocate), parts
            elif field.dense_shape is not None:
                out = made.values[name] = allocate((len(request.positions), *field.dense_shape), field.dtype)
                work, count = self._filling(name, request, made), min(parts, out.nbytes // PIECE_BYTES)
            else:
                work = self._reading(name, request, made)
            count = max(1, min(count, made.rows))
            bounds = [made.rows * i // count for i in range(count + 1)]
            (large if count > 1 else small).extend(partial(work, start, stop) for start, stop in pairwise(bounds))
        # Labels and numbers are not worth a piece each.
        if small or not large:
            large.append(partial(_all, small))
        return large, partial(self._finished, request, made, allocate)

    def _filling(self, name: str, request: Request, made: _Made) -> Range:
        out = made.values[name]
        valid = made.masks[name] = np.empty(made.rows, dtype=bool)

        def fill(start: int, stop: int) -> None:
            valid[start:stop] = self.rows.fill(name, request.positions[start:stop], out[start:stop])

        return fill

    def _reading(self, name: str, request: Request, made: _Made) -> Range:
        def read(start: int, stop: int) -> None:
            made.values[name], made.masks[name] = self.rows.read(name, request.positions)

        return read

    def _decoding(self, name: str, request: Request, made: _Made, allocate: Allocate) -> Range:
        """Into one array where all samples have one shape, else into a list of arrays."""
        decoder = self.decode[name]
        hashes = sample_hashes(self.rows.hashes[request.positions], request.repeats)
        draws = np.empty((made.rows, decoder.draws), dtype=np.float32)
        for stream in range(decoder.draws):
            draws[:, stream] = uniform(hashes, self.seed, request.epoch, STREAM + stream)
        out = None if decoder.shape is None else allocate((made.rows, *decoder.shape), decoder.dtype)
        missing = np.zeros((0, *decoder.rest) if out is None else (), dtype=decoder.dtype)
        found: list[np.ndarray] = [missing] * made.rows
        valid = made.masks[name] = np.empty(made.rows, dtype=bool)
        made.values[name] = found if out is None else out

        def decode(start: int, stop: int) -> None:
            stored, valid[start:stop] = self.rows.read(name, request.positions[start:stop])
            for i, value in enumerate(stored, start):
                if valid[i]:
                    _working_on(allocate, i)
                    try:
                        data = value.encode() if isinstance(value, str) else value
                        found[i] = decoder.decode(data, draws[i], None if out is None else out[i])
                    except DataError as error:
                        valid[i] = False
                        made.failed[i, name] = why = str(error)
                        if self.on_error == 'raise':
                            raise DataError(
                                f"field '{name}' of row '{made.keys[i]}' in snapshot {self.rows.snapshot.id}: {why} "
                                f"Mend the row, or count such values as missing with on_error='mask'."
                            ) from error
                if out is not None and not valid[i]:
                    out[i] = 0

        return decode

    def _finished(self, request: Request, made: _Made, allocate: Allocate) -> dict[str, Any]:
        batch: dict[str, Any] = {}
        lengths: dict[str, np.ndarray] = {}
        for name in self.fields:
            found, field = made.values[name], self.rows.fields[name]
            if name in self.host:
                found = self._changed(name, found, made.keys, allocate)
            if isinstance(found, list) and (name in self.decode or field.kind == 'ragged' or name in self.host):
                decoder = self.decode.get(name)
                rest, dtype = (field.shape, field.dtype) if decoder is None else (decoder.rest, decoder.dtype)
                found, lengths[name] = pad(found, allocate=allocate, dtype=dtype, rest=rest)
            batch[name] = found
            if request.padded:
                made.masks[name][-request.padded :] = False
        batch['_mask'] = {name: made.masks[name] for name in self.fields}
        if lengths:
            batch['_length'] = lengths
        batch['_key'] = made.keys
        if made.failed:
            order = {name: i for i, name in enumerate(self.fields)}
            failed = sorted(made.failed.items(), key=lambda each: (order[each[0][1]], each[0][0]))
            batch['_failed'] = [(made.keys[i], name, why) for (i, name), why in failed]
        return batch

    def _changed(self, name: str, values: Any, keys: Sequence[str], allocate: Allocate) -> Any:
        """Each sample through the user's function; one array again where all came out in one shape."""
        found = []
        for i, (value, key) in enumerate(zip(values, keys, strict=True)):
            _working_on(allocate, i)
            try:
                found.append(np.asarray(self.host[name](value)))
            except Exception as error:
                raise DataError(
                    f"host_transforms['{name}'] failed on row '{key}' with {type(error).__name__}: {error}. Correct "
                    f'the function, or the row.'
                ) from error
        return np.stack(found) if len({(each.shape, each.dtype) for each in found}) == 1 else found


def _all(works: Sequence[Callable[[], None]]) -> None:
    for work in works:
        work()


def _working_on(allocate: Allocate, sample: int) -> None:
    """Tell a worker process which sample is worked on: should it die, that is named."""
    at = getattr(allocate, 'at', None)
    if at is not None:
        at(sample)


def pad(
    arrays: Sequence[np.ndarray], *, allocate: Allocate = np.empty, dtype: Any = np.float32, rest: Sequence[int] = ()
) -> tuple[np.ndarray, np.ndarray]:
    """Arrays that differ in their first dimension as one, zeros behind the shorter ones.

    Args:
        arrays: B arrays `[length_i, *shape]` of one dtype.
        allocate: gives the memory.
        dtype: of the result where there is no array.
        rest: shape behind the first dimension where there is no array.

    Returns:
        (values `[B, L, *shape]`, lengths int64 `[B]`) with L the longest, and at least 1 so that no kernel sees an
        empty dimension.

    Raises:
        DataError: arrays of different shapes behind the first dimension.

    >>> pad([np.array([1.0, 2.0]), np.array([3.0])])
    (array([[1., 2.],
           [3., 0.]]), array([2, 1]))
    """
    lengths = np.array([len(array) for array in arrays], dtype=np.int64)
    shapes = {array.shape[1:] for array in arrays} or {tuple(rest)}
    if len(shapes) > 1:
        raise DataError(
            f'arrays of shapes {sorted(shapes)} behind the first dimension cannot be padded into one batch: '
            f'make them one shape where the field is computed.'
        )
    longest = int(lengths.max(initial=1))
    out = allocate((len(arrays), longest, *shapes.pop()), arrays[0].dtype if len(arrays) else dtype)
    for row, array, length in zip(out, arrays, lengths.tolist(), strict=True):
        row[:length] = array
        row[length:] = 0
    return out, lengths

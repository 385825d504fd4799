"""Rows of several snapshots as one: what a mixture is drawn from. Imports no torch, for worker processes.

books: 2 rows    web: 3 rows        sources in order of their names
  0  1             2  3  4          positions
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from mmpipe.data.order import mix, splitmix64
from mmpipe.errors import ConfigError, DataError
from mmpipe.shards import Field, Rows, Snapshot, key_hash
from mmpipe.shards.gather import by_group

RUN_BYTES = 512  # of a row from which it is copied straight to its place, whatever comes from other sources around it


@dataclass(frozen=True)
class Snapshots:
    """What messages and run records say of several snapshots.

    Args:
        id: 16 hex digits, a digest of their names and ids.
        root: their names, joined.
        splits: rows per split, of all of them.
        fields: those of the rows.
        parts: the snapshots by name.
    """

    id: str
    root: str
    splits: Mapping[str, int]
    fields: Mapping[str, Field]
    parts: Mapping[str, Snapshot]


class ManyRows:
    """Rows of several snapshots behind the interface of `mmpipe.shards.Rows`.

    A key is that of the row behind the name of its source: 'web/0001'; its hash is mixed with the name, so that rows of
    two sources never pass for one. A field that only some sources have is missing (masked) in the others.

    Args:
        parts: rows by the names of their sources.
        index: int64 positions among the rows of all sources, one source after the other in order of names; all when
            None.
        fields: names of the fields to have; all of all sources when None.

    Raises:
        ConfigError: no source, or a name that cannot stand before a key.
        DataError: a field that differs in form between sources, or that none has.

    >>> from mmpipe.data.collate import example_rows
    >>> rows = ManyRows({'web': example_rows(), 'books': example_rows()})
    >>> rows.keys.tolist(), rows.read('price', [0, 3])
    (['books/a', 'books/b', 'web/a', 'web/b'], (array([1.5, 0. ], dtype=float32), array([ True, False])))
    """

    def __init__(
        self, parts: Mapping[str, Rows], index: np.ndarray | None = None, *, fields: Iterable[str] | None = None
    ) -> None:
        if not parts or any(not name or '/' in name for name in parts):
            raise ConfigError(
                f"Sources are named {list(parts)}: give at least one, with names that are not empty and hold no '/'."
            )
        self.parts = {name: parts[name] for name in sorted(parts)}
        self.fields = _fields(self.parts, fields)
        starts = np.cumsum([0, *(len(part) for part in self.parts.values())])
        self.index = np.arange(starts[-1]) if index is None else np.asarray(index, dtype=np.int64)
        self.sources: np.ndarray = np.searchsorted(starts, self.index, side='right') - 1
        self.local = self.index - starts[self.sources]

    def __reduce__(self) -> tuple[Any, ...]:
        return _again, (self.parts, self.index, list(self.fields))

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f'<{len(self)} rows of {", ".join(self.names)}>'

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the sources, in the order in which `sources` numbers them."""
        return tuple(self.parts)

    @property
    def scattered(self) -> bool:
        """Whether those of some source are; see `mmpipe.shards.Rows.scattered`."""
        return any(part.scattered for part in self.parts.values())

    @cached_property
    def snapshot(self) -> Snapshots:
        """All snapshots, as far as messages and run records need them."""
        each = {name: part.snapshot for name, part in self.parts.items()}
        named = '\n'.join(f'{name} {snapshot.id}' for name, snapshot in each.items())
        splits: dict[str, int] = {}
        for snapshot in each.values():
            for split, count in snapshot.splits.items():
                splits[split] = splits.get(split, 0) + count
        return Snapshots(
            id=hashlib.blake2b(named.encode(), digest_size=8).hexdigest(),
            root='-'.join(each),
            splits=splits,
            fields=self.fields,
            parts=each,
        )

    @cached_property
    def keys(self) -> np.ndarray:
        """Row keys behind the names of their sources, an object array of str."""
        out = np.empty(len(self), dtype=object)
        for number, where in by_group(self.sources):
            found = self._part(number).keys[self.local[where]]
            out[where] = [f'{self.names[number]}/{key}' for key in found]
        return out

    def keys_at(self, positions: np.ndarray) -> np.ndarray:
        """Keys of the rows at int64 positions; see `mmpipe.shards.Rows.keys_at`."""
        if 'keys' in vars(self) or not self.scattered:
            return self.keys[positions]
        sources, local = self.sources[positions], self.local[positions]
        out = np.empty(len(positions), dtype=object)
        for number, where in by_group(sources):
            found = self._part(number).keys_at(local[where])
            out[where] = [f'{self.names[number]}/{key}' for key in found]
        return out

    @cached_property
    def hashes(self) -> np.ndarray:
        """64-bit hashes of keys and sources, uint64 `[n]`."""
        out = np.empty(len(self), dtype=np.uint64)
        for number, where in by_group(self.sources):
            salt = np.uint64(mix(key_hash(self.names[number])))
            out[where] = splitmix64(self._part(number).hashes[self.local[where]] ^ salt)
        return out

    @cached_property
    def places(self) -> np.ndarray:
        """Where the rows lie: int64 `[n, 2]` of block and row; the blocks of one source behind those of another."""
        out = np.empty((len(self), 2), dtype=np.int64)
        before = 0
        for number, where in by_group(self.sources):
            places = self._part(number).places
            out[where] = places[self.local[where]] + (before, 0)
            before += int(places[:, 0].max()) + 1
        return out

    def system(self, name: str) -> np.ndarray:
        """A system column (see `mmpipe.shards.Rows.system`); `_key` and `_hash` are those of `keys` and `hashes`."""
        if name in ('_key', '_hash'):
            return self.keys if name == '_key' else self.hashes
        out = np.empty(len(self), dtype=object)
        for number, where in by_group(self.sources):
            out[where] = self._part(number).system(name)[self.local[where]]
        return out

    def take(self, indices: Any) -> ManyRows:
        """The rows at these positions, in the order given; a bool array of its length is a mask."""
        return _again(self.parts, self.index[_positions(indices)], self.fields)

    def where(self, name: str, value: Any) -> ManyRows:
        """The rows whose field `name` (label word, string or number) equals `value`."""
        return self.take(np.array([item == value for item in self.words(name)], dtype=bool))

    def words(self, name: str) -> list[Any]:
        """Values of a label, string or scalar field as Python values, None for null; labels as their words."""
        field = self._field(name)
        if field.kind not in ('label', 'string', 'scalar'):
            raise DataError(
                f"field '{name}' is of kind {field.kind}, and words() reads label, string and scalar fields: use "
                f"read('{name}')"
            )
        values, valid = self.read(name)
        if field.kind == 'label':
            values = np.array([*(field.vocabulary or ()), None], dtype=object)[values]
        found = values.tolist() if isinstance(values, np.ndarray) else values
        return [value if ok else None for value, ok in zip(found, valid, strict=True)]

    def read(self, name: str, indices: Any = None) -> tuple[Any, np.ndarray]:
        """Values of one field; see `mmpipe.shards.Rows.read`. False in `valid` also where a source has no such field.

        Raises:
            DataError: no source has it.
        """
        field = self._field(name)
        at = np.arange(len(self)) if indices is None else np.arange(len(self))[_positions(indices)]
        if field.dense_shape is not None:
            out = np.empty((len(at), *field.dense_shape), dtype=field.dtype)
            return out, self.fill(name, at, out)
        empty: dict[str, Any] = {'string': '', 'binary': b''}
        if field.kind == 'ragged':
            empty['ragged'] = np.zeros((0, *field.shape), dtype=field.dtype)
        values: list[Any] = [empty[field.kind]] * len(at)
        valid = np.zeros(len(at), dtype=bool)
        for number, where in by_group(self.sources[at]):
            part = self._part(number)
            if name in part.fields:
                found, valid[where] = part.read(name, self.local[at[where]])
                for i, value in zip(where.tolist(), found, strict=True):
                    values[i] = value
        return values, valid

    def fill(self, name: str, indices: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Write values of a dense field into memory that is there; see `mmpipe.shards.Rows.fill`."""
        field = self._field(name)
        local, sources = self.local[indices], self.sources[indices]
        valid = np.zeros(len(local), dtype=bool)
        large = field.kind == 'tensor' and (field.bytes_per_row or 0) >= RUN_BYTES
        for number, where in _runs(sources) if large else by_group(sources):
            part = self._part(number)
            if name not in part.fields:
                out[where] = 0
            elif isinstance(where, slice):  # straight to its place
                valid[where] = part.fill(name, local[where], out[where])
            else:
                some = np.empty((len(where), *(part.fields[name].dense_shape or ())), dtype=field.dtype)
                valid[where] = part.fill(name, local[where], some)
                if field.kind == 'labels':  # its vocabulary may be shorter
                    out[where] = 0
                    out[where, : some.shape[1]] = some
                else:
                    out[where] = some
        return valid

    def _part(self, number: int) -> Rows:
        return self.parts[self.names[number]]

    def _field(self, name: str) -> Field:
        if name not in self.fields:
            raise DataError(
                f"none of {', '.join(self.names)} has a field '{name}'; there are {', '.join(self.fields)}. Name one "
                f'of these, or add it to a snapshot.'
            )
        return self.fields[name]


def _again(parts: Mapping[str, Rows], index: np.ndarray, fields: Iterable[str]) -> ManyRows:
    return ManyRows(parts, index, fields=fields)


def _positions(indices: Any) -> np.ndarray:
    array = np.asarray(indices)
    return array if array.dtype == bool else array.astype(np.int64, copy=False)


def _runs(sources: np.ndarray) -> list[tuple[int, slice]]:
    """Stretches of one number each.

    >>> _runs(np.array([1, 1, 0]))
    [(1, slice(0, 2, None)), (0, slice(2, 3, None))]
    """
    cuts = [0, *(np.flatnonzero(np.diff(sources)) + 1).tolist(), len(sources)]
    return [(int(sources[a]), slice(a, b)) for a, b in pairwise(cuts) if b > a]


def _fields(parts: Mapping[str, Rows], wanted: Iterable[str] | None) -> dict[str, Field]:
    """The fields of all sources, with the longest of their vocabularies."""
    names = list(dict.fromkeys(name for part in parts.values() for name in part.fields))
    chosen = names if wanted is None else list(wanted)
    unknown = [name for name in chosen if name not in names]
    if unknown:
        raise DataError(
            f'None of {", ".join(parts)} has a field {unknown[0]!r}; there are {", ".join(names)}. Correct the name, '
            f'or add the field to a snapshot.'
        )
    return {name: _one(name, {who: part.fields[name] for who, part in parts.items() if name in part.fields})
            for name in chosen}  # fmt: skip


def _one(name: str, found: Mapping[str, Field]) -> Field:
    """One description of a field that fits all sources that have it."""
    longest = max(found, key=lambda who: len(found[who].vocabulary or ()))
    field = found[longest]
    for who, other in found.items():
        rate = other.rate or field.rate  # one that is not known may be the same
        if replace(other, vocabulary=field.vocabulary, rate=rate) != replace(field, rate=field.rate or rate):
            raise DataError(
                f'Field {name!r} is {_form(other)} in {who!r} and {_form(field)} in {longest!r}. Write both snapshots '
                f'with one form, or leave the field out with fields=.'
            )
        words: Sequence[str] = other.vocabulary or ()
        if tuple(words) != tuple((field.vocabulary or ())[: len(words)]):
            i = next(i for i, word in enumerate(words) if word != (field.vocabulary or ())[i])
            raise DataError(
                f'Label {i} of field {name!r} is {words[i]!r} in {who!r} and {(field.vocabulary or ())[i]!r} in '
                f'{longest!r}, so one number would mean two things. Declare one vocabulary for both and write them '
                f'again (it may end earlier in one), or leave the field out with fields=.'
            )
    return field


def _form(field: Field) -> str:
    return f'{field.kind} {field.dtype} {list(field.shape)}' + (f' at {field.rate} Hz' if field.rate else '')

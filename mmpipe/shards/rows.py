"""Rows of a snapshot in any order: their keys and splits, and their values, straight from the mapped files."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmpipe.errors import DataError
from mmpipe.shards import gather
from mmpipe.shards.field import Field
from mmpipe.shards.gather import by_group
from mmpipe.shards.index import hashes_of

if TYPE_CHECKING:
    from mmpipe.shards.reader import Snapshot

KEPT_BYTES = 64 << 20  # of a small field, for all rows of a selection
KEPT_PLACES = 1 << 22  # rows of a selection up to which each one's place is kept, 16 bytes a row
INDEXED = {'_key': '_hash', '_rowid': '_rowid'}  # system columns of which the index has hashes


class Rows:
    """A selection of rows of a snapshot, in an order of its own.

    Args:
        snapshot: where they lie.
        index: int64 positions among the snapshot's live rows.
    """

    def __init__(self, snapshot: Snapshot, index: np.ndarray) -> None:
        self.snapshot = snapshot
        self.index = np.asarray(index, dtype=np.int64)
        self._kept: dict[str, tuple[Any, np.ndarray]] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Rows, (self.snapshot, self.index)  # without the keys and places kept so far

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f'<{len(self)} rows of {self.snapshot!r}>'

    @property
    def fields(self) -> dict[str, Field]:
        """The snapshot's fields by name."""
        return self.snapshot.fields

    @property
    def scattered(self) -> bool:
        """Whether they lie in so many shards that each may have to open one."""
        return self.snapshot.indexed

    @cached_property
    def places(self) -> np.ndarray:
        """Where the rows lie: int64 `[n, 2]` of block and row."""
        return self.snapshot.shards.places(self.snapshot.numbers(self.index))

    def _places_at(self, positions: np.ndarray) -> np.ndarray:
        if len(self) <= KEPT_PLACES or 'places' in vars(self):
            return self.places[positions]
        return self.snapshot.shards.places(self.snapshot.numbers(self.index[positions]))

    @cached_property
    def keys(self) -> np.ndarray:
        """Row keys, an object array of str."""
        return self.system('_key')

    def keys_at(self, positions: np.ndarray) -> np.ndarray:
        """Keys of the rows at int64 positions; where shards are many, only theirs are opened, and no key is kept."""
        if 'keys' in vars(self) or not self.snapshot.indexed:
            return self.keys[positions]
        return self.take(positions).keys

    @cached_property
    def hashes(self) -> np.ndarray:
        """64-bit hashes of the keys, uint64 `[n]`."""
        return self.system('_hash').astype(np.uint64, copy=False)

    def system(self, name: str) -> np.ndarray:
        """One of the columns mmpipe keeps beside the fields: `_key`, `_hash`, `_split`, `_rowid`, `_digest.<field>`."""
        if self.snapshot.indexed and name in ('_hash', '_split'):
            numbers = self.snapshot.numbers(self.index)
            if name == '_hash':
                return self.snapshot.shards.hashes(numbers)
            codes, names = self.snapshot.shards.splits(numbers)
            return np.array(names, dtype=object)[codes] if names else np.empty(0, dtype=object)
        out = np.empty(len(self), dtype=np.uint64 if name == '_hash' else object)
        self.snapshot.bring_keys(self.places[:, 0], name)
        for block, where in by_group(self.places[:, 0]):
            chosen = self.snapshot.stored(block, name).take(pa.array(self.places[where, 1]))
            out[where] = chosen.to_numpy(zero_copy_only=False)
        return out

    def among(self, name: str, values: Sequence[str]) -> np.ndarray:
        """Mask of the rows whose system column `name` holds one of `values`: bool `[n]`."""
        out = np.zeros(len(self), dtype=bool)
        if self.snapshot.indexed and name in INDEXED:  # of hashes there may be others that are equal
            found = self.snapshot.shards.hashes(self.snapshot.numbers(self.index), INDEXED[name])
            likely = np.flatnonzero(np.isin(found, hashes_of(values)))
            asked = set(values)
            out[likely] = [value in asked for value in self.take(likely).system(name)]
            return out
        wanted = pa.array(values, type=pa.large_string())
        self.snapshot.bring_keys(self.places[:, 0], name)
        for block, where in by_group(self.places[:, 0]):
            chosen = self.snapshot.stored(block, name).take(pa.array(self.places[where, 1]))
            out[where] = pc.is_in(chosen.cast(pa.large_string()), value_set=wanted).to_numpy(zero_copy_only=False)
        return out

    def take(self, indices: Any) -> Rows:
        """The rows at these positions of this selection, in the order given; a bool array of its length is a mask."""
        return Rows(self.snapshot, self.index[_positions(indices)])

    def where(self, name: str, value: Any) -> Rows:
        """The rows whose field `name` (label word, string or number) equals `value`."""
        return self.take(np.flatnonzero(np.array([item == value for item in self.words(name)], dtype=bool)))

    def words(self, name: str) -> list[Any]:
        """Values of a label, string or scalar field as Python values, None for null; labels as their words."""
        field = self._field(name)
        values, valid = self.read(name)
        if field.kind == 'label':
            return [field.vocabulary[v] if ok else None for v, ok in zip(values, valid, strict=True)]  # type: ignore[index]
        if field.kind in ('scalar', 'string'):
            values = values.tolist() if isinstance(values, np.ndarray) else values
            return [value if ok else None for value, ok in zip(values, valid, strict=True)]
        raise DataError(
            f"field '{name}' is of kind {field.kind}, and words() reads label, string and scalar fields: use "
            f"read('{name}')"
        )

    def _field(self, name: str) -> Field:
        if name not in self.snapshot.fields:
            raise DataError(
                f"snapshot {self.snapshot.id} in '{self.snapshot.root}' has no field '{name}'; it has "
                f'{", ".join(self.snapshot.fields)}. Name one of these, or add it to fields= of mm.snapshot.'
            )
        return self.snapshot.fields[name]

    def read(self, name: str, indices: Any = None) -> tuple[Any, np.ndarray]:
        """Values of one field.

        Args:
            name: field name.
            indices: positions in this selection; all when None.

        Returns:
            (values, valid). Values: tensor `[n, *shape]`, label int64 `[n]`, labels uint8 `[n, words]`, scalar `[n]`,
            string, binary and ragged a list of n. valid: bool `[n]`, False where the stored value is null; the value
            is then zeros, '' or b'' (ragged: length 0).

        Raises:
            DataError: no such field.
        """
        field = self._field(name)
        places = self.places if indices is None else self._places_at(_positions(indices))
        if field.dense_shape is None:
            return gather.values(self.snapshot, name, places)
        out = np.empty((len(places), *field.dense_shape), dtype=field.dtype)
        return out, gather.fill(self.snapshot, name, places, out)

    def fill(self, name: str, indices: np.ndarray, out: np.ndarray) -> np.ndarray:
        """Write values of a dense field into memory that is there, without another copy.

        Small values of local shards are read once for all rows and kept.

        Args:
            name: a field with a `Field.dense_shape`.
            indices: int64 positions in this selection.
            out: `[n, *dense_shape]` of the field's dtype; each row is written whole.

        Returns:
            bool `[n]`, False where the stored value is null; zeros are written there.

        >>> from mmpipe.shards import Block, write_snapshot
        >>> import tempfile
        >>> fields = [Field(name='price', kind='scalar', dtype='float32')]
        >>> block = Block(keys=['a', 'b'], columns={'price': [1.5, None]})
        >>> rows = write_snapshot(tempfile.mkdtemp(), fields, block).rows()
        >>> out = np.empty(2, dtype='float32')
        >>> rows.fill('price', np.array([1, 0]), out), out
        (array([False,  True]), array([0. , 1.5], dtype=float32))
        """
        kept = self._kept.get(name)
        if kept is None and self._keeps(name):
            kept = self._kept[name] = self.read(name)
        if kept is None:
            return gather.fill(self.snapshot, name, self._places_at(indices), out)
        np.take(kept[0], indices, axis=0, out=out, mode='clip')
        return kept[1][indices]

    def _keeps(self, name: str) -> bool:
        """Whether a field is small enough to be kept; of an object store, or very many shards, all would be opened."""
        size = self.fields[name].bytes_per_row
        few = not self.snapshot.place.remote and not self.snapshot.indexed
        return few and size is not None and size <= 16 and size * len(self) <= KEPT_BYTES


def _positions(indices: Any) -> np.ndarray:
    array = np.asarray(indices)
    return array if array.dtype == bool else array.astype(np.int64, copy=False)

"""Rows as a model sees them: what is fitted on a field has to be fitted on this, and not on what is stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mmpipe.data.batch import BatchTask, Request
from mmpipe.data.collate import as_tensors
from mmpipe.data.transforms.calling import Steps, apply_all, steps_of
from mmpipe.data.transforms.draw import Draw
from mmpipe.shards import Field, Rows

AT_ONCE = 64  # rows that are decoded and transformed together


class SeenRows:
    """The rows of a loader decoded and transformed, on the CPU, less what its transforms do at random.

    Args:
        rows: what is loaded.
        task: makes batches of them.
        transforms: of the loader.

    >>> from mmpipe.data.collate import example_rows
    >>> import mmpipe as mm
    >>> loader = mm.DataLoader(example_rows(), batch_size=1, device='cpu', transforms={'price': lambda x: x * 10})
    >>> list(loader.seen.present('price'))
    [array([15.], dtype=float32)]
    """

    def __init__(self, rows: Rows, task: BatchTask, transforms: Mapping[str, Steps]) -> None:
        self.rows, self._task, self._transforms = rows, task, dict(transforms)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def fields(self) -> dict[str, Field]:
        """As they are stored."""
        return self.rows.fields

    @property
    def snapshot(self) -> Any:
        """Where the rows lie."""
        return self.rows.snapshot

    def take(self, indices: Any) -> SeenRows:
        """The rows at these positions."""
        rows = self.rows.take(indices)
        return SeenRows(rows, self._task.only(self._task.fields, rows=rows), self._transforms)

    def present(self, name: str, *, size: int = 4096) -> Iterator[np.ndarray]:
        """The values of a field that are there, in chunks.

        Args:
            name: of a field.
            size: rows per chunk where they are read as they are stored.

        Yields:
            Arrays `[n, *shape]`: of rows that vary in length, joined along that dimension, without padding; where a
            transform has made something else of them, such as a spectrogram, a batch as it is.

        Raises:
            DataError: a value cannot be decoded, or a transform does not take what it gets.
        """
        task = self._task
        if not (name in task.decode or name in task.host or name in self._transforms):
            yield from present_chunks(self.rows, name, size=size)
            return
        steps = [step for step in steps_of(self._transforms.get(name, ())) if not getattr(step, 'random', False)]
        alone = task.only([name])
        for start in range(0, len(self), AT_ONCE):
            positions = np.arange(start, min(start + AT_ONCE, len(self)))
            batch = as_tensors(alone(Request(positions)))
            before = batch[name].ndim
            batch = apply_all({name: steps}, batch, Draw(self.rows.hashes[positions]))
            values, there = batch[name].numpy(), batch['_mask'][name].numpy()
            if name in batch.get('_length', {}) and values.ndim == before:
                lengths = batch['_length'][name].tolist()
                kept = [row[:length] for row, length, ok in zip(values, lengths, there, strict=True) if ok]
                if kept:
                    yield np.concatenate(kept)
            else:
                yield values[there]


def present_chunks(rows: Any, field: str, *, size: int = 4096) -> Iterator[np.ndarray]:
    """The values of a field that are there, in chunks, so that a field need not fit into memory.

    Args:
        rows: the training rows, or `SeenRows` of them.
        field: its name. Ragged values of a chunk are joined along their first dimension.
        size: rows per chunk.

    Yields:
        Arrays `[n, *shape]`, n at most `size` (ragged: the sum of the lengths).

    >>> from mmpipe.data.collate import example_rows
    >>> list(present_chunks(example_rows(), 'price'))
    [array([1.5], dtype=float32)]
    """
    if isinstance(rows, SeenRows):
        yield from rows.present(field, size=size)
        return
    for start in range(0, len(rows), size):
        values, valid = rows.read(field, np.arange(start, min(start + size, len(rows))))
        if isinstance(values, list):
            kept = [value for value, present in zip(values, valid, strict=True) if present]
            if kept:
                yield np.concatenate(kept)
        else:
            yield values[valid]

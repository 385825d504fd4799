"""A part of a source: every n-th record."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

from mmpipe.errors import SourceError
from mmpipe.sources.record import Bad, Record, Source


def every(source: Source, step: int) -> Every:
    """Every `step`-th record of a source, from the first on: to try a pipeline on a part of its data.

    Args:
        source: any `Source`.
        step: 1 for all, 2 for every second, ...

    Returns:
        A `Source`.

    Raises:
        SourceError: a step below 1.

    >>> import pathlib, tempfile
    >>> from mmpipe.sources import rows
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     manifest = pathlib.Path(folder, 'items.csv')
    ...     _ = manifest.write_text('key\\na\\nb\\nc\\n')
    ...     [record.values['key'] for record in every(rows(manifest), 2).records(key=['key'], media={})]
    ['a', 'c']
    """
    if step < 1:
        raise SourceError(f'every(source, {step}): the step is at least 1')
    return Every(source=source, step=step)


@dataclass(frozen=True, kw_only=True)
class Every:
    """Source made by `every`."""

    source: Source
    step: int

    @property
    def name(self) -> str:
        """Name of the whole source; with the step, so that what is in quarantine for the rest of it stays there."""
        return self.source.name if self.step == 1 else f'{self.source.name} (every {self.step}th)'

    @property
    def part_of(self) -> str | None:
        """Name of the whole source, when this is not all of it: then nothing can be said of rows that are not in it."""
        whole = getattr(self.source, 'part_of', None)
        return whole or (self.source.name if self.step > 1 else None)

    def total(self) -> int | None:
        """Its share of the source's total, rounded up."""
        total = self.source.total()
        return None if total is None else -(-total // self.step)

    def records(self, *, key: list[str], media: Mapping[str, str]) -> Iterator[Record | Bad]:
        """The chosen records; see `Source.records`."""
        return islice(self.source.records(key=key, media=media), 0, None, self.step)

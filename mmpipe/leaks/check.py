"""Find what leaks between the splits of a snapshot: shared parents, equal inputs, images that are nearly the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mmpipe.cores import cores
from mmpipe.errors import ConfigError, DataError
from mmpipe.leaks.nearby import FARTHEST, near_pairs
from mmpipe.leaks.perceptual import grey_of_file, grey_of_tensor, hashes, is_image
from mmpipe.shards import Field, Rows, Snapshot
from mmpipe.shards.field import content_digest

INPUTS = ('tensor', 'ragged', 'string', 'binary')
PAGE_ROWS = 128
MOST_PAIRS = 100_000
WORDS = {'group': 'groups in several splits', 'same': 'equal inputs', 'near': 'nearly equal images'}
MOVES = {
    'group': 'split by it: split_of(...) of the group instead of the row',
    'same': 'give the rows one group, or drop all but one',
    'near': 'look at both; when they show the same, give both the same group',
}


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Rows of different splits that should lie in one.

    Args:
        kind: 'group' (one parent), 'same' (equal input), or 'near' (an image that looks the same).
        field: the field in which they agree; '' for component rows of one base row.
        keys: their keys.
        splits: the split of each.
        value: what they share: the group, or '' for inputs.
        distance: bits in which the perceptual hashes differ; None for the other kinds.
    """

    kind: str
    field: str
    keys: tuple[str, ...]
    splits: tuple[str, ...]
    value: str = ''
    distance: int | None = None

    def __str__(self) -> str:
        shown = [f"'{key}' in {split}" for key, split in zip(self.keys, self.splits, strict=True)]
        if len(shown) > 4:  # of each split one, then the rest
            firsts = [self.splits.index(split) for split in dict.fromkeys(self.splits)]
            order = [*firsts, *(i for i in range(len(shown)) if i not in firsts)]
            shown = [*(shown[i] for i in order[:4]), f'{len(shown) - 4} more']
        what = f"{self.field or 'base row'} '{self.value:.60}'" if self.kind == 'group' else self.field
        far = '' if self.distance is None else f' (distance {self.distance})'
        return f'{what}: {", ".join(shown)}{far}'


@dataclass(frozen=True, kw_only=True)
class LeakReport:
    """What `check_leaks` found.

    Args:
        snapshot: id of the snapshot.
        rows: rows that lie in a split.
        splits: rows per split.
        leaks: what leaks, by kind, field and key.
        flat: image field to number of images without contrast, which were not compared.
        unread: field to number of files that are no image, which were not compared.
        cut: fields in which the search for nearly equal images ended early, since there were too many.
    """

    snapshot: str
    rows: int
    splits: dict[str, int]
    leaks: tuple[Leak, ...] = field(default=(), repr=False)
    flat: dict[str, int] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)
    cut: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing leaks."""
        return not self.leaks

    @property
    def counts(self) -> dict[str, int]:
        """Number of leaks of each kind: 'group', 'same' and 'near'."""
        return {kind: sum(leak.kind == kind for leak in self.leaks) for kind in WORDS}

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        listed = [{**vars(leak), 'keys': list(leak.keys), 'splits': list(leak.splits)} for leak in self.leaks]
        return {
            'snapshot': self.snapshot, 'rows': self.rows, 'splits': dict(self.splits), 'ok': self.ok,
            'counts': self.counts, 'flat': dict(self.flat), 'unread': dict(self.unread), 'cut': list(self.cut),
            'leaks': listed,
        }  # fmt: skip

    def __str__(self) -> str:
        splits = ', '.join(f'{name} {count}' for name, count in self.splits.items()) or 'none'
        line = f'snapshot {self.snapshot}: {self.rows} rows in splits ({splits}); '
        if self.ok:
            return line + ('nothing leaks' if len(self.splits) > 1 else 'nothing to compare, there are not two splits')
        lines = [line + ', '.join(f'{count} {WORDS[kind]}' for kind, count in self.counts.items() if count)]
        for kind, count in self.counts.items():
            found = [leak for leak in self.leaks if leak.kind == kind]
            lines += [f'  {leak}' for leak in found[:3]] + ([f'  ... and {count - 3} more'] if count > 3 else [])
            lines += [f'  -> {MOVES[kind]}'] if found else []
        lines += [f'  {name}: stopped at {MOST_PAIRS} pairs; give a smaller near=' for name in self.cut]
        return '\n'.join(lines)


def check_leaks(
    snapshot: Snapshot, *, group: str | None = None, fields: Iterable[str] | None = None, near: int | None = 8
) -> LeakReport:
    """Look for rows of one origin that lie in different splits, so that a score on one split would flatter.

    Three ways to leak: rows of one group (or component rows of one base row, such as the frames of a video) in several
    splits; inputs that are equal byte by byte; images that look the same, though resized, encoded anew, brightened or
    cut at the edge. Inputs that are one value throughout, such as silence or an empty text, say nothing and are left
    out; so are rows without a split. Memory is bounded by the number of rows, not of pixels.

    Args:
        snapshot: an open snapshot.
        group: string, label or scalar field that names what must stay together; 'group' when the snapshot has such a
            field and this is None.
        fields: input fields to compare; all tensors, ragged arrays, strings and binaries when None. Name some when a
            field may well agree, such as a short caption.
        near: how many of the 64 bits of two images' perceptual hashes may differ, 0 to 15; None to leave it out. At 8
            most copies of an image are found and few others; at 4 hardly any others, and fewer copies.

    Returns:
        What was found; `.ok` when that is nothing.

    Raises:
        DataError: a field that the snapshot does not have, or of a kind that cannot be compared.
        ConfigError: `near` out of its range.

    >>> from mmpipe.shards import Block, write_snapshot
    >>> import tempfile
    >>> fields = [Field(name='group', kind='string'), Field(name='x', kind='tensor', dtype='float32', shape=(2,))]
    >>> values = {'group': ['a', 'a', 'b'], 'x': list(np.eye(3, 2, dtype='float32'))}
    >>> block = Block(keys=['a1', 'a2', 'b1'], columns=values, splits=['train', 'val', 'train'])
    >>> report = check_leaks(write_snapshot(tempfile.mkdtemp(), fields, block))
    >>> report.ok, report.counts
    (False, {'group': 1, 'same': 0, 'near': 0})
    """
    if near is not None and not 0 <= near <= FARTHEST:
        raise ConfigError(f'near={near}: two hashes of 64 bits may differ in 0 to {FARTHEST}; None leaves images out')
    if group is None and 'group' in snapshot.fields:
        group = 'group'
    inputs = _inputs(snapshot, fields, group)
    rows = snapshot.rows()
    rows = rows.take(rows.system('_split') != '')
    names, codes = np.unique(rows.system('_split').astype(str), return_inverse=True)
    seen = _Rows(rows=rows, codes=codes, names=names)
    leaks = list(_parents(seen, group))
    flat: dict[str, int] = {}
    unread: dict[str, int] = {}
    cut = []
    for item in inputs:
        digests = rows.system(f'_digest.{item.name}')
        leaks += _equal(seen, item, digests)
        if near is None:
            continue
        at, bits, counted = _image_hashes(rows, item)
        flat |= {item.name: counted[0]} if counted[0] else {}
        unread |= {item.name: counted[1]} if counted[1] and len(at) else {}
        more, early = _near(seen, item, at, bits, digests, near)
        leaks += more
        cut += [item.name] if early else []
    counts = {str(name): int((codes == i).sum()) for i, name in enumerate(names)}
    return LeakReport(
        snapshot=snapshot.id,
        rows=len(rows),
        splits=counts,
        leaks=tuple(leaks),
        flat=flat,
        unread=unread,
        cut=tuple(cut),
    )


@dataclass(frozen=True, kw_only=True)
class _Rows:
    """Rows that lie in a split, and the number of each one's split."""

    rows: Rows
    codes: np.ndarray
    names: np.ndarray

    def crosses(self, positions: Sequence[int]) -> bool:
        """Whether rows lie in more than one split."""
        return len(positions) > 1 and len(np.unique(self.codes[positions])) > 1

    def leak(self, kind: str, field: str, positions: Sequence[int], **more: Any) -> Leak:
        """The rows as a leak, in the order of their keys."""
        pairs = sorted((str(self.rows.keys[i]), str(self.names[self.codes[i]])) for i in positions)
        keys, splits = zip(*pairs, strict=True)
        return Leak(kind=kind, field=field, keys=keys, splits=splits, **more)


def _inputs(snapshot: Snapshot, fields: Iterable[str] | None, group: str | None) -> list[Field]:
    named = [*([] if fields is None else fields), *([] if group is None else [group])]
    for name in named:
        if name not in snapshot.fields:
            have = ', '.join(snapshot.fields)
            raise DataError(f"snapshot {snapshot.id} has no field '{name}'; it has {have}. Name one of these.")
    chosen = [item for name, item in snapshot.fields.items() if fields is None or name in named]
    wrong = [item.name for item in chosen if item.kind not in INPUTS and item.name != group]
    if fields is not None and wrong:
        raise DataError(f"field '{wrong[0]}' is a scalar or a label, which agree by chance: leave it out of fields=")
    return [item for item in chosen if item.kind in INPUTS and item.name != group]


def _parents(seen: _Rows, group: str | None) -> Iterator[Leak]:
    """Groups in several splits, and base rows whose component rows are."""
    if group is not None:
        yield from _shared(seen, group, [None if word in (None, '') else str(word) for word in seen.rows.words(group)])
    if 'table' in seen.rows.snapshot.manifest.source:  # else '/' in a name means nothing
        # A component row is named 12/3 by the store, and key/3 by its key: the base row's name and a place.
        depths = [str(name).count('/') for name in seen.rows.system('_rowid')]
        keys = seen.rows.keys.tolist()
        yield from _shared(
            seen, '', [key.rsplit('/', depth)[0] if depth else None for key, depth in zip(keys, depths, strict=True)]
        )


def _shared(seen: _Rows, field: str, values: Sequence[str | None]) -> Iterator[Leak]:
    for value, positions in sorted(_positions(values).items()):
        if seen.crosses(positions):
            yield seen.leak('group', field, positions, value=value)


def _equal(seen: _Rows, item: Field, digests: np.ndarray) -> Iterator[Leak]:
    """Inputs with one content digest in several splits."""
    null = content_digest(item, None)
    for positions in _positions([None if digest == null else digest for digest in digests]).values():
        if seen.crosses(positions) and not _constant(seen.rows.read(item.name, positions[:1])[0][0]):
            yield seen.leak('same', item.name, positions)


def _positions(values: Iterable[Any]) -> dict[Any, list[int]]:
    """Where each value but None stands."""
    found: dict[Any, list[int]] = defaultdict(list)
    for i, value in enumerate(values):
        if value is not None:
            found[value].append(i)
    return found


def _constant(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.size == 0 or bool((value == value.flat[0]).all())
    return len(set(value)) < 2


def _image_hashes(rows: Rows, item: Field) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """Positions of a field's images, their hashes, and how many images are flat and how many files no image."""
    none = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.uint64), (0, 0)
    if item.kind != 'binary' and not is_image(item.kind, item.dtype, item.shape):
        return none
    at, bits, flat, unread = [none[0]], [none[1]], 0, 0
    with ThreadPoolExecutor(cores()) as pool:
        for start in range(0, len(rows), PAGE_ROWS):
            page = np.arange(start, min(start + PAGE_ROWS, len(rows)))
            values, valid = rows.read(item.name, page)
            page = page[valid]
            if item.kind == 'binary':
                read = list(pool.map(grey_of_file, (v for v, ok in zip(values, valid, strict=True) if ok)))
                page = page[np.array([grey is not None for grey in read], dtype=bool)]
                unread += len(read) - len(page)
                grey = np.array([grey for grey in read if grey is not None])
            else:
                grey = grey_of_tensor(values[valid])
            if len(page) == 0:
                if unread and len(at) == 1:  # a whole page of other files: audio, documents
                    return none
                continue
            found, clear = hashes(grey)
            flat += int((~clear).sum())
            at.append(page[clear])
            bits.append(found[clear])
    return np.concatenate(at), np.concatenate(bits), (flat, unread)


def _near(
    seen: _Rows, item: Field, at: np.ndarray, bits: np.ndarray, digests: np.ndarray, near: int
) -> tuple[list[Leak], bool]:
    """Images that look the same in several splits, but those whose bytes are equal."""
    if len(seen.names) > 64:
        raise DataError(
            f'{len(seen.names)} splits, and images are compared between at most 64: near=None leaves them out'
        )
    unique, inverse = np.unique(bits, return_inverse=True)
    order = np.argsort(inverse, kind='stable')
    ends = np.cumsum(np.bincount(inverse, minlength=len(unique)))
    splits = np.zeros(len(unique), dtype=np.uint64)
    np.bitwise_or.at(splits, inverse, np.uint64(1) << seen.codes[at].astype(np.uint64))
    pairs, distances, cut = near_pairs(unique, splits, near, most=MOST_PAIRS)
    alone = np.flatnonzero(splits & (splits - np.uint64(1)))  # one hash in several splits
    leaks = []
    for first, second, distance in [
        *((i, i, 0) for i in alone.tolist()),
        *((i, j, d) for (i, j), d in zip(pairs.tolist(), distances.tolist(), strict=True)),
    ]:
        of = [at[order[(ends[i - 1] if i else 0) : ends[i]]] for i in sorted({first, second})]
        positions = np.concatenate(of).tolist()
        if len({digests[i] for i in positions}) > 1:
            leaks.append(seen.leak('near', item.name, positions, distance=distance))
    return leaks, cut

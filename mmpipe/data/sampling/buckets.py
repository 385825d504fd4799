"""Length bucketing: batches of rows of similar length, as many as a budget of tokens or seconds holds.

    lengths, in groups that differ by 10 %   3 3 3 4 4 | 7 7 | 9 9 9        shuffled inside each group
    cut by a budget of 18                    3 3 3 4 | 4 7 | 7 9 | 9 9      each batch: rows * longest <= 18
    the sequence                             7 9 | 3 3 3 4 | 9 9 | 4 7      batches shuffled

A group counts as long as its longest row. So the cuts come at the same places every epoch, whichever rows are shuffled
there: an epoch always has the same number of batches, and a schedule of the learning rate can rely on it.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np

from mmpipe.data.order import epoch_order, mix, splitmix64
from mmpipe.data.sampling.contract import Sampling, Selection, first_few
from mmpipe.data.sampling.lengths import lengths_of
from mmpipe.data.sampling.weighted import digest_of
from mmpipe.data.sampling.whole import Shuffle
from mmpipe.errors import ConfigError, DataError

BATCHES = 0x62617463  # keeps the order of batches apart from that of rows


@dataclass(frozen=True, eq=False)
class Buckets:
    """Batches of rows of similar length, each of at most `budget` when padded: rows * longest <= budget.

    Every row comes once an epoch, or as often as `of` says. Independent of where rows are stored. It cuts
    its batches itself (`cuts`), so a loader takes no batch size beside it:

        budget=          each rank takes one batch per step: what fits on a device, in memory and time
        global_budget=   each step is one batch, which the ranks share evenly by length: the same steps in any world

    Args:
        lengths: a ragged field (steps), a string or binary field (bytes), a number field (such as a duration in
            seconds), or an array with a number per row. A missing value counts as the shortest one.
        budget: the padded length of a batch on one rank, in the unit of the lengths.
        global_budget: instead of it, of a step over all ranks.
        max_rows: in a batch, however short they are.
        ratio: lengths that differ by less than this factor are shuffled together: more mixes better and pads more.
        together: batches of similar length that follow each other. Give the number of ranks, so that they do not wait
            for each other where time does not grow in proportion to the padded length.
        of: what an epoch visits, such as `Weighted(...)`, or the sampling of a mixture: give the loader
            `Sampled(mixed.rows, Buckets(..., of=mixed.sampling))`. All rows once when None. Where it visits other rows
            in other epochs, these can have a step more or less.
        cut: cut the sequence by this smaller budget, to go on with less memory: the sequence, and so a state, stays
            that of `budget`.
        over: a row longer than the budget comes as a batch of its own, which is told ('alone'), or is an error
            ('refuse').

    Raises:
        ConfigError: not exactly one budget, or numbers that are not possible.
        DataError: (when used) lengths that are no lengths, or a row longer than the budget with `over='refuse'`.

    >>> from mmpipe.data.collate import example_rows
    >>> rows = example_rows().take([0, 1, 0, 1, 0])
    >>> buckets = Buckets(np.array([2, 9, 2, 8, 2]), budget=18)
    >>> buckets.sequence(rows, seed=0, epoch=0), buckets.cuts(rows, seed=0, epoch=0).tolist()
    (array([3, 1, 0, 2, 4]), [[0, 2], [2, 5]])
    """

    lengths: str | np.ndarray | list[float]
    _: KW_ONLY
    budget: float | None = None
    global_budget: float | None = None
    max_rows: int | None = None
    ratio: float = 1.1
    together: int = 1
    of: Sampling | None = None
    cut: float | None = None
    over: Literal['alone', 'refuse'] = 'alone'

    def __post_init__(self) -> None:
        if (self.budget is None) == (self.global_budget is None) or not 0 < self.whole < math.inf:
            raise ConfigError(
                f'Buckets(budget={self.budget}, global_budget={self.global_budget}): give one of the two, above 0: '
                f'rows times the longest, of a batch on one rank or of a step over all ranks.'
            )
        if self.cut is not None and not 0 < self.cut <= self.whole:
            raise ConfigError(
                f'Buckets(cut={self.cut}): it divides the budget, so it lies above 0, up to {self.whole}.'
            )
        if self.ratio <= 1 or self.together < 1 or (self.max_rows is not None and self.max_rows < 1):
            raise ConfigError(
                f'Buckets(ratio={self.ratio}, together={self.together}, max_rows={self.max_rows}): the ratio is above '
                f'1, the others at least 1.'
            )
        if self.over not in ('alone', 'refuse'):
            raise ConfigError(f"Buckets(over={self.over!r}): 'alone' or 'refuse'.")

    @property
    def whole(self) -> float:
        """The budget that the batches are made by."""
        return (self.budget if self.global_budget is None else self.global_budget) or 0.0

    def sequence(self, rows: Selection, *, seed: int, epoch: int) -> np.ndarray:
        """int64 `[length]`: the rows of one batch after those of another."""
        return self._made(rows, seed, epoch, tell=True)[0]

    def length(self, rows: Selection) -> int:
        """All rows, or what `of` visits."""
        return self._of.length(rows)

    def identity(self) -> dict[str, Any]:
        """As JSON; `cut` is not in it, as the sequence does not depend on it."""
        by = self.lengths if isinstance(self.lengths, str) else digest_of(self.lengths)
        return {
            'sampling': 'buckets', 'lengths': by, 'budget': self.budget, 'global_budget': self.global_budget,
            'max_rows': self.max_rows, 'ratio': self.ratio, 'together': self.together,
            'of': self._of.identity(),
        }  # fmt: skip

    def cuts(self, rows: Selection, *, seed: int, epoch: int, start: int = 0, world_size: int = 1) -> np.ndarray:
        """Where the steps from sample `start` on are cut: int64 `[steps, world_size + 1]`.

        In step s, rank r takes `sequence[cuts[s, r]:cuts[s, r + 1]]`; `cuts[s, -1]` samples are done after it. With
        `budget`, a last step with fewer batches than ranks divides them further, so that no rank is without rows
        where there is one for each.

        Args:
            rows: as for `sequence`.
            seed: of the run.
            epoch: from 0. From `start=0`, each epoch has the same number of steps.
            start: samples that are done; it may lie inside a batch.
            world_size: number of ranks.
        """
        sequence, groups, lengths = self._made(rows, seed, epoch)
        ends = groups.ends(seed, epoch, cut=self.cut, start=start)
        return (
            _steps(ends, world_size) if self.global_budget is None else rank_cuts(lengths[sequence], ends, world_size)
        )

    def too_long(self, rows: Selection) -> np.ndarray:
        """Positions of the rows that are longer than the budget."""
        return np.flatnonzero(lengths_of(rows, self.lengths) > self.whole)  # type: ignore[arg-type]

    @property
    def _of(self) -> Sampling:
        return self.of or Shuffle()

    def _made(
        self, rows: Selection, seed: int, epoch: int, *, tell: bool = False
    ) -> tuple[np.ndarray, _Groups, np.ndarray]:
        """(sequence, its groups, lengths of all rows)."""
        lengths = self._lengths(rows, tell=tell)
        visited = self._of.sequence(rows, seed=seed, epoch=epoch)
        groups = _Groups(lengths[visited], self)
        starts, sizes = groups.batches(seed, epoch)
        along = np.repeat(starts - (np.cumsum(sizes) - sizes), sizes) + np.arange(len(visited))
        return visited[groups.order[along]], groups, lengths

    def _lengths(self, rows: Selection, *, tell: bool = False) -> np.ndarray:
        lengths = lengths_of(rows, self.lengths)  # type: ignore[arg-type]
        long = np.flatnonzero(lengths > self.whole)
        if len(long):
            said = f'{len(long):,} of {len(rows):,} rows are longer than the budget of {self.whole:g}'
            keys = first_few(rows.keys[long[:3]], len(long))
            if self.over == 'refuse':
                raise DataError(
                    f'{said}: {keys} (the longest has {lengths.max():g}). Raise the budget, cut these rows, or leave '
                    f'them out with rows.take(...).'
                )
            if tell:
                warnings.warn(f'{said} and come as batches of their own: {keys}.', stacklevel=3)
        # A missing row takes room too: it is padded to those around it.
        return np.where(lengths > 0, lengths, lengths[lengths > 0].min() if lengths.any() else 1.0)


class _Groups:
    """Rows grouped by length, and batches cut from the groups; the same cuts in every epoch that visits the same rows.

    Args:
        lengths: float64 `[N]`, above 0, in the order visited; rows of one group keep it.
        by: budget, rows, ratio and how many batches stay together.
    """

    def __init__(self, lengths: np.ndarray, by: Buckets) -> None:
        self.by = by
        # A fixed grid of powers, so that rows that are appended do not move others to another group.
        _, number = np.unique(np.ceil(np.log(lengths) / math.log(by.ratio) - 1e-9), return_inverse=True)
        counts = np.bincount(number)
        self.order = np.argsort(number, kind='stable')
        behind = np.cumsum(counts)
        longest = np.maximum.reduceat(lengths[self.order], behind - counts) if len(counts) else np.zeros(0)
        self.bounds, self.longest = _cut(behind, longest, by.whole, by.max_rows)

    def batches(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(start among the rows sorted by group, rows) of each batch, in the order of the epoch."""
        at = self._order(seed, epoch)
        return self.bounds[at], self.bounds[at + 1] - self.bounds[at]

    def ends(self, seed: int, epoch: int, *, cut: float | None, start: int) -> np.ndarray:
        """Where batches end in the sequence, `start` first."""
        at = self._order(seed, epoch)
        sizes = self.bounds[at + 1] - self.bounds[at]
        ends = np.cumsum(sizes)
        if cut is not None and len(at):
            pieces = np.maximum(_fitting(cut, self.longest[at]), 1)
            counts = -(-sizes // pieces)
            which = np.repeat(np.arange(len(at)), counts)
            nth = np.arange(len(which)) - (np.cumsum(counts) - counts)[which]
            ends = np.minimum((ends - sizes)[which] + (nth + 1) * pieces[which], ends[which])
        return np.concatenate([[start], ends[ends > start]])

    def _order(self, seed: int, epoch: int) -> np.ndarray:
        """Numbers of the batches in the order of an epoch."""
        count, together = len(self.bounds) - 1, self.by.together
        whole, rest = divmod(count, together)
        salt = mix(BATCHES, seed)
        if not rest:
            sets = epoch_order(splitmix64(np.arange(whole, dtype=np.uint64)), salt, epoch)
            return (sets[:, None] * together + np.arange(together)).reshape(-1)
        # A set of fewer batches would put the others out of step with the ranks: it comes last, and any set can be it.
        short = mix(salt, epoch, 1) % (whole + 1)
        sets = epoch_order(splitmix64(np.arange(whole, dtype=np.uint64)), salt, epoch)
        starts = sets * together + np.where(sets >= short, rest, 0)
        order = (starts[:, None] + np.arange(together)).reshape(-1)
        return np.concatenate([order, short * together + np.arange(rest)])


def _cut(behind: np.ndarray, longest: np.ndarray, budget: float, max_rows: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Cut rows, sorted by group, into batches: (bounds int64 `[M + 1]`, longest float64 `[M]`)."""
    bounds, tall = [0], []
    at, start, before = 0, 0, 0.0
    most = behind[-1] if len(behind) else 0
    sizes = np.clip(_fitting(budget, longest), 1, most if max_rows is None else max_rows) if most else longest
    for stop, length, size in zip(behind.tolist(), longest.tolist(), sizes.tolist(), strict=True):
        if at < start and start - at >= size:  # the open batch holds as many shorter rows as fit beside one of these
            bounds.append(start)
            tall.append(before)
            at = start
        full = (stop - at) // size
        bounds += range(at + size, at + full * size + 1, size)
        tall += [length] * full
        at += full * size
        start, before = stop, length
    if at < start:
        bounds.append(start)
        tall.append(before)
    return np.array(bounds, dtype=np.int64), np.array(tall, dtype=np.float64)


def _fitting(budget: float, longest: np.ndarray) -> np.ndarray:
    """How many rows of a length a budget holds; 0 where none fits."""
    found = np.floor(budget / longest)
    return np.minimum(found - (found * longest > budget), 2.0**53).astype(np.int64)


def _steps(ends: np.ndarray, world_size: int) -> np.ndarray:
    """One batch for each rank and step; those that are left at the end are divided further."""
    count = len(ends) - 1
    full, left = divmod(count, world_size)
    cuts = ends[np.arange(full)[:, None] * world_size + np.arange(world_size + 1)]
    if left:
        rows, ranks = np.diff(ends[-1 - left :]), np.ones(left, dtype=np.int64)
        for _ in range(world_size - left):  # each further one helps with the batch that has most rows per rank
            ranks[np.argmax(rows / ranks)] += 1
        last = [ends[-1 - left : -left]]
        for a, b, parts in zip(ends[-1 - left : -1], ends[-left:], ranks, strict=True):
            last.append(a + (b - a) * np.arange(1, parts + 1) // parts)
        cuts = np.concatenate([cuts, np.concatenate(last)[None]])
    return cuts


def rank_cuts(lengths: np.ndarray, ends: np.ndarray, world_size: int) -> np.ndarray:
    """Divide each step among the ranks, so that the lengths of each part sum up to about the same.

    Args:
        lengths: `[N]` along the sequence.
        ends: int64 `[steps + 1]`: where the first step starts and each one ends.
        world_size: number of ranks.

    Returns:
        int64 `[steps, world_size + 1]`; no part is empty where a step has a row for each rank.

    >>> rank_cuts(np.array([1, 1, 1, 3, 2, 2, 2]), np.array([0, 4, 7]), 2)
    array([[0, 3, 4],
           [4, 6, 7]])
    """
    total = np.concatenate([[0.0], np.cumsum(lengths)])
    start, stop = ends[:-1, None], ends[1:, None]
    share = np.arange(1, world_size) / world_size
    aim = total[start] + (total[stop] - total[start]) * share
    after = np.clip(np.searchsorted(total, aim), start, stop)
    before = np.maximum(after - 1, start)
    cuts = np.where(aim - total[before] < total[after] - aim, before, after)
    # At least one row for each rank, where there are enough: rank r starts r rows in or later.
    offsets = np.minimum(np.arange(1, world_size), stop - start)
    room = np.maximum(stop - start - world_size, 0)
    cuts = start + np.clip(np.maximum.accumulate(cuts - start - offsets, axis=1), 0, room) + offsets
    return np.concatenate([start, cuts, stop], axis=1)


def padding_share(lengths: np.ndarray, sequence: np.ndarray, cuts: np.ndarray) -> float:
    """The share of padding in the batches of an epoch.

    Args:
        lengths: `[N]`, one per row.
        sequence: positions in the order visited.
        cuts: int64 `[steps, world_size + 1]`, as `Buckets.cuts` gives them, or `[steps + 1]` for one rank.

    >>> padding_share(np.array([1, 3, 2, 2]), np.array([0, 1, 2, 3]), np.array([0, 2, 4])) == 1 - 8 / 10
    True
    """
    bounds = np.unique(cuts)
    along = np.asarray(lengths)[sequence[: bounds[-1]]]
    padded = np.maximum.reduceat(along, bounds[:-1]) * np.diff(bounds)
    return float(1 - along[bounds[0] :].sum() / padded.sum())

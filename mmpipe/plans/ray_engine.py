"""Compute on Ray: fill the result cache there, so that the apply that follows finds every cell in it.

    rows ─► arguments, keys ─► pages of what no cache holds ─► map_batches: one function, one model per actor
    (here)  (here)             (Ray's memory, a few at a time)       │
    the local apply ◄─ reads ─ result cache ◄─ as they come ─────────┘

Whatever does not come back (an error, a function that is not cached, a result that cannot be kept) the local apply
computes, and records as it always does: values are the same with and without Ray.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from mmpipe.cores import cores
from mmpipe.errors import ConfigError, PlanError, require
from mmpipe.ledger import Book
from mmpipe.ledger.prints import dependents
from mmpipe.plans.backfill import Part, Progress
from mmpipe.plans.ray_pages import Job, Stream
from mmpipe.plans.ray_worker import ray_module
from mmpipe.results import cache_limit, result_cache
from mmpipe.results.cache import LIMIT_VARIABLE
from mmpipe.store.calls import calls_in, rows_over
from mmpipe.wording import how_many

_log = logging.getLogger(__name__)
STARTS = 3
OBJECT_STORE = 512 << 20  # bytes, of a Ray that is started here; it spills to disk beyond
FULL = 0.8  # of the result cache: at 0.9 it begins to drop what was not read yet


@dataclass(frozen=True, kw_only=True)
class RayEngine:
    """Ray, and what of it an apply takes: `mm.apply(plan, engine=mm.RayEngine(actors=8, gpus=1))`.

    A Ray that this process runs is taken; else the cluster of `$RAY_ADDRESS`; else one is started on this machine, and
    stopped at the end. Each actor loads what the function loads once.

    Args:
        actors: processes that compute; None for as many as the cluster has room for.
        cpus: CPU cores of each.
        gpus: GPUs of each, or the share of one.

    Raises:
        ConfigError: a number that is not possible.

    >>> RayEngine(gpus=0.5).cpus
    1.0
    """

    actors: int | None = None
    cpus: float = 1.0
    gpus: float = 0.0

    def __post_init__(self) -> None:
        if self.actors is not None and self.actors < 1:
            raise ConfigError(f'actors={self.actors}: at least one process')
        if self.cpus < 0 or self.gpus < 0 or not self.cpus + self.gpus:
            raise ConfigError(f'cpus={self.cpus}, gpus={self.gpus}: numbers from 0 on, not both 0')


@dataclass(frozen=True, kw_only=True)
class RayColumn:
    """What became of a computed column of an apply with `engine='ray'`.

    Args:
        column: 'directory/table.column'.
        cells: cells that Ray computed.
        known: cells whose result was in the cache already.
        left: cells that were left to this process.
        workers: processes that computed them.
        why: why cells were left, or the whole column; '' where none were.

    >>> print(RayColumn(column='shop/items.vector', cells=90, left=1, workers=2, why='their function raised'))
    shop/items.vector: 90 cells on Ray by 2 workers, 1 left to this process (their function raised)
    """

    column: str
    cells: int = 0
    known: int = 0
    left: int = 0
    workers: int = 0
    why: str = ''

    def __str__(self) -> str:
        if not self.cells and not self.known and not self.left:
            return f'{self.column}: computed here, {self.why}'
        parts = [f'{how_many(self.cells, "cell")} on Ray by {how_many(self.workers, "worker")}' if self.cells else '']
        parts += [f'{self.known:,} in the cache' if self.known else '']
        parts += [f'{self.left:,} left to this process ({self.why})' if self.left else '']
        return f'{self.column}: {", ".join(part for part in parts if part)}'

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)


def engine_of(engine: str | RayEngine) -> RayEngine | None:
    """What `engine` of `mm.apply` means; None for the local one.

    Raises:
        ConfigError: there is no such engine, or no result cache for Ray to fill.
        MissingExtraError: Ray is not installed.

    >>> engine_of('local') is None
    True
    >>> engine_of('spark')
    Traceback (most recent call last):
    ...
    mmpipe.errors.ConfigError: engine='spark': there is 'local' and 'ray'
    """
    if engine == 'local':
        return None
    if engine != 'ray' and not isinstance(engine, RayEngine):
        raise ConfigError(f"engine={engine!r}: there is 'local' and 'ray'")
    require('ray', 'ray', why="engine='ray'")
    if not cache_limit():
        raise ConfigError(
            f"engine='ray' hands results over in the result cache, and it has no size: set {LIMIT_VARIABLE}, in "
            f'gigabytes, to more than the columns to compute take; such as {LIMIT_VARIABLE}=5.'
        )
    return engine if isinstance(engine, RayEngine) else RayEngine()


@dataclass
class RayFill:
    """Fills the result cache on Ray, for one apply; `reports` tells what came of it.

    Args:
        engine: what of Ray to take.
        part: which rows the apply makes, and how many may fail.
        progress: called as `progress('ray', done, total, 'cells')`, per column.
    """

    engine: RayEngine
    part: Part
    progress: Progress | None = None
    reports: dict[tuple[str, str], RayColumn] = field(default_factory=dict)
    _kept: int = 0  # bytes that this apply put into the cache
    _ours: bool = False
    _ready: bool = False

    def __call__(self, book: Book, names: Sequence[tuple[str, str]], among: set[int] | None) -> None:
        """Fill the cache for columns of one base table, and for those that are computed with them.

        Raises:
            PlanError: a worker runs other code than this process, or cannot import it; or Ray itself failed.
        """
        again = set(names) | dependents(names, book.prints)
        jobs: dict[tuple[str, str], list[Job]] = {}
        for name in [name for name in book.prints if name in again and name[1]]:
            rows = book.rows_to_make(*name)
            rows = rows if among is None else [row for row in rows if row in among]
            if rows:
                jobs[name] = _jobs(book.tables[name[0]], name, rows, again)
        try:
            self._run([job for each in jobs.values() for job in each])
        finally:
            for name, each in jobs.items():
                self.reports[name] = _report(f'{name[0]}.{name[1]}', each)

    def _run(self, jobs: list[Job]) -> None:
        cache = result_cache()
        assert cache is not None  # checked by engine_of
        room = int(FULL * cache.limit) - self._kept
        stream = Stream(jobs, self.engine, cache=cache, room=room, spent=self.part.spent, progress=self.progress)
        if not stream.jobs:  # all of it is in the cache: nothing to start Ray for
            return
        self._start()
        try:
            stream.run()
        finally:
            self._kept += stream.kept

    def _start(self) -> None:
        """Have Ray: this process's, that of $RAY_ADDRESS, or one of our own."""
        if self._ready:
            return
        ray = ray_module()
        if not ray.is_initialized():
            there = {'address': os.environ.get('RAY_ADDRESS')}
            own = {
                'address': 'local', 'num_cpus': cores(), 'include_dashboard': False, 'object_store_memory': OBJECT_STORE
            }  # fmt: skip
            _begin(ray, there if there['address'] else own)
            self._ours = True
        self._ready = True

    def close(self) -> None:
        """Stop Ray where it was started here."""
        if self._ours:
            ray_module().shutdown()
            self._ours = self._ready = False


def _begin(ray: Any, where: dict[str, Any]) -> None:
    """Start Ray or join it. It gives a start 30 s, which a machine at work may not keep: then again."""
    for left in reversed(range(STARTS)):
        try:
            ray.init(log_to_driver=False, logging_level='ERROR', **where)
            return
        except Exception as error:
            ray.shutdown()
            if not left:
                raise PlanError(
                    f'Ray did not start in {STARTS} attempts ({type(error).__name__}: {error}). Check $RAY_ADDRESS, or '
                    f'leave engine= out to compute here.'
                ) from error
            _log.warning('Ray did not start (%s): trying again', error)


def _jobs(table: Any, name: tuple[str, str], rows: list[int], again: set[tuple[str, str]]) -> list[Job]:
    """The calls of a column that go to Ray."""
    calls = [call for call in calls_in(table, name[1], again) if hasattr(call.function, 'cell_keys')]
    calls = [call for call in calls if call.expressions]
    rowids = rows_over(table, rows) if calls else []
    return [Job(column=f'{name[0]}.{name[1]}', table=table, call=call, rowids=rowids) for call in calls]


def _report(column: str, jobs: list[Job]) -> RayColumn:
    if not jobs:
        return RayColumn(column=column, why='since none of its functions is @cached')
    return RayColumn(
        column=column,
        cells=sum(job.computed for job in jobs),
        known=sum(job.known for job in jobs),
        left=sum(job.left for job in jobs),
        workers=len(set().union(*(job.workers for job in jobs))),
        why='; '.join(dict.fromkeys(why for job in jobs for why in job.why)),
    )


@contextmanager
def filling(engine: RayEngine | None, part: Part, progress: Progress | None) -> Iterator[RayFill | None]:
    """Ray for one apply; None for the local engine."""
    if engine is None:
        yield None
        return
    fill = RayFill(engine, part, progress)
    try:
        yield fill
    finally:
        fill.close()

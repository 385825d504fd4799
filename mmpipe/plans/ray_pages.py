"""Pages of cells on their way to Ray and back: a few at a time, so that a column of any size fits.

    here                                      Ray
    make page 7 ─► put, tell ──────────────►  Pages: number ─► reference
    page numbers 0..n ─────────────────────►  map_batches(Compute): take page 5, compute it
    keep results, forget page 4 ◄───────────  results of page 4

What Ray is given at once is numbers alone. A page is made when fewer than a window of them are out, and kept until its
results are here: whichever worker dies, another one takes the same number.
"""

from __future__ import annotations

import itertools
import json
import logging
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmpipe.errors import PlanError
from mmpipe.home import home_dir
from mmpipe.plans.ray_worker import Compute, Pages, packed, ray_module, size_of
from mmpipe.settings import counted_packages
from mmpipe.store.calls import Call, arguments_of
from mmpipe.store.rows import pages as pages_of

if TYPE_CHECKING:
    from mmpipe.plans.backfill import Progress
    from mmpipe.plans.ray_engine import RayEngine
    from mmpipe.results import ResultCache

PAGE_CELLS = 64  # two batches of a model, so that one is prepared while the other runs
PAGE_BYTES = 16 << 20
IN_FLIGHT = 2  # pages per actor: the next one waits there
TELL_S = 0.5
_Cell = tuple[bytes, dict[str, Any], dict[str, Any]]


@dataclass
class Job:
    """One call of one column, and what became of its cells so far.

    Args:
        column: 'directory/table.column', for messages.
        table: the table or view that declares it.
        call: what is computed.
        rowids: of the rows to compute it for.
        passed: rows that were looked at: their cells are sent, known, or not to be read.
        known: cells that the cache had before, or that equal one that is out.
        computed: results that came from Ray.
        left: cells that this process has to compute.
        tried: cells that Ray worked at.
        failed: of those, whose function raised.
        workers: node and process id of those that computed any.
        why: why cells were left.
        stopped: whether no more cells are sent.
    """

    column: str
    table: Any
    call: Call
    rowids: Sequence[Any]
    passed: int = 0
    known: int = 0
    computed: int = 0
    left: int = 0
    tried: int = 0
    failed: int = 0
    workers: set[tuple[str, int]] = field(default_factory=set)
    why: list[str] = field(default_factory=list)
    stopped: bool = False

    def leave(self, cells: int, why: str) -> None:
        """Note cells that are left, and why, each reason once."""
        self.left += cells
        if cells and why not in self.why:
            self.why.append(why)

    def stop(self, why: str) -> None:
        """Leave what was not looked at yet."""
        if not self.stopped:
            self.stopped = True
            self.leave(len(self.rowids) - self.passed, why)
            self.passed = len(self.rowids)

    def cells(self, cache: ResultCache) -> Iterator[_Cell]:
        """(key, arguments, constants) of the cells that the cache does not hold, equal ones once per page."""
        keys = self.call.function.cell_keys
        for page in pages_of(self.rowids, PAGE_CELLS):
            here: set[bytes] = set()
            for named in arguments_of(self.table, self.call, page):
                key = None if named is None else keys.key((), named)
                if named is None or key is None:
                    self.leave(1, 'what they are computed from cannot be read or told apart')
                elif key in here or cache.get(key) is not None:
                    self.known += 1
                else:
                    here.add(key)
                    sent = {name: packed(value) for name, value in named.items()}
                    yield key, sent, keys.constants(keys.given((), named))
                if self.stopped:
                    return
            self.passed += len(page)


@dataclass(frozen=True)
class _Out:
    """A page that is out."""

    job: Job
    reference: Any
    keys: frozenset[bytes]


class Stream:
    """Jobs on Ray: pages out, results in.

    Args:
        jobs: in order of dependency.
        engine: actors and what each takes.
        cache: where results are kept.
        room: bytes of results that the cache can take.
        spent: whether so many failed of so many tried are too many.
        progress: called as `progress('ray', done, total, 'cells')`.
    """

    def __init__(
        self, jobs: Sequence[Job], engine: RayEngine, *, cache: ResultCache, room: int,
        spent: Callable[[int, int], bool], progress: Progress | None,
    ) -> None:  # fmt: skip
        self.engine, self.cache, self.room, self.spent, self.progress = engine, cache, room, spent, progress
        self.kept = 0  # bytes
        self._out: dict[int, _Out] = {}
        self._made, self._ended = 0, False
        self._moved = threading.Condition()
        self._error: BaseException | None = None
        self._back = threading.Event()  # all results are here, or none will come
        self.jobs: list[tuple[Job, Iterator[_Cell], int]] = []  # with cells, and how many a page takes
        self._total, self._done = 0, 0
        per_page = PAGE_CELLS
        for job in jobs:
            cells: Iterator[_Cell] = job.cells(cache)
            if not job.call.nested or not self.jobs:  # else its arguments come from what is not computed yet
                first = next(cells, None)
                if first is None:
                    continue
                size = sum(size_of(value) for value in first[1].values())
                per_page = max(1, min(PAGE_CELLS, PAGE_BYTES // max(size, 1)))
                cells = itertools.chain([first], cells)
            self.jobs.append((job, cells, per_page))
            self._total += len(job.rowids) - job.passed

    def run(self) -> None:
        """Send cells and keep what comes back; returns when all of it is in the cache.

        Raises:
            PlanError: a worker refuses, or Ray failed.
        """
        ray = ray_module()
        numbers = sum(math.ceil(len(job.rowids) / per_page) for job, _, per_page in self.jobs)
        actors = min(self._actors(), numbers)
        self._pages = ray.remote(Pages).options(num_cpus=0, max_restarts=-1, max_task_retries=-1).remote()
        results = threading.Thread(target=self._take_back, args=(numbers, actors), name='mmpipe-ray-results')
        telling = threading.Thread(target=self._keep_telling, name='mmpipe-ray-pages')
        results.start()
        telling.start()
        try:
            for job, cells, per_page in self.jobs:
                if job.call.nested:
                    self._wait(1)
                while not (job.stopped or self._error) and (page := list(itertools.islice(cells, per_page))):
                    self._wait(IN_FLIGHT * actors + 2)
                    if self._error:
                        break
                    self._send(job, page)
        except BaseException as error:
            self._give_up(error)
            raise
        finally:
            with self._moved:
                self._ended = True
            self._tell()
            results.join()
            self._back.set()
            telling.join()
            ray.kill(self._pages)
        if self._error is not None:
            raise self._error

    def _actors(self) -> int:
        if self.engine.actors is not None:
            return self.engine.actors
        there = ray_module().cluster_resources()
        wanted = {'CPU': self.engine.cpus, 'GPU': self.engine.gpus}
        room = min(there.get(kind, 0) // each for kind, each in wanted.items() if each)
        if room < 1:
            raise PlanError(
                f'an actor of {self.engine.cpus:g} CPU and {self.engine.gpus:g} GPU has no room in this Ray cluster, '
                f'which has {there.get("CPU", 0):g} CPU and {there.get("GPU", 0):g} GPU. Ask for less in mm.RayEngine.'
            )
        return int(room)

    def _wait(self, window: int) -> None:
        """Until fewer pages than this are out."""
        with self._moved:
            self._moved.wait_for(lambda: self._error is not None or len(self._out) < window)

    def _send(self, job: Job, page: list[_Cell]) -> None:
        """Put a page where a worker finds it under the next number."""
        with self._moved:
            out = set().union(*(page.keys for page in self._out.values()))
        new = [cell for cell in page if cell[0] not in out]  # equal cells are out already
        job.known += len(page) - len(new)
        prints: dict[str, tuple[dict[str, Any], str]] = {}
        for _, _, constants in new:
            prints.setdefault(repr(constants), (constants, job.call.function.cell_keys.print(constants)))
        cells = [(key, sent) for key, sent, _ in new]
        reference = ray_module().put({'path': job.call.path, 'cells': cells, 'prints': list(prints.values())})
        with self._moved:
            self._out[self._made] = _Out(job, reference, frozenset(key for key, _, _ in new))
            self._made += 1
        self._tell()

    def _tell(self) -> None:
        with self._moved:
            held, made, ended = {n: [page.reference] for n, page in self._out.items()}, self._made, self._ended
        self._pages.tell.remote(held, made, ended)

    def _keep_telling(self) -> None:
        """Tell all of it again and again, since the actor that was told may be a new one by now."""
        while not self._back.wait(TELL_S):
            self._tell()

    def _take_back(self, numbers: int, actors: int) -> None:
        """Keep results as they come."""
        try:
            for batch in self._batches(numbers, actors):
                self._keep(batch)
        except Exception as error:  # noqa: BLE001 (Ray raises anything)
            last = (str(error).strip().splitlines() or [''])[-1]
            self._give_up(
                PlanError(
                    f'Ray failed ({type(error).__name__}: {last}). What it had computed is in the result cache: apply '
                    f"again, on Ray or with engine='local'."
                )
            )

    def _batches(self, numbers: int, actors: int) -> Iterator[Any]:
        ray = ray_module()
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        logging.getLogger('ray.data').setLevel(logging.ERROR)
        # Ray Data restarts actors and tries their tasks again, without end unless told otherwise: see GIVE_UP.
        data = ray.data.from_items([{'page': n} for n in range(numbers)], override_num_blocks=numbers).map_batches(
            Compute,
            fn_constructor_kwargs={
                'packages': counted_packages(), 'pages': self._pages, 'home': str(home_dir()),
                'folders': [os.path.abspath(folder) for folder in sys.path],
            },
            batch_size=1,
            batch_format='pyarrow',
            compute=ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=IN_FLIGHT),
            num_cpus=self.engine.cpus,
            num_gpus=self.engine.gpus,
        )  # fmt: skip
        return data.iter_batches(batch_size=None, batch_format='pyarrow', prefetch_batches=0)

    def _keep(self, batch: Any) -> None:
        """Results of some pages into the cache; then the pages can go."""
        for number, key, value, about in zip(*(column.to_pylist() for column in batch.columns), strict=True):
            with self._moved:
                page = self._out.get(number)
            if page is None:  # a page that nobody needed
                continue
            if about:  # the first row of a page
                self._note(page, json.loads(about))
                continue
            self.cache.put(key, value)
            page.job.computed += 1
            self.kept += len(key) + len(value)
        with self._moved:
            for number in set(batch.column('page').to_pylist()):
                self._out.pop(number, None)
            if self.kept > self.room:
                for job, _, _ in self.jobs:
                    job.stop('the result cache is full, MMPIPE_RESULT_CACHE_GB is too small')
            self._moved.notify_all()
        if self.progress is not None:
            self.progress('ray', min(self._done, self._total), self._total, 'cells')

    def _note(self, page: _Out, about: dict[str, Any]) -> None:
        job = page.job
        self._done += len(page.keys)
        if about.get('refused'):
            self._give_up(PlanError(f'{job.column}: {about["refused"]}'))
        if about.get('died'):
            job.leave(len(page.keys), f'{about["died"]} workers died while they computed them')
        if not about['cells']:
            return
        job.workers.add((about['node'], about['pid']))
        job.tried += about['cells']
        job.failed += about['failed']
        job.leave(about['failed'], 'their function raised')
        job.leave(about['other'], f'their input is not the same on a worker: {about["reason"] or "other content"}')
        job.leave(about['unkept'], 'their result is no array and no plain JSON')
        if self.spent(job.failed, job.tried):
            job.stop('so many failed that no more were sent')

    def _give_up(self, error: BaseException) -> None:
        """Let nobody wait: no more pages, and those that are out are not needed."""
        with self._moved:
            self._error = self._error or error
            self._ended = True
            self._out.clear()
            self._moved.notify_all()

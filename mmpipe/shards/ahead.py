"""Shards of an object store are fetched ahead of the order in which they are read, several at a time.

    want(batch 7), want(batch 8), ...     what is read soon, in order; returns at once
    wait(batch 7)                         returns when everything that it reads is here, or raises what went wrong

Only files of the fields that are read are fetched, each once however many batches need it. What is fetched and not yet
waited for takes bounded space: the next shard is begun when a batch has been waited for. The batch that is next is
always fetched whole.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from mmpipe.errors import ShardError
from mmpipe.shards import transfer
from mmpipe.shards.parts import pays
from mmpipe.shards.transfer import Cancelled, Progress

if TYPE_CHECKING:
    from mmpipe.shards.leaf import Shard
    from mmpipe.shards.reader import Snapshot

THREADS = 8  # one S3 connection gives some 50-100 MB/s
FILES = 128  # copies that are held at most, each with a descriptor
_log = logging.getLogger(__name__)


class FetchAhead:
    """Fetches shards in the order in which batches will need them. For a directory it does nothing.

    Args:
        snapshot: where the rows lie.
        fields: names of the fields that are read.
        selection: places of all rows that are read; shards of which these need few are left to `parts`.
        threads: shards fetched at once.
        ahead_bytes: of shards fetched and not waited for; a quarter of the cache's limit when None.
        told: called with a line about each wait that takes longer than a few seconds; logged when None.

    >>> import tempfile
    >>> from mmpipe.shards import Block, Field, write_snapshot
    >>> fields = [Field(name='price', kind='scalar', dtype='float32')]
    >>> rows = write_snapshot(tempfile.mkdtemp(), fields, Block(keys=['a'], columns={'price': [1.5]})).rows()
    >>> ahead = FetchAhead(rows.snapshot, ['price'])
    >>> ahead.want(rows.places); ahead.wait(rows.places); ahead.close()
    """

    def __init__(
        self,
        snapshot: Snapshot,
        fields: Iterable[str],
        *,
        selection: np.ndarray | None = None,
        threads: int = THREADS,
        ahead_bytes: int | None = None,
        told: Callable[[str], None] | None = None,
    ) -> None:
        self._snapshot, self._fields = snapshot, list(fields)
        self._told = told or _log.warning
        self._remote = snapshot.place.remote
        if not self._remote:
            return
        from mmpipe.shards.copies import cache_limit

        blocks = np.zeros(0, dtype=np.int64) if selection is None else selection[:, 0]
        self._blocks, self._counts = np.unique(blocks, return_counts=True)
        self._limit = cache_limit() // 4 if ahead_bytes is None else ahead_bytes
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix='mmpipe-fetch')
        self._wanted: deque[list[Shard]] = deque()  # of batches that were not waited for
        self._jobs: dict[str, tuple[Shard, Progress, Future[pa.NativeFile | None]]] = {}
        # What was waited for and may be read still is held, so that no other process removes it.
        self._held: dict[str, tuple[Shard, pa.NativeFile | None]] = {}
        self._closed = False

    def want(self, places: np.ndarray) -> None:
        """Say what a coming batch reads, in the order of batches; returns at once.

        Args:
            places: int64 `[n, 2]` of block and row, such as some of `Rows.places`.
        """
        if self._remote:
            with self._lock:
                self._wanted.append(self._needs(places))
                self._begin()

    def wait(self, places: np.ndarray) -> None:
        """Wait until everything is here that a batch reads.

        Args:
            places: as they were given to `want`; others are fetched now.

        Raises:
            ShardError: a shard is missing or damaged, or the store fails or stalls.
        """
        if not self._remote:
            return
        needs = self._needs(places)
        with self._lock:
            if needs not in self._wanted:
                self._wanted.appendleft(needs)
            self._begin(needs)
            jobs = [self._jobs[shard.path] for shard in needs if shard.path in self._jobs]
        found = {}
        try:
            for shard, progress, future in jobs:
                found[shard.path] = (shard, self._result(progress, future))
        except (CancelledError, Cancelled):  # closed meanwhile
            return
        finally:
            with self._lock:
                if needs in self._wanted:
                    self._wanted.remove(needs)
                if not self._closed:
                    self._hold(found)
                still = {shard.path for batch in self._wanted for shard in batch}
                for path, (_, _, future) in list(self._jobs.items()):
                    if path not in still or path in self._held or _failed(future):  # who wants it again tries again
                        del self._jobs[path]
                self._begin()

    def close(self) -> None:
        """Fetch nothing more. What is under way ends with its next piece, and what is here stays in the cache."""
        if not self._remote:
            return
        with self._lock:
            self._closed = True
            for _, progress, _ in self._jobs.values():
                progress.cancelled.set()
            self._jobs.clear()
            self._wanted.clear()
            self._held.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _needs(self, places: np.ndarray) -> list[Shard]:
        """The shards that hold some rows, in the order of the rows."""
        blocks, first = np.unique(places[:, 0], return_index=True)
        found: dict[str, Shard] = {}
        for block in blocks[np.argsort(first)].tolist():
            for name in self._fields:
                shards = self._snapshot.shards_of(block, name)
                count = self._count(block)
                few = count > 0 and pays(self._snapshot.fields[name], shards[0], count)
                if not few or len(shards) > 1:
                    found.update({shard.path: shard for shard in shards})
        return list(found.values())

    def _count(self, block: int) -> int:
        """Rows of a block that are read in all; 0 where that is not known."""
        at = int(np.searchsorted(self._blocks, block))
        return int(self._counts[at]) if at < len(self._blocks) and self._blocks[at] == block else 0

    def _hold(self, found: dict[str, tuple[Shard, pa.NativeFile | None]]) -> None:
        """Hold some copies, and let go of those held longest where there are many."""
        self._held.update({path: pair for path, pair in found.items() if pair[1] is not None})
        over = sum(shard.bytes for shard, _ in self._held.values()) - self._limit
        for path, (shard, _) in list(self._held.items()):
            if over <= 0 and len(self._held) <= FILES:
                return
            del self._held[path]
            over -= shard.bytes

    def _begin(self, now: list[Shard] | None = None) -> None:
        """Begin to fetch what fits, in order, and what is needed now. Held: the lock."""
        if self._closed:
            return
        for shard in now or ():
            self._fetch(shard)
        ahead = sum(shard.bytes for shard, _, _ in self._jobs.values())
        for number, batch in enumerate(self._wanted):
            for shard in batch:
                if shard.path not in self._jobs and shard.path not in self._held:
                    if number and ahead + shard.bytes > self._limit:
                        return
                    ahead += shard.bytes
                    self._fetch(shard)

    def _fetch(self, shard: Shard) -> None:
        if shard.path in self._held:
            self._held[shard.path] = self._held.pop(shard.path)  # the newest again
            return
        if shard.path in self._jobs:
            return
        place = self._snapshot.place
        progress = Progress(place.at(shard.path), shard.bytes)

        def fetch() -> pa.NativeFile | None:
            progress.begin()
            found = place.mapped(shard.path, size=shard.bytes, sha256=shard.sha256, progress=progress)
            return found if len(self._jobs) <= FILES else None  # of a batch of very many shards not all are held

        self._jobs[shard.path] = (shard, progress, self._pool.submit(fetch))

    def _result(self, progress: Progress, future: Future[pa.NativeFile | None]) -> pa.NativeFile | None:
        while True:
            try:
                return future.result(timeout=transfer.TELL_S)
            except NotYet:
                if future.done():  # its own error
                    return future.result()
                self._told(f'waiting for shard {progress}')
                # A transfer gives up by itself; this is for a store whose package never comes back.
                if future.running() and progress.still_s > 2 * transfer.STALL_S:
                    raise ShardError(
                        f'shard {progress}: nothing came from the store. Check the network and the store, then start '
                        f'again: what is here already is kept.'
                    ) from None


def _failed(future: Future[pa.NativeFile | None]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is not None

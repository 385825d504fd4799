"""Bytes of an object store, piece by piece: with patience for a store that fails for a while, and an end to it."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from mmpipe.errors import ShardError
from mmpipe.stores import what

PIECE = 4 << 20  # bytes of one request: large enough for the round trip, small enough to be told about
SMALLEST = 256 << 10  # of a store so slow that a piece does not arrive in time
TRIES = 5  # of one piece
STALL_S = 60.0  # without a byte, over all tries of a piece
TELL_S = 5.0
PASSING = {408, 425, 429, 500, 502, 503, 504}  # answers that may be another one in a moment
BROKEN = {  # names, for the packages need not be installed; a subclass counts
    'TimeoutError', 'ConnectionError', 'HTTPClientError', 'ResponseParserError', 'ClientConnectionError',
    'ClientPayloadError', 'IncompleteRead', 'ServiceRequestError', 'ServiceResponseError',
}  # fmt: skip
_log = logging.getLogger(__name__)

Read = Callable[[int, int, float], bytes]
"""Bytes from a start to an end, asked for in one request that takes no more than some seconds."""


class Cancelled(Exception):
    """A transfer was given up from outside."""


class Progress:
    """How far a transfer is; one thread writes it, others read it.

    Args:
        url: what is fetched.
        size: its bytes.

    >>> progress = Progress('s3://bucket/a', 8_000_000)
    >>> progress.add(2_000_000); str(progress).partition(' MB,')[0]
    "'s3://bucket/a': 2.0 of 8.0"
    """

    def __init__(self, url: str, size: int) -> None:
        self.url, self.size, self.done = url, size, 0
        self.started = self.moved = time.monotonic()
        self.cancelled = threading.Event()

    def begin(self) -> None:
        """Nothing is here, and time counts from now on."""
        self.done = 0
        self.started = self.moved = time.monotonic()

    def add(self, count: int) -> None:
        """So many bytes more are here."""
        self.done += count
        self.moved = time.monotonic()

    @property
    def still_s(self) -> float:
        """Seconds since the last byte."""
        return time.monotonic() - self.moved

    def __str__(self) -> str:
        rate = self.done / max(time.monotonic() - self.started, 1e-3) / 1e6
        still = f', none for {self.still_s:.0f} s' if self.still_s > TELL_S else ''
        return f"'{self.url}': {self.done / 1e6:.1f} of {self.size / 1e6:.1f} MB, {rate:.1f} MB/s{still}"


def pieces(read: Read, progress: Progress, *, stall_s: float | None = None) -> Iterator[bytes]:
    """The bytes of a file in order; fewer than its size where the store has fewer.

    Raises:
        ShardError: the store fails again and again, or gives no byte for `stall_s`.
        FileNotFoundError: there is no such object.
        Cancelled: `progress.cancelled` was set.
    """
    step, told = PIECE, time.monotonic()
    while progress.done < progress.size:
        start = progress.done
        data, step = _piece(read, start, min(progress.size, start + step), progress, stall_s or STALL_S)
        progress.add(len(data))
        if time.monotonic() - told > TELL_S:
            told = time.monotonic()
            _log.warning('fetching shard %s', progress)
        yield data
        if len(data) == 0:
            return


def read_range(read: Read, start: int, end: int, *, url: str) -> bytes:
    """Some bytes of a file, with the patience of `pieces`.

    Raises:
        ShardError: as `pieces`, and where the file ends before.
        FileNotFoundError: there is no such object.
    """
    progress = Progress(url, end - start)
    data = b''.join(pieces(lambda first, last, limit_s: read(start + first, start + last, limit_s), progress))
    if len(data) != end - start:
        raise ShardError(f"'{url}' ends before byte {end}. Restore it, or write the snapshot again into a new root.")
    return data


def _piece(read: Read, start: int, end: int, progress: Progress, stall_s: float) -> tuple[bytes, int]:
    """Some bytes, and how many to ask for next."""
    since = time.monotonic()
    for tried in range(1, TRIES + 1):
        if progress.cancelled.is_set():
            raise Cancelled
        left_s = since + stall_s - time.monotonic()
        try:
            return read(start, end, min(stall_s / 3, max(left_s, 0.1))), end - start
        except Exception as error:
            wait_s = min(8.0, 0.25 * 2 ** (tried - 1)) * random.uniform(0.5, 1.5)
            if isinstance(error, FileNotFoundError):
                raise
            if not passing(error):
                raise ShardError(
                    f"shard '{progress.url}' cannot be read ({what(error)}): check name, rights and the settings of "
                    f'the store'
                ) from error
            if tried == TRIES or time.monotonic() - since + wait_s > stall_s:
                raise ShardError(
                    f"shard '{progress.url}' cannot be read after {progress.done:,} of {progress.size:,} bytes: "
                    f'{tried} tries in {time.monotonic() - since:.1f} s, the last one {what(error)}. Check the network '
                    f'and the store, then start again: what is here already is kept.'
                ) from error
            _log.warning('shard %s: %s; trying again in %.1f s', progress, what(error), wait_s)
            if isinstance(error, TimeoutError):  # it may only be slow
                end = min(end, start + max(SMALLEST, (end - start) // 4))
            progress.cancelled.wait(wait_s)
    raise AssertionError  # (the last try returned or raised)


def passing(error: BaseException) -> bool:
    """Whether an error of a store may be gone in a moment: timeouts, lost connections, 5xx; never 403 or 404.

    >>> passing(TimeoutError()), passing(PermissionError()), passing(OSError('no such bucket'))
    (True, False, False)
    """
    seen: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in seen:
        seen.append(link)
        if any(kind.__name__ in BROKEN for kind in type(link).__mro__):
            return True
        status = _status(link)
        if status is not None:
            return status in PASSING
        link = link.__cause__
    return False


def _status(error: BaseException) -> int | None:
    """The HTTP status that a store's error tells of."""
    answer: Any = getattr(error, 'response', None)
    if isinstance(answer, Mapping):
        return answer.get('ResponseMetadata', {}).get('HTTPStatusCode')
    found = next((getattr(error, name) for name in ('status_code', 'code', 'status') if hasattr(error, name)), None)
    return found if isinstance(found, int) else None

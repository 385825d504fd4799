"""One live line per stage on a terminal; plain lines, not more than one every few seconds, anywhere else. On stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

PLAIN_EVERY_S = 5.0
SHORTEST_S = 0.05  # below it, a rate says nothing


class StageProgress:
    """Shows and times the stages of a command. Call it as the functions of mmpipe call `progress`.

    Args:
        stream: where to write; stderr when None, so that stdout stays free for `--json`.

    >>> import io
    >>> out = io.StringIO()
    >>> show = StageProgress(out)
    >>> with show.stage('ingest'):
    ...     show('ingest', 10, 10, 'rows')
    >>> out.getvalue().startswith('ingest: 10/10 rows')
    True
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stderr
        self.seconds: dict[str, float] = {}
        self._live: Any = None
        self._task: Any = None
        self._name = ''
        self._started = self._said = self._since = 0.0
        self._last = self._note = ''
        self._done = 0

    def note(self, text: str) -> None:
        """Something to show behind the numbers of the running stage, until it ends."""
        self._note = text

    def __call__(self, stage: str, done: int, total: int | None, unit: str) -> None:
        """Say how far the running stage is."""
        if done < self._done:  # the next source of the same stage
            self._since = time.monotonic()
        self._done = done
        elapsed = time.monotonic() - self._since
        rate = done / elapsed if elapsed > SHORTEST_S else 0.0
        left = f', {max(total - done, 0) / rate:.0f} s left' if total and rate and done < total else ''
        of = f'/{max(total, done):,}' if total is not None else ''
        speed = f', {rate:,.0f} {unit}/s' if rate >= 10 else f', {rate:.1f} {unit}/s' if rate else ''
        note = f', {self._note}' if self._note else ''
        self._last = f'{done:,}{of} {unit}{speed}{note}'
        if self._live is not None:
            self._live.update(self._task, completed=done, total=total, detail=self._last + left)
        elif time.monotonic() - self._said > PLAIN_EVERY_S:
            self._said = time.monotonic()
            print(f'{self._name or stage}: {self._last}{left}', file=self.stream, flush=True)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Show and time one stage; its seconds add up in `seconds[name]`."""
        self._name, self._last, self._note = name, '', ''
        self._started = self._said = self._since = time.monotonic()
        self._done = 0
        if self.stream.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

            columns = (
                SpinnerColumn(),
                TextColumn('{task.description:<10}'),
                BarColumn(),
                TextColumn('{task.fields[detail]}'),
            )
            self._live = Progress(*columns, console=Console(file=self.stream), transient=True)
            self._task = self._live.add_task(name, total=None, detail='')
            self._live.start()
        try:
            yield
        finally:
            if self._live is not None:
                self._live.stop()
                self._live = None
            seconds = time.monotonic() - self._started
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
            detail = f'{self._last}, ' if self._last else ''
            print(f'{name}: {detail}{seconds:.1f} s', file=self.stream, flush=True)
            self._name = ''

    def say(self, text: str) -> None:
        """Print some lines, above the live one if there is one."""
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.stream, flush=True)

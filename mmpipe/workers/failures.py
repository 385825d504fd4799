"""What a caller reads when a worker process failed: the cause, the batch and the sample, and the next move."""

from __future__ import annotations

import contextlib
import pickle
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mmpipe.errors import MmpipeError, WorkerError
from mmpipe.workers.worker import Failure

Keys = Callable[[Any], Sequence[Any]]
"""A request to the keys of its rows."""

SHOWN = 4
"""Rows of a batch that a message names."""


def place(request: Any, number: int, sample: int = -1, *, keys: Keys | None = None) -> str:
    """Words for a batch, or for one sample of it.

    Args:
        request: what was submitted; its `keys`, `positions`, `epoch` and `number` are used where it has them.
        number: how many were submitted before it.
        sample: which sample of it; -1 for all.
        keys: tells the keys of its rows.

    >>> place({'positions': [7, 3, 9, 4, 1]}, 12)
    'batch 12 (5 rows: 7, 3, 9, 4, ...)'
    >>> place({'keys': ['a', 'b'], 'number': 3, 'epoch': 2}, 0, sample=1)
    "sample 1 of batch 3 of epoch 2 (row 'b')"
    >>> place({'positions': [1], 'epoch': 2}, 12, keys=lambda request: [f'k{row}' for row in request['positions']])
    "a batch of epoch 2 (1 row: 'k1')"
    """

    def part(name: str) -> Any:
        return request.get(name) if isinstance(request, Mapping) else getattr(request, name, None)

    epoch, own = part('epoch'), part('number')
    # How many were submitted before says nothing about its number in an epoch.
    batch = f'batch {own}' if own is not None else f'batch {number}' if epoch is None else 'a batch'
    if epoch is not None:
        batch += f' of epoch {epoch}'
    rows = part('keys') if keys is None else keys(request)
    if rows is None:
        rows = part('positions')
    rows = [] if rows is None else rows.tolist() if hasattr(rows, 'tolist') else list(rows)
    if 0 <= sample < len(rows):
        return f'sample {sample} of {batch} (row {rows[sample]!r})'
    if sample >= 0:
        return f'sample {sample} of {batch}'
    if not rows:
        return batch
    named = ', '.join(repr(row) for row in rows[:SHOWN]) + (', ...' if len(rows) > SHOWN else '')
    return f'{batch} ({len(rows)} {"row" if len(rows) == 1 else "rows"}: {named})'


def raised(failure: Failure, where: str) -> MmpipeError:
    """The error for an exception in the task: itself where mmpipe raised it on purpose, else one that quotes it.

    Args:
        failure: what the worker said.
        where: words for the batch or sample.
    """
    error: MmpipeError | None = None
    with contextlib.suppress(Exception):  # a class that this process cannot import, say
        error = None if failure.pickled is None else pickle.loads(failure.pickled)
    if error is not None:
        error.add_note(f'In a worker process, in {where}:\n{failure.trace}')
        return error
    return WorkerError(
        f'{failure.kind} in a worker process, in {where}: {failure.text}\n'
        f'Its traceback there:\n{failure.trace.rstrip()}'
    )


def not_loaded(failure: Failure) -> MmpipeError:
    """The error for a task that a worker could not load."""
    if failure.pickled is not None:
        return raised(failure, 'its start')
    return WorkerError(
        f'a worker process could not load the functions to run: {failure.kind}: {failure.text}\n'
        'It imports the module that defines them: put functions of a notebook or prompt into a .py file, and the '
        f"script's own doing under `if __name__ == '__main__':`. Its traceback there:\n{failure.trace.rstrip()}"
    )


def died(*, name: str, pid: int | None, code: int | None, doing: str, crash: str) -> WorkerError:
    """The error for a worker that is gone.

    Args:
        name: of the process.
        pid: of the process.
        code: its exit code; the negative of a signal's number; None where it lives, but cannot be heard.
        doing: words for what it did.
        crash: what Python's fault handler wrote.

    >>> print(died(name='reader-0', pid=7, code=-9, doing='made batch 3', crash=''))
    worker process reader-0 (pid 7) was killed by SIGKILL while it made batch 3. The system does that when memory runs
    out (`dmesg` tells): use fewer workers or smaller batches.
    """
    move = 'Run its functions in the process itself (num_workers=0) to see more.'
    if code is None:
        cause = 'closed its connection'
    elif code >= 0:
        cause = f'ended with exit code {code}'
        move = 'Something in its functions ends the process, such as os._exit or a C library that aborts.'
    else:
        try:
            cause = f'was killed by {signal.Signals(-code).name}'
        except ValueError:
            cause = f'was killed by signal {-code}'
        if -code == signal.SIGKILL:
            move = 'The system does that when memory runs out (`dmesg` tells): use fewer workers or smaller batches.'
    crash = f'\nWhere it was:\n{crash.rstrip()}' if crash.strip() else ''
    return WorkerError(f'worker process {name} (pid {pid}) {cause} while it {doing}. {move}{crash}')

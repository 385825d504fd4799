"""Processes of one training on one machine, started and watched as by `torchrun`, and what they say said once.

The parent runs torch's elastic agent; its children run the same command without `--nproc`, and join the group that the
agent describes in their environment. The first one prints; what the others print goes to files that are read where one
of them dies without a word.
"""

from __future__ import annotations

import logging
import os
import sys
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmpipe.errors import ConfigError, TrainError

ERROR_FILE = 'TORCHELASTIC_ERROR_FILE'


def launch(arguments: Sequence[str], *, processes: int, restarts: int = 0) -> None:
    """Run `python` with some arguments in several processes that make one group.

    Each gets its share of the cores as `OMP_NUM_THREADS`, unless that is set.

    Args:
        arguments: of `python`, such as `['-m', 'mmpipe.cli', 'train', 'demo']`.
        processes: how many; from 1 on.
        restarts: how often all are started again after one of them failed.

    Raises:
        ConfigError: this process was started by a launcher itself, or a number that cannot be.
        TrainError: one of them failed, and there was no restart left; names its rank and what it said.
        KeyboardInterrupt: Ctrl-C, which all of them got.

    >>> launch(['-c', 'import os; assert os.environ["WORLD_SIZE"] == "2"'], processes=2)
    """
    if processes < 1 or restarts < 0:
        raise ConfigError(
            f'--nproc {processes} --restarts {restarts}: give at least one process, and 0 restarts or more'
        )
    if 'RANK' in os.environ:
        raise ConfigError(
            f'This is rank {os.environ["RANK"]} of a launcher such as torchrun, which says how many there are: leave '
            f'out --nproc.'
        )
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    threads = {'OMP_NUM_THREADS': str(max(1, _cores() // processes))}
    with tempfile.TemporaryDirectory(prefix='mmpipe-ranks-') as logs, _added(threads), _quiet():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            logs_specs=DefaultLogsSpecs(logs, redirects=dict.fromkeys(range(1, processes), Std.ALL)),
            run_id=uuid.uuid4().hex,
            rdzv_backend='c10d',
            rdzv_endpoint='localhost:0',
            local_addr='localhost',
            max_restarts=restarts,
        )
        try:
            elastic_launch(config, sys.executable)(*arguments)
        except ChildFailedError as error:
            raise TrainError(_what_failed(error, Path(logs), processes)) from None
        except SignalException:
            raise KeyboardInterrupt from None


@contextmanager
def errors_for_launcher() -> Iterator[None]:
    """Give what the block raises to the launcher that started this process, if one did, and end without a word.

    >>> with errors_for_launcher():
    ...     print('as usual')
    as usual
    """
    if ERROR_FILE not in os.environ:
        yield
        return
    from torch.distributed.elastic.multiprocessing.errors import get_error_handler

    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:
        get_error_handler().record_exception(error)
        if '--debug' in sys.argv:
            raise
        sys.exit(1)


def _what_failed(error: Any, logs: Path, processes: int) -> str:
    rank, first = error.get_first_failure()
    said = first.message.get('message') if isinstance(first.message, dict) else None
    if said is None and first.exitcode < 0:
        said = f'ended by {first.signal_name()}' + (' (out of memory?)' if first.exitcode == -9 else '')
    if said is None:
        lines = [line for file in sorted(logs.glob(f'**/{first.local_rank}/stderr.log')) for line in _lines(file)]
        said = f'ended with status {first.exitcode}' + (f': {lines[-1]}' if lines else '')
    return said if said.startswith('TrainError: Rank ') else f'rank {rank} of {processes}: {said}'


def _lines(file: Path) -> list[str]:
    return [line for line in file.read_text(encoding='utf-8', errors='replace').splitlines() if line.strip()]


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


@contextmanager
def _added(variables: dict[str, str]) -> Iterator[None]:
    """Environment variables that are not set, for children."""
    new = {name: value for name, value in variables.items() if name not in os.environ}
    os.environ.update(new)
    try:
        yield
    finally:
        for name in new:
            os.environ.pop(name, None)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the agent logs of its children; it is said once, at the end."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)

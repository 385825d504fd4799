"""A process that trains one trial after another, as it is told through a pipe. It knows no study and no Optuna."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait

import torch

from mmpipe.runs import Run
from mmpipe.train.trainer import Trainer
from mmpipe.tuning.pruning import Message
from mmpipe.tuning.trials import train_trial

READY = 'ready'
INTERRUPTED = 130


def work(
    pipe: Connection,
    fit: Callable[..., Run],
    base: Trainer,
    goals: Sequence[str],
    printing: bool,
    cores: frozenset[int] | None,
) -> None:
    """Say that this process is ready, then take jobs and send outcomes, until None comes or nobody is there any more.

    Args:
        pipe: to the process that has the study.
        fit: as for `mm.tune`.
        base: trainer that values are put into.
        goals: what to measure.
        printing: False to let what is printed go to stderr, where a command keeps its stdout for the result.
        cores: to stay on; None where they cannot be chosen.
    """
    _settle(cores)
    if not printing:
        sys.stdout = sys.stderr

    def tell(message: Message) -> bool:
        pipe.send(message)
        return bool(pipe.recv())

    try:
        pipe.send(READY)
        while (job := pipe.recv()) is not None:
            pipe.send(train_trial(job, fit, base, goals, tell))
    except KeyboardInterrupt:  # passed on by the process that has the study, which says what there is to say
        sys.exit(INTERRUPTED)
    except (EOFError, OSError):  # it is gone
        sys.exit(1)


def _settle(cores: frozenset[int] | None) -> None:
    """Take this process's cores, and Ctrl-C from its parent alone; end with the parent."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    if cores is not None:
        os.sched_setaffinity(0, cores)
    torch.set_num_threads(1 if cores is None else len(cores))
    if hasattr(signal, 'pthread_sigmask'):
        # A terminal sends Ctrl-C to its group of processes. Out of it, a trial gets the one that the parent passes on,
        # and not two, of which the second would cut it off before its checkpoint. One that came meanwhile is dropped.
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _end_with(parent: int) -> None:
    wait([parent])
    os._exit(1)

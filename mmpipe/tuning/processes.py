"""Trials in several processes at once, each with a share of the cores, while this one keeps the study.

                 job            ┌── worker 0, cores 0 ──  train, evaluate, train, ...
study ── this ──────────────────┤
process      ◄── message, outcome ── worker 1, cores 1 ──  train, evaluate, train, ...

Only this process writes the study: a worker that is killed can leave nothing half-written in it, any storage will do
(one in memory, too), and one sampler draws for all. A worker that is gone is replaced, and its trial goes on.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import ForkingPickler
from typing import TYPE_CHECKING, Any

from mmpipe.errors import ConfigError, TrainError
from mmpipe.runs import Run
from mmpipe.train.interrupt import noted_interrupt
from mmpipe.train.trainer import Trainer
from mmpipe.tuning.pruning import Listening
from mmpipe.tuning.search import Search
from mmpipe.tuning.trials import Outcome
from mmpipe.tuning.worker import READY, work
from mmpipe.workers.start import how_to_run_the_script

if TYPE_CHECKING:
    import optuna

LOOK_EVERY_S = 0.2  # at whether a worker lives whose pipe a process of its own keeps open, and at Ctrl-C
GRACE_S = 120.0  # for the running steps and their checkpoints after Ctrl-C; a second one ends all at once


def check_sent(fit: Callable[..., Any], base: Trainer) -> None:
    """See whether another process can be given what is to be trained.

    Raises:
        ConfigError: it cannot be pickled, or is defined where no other process finds it.

    >>> check_sent(max, Trainer())
    """
    needs = (
        'processes=2 or more needs a function at the top level of a module or script (or a functools.partial of one) '
        'and a trainer that can be pickled'
    )
    try:
        sent = bytes(ForkingPickler.dumps((fit, base)))
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ConfigError(f'{needs}: {error}.') from error
    if b'__main__' in sent and not how_to_run_the_script():
        raise ConfigError(f'{needs}: this one is of no file. Write it into one and import it, or leave processes= out.')


def shares(processes: int) -> list[frozenset[int] | None]:
    """The cores of each process: equal parts of those that this one may use; with more processes than cores, one each.

    >>> both = shares(1)[0]
    >>> both is None or both == frozenset(os.sched_getaffinity(0))
    True
    """
    if not hasattr(os, 'sched_setaffinity'):
        return [None] * processes
    cores = sorted(os.sched_getaffinity(0))
    each = max(len(cores) // processes, 1)
    return [frozenset(cores[(i * each + k) % len(cores)] for k in range(each)) for i in range(processes)]


def devices(processes: int, *, visible: str | None, count: int) -> list[str | None]:
    """What each process is to have as CUDA_VISIBLE_DEVICES: one device each, in turns; None to leave it.

    Args:
        processes: how many.
        visible: what this process has.
        count: of devices it sees.

    >>> devices(3, visible=None, count=2), devices(2, visible='4,6', count=2), devices(2, visible=None, count=1)
    (['0', '1', '0'], ['4', '6'], [None, None])
    """
    if count < 2:
        return [None] * processes
    names = visible.split(',')[:count] if visible else [str(number) for number in range(count)]
    return [names[number % len(names)] for number in range(processes)]


class Worker:
    """This side of a worker process.

    Args:
        task: (fit, base, goals, printing).
        cores: to stay on; None where they cannot be chosen.
        device: as `devices` gives it.
    """

    def __init__(self, task: tuple[Any, ...], cores: frozenset[int] | None, device: str | None) -> None:
        self.place = (cores, device)
        self.ready = False
        self.trial: optuna.Trial | None = None
        self.listening: Listening | None = None
        self.pipe: Connection
        self.pipe, theirs = multiprocessing.Pipe()
        context = multiprocessing.get_context('spawn')
        self.process = context.Process(target=work, args=(theirs, *task, cores), name='mmpipe-trials')
        with _surroundings(1 if cores is None else len(cores), device):
            self.process.start()
        theirs.close()  # else the pipe would not end with the worker

    def how_it_went(self) -> str:
        """Of a process that has ended, to end a sentence with."""
        self.process.join()
        status = self.process.exitcode or 0
        return f'was ended by {signal.Signals(-status).name}' if status < 0 else f'ended with status {status}'


def train_in_processes(
    search: Search, fit: Callable[..., Run], base: Trainer, *, goals: Sequence[str], processes: int
) -> None:
    """Train the trials of a search, several at a time.

    Args:
        search: whose trials.
        fit: as for `mm.tune`; `check_sent` took it.
        base: trainer that values are put into.
        goals: what to measure.
        processes: how many.

    Raises:
        TrainError: a process ended before it could take a trial.
        KeyboardInterrupt: Ctrl-C, once all have ended: the first after the running steps, with checkpoints.
    """
    import torch

    found = devices(processes, visible=os.environ.get('CUDA_VISIBLE_DEVICES'), count=torch.cuda.device_count())
    task = (fit, base, goals, sys.stdout is not sys.stderr)
    workers: list[Worker] = []
    try:
        with noted_interrupt() as interrupt:
            for cores, device in zip(shares(processes), found, strict=True):
                workers.append(Worker(task, cores, device))
            asked_at = None
            while workers:
                if interrupt.asked and asked_at is None:
                    asked_at = time.monotonic()
                    _pass_on(workers)
                if asked_at is not None and time.monotonic() - asked_at > GRACE_S:
                    break
                speaking = wait([worker.pipe for worker in workers], timeout=LOOK_EVERY_S)
                for worker in list(workers):
                    if worker.pipe in speaking:
                        here = _listen(worker, search, giving=asked_at is None)
                    else:
                        here = worker.process.is_alive() or worker.pipe.poll()
                    if not here:
                        workers.remove(worker)
                        again = _bury(worker, search, counts=asked_at is None)
                        if again and asked_at is None:
                            workers.append(Worker(task, *worker.place))
    finally:
        for worker in workers:
            worker.process.kill()
            worker.process.join()
            worker.pipe.close()


def _listen(worker: Worker, search: Search, *, giving: bool) -> bool:
    """Take what a worker says, and answer.

    Returns:
        False if it is gone.
    """
    try:
        said = worker.pipe.recv()
        if isinstance(said, dict):
            assert worker.listening is not None
            worker.pipe.send(worker.listening(said))
            return True
        if isinstance(said, Outcome):
            trial, worker.trial = worker.trial, None
            assert trial is not None
            search.finish(trial, said)
        worker.ready = worker.ready or said == READY
        drawn = search.next() if giving else None
        if drawn is None:
            worker.pipe.send(None)
            return True
        worker.trial, job = drawn
        worker.listening = Listening(worker.trial)
        worker.pipe.send(job)
    except (EOFError, OSError):
        return False
    return True


def _bury(worker: Worker, search: Search, *, counts: bool) -> bool:
    """Deal with a worker that has ended.

    Args:
        worker: gone.
        search: that its trial belongs to.
        counts: False after Ctrl-C, when a trial is left as it is for the next call.

    Returns:
        Whether to start another one.
    """
    how = worker.how_it_went()
    worker.pipe.close()
    if not counts or (worker.trial is None and worker.ready):
        return False
    if worker.trial is None:
        raise TrainError(
            f'A process for trials {how} before it could take one; what it said stands above. A script that calls '
            f"mm.tune(processes=...) must do so below `if __name__ == '__main__':`, since processes import it."
        )
    search.lost(worker.trial, how)
    return not search.enough


def _pass_on(workers: Sequence[Worker]) -> None:
    """Ctrl-C for those that train; the others have nothing to save."""
    for worker in workers:
        if worker.ready and worker.trial is not None and worker.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(worker.process.pid, signal.SIGINT)
        else:
            worker.process.kill()


@contextmanager
def _surroundings(threads: int, device: str | None) -> Iterator[None]:
    """What a process that is started in the block inherits: threads, device, and no Ctrl-C before it is ready."""
    wanted = {'OMP_NUM_THREADS': str(threads), 'MKL_NUM_THREADS': str(threads)}
    if device is not None:
        wanted['CUDA_VISIBLE_DEVICES'] = device
    kept = {name: os.environ.get(name) for name in wanted}
    blocks = hasattr(signal, 'pthread_sigmask')
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT}) if blocks else ()
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
        if blocks:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

"""The processes that a launcher started, as one group; and which of them it was when one is lost.

A collective does not return when a process of its group hangs, and breaks when one is gone. What breaks says little: it
is the same on all that are left. So whoever fails says so in the store of the launcher, and the others look who did, or
who says nothing.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous

from mmpipe.errors import ConfigError, TrainError

TIMEOUT_S = 600.0
LISTEN_S = 5.0  # that ranks have to say what became of them; a lost connection is felt by all at about the same time
BROKEN = re.compile(
    r'timed? ?out|connection (closed|reset|refused)|broken pipe|gloo|nccl|socket|no longer alive', re.IGNORECASE
)

LOST = '-'

_timeouts: list[float] = []


def patience() -> float:
    """Seconds that this process waits for others: as `process_group` was told.

    >>> patience()
    600.0
    """
    return _timeouts[-1] if _timeouts else TIMEOUT_S


@contextmanager
def process_group(*, timeout_s: float = TIMEOUT_S) -> Iterator[None]:
    """Inside, this process is one of those that `torchrun` or `mmpipe train --nproc` started; else nothing changes.

    So one script runs alone and under a launcher. On machines with accelerators each process gets the one of its
    `LOCAL_RANK`.

    Args:
        timeout_s: seconds after which a process that does not take part in a step counts as lost. Above the longest
            time that one may wait for another, such as for data or for the first step of a compiled model.

    Raises:
        ConfigError: not a positive number, or there are fewer accelerators than processes.
        TrainError: another process failed, ended or hangs; names its rank.

    >>> with process_group():
    ...     print(distributed.is_initialized())
    False
    """
    if not timeout_s > 0:
        raise ConfigError(f'process_group(timeout_s={timeout_s!r}): a positive number of seconds is meant.')
    if 'RANK' not in os.environ or distributed.is_initialized():
        yield
        return
    limit = datetime.timedelta(seconds=timeout_s)
    store, rank, size = next(rendezvous('env://', timeout=limit))
    store.set_timeout(limit)
    store = distributed.PrefixStore(_agreed(store, rank, size, timeout_s), store)
    backend = _backend()
    distributed.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)
    _timeouts.append(timeout_s)
    try:
        yield
        distributed.barrier()  # who leaves first would look lost to the others
    except Exception as error:
        if not _is_of_a_collective(error):
            _tell(store, rank, f'{type(error).__name__}: {error}')
            raise
        _tell(store, rank, LOST)
        found = _who(store, rank, size, error, timeout_s)
        if found is None:
            raise
        raise TrainError(found) from error
    finally:
        _timeouts.pop()
        with suppress(Exception):  # of a group that is broken
            distributed.destroy_process_group()


def _agreed(store: Any, rank: int, size: int, timeout_s: float) -> str:
    """A name for this start of the group, under which it keeps what it tells each other.

    A launcher that starts processes again gives them the store of those before (torch 2.14), with their addresses in
    it. So each says hello with a number of its own, and the first one names the group to those that it has heard.

    Raises:
        TrainError: a process did not come; names its rank.
    """
    mine, name, deadline = secrets.token_hex(8), secrets.token_hex(8), time.monotonic() + timeout_s
    store.set(f'mmpipe/hello/{rank}', mine)
    told: dict[str, str | None] = {}
    while True:
        if rank:
            heard = json.loads(_read(store, 'mmpipe/group') or '{}')
            if heard.get('hello', {}).get(str(rank)) == mine:
                store.set(f'mmpipe/heard/{rank}', heard['name'])
                return str(heard['name'])
            missing = [0]
        else:
            hello = {str(each): _read(store, f'mmpipe/hello/{each}') for each in range(size)}
            if hello != told:
                store.set('mmpipe/group', json.dumps({'name': name, 'hello': hello}))
                told = hello
            missing = [each for each in range(1, size) if _read(store, f'mmpipe/heard/{each}') != name]
            if not missing:
                return name
        if time.monotonic() > deadline:
            raise TrainError(
                f'Rank {missing[0]} of {size} did not come within {timeout_s:g} s: its process ended, or hangs '
                f'before it enters mm.process_group. What it says on stderr tells more.'
            )
        time.sleep(0.01)


def _read(store: Any, key: str) -> str | None:
    return store.get(key).decode() if store.check([key]) else None


def _backend() -> str:
    """What processes talk by; this one takes its accelerator first, where there are some."""
    accelerator, mine = (
        torch.accelerator.current_accelerator(check_available=True),
        int(os.environ.get('LOCAL_RANK', 0)),
    )
    if accelerator is None or accelerator.type == 'mps':  # of which there is one, without a way to talk
        return 'gloo'
    if mine >= torch.accelerator.device_count():
        raise ConfigError(
            f'Local rank {mine} has no {accelerator.type} device of its own: there are '
            f'{torch.accelerator.device_count()}. Start as many processes as devices, or hide these '
            f"(CUDA_VISIBLE_DEVICES='') to train on CPUs."
        )
    torch.accelerator.set_device_index(mine)
    return f'cpu:gloo,{accelerator.type}:{distributed.get_default_backend_for_device(accelerator.type)}'


def limit_waiting(groups: Any) -> None:
    """Give groups of processes, which torch makes with limits of its own, that of `process_group`.

    >>> limit_waiting([])
    """
    if not _timeouts:
        return
    setting = getattr(distributed, 'set_timeout', None) or distributed.distributed_c10d._set_pg_timeout
    for group in groups:
        setting(datetime.timedelta(seconds=patience()), group)


def _is_of_a_collective(error: Exception) -> bool:
    """Whether another process is lost, rather than something wrong in this one."""
    return (type(error) is RuntimeError or isinstance(error, distributed.DistError)) and bool(BROKEN.search(str(error)))


def _tell(store: Any, rank: int, error: str) -> None:
    """Say what became of this rank: an error of its own, or `LOST` where it lost another."""
    with suppress(Exception):  # the launcher is gone, and with it whoever would read it
        store.set(f'mmpipe/rank/{rank}', error)


def _who(store: Any, rank: int, size: int, error: Exception, timeout_s: float) -> str | None:
    """Whom to blame for a collective that broke."""
    deadline = time.monotonic() + LISTEN_S
    heard: dict[int, str] = {rank: LOST}
    while len(heard) < size and time.monotonic() < deadline:
        for other in set(range(size)) - set(heard):
            with suppress(Exception):
                said = _read(store, f'mmpipe/rank/{other}')
                heard |= {} if said is None else {other: said}
        if any(said != LOST for said in heard.values()):
            break
        time.sleep(0.05)
    for other, said in sorted(heard.items()):
        if said != LOST:
            return f'Rank {other} of {size} failed, and the others with it: {said}'
    silent = sorted(set(range(size)) - set(heard))
    if not silent:
        return None
    names = f'Rank {silent[0]}' if len(silent) == 1 else f'Ranks {", ".join(map(str, silent))}'
    hangs = re.search('timed? ?out', str(error), re.IGNORECASE)
    what = (
        f'took no part in a step for {timeout_s:g} s: it hangs, or waits for data (see timeout_s= of mm.process_group)'
        if hangs
        else 'is gone: its process ended (killed, or out of memory?)'
    )
    return f"{names} of {size} {what}. Start again with resume='auto': the run goes on from its last checkpoint."

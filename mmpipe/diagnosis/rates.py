"""What stages come to together: the slowest of the sides that work at once.

    workers        read ─ decode ─ transform ─ collate         of each worker; as many at once as there are workers
    bus            transfer                                    beside the others on CUDA
    device         device transforms ─ compute                 one after the other
    cores          the seconds of all of them on a core        shared by workers and a model on the CPU

Without workers, the thread that iterates makes batches between the steps; an accelerator goes on meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mmpipe.diagnosis.report import Stage


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What stages run on.

    Args:
        workers: that make batches; 0 for the thread that iterates.
        cores: that all share.
        apart: whether the device works by itself, as an accelerator does.
        hindrance: how many times as long workers take at once as they would if none stood in the way of another (the
            interpreter lock, memory).
    """

    workers: int
    cores: int
    apart: bool = False
    hindrance: float = 1.0


def limits(stages: Sequence[Stage], machine: Machine) -> dict[str, float]:
    """Seconds per batch that each side needs at least: 'host', 'bus', 'device', 'cores', or 'turns' for all in turn.

    >>> read = Stage(name='read', side='host', seconds=0.4, cpu_s=0.1)
    >>> step = Stage(name='compute', side='device', seconds=0.1, cpu_s=0.2)
    >>> limits([read, step], Machine(workers=2, cores=1))
    {'host': 0.2, 'bus': 0, 'device': 0.1, 'cores': 0.30000000000000004}
    >>> limits([read, step], Machine(workers=0, cores=1))['turns']
    0.5
    """
    host, bus, device = (sum(stage.seconds for stage in stages if stage.side == side) for side in SIDES)
    if not machine.apart:
        bus, device = 0, device + bus
    if not machine.workers:
        held = sum(stage.cpu_s for stage in stages if stage.side != 'host') if machine.apart else device
        return {'turns': host + held, 'bus': bus, 'device': device}
    return {
        'host': loading_seconds(stages, machine),
        'bus': bus,
        'device': device,
        'cores': sum(stage.cpu_s for stage in stages) / machine.cores,
    }


SIDES = ('host', 'bus', 'device')


def loading_seconds(stages: Sequence[Stage], machine: Machine) -> float:
    """Seconds per batch of all workers together, when nothing else runs."""
    host = [stage for stage in stages if stage.side == 'host']
    one = sum(stage.seconds for stage in host)
    if not machine.workers:
        return one
    return machine.hindrance * max(one / machine.workers, sum(stage.cpu_s for stage in host) / machine.cores)


def batch_seconds(stages: Sequence[Stage], machine: Machine) -> float:
    """Seconds per batch of the whole.

    >>> read = Stage(name='read', side='host', seconds=0.4, cpu_s=0.0)
    >>> [batch_seconds([read], Machine(workers=workers, cores=2)) for workers in (0, 1, 4)]
    [0.4, 0.4, 0.1]
    """
    return max(limits(stages, machine).values())


def bottleneck(stages: Sequence[Stage], machine: Machine) -> Stage:
    """The stage that costs most on the side that limits.

    >>> read = Stage(name='read', side='host', seconds=0.3, cpu_s=0.1)
    >>> step = Stage(name='compute', side='device', seconds=0.2, cpu_s=0.2)
    >>> [bottleneck([read, step], Machine(workers=workers, cores=4)).name for workers in (0, 1, 2)]
    ['read', 'read', 'compute']
    """
    found = limits(stages, machine)
    side = max(found, key=lambda name: found[name])
    if side == 'cores':
        return max(stages, key=lambda stage: stage.cpu_s)
    own = {'turns': SIDES, 'device': ('device',) if machine.apart else ('bus', 'device')}.get(side, (side,))
    return max((stage for stage in stages if stage.side in own), key=lambda stage: stage.seconds)

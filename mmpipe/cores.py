"""How many CPU cores this process may use."""

from __future__ import annotations

import os

# Stands for the code of this module in fingerprints: raise it when what is computed with its help changes.
__fingerprint__ = 1


def cores() -> int:
    """Cores this process may use, which can be fewer than the machine has: `taskset` and a container's CPU set count.

    >>> 1 <= cores() <= os.cpu_count()
    True
    """
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1

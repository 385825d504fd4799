"""Whether processes live."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path


def gone(pids: Iterable[int]) -> bool:
    """Whether all these processes have ended, within five seconds."""
    for _ in range(500):
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.01)
    return False


def alive(pid: int) -> bool:
    """Whether a process has not ended."""
    try:
        return Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def mappings(pid: int | str = 'self') -> str:
    """What a process has mapped."""
    return Path(f'/proc/{pid}/maps').read_text()

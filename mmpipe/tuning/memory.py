"""The most memory that a trial took: of its device where it trained on one, else of its process.

device    the most bytes that its tensors had at a time
process   the most bytes in memory at a time (Linux: VmHWM), of which Python, torch and the rows mapped from shards take
          their part. What earlier trials of the process left is given back to the system before. Worker processes of
          a loader are not counted.
"""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import torch

from mmpipe.errors import ConfigError

STATUS, RESET = Path('/proc/self/status'), Path('/proc/self/clear_refs')
PEAK_ONLY = '5'  # of proc(5): set the peak to what is resident now


def check_memory() -> None:
    """See whether the peak of a process can be measured here.

    Raises:
        ConfigError: the system does not tell it.

    >>> check_memory()
    """
    if not RESET.exists() or _resident_peak() is None:
        raise ConfigError("metric 'memory': this system does not tell the peak of a process; Linux does. Leave it out.")


def begin_peak() -> None:
    """Forget the peaks up to now."""
    gc.collect()
    if _counts():
        torch.accelerator.empty_cache()
        torch.accelerator.reset_peak_memory_stats()
    trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # of glibc: freed memory that is kept for later
    if trim is not None:
        trim(0)
    if RESET.exists():
        RESET.write_text(PEAK_ONLY)


def peak_bytes() -> int:
    """The most bytes since `begin_peak`; 0 where the system does not tell.

    >>> begin_peak()
    >>> before = peak_bytes()
    >>> peak_bytes() - before < 10_000_000
    True
    """
    if _counts() and torch.accelerator.max_memory_allocated() > 0:
        return int(torch.accelerator.max_memory_allocated())
    return _resident_peak() or 0


def _counts() -> bool:
    """Whether there is an accelerator whose allocator counts."""
    kind = torch.accelerator.current_accelerator(check_available=True)
    return kind is not None and kind.type in ('cuda', 'xpu')


def _resident_peak() -> int | None:
    try:
        found = re.search(r'^VmHWM:\s+(\d+) kB', STATUS.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1]) * 1024

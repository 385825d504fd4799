"""Ctrl-C while a model trains: the first is noted, so that the running step ends and is saved; the second aborts."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

NOTE = b'\nCtrl-C: stopping after this step, with a checkpoint; once more stops at once\n'


class Interrupt:
    """Whether Ctrl-C was pressed in a block of `noted_interrupt`.

    Attributes:
        asked: True from the first Ctrl-C on.
    """

    asked = False


@contextmanager
def noted_interrupt() -> Iterator[Interrupt]:
    """Only note the first SIGINT of the block; the next one raises as usual.

    In a thread other than the main one, and where the program handles SIGINT by itself, nothing is changed.

    Raises:
        KeyboardInterrupt: at the end of the block, if it ended as usual after a Ctrl-C.

    >>> with noted_interrupt() as interrupt:
    ...     interrupt.asked
    False
    """
    interrupt = Interrupt()
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield interrupt
        return

    def note(*_: Any) -> None:
        interrupt.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with contextlib.suppress(OSError):
            os.write(2, NOTE)  # a handler may run inside a print, which cannot be entered twice

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupt
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupt.asked:
        raise KeyboardInterrupt

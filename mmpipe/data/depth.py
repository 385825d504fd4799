"""How many batches to make ahead: as many as keep the reading side busy, and not more memory than that."""

from __future__ import annotations

import math

WEIGHT = 0.25  # of the newest batch in the running means
MOST = 4  # batches per thread


class Depth:
    """Batches to have on their way, from how long one takes to make and how long the consumer works on one.

    When making takes 5 times as long as using, 5 have to be on their way for none to be late; one more hides that they
    do not all take the same time. Where the readers cannot keep up whatever the depth, more would only hold memory.

    Args:
        readers: threads or processes that make batches.
        fixed: batches per reader; None to go by what is measured.

    >>> depth = Depth(2)
    >>> depth.now
    3
    >>> for _ in range(20): depth.note(made_s=0.5, used_s=0.1)
    >>> depth.now, Depth(2, fixed=5).now, Depth(0).now
    (6, 10, 1)
    """

    def __init__(self, readers: int, *, fixed: int | None = None) -> None:
        self.readers, self.fixed = readers, fixed
        self.made_s = self.used_s = 0.0

    @property
    def now(self) -> int:
        """Batches that should be on their way."""
        if not self.readers:
            return 1
        if self.fixed is not None:
            return self.readers * self.fixed
        wanted = math.ceil(self.made_s / self.used_s - 1e-9) + 1 if self.used_s else 0
        return min(max(wanted, self.readers + 1), MOST * self.readers)

    def note(self, *, made_s: float, used_s: float) -> None:
        """Take account of one batch.

        Args:
            made_s: seconds that a reader took to make it.
            used_s: seconds between the moments at which the consumer had it and asked for the next.
        """
        weight = WEIGHT if self.made_s else 1.0
        self.made_s += weight * (made_s - self.made_s)
        self.used_s += weight * (used_s - self.used_s)

"""How many batches to make ahead: as many as keep readers and consumer busy, and no more memory than that."""

from __future__ import annotations

import math

WEIGHT = 0.25  # of the newest batch in the running means
MOST = 8  # batches per reader
LATE = 0.05  # share of a batch's use that a wait must take to count


class Depth:
    """Batches to have on their way, from how long one takes to make and how long the consumer works on one.

    Threads make one batch together (`ThreadReader`): two on their way keep all of them busy. Of processes each makes a
    batch alone: when making takes 1.5 times as long as using, two have to be on their way for none to be late, and one
    more so that no reader waits for the consumer. Readers that cannot keep up gain nothing from more. Where they
    could, and a batch is late all the same, batches differ in how long they take: then one more is made ahead each
    time.

    Args:
        readers: threads or processes that make batches.
        fixed: batches per reader; None to go by what is measured.
        together: whether readers make one batch together.

    >>> depth = Depth(2)
    >>> for _ in range(20): depth.note(made_s=0.5, used_s=0.1, waited_s=0.15)    # too slow at any depth
    >>> depth.now, Depth(2, together=True).now, Depth(2, fixed=5).now, Depth(0).now
    (3, 2, 10, 1)
    >>> for _ in range(20): depth.note(made_s=0.1, used_s=0.1, waited_s=0.0)
    >>> depth.note(made_s=0.3, used_s=0.1, waited_s=0.2); depth.now
    4
    """

    def __init__(self, readers: int, *, fixed: int | None = None, together: bool = False) -> None:
        self.readers, self.fixed, self.together = readers, fixed, together
        self.made_s = self.used_s = 0.0
        self._more = 0

    @property
    def now(self) -> int:
        """Batches that should be on their way."""
        if not self.readers:
            return 1
        if self.fixed is not None:
            return self.readers * self.fixed
        if self.together:
            return 2 + self._more
        needed = math.ceil(self.made_s / self.used_s - 1e-9) + 1 if self.used_s else self.readers + 1
        return min(max(needed, 2), self.readers + 1) + self._more

    def note(self, *, made_s: float, used_s: float, waited_s: float) -> None:
        """Take account of one batch.

        Args:
            made_s: seconds that it took to make, of all readers that took part.
            used_s: seconds between the moments at which the consumer had the one before and asked for it.
            waited_s: seconds that the consumer then waited.
        """
        first = not self.made_s
        weight = 1.0 if first else WEIGHT
        fast = self.made_s < self.readers * self.used_s
        if fast and not first and waited_s > LATE * self.used_s:
            self._more = min(self._more + 1, (MOST - 1) * self.readers)
        self.made_s += weight * (made_s - self.made_s)
        self.used_s += weight * (used_s - self.used_s)

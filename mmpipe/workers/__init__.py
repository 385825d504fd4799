"""Worker processes for functions that hold Python's lock: batches come back through reused shared memory.

    parent ──request, number of a slot──► worker: task(request, allocate)        one socket each way per worker,
       ▲                                       │ fills the slot                  no locks that a dead one could hold
       └──pickle without the large arrays──────┘
    arrays over the slot; it goes back to its worker when the last of them has died

The first write to a page of fresh shared memory costs more than copying what it holds; a slot that is used again has
its pages.

Nothing here imports torch or Pixeltable, and a worker imports no more than the functions it runs.
"""

from mmpipe.workers.reader import ProcessReader

__all__ = ['ProcessReader']

"""Tell a failure of the machine or the database from one that a row caused."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import sqlalchemy.exc

_FULL = (errno.ENOSPC, errno.EDQUOT)
_OWN_FAULT = ('54',)  # SQLSTATE class "program limit exceeded": a value too large for an index, which a row can cause


def machine_failure(error: BaseException) -> str:
    """What failed beneath the rows: the disk, the memory or the database; '' when it is none of these.

    Args:
        error: what a write raised; the errors it was raised from count too.

    >>> machine_failure(ValueError('13 is unlucky'))
    ''
    >>> machine_failure(OSError(errno.ENOSPC, 'No space left on device'))
    'OSError: [Errno 28] No space left on device'
    """
    for each in _chain(error):
        if (
            isinstance(each, MemoryError)
            or (isinstance(each, OSError) and each.errno in _FULL)
            or (
                isinstance(each, (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError))
                and not str(getattr(each.orig, 'sqlstate', '') or '').startswith(_OWN_FAULT)
            )
        ):
            return f'{type(each).__name__}: {" ".join(str(each).split("[SQL:")[0].split()):.300}'.removesuffix(': ')
    return ''


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__

"""Tell a failure of the machine or the database from one that a row caused."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy.exc

from mmpipe.errors import MmpipeError, StoreError

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
            said = ' '.join(str(each).split('[SQL:')[0].split('(Background on this error')[0].split())
            return f'{type(each).__name__}: {said:.300}'.removesuffix(': ')
    return ''


@contextmanager
def told_plainly() -> Iterator[None]:
    """Around what reads and writes tables, as a decorator: a failure beneath the rows comes as one error of ours.

    Raises:
        StoreError: Postgres is gone or cannot be reached, or the disk or the memory is full.

    >>> @told_plainly()
    ... def write():
    ...     raise OSError(errno.ENOSPC, 'No space left on device')
    >>> write()
    Traceback (most recent call last):
    ...
    mmpipe.errors.StoreError: stopped by what is beneath the rows (OSError: [Errno 28] No space left on device). What
    was committed before stays. Free disk space or memory, or see that Postgres runs, then run the same again.
    """
    try:
        yield
    except MmpipeError:
        raise
    except Exception as error:
        failure = machine_failure(error)
        if not failure:
            raise
        # What closes a piece of work fails as well where Postgres is gone, behind an error that names the place.
        first, seen = error.__context__, {id(error)}
        while first is not None and id(first) not in seen and not isinstance(first, StoreError):
            seen.add(id(first))
            first = first.__context__
        if isinstance(first, StoreError):
            raise type(first)(str(first)) from error
        raise StoreError(
            f'stopped by what is beneath the rows ({failure}). What was committed before stays. Free disk space or '
            f'memory, or see that Postgres runs, then run the same again.'
        ) from error


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__

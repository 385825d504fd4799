"""One transaction over a table and all its views, and what it left there: new row ids, new versions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from mmpipe.store.lock import check_locks


@dataclass
class Writing:
    """What a transaction of ours left in a base table and its views; filled when it ends.

    Args:
        inserted: row ids that it gave out.
        versions: table id to the versions that it made.
        created: table id to the time of creation of the last of them, as `version_vector` has it.
    """

    inserted: range = range(0)
    versions: dict[str, range] = field(default_factory=dict)
    created: dict[str, float] = field(default_factory=dict)


@contextmanager
def writing(table: Any) -> Iterator[Writing]:
    """Lock a table and its views against every other writer, until the block ends and all of it is committed.

    Args:
        table: a table, or a view of one.

    Raises:
        StoreError: a lock that this thread took is gone; nothing is committed.
    """
    from pixeltable.runtime import get_runtime

    path = table._tbl_version_path
    done = Writing()
    with get_runtime().catalog.begin_xact(for_write=True, write_tvps=[path], lock_mutable_tree=True):
        top = path.get_tbl_versions()[0]
        before, first = _versions(top), path.get_tbl_versions()[-1].get().next_row_id
        yield done
        check_locks()
        after = _versions(top)
        done.inserted = range(first, path.get_tbl_versions()[-1].get().next_row_id)
        done.versions = {
            name: range(before.get(name, (number,))[0] + 1, number + 1) for name, (number, _) in after.items()
        }
        done.created = {name: created for name, (_, created) in after.items()}


def _versions(handle: Any) -> dict[str, tuple[int, float]]:
    version = handle.get()
    found = {str(version.id): (version.version, version.created_at)}
    for view in version.mutable_views:
        found |= _versions(view)
    return found

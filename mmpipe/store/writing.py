"""One transaction over a table and all its views, and what it left there: new row ids, new versions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Writing:
    """What a transaction of ours left in a base table and its views; filled when it ends.

    Args:
        inserted: row ids that it gave out.
        versions: table id to the versions that it made.
    """

    inserted: range = range(0)
    versions: dict[str, range] = field(default_factory=dict)


@contextmanager
def writing(table: Any) -> Iterator[Writing]:
    """Lock a table and its views against every other writer, until the block ends and all of it is committed.

    Args:
        table: a table, or a view of one.
    """
    from pixeltable.runtime import get_runtime

    path = table._tbl_version_path
    done = Writing()
    with get_runtime().catalog.begin_xact(for_write=True, write_tvps=[path], lock_mutable_tree=True):
        top = path.get_tbl_versions()[0]
        before, first = _versions(top), path.get_tbl_versions()[-1].get().next_row_id
        yield done
        after = _versions(top)
        done.inserted = range(first, path.get_tbl_versions()[-1].get().next_row_id)
        done.versions = {name: range(before.get(name, version) + 1, version + 1) for name, version in after.items()}


def _versions(handle: Any) -> dict[str, int]:
    version = handle.get()
    found = {str(version.id): version.version}
    for view in version.mutable_views:
        found |= _versions(view)
    return found

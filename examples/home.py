"""Where an example keeps its tables: in the folder that was asked for, or in one that is gone afterwards."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def project_home(folder: str | None) -> Iterator[Path]:
    """Set the home of this process, before anything imports Pixeltable's tables.

    Args:
        folder: a home to keep; None for a temporary one, whose Postgres is stopped at the end.
    """
    home = Path(folder or tempfile.mkdtemp(prefix='mmpipe-example-')).resolve()
    os.environ['MMPIPE_HOME'] = str(home)
    try:
        yield home
    finally:
        if folder is None:
            from mmpipe.store import stop_postgres

            stop_postgres()
            shutil.rmtree(home)

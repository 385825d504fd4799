"""The page about scale says what its script computes, and the memory it states is a bound."""

from __future__ import annotations

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

BENCHMARKS = str(Path(__file__).parents[2] / 'benchmarks')
if BENCHMARKS not in sys.path:
    sys.path.insert(0, BENCHMARKS)

import many_shards  # noqa: E402
import scale_manifest  # noqa: E402
import scale_paper  # noqa: E402

from mmpipe.data.batches import EpochBatches  # noqa: E402
from mmpipe.data.sampling import Shuffle  # noqa: E402
from mmpipe.shards import Rows, open_snapshot  # noqa: E402


def test_the_page_is_what_the_script_writes() -> None:
    assert scale_paper.PAGE.read_text(encoding='utf-8') == scale_paper.page()


def test_the_bytes_of_a_row_that_the_page_states_bound_those_that_are_taken(tmp_path: Path) -> None:
    many_shards.write_manifest(tmp_path, 10_000)
    rows = open_snapshot(tmp_path).rows()
    wide = Rows(rows.snapshot, np.tile(rows.index, 20))  # 500,000, so that what does not grow with rows is small
    wide.__dict__['hashes'] = np.tile(rows.hashes, 20) + np.repeat(np.arange(20, dtype=np.uint64), len(rows))
    own = wide.index.nbytes + wide.hashes.nbytes
    tracemalloc.start()
    try:
        batches = EpochBatches(wide, sampling=Shuffle(), batch_size=256)
        next(batches.steps(0))
        kept, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (kept + own) / len(wide) <= scale_paper.ORDER_BYTES['kept'] + 1
    assert (peak + own) / len(wide) <= scale_paper.ORDER_BYTES['peak']


@pytest.mark.slow
def test_the_figures_of_a_small_manifest_are_measured() -> None:
    found = scale_manifest.figures(quick=True)
    assert {'manifest_open_s', 'manifest_rss_mb', 'manifest_first_batch_s'} <= found.keys()
    assert all(value >= 0 and unit for value, unit in found.values())
    assert found['manifest_rss_mb'][0] < 500

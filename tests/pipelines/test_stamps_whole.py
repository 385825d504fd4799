"""All of Debian's stamps, to the numbers: what is learned beats guessing, on series that training never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import mmpipe as mm
from mmpipe.pipeline import find_pipeline

INSTALLED = Path('/usr/share/tuxpaint/stamps')
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(not INSTALLED.is_dir(), reason='needs the package tuxpaint-stamps-default'),
]


def test_each_task_beats_the_majority_on_series_it_never_saw(pixeltable_home: Path, tmp_path: Path) -> None:
    pipeline = find_pipeline('stamps', directory='stamps_whole')
    mm.apply(mm.plan(pipeline.tables, pipeline.directory))
    views, training = pipeline.module('views'), pipeline.module('training')
    ((table, source),) = views.sources(INSTALLED)
    report = mm.ingest(table, source)
    assert report.failed_cells == 0
    assert report.inserted + report.quarantined == source.total()
    frozen = mm.snapshot(root=tmp_path / 'shards', **views.training_view()).snapshot
    assert len(frozen) == report.inserted
    scores = training.test(training.train(frozen, runs=tmp_path / 'runs'), frozen)
    print(report, frozen.splits, scores, sep='\n')
    for task in ('category', 'kind', 'language'):
        known, labelled = frozen.split('train').read(task)
        wanted, there = frozen.split('test').read(task)
        majority = float((wanted[there] == np.bincount(known[labelled]).argmax()).mean())
        print(task, 'majority', majority)
        assert scores[task]['accuracy'] > majority

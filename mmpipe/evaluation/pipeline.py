"""A report of a pipeline's run, by the loader that its training evaluates with: what `mmpipe report` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmpipe.data.loader import DataLoader
from mmpipe.errors import ConfigError
from mmpipe.evaluation.reporting import report
from mmpipe.evaluation.results import Report
from mmpipe.pipeline import runs_of
from mmpipe.runs import Run, open_run
from mmpipe.shards import Rows, open_snapshot
from mmpipe.train.intercept import asked_of_trainer

if TYPE_CHECKING:
    from mmpipe.pipeline import Pipeline


def report_pipeline(
    pipeline: Pipeline,
    *,
    root: str | os.PathLike[str] | None = None,
    run: str | None = None,
    split: str = 'val',
    by: Sequence[str] = (),
    group: str | None = None,
    images: str | None = None,
) -> Report:
    """Report on a run, on rows of the snapshot it was trained on.

    Args:
        pipeline: of `mmpipe.pipeline.find_pipeline`.
        root: of its shards; the pipeline's when None.
        run: id or folder; the newest finished one that was trained on the root when None.
        split: whose rows; those that training evaluates on where they are of this split.
        by: fields to part the rows by.
        group: field that says which rows belong together.
        images: field with images, to draw the worst rows.

    Raises:
        ConfigError: no finished run, or a training without validation rows, whose loader would be used.
        and as `mm.report`.
    """
    recorded = _run(pipeline, pipeline.root if root is None else root, run)
    snapshot = open_snapshot(recorded.snapshot['root'], recorded.snapshot['id'])
    asked = asked_of_trainer(
        pipeline.module('training').train, snapshot, instead='Call mm.report(run, loader) with your own loader.'
    )
    if asked.val is None:
        raise ConfigError(
            f'pipelines/{pipeline.name}/training.py passes no validation rows to mm.Trainer.fit, so it is not known '
            f'how to load rows without augmentation. Pass val=, or call mm.report(run, loader) with your own loader.'
        )
    same = set(asked.val.rows.system('_split').tolist()) == {split}
    loader = asked.val if same else _over(asked.val, snapshot.split(split))
    precision = str(recorded.record.get('trainer', {}).get('precision', 'fp32'))
    return report(recorded, loader, tasks=asked.tasks, by=list(by), group=group, images=images, precision=precision)


def _run(pipeline: Pipeline, root: str | os.PathLike[str], run: str | None) -> Run:
    if run is not None:
        return open_run(run)
    finished = [made for made in runs_of(str(root)) if made.status == 'finished']
    if not finished:
        raise ConfigError(
            f"no finished run was trained on '{root}': run `mmpipe train {pipeline.command}`, or name one with --run"
        )
    return finished[-1]


def _over(loader: DataLoader, rows: Rows) -> DataLoader:
    """A loader of other rows that treats them in the same way."""
    task = loader.dataset.task
    return DataLoader(
        rows,
        batch_size=loader.batch_size or 64,
        device=loader.device,
        decode=task.decode,
        transforms=loader.transforms,
        host_transforms=task.host or None,
        num_workers=loader.num_workers,
        fields=loader.fields,
        on_error=task.on_error,
    )


def files_line(files: Sequence[Path]) -> str:
    """Where a report was written, for the command.

    >>> files_line([Path('out/report.json'), Path('out/report-curves.png')])
    'wrote out/report.json and 1 plot'
    """
    plots = len(files) - 1
    return f'wrote {files[0]}' + (f' and {plots} plot{"" if plots == 1 else "s"}' if plots else '')

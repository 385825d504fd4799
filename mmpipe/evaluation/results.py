"""What a report holds, as frozen values that print well."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from mmpipe.durable import make_folders, write_bytes
from mmpipe.errors import ConfigError
from mmpipe.evaluation.bootstrap import Estimate
from mmpipe.evaluation.calibration import Calibration
from mmpipe.evaluation.mistakes import Confusion, LabelCounts, Residuals, Worst
from mmpipe.evaluation.slices import Slice


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """How well a model does one task.

    Args:
        name: of the task.
        kind: 'classification', 'multilabel', 'regression', or what a task of another kind is called.
        n: labelled rows; the rest of it is empty where there are none.
        metrics: by name, with intervals.
        calibration: of probabilities; None for others.
        mistakes: what is taken for what; None for a task of another kind.
        worst: rows with the highest loss, the highest first.
    """

    name: str
    kind: str
    n: int
    metrics: Mapping[str, Estimate]
    calibration: Calibration | None = None
    mistakes: Confusion | tuple[LabelCounts, ...] | Residuals | None = None
    worst: tuple[Worst, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What `mm.report` found; printed, a table of at most 100 columns.

    Args:
        run: id of the run; None of a model that came by itself.
        snapshot: id; None where the rows are of none.
        split: that all rows are of; None where they are of several.
        rows: how many, with and without labels.
        trained_on: how many of them the run was trained on; None where that is not known.
        tasks: one after the other.
        slices: by part, for each task.
        bootstrap: resamples per interval; 0 for none.
        group: what was resampled: a field or other name for groups of rows, None for rows.
        seed: of random numbers.
        temperature: what the outputs of tasks were divided by.
        curves: of the run's training: {name: ((step, value), ...)}.
        notes: what else to know.
        thumbnails: {key: uint8 `[H, W, 3]`} of the worst rows, where asked for; not part of the JSON.
    """

    run: str | None
    snapshot: str | None
    split: str | None
    rows: int
    trained_on: int | None
    tasks: tuple[TaskReport, ...]
    slices: tuple[Slice, ...]
    bootstrap: int
    group: str | None
    seed: int
    temperature: Mapping[str, float] = field(default_factory=dict)
    curves: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    thumbnails: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    def __str__(self) -> str:
        from mmpipe.evaluation.text import lines_of

        return '\n'.join(lines_of(self))

    def __getitem__(self, task: str) -> TaskReport:
        """The part about one task.

        Raises:
            KeyError: there is no such task.
        """
        return {each.name: each for each in self.tasks}[task]

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values.

        >>> empty = Report(run=None, snapshot=None, split='val', rows=0, trained_on=None, tasks=(), slices=(),
        ...     bootstrap=0, group=None, seed=0)
        >>> empty.to_json()['split']
        'val'
        """
        values = asdict(replace(self, thumbnails={}))
        del values['thumbnails']
        return _plain(values)

    def save(self, folder: str | os.PathLike[str], *, plots: bool = True) -> list[Path]:
        """Write report.json, and plots as PNG beside it.

        Args:
            folder: made where it is not there; files of an earlier report in it are replaced.
            plots: False to leave them out; they need the extra `plots`.

        Returns:
            The files.

        Raises:
            MissingExtraError: matplotlib is not installed; report.json is not written either then.
            ConfigError: the folder cannot be written.
        """
        if plots:
            from mmpipe.evaluation.plots import draw, require_plots

            require_plots()
        path = Path(folder)
        try:
            make_folders(path)
            text = json.dumps(self.to_json(), ensure_ascii=False, indent=1, allow_nan=False)
            write_bytes(path / 'report.json', text.encode())
        except OSError as error:
            raise ConfigError(f'{path}: cannot hold a report ({error.strerror}). Give a folder to write to.') from error
        return [path / 'report.json', *(draw(self, path) if plots else [])]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value

"""A run: a folder that says what was trained, from which rows, by which code, and holds the weights.

    runs/<name>/<number>/
        run.json           what, from which snapshot, by which factory, with what result
        metrics.jsonl      one JSON object per line, in order of steps
        train_rows.npy     sorted uint64 key hashes of the training rows; val_rows.npy of those it is measured on
        lock               held by the process that trains it, as long as it lives
        checkpoints/<step>/  model.safetensors, optimizer.safetensors, state.json, checkpoint.json with their digests

Both sides of the wall read runs, so this package needs neither torch nor Pixeltable.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from mmpipe.durable import make_folders, sync_directory, sync_file, write_bytes, write_json
from mmpipe.errors import ConfigError, RunError
from mmpipe.home import runs_dir
from mmpipe.runs.keep import which_to_keep
from mmpipe.runs.lock import was_killed

FORMAT = 1
PACKAGES = ('mmpipe', 'torch', 'torchvision', 'timm', 'numpy', 'pyarrow', 'safetensors')


@dataclass(frozen=True, repr=False)
class Run:
    """One run on disk. Its record is read when it is opened; `open_run(run.path)` reads it again.

    Printed, it is a line of what it is, and one per task of its metrics.

    Attributes:
        path: folder of the run.
        record: content of run.json.
    """

    path: Path
    record: Mapping[str, Any]

    @property
    def id(self) -> str:
        """Name and number, such as `shop/0007`."""
        return self.record['id']

    @property
    def status(self) -> str:
        """'running', 'finished', 'interrupted' (Ctrl-C), 'failed' or 'killed'.

        'killed': it says 'running', but no process trains it. Where that cannot be told, such as of a run on another
        machine, it stays 'running'.
        """
        status = self.record['status']
        if status != 'running' or not was_killed(self.path):
            return status
        now = _read_record(self.path / 'run.json')['status']  # it may have ended since it was opened
        return 'killed' if now == 'running' else now

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of the last evaluation: {task: {metric: value}}; empty when there was no validation split."""
        return self.record['metrics']

    @property
    def snapshot(self) -> dict[str, str]:
        """{'id': ..., 'root': ...} of the snapshot it was trained on."""
        return self.record['snapshot']

    @property
    def tasks(self) -> list[dict[str, Any]]:
        """The tasks as JSON; `mmpipe.train.task_from_json` makes them tasks again."""
        return self.record['tasks']

    @property
    def parent(self) -> dict[str, Any] | None:
        """The run that this one continues or transfers from, and how many rows are new since; None for a first run."""
        return self.record['parent']

    @property
    def cannot(self) -> dict[str, str]:
        """What this run cannot do, with the reason; empty when it can do everything.

        'rebuild': its model cannot be made again; 'resume': it cannot go on from its record alone.
        """
        return self.record['cannot']

    def __repr__(self) -> str:
        return f'<Run {self.id}: {self.status}>'

    def __str__(self) -> str:
        line = f'run {self.id} ({self.status})'
        if 'snapshot' in self.record:
            line += f' on snapshot {self.snapshot["id"]}'
        parent = self.record.get('parent')
        if parent is not None:
            how = 'continued' if parent['kind'] == 'continue' else 'transferred'
            line += f', {how} from {parent["run"]} with {parent["new_rows"]:,} new rows'
        split = self.record.get('val_split') or 'val'
        metrics = self.record.get('metrics') or {}
        return '\n'.join(
            [f'{line}: {self.path}', *(_metric_line(task, split, scores) for task, scores in metrics.items())]
        )

    def history(self) -> list[dict[str, Any]]:
        """Every line of metrics.jsonl, in order of steps."""
        file = self.path / 'metrics.jsonl'
        if not file.is_file():
            return []
        return [json.loads(line) for line in file.read_text(encoding='utf-8').splitlines() if line]

    def train_rows(self) -> np.ndarray:
        """Sorted uint64 key hashes of the rows it was trained on."""
        return np.load(self.path / 'train_rows.npy', allow_pickle=False)

    def val_rows(self) -> np.ndarray:
        """Sorted uint64 key hashes of the rows it is measured on; empty where there are none."""
        file = self.path / 'val_rows.npy'
        return np.load(file, allow_pickle=False) if file.is_file() else np.zeros(0, dtype=np.uint64)

    def trained_on(self, hashes: np.ndarray) -> np.ndarray:
        """Which rows it was trained on: bool `[n]` for uint64 key hashes `[n]`, such as `rows.hashes`."""
        return np.isin(hashes, self.train_rows())

    def checkpoint(self, which: str | int = 'newest') -> Path:
        """Folder of a complete checkpoint.

        Args:
            which: 'newest'; 'best', by the metric that the trainer kept the best for; or a number of optimizer steps.

        Raises:
            RunError: there is none such.
        """
        found = self.checkpoints()
        if not found:
            raise RunError(
                f'Run {self.id} ({self.status}) has no checkpoint in {self.path / "checkpoints"}. '
                f'Start it again with resume={str(self.path)!r}, or train with a smaller checkpoint_seconds.'
            )
        if which == 'newest':
            return found[max(found)]
        if which == 'best':
            scores = {step: score for step, path in found.items() if (score := _score(path)) is not None}
            if not scores:
                raise RunError(
                    f'Run {self.id} kept no best checkpoint: train with keep_best="task.metric" and validation rows.'
                )
            return found[max((score, step) for step, score in scores.items())[1]]
        if which not in found:
            raise RunError(
                f'Run {self.id} has no checkpoint of step {which}; it has {", ".join(map(str, sorted(found)))}.'
            )
        return found[int(which)]

    def checkpoints(self) -> dict[int, Path]:
        """Folders of all complete checkpoints, by the number of optimizer steps."""
        folder = self.path / 'checkpoints'
        found = [entry for entry in folder.iterdir() if entry.name.isdecimal()] if folder.is_dir() else []
        return {int(entry.name): entry for entry in sorted(found)}

    def newest_checkpoint(self) -> Path | None:
        """Folder of the newest complete checkpoint, or None."""
        found = self.checkpoints()
        return found[max(found)] if found else None


def open_run(run: str | os.PathLike[str] | Run, *, runs: str | os.PathLike[str] | None = None) -> Run:
    """Open a run by path or by id.

    Args:
        run: a folder, an id such as `shop/0007`, the name `shop` alone for its newest run, or a `Run` to read again.
        runs: where ids are looked up; the project's `.mmpipe/runs` when None.

    Raises:
        RunError: no such run, or a damaged record.

    >>> open_run('nothing/0001', runs='/tmp')
    Traceback (most recent call last):
    ...
    mmpipe.errors.RunError: There is no run 'nothing/0001' in /tmp: no run.json there. `ls /tmp` shows the names.
    """
    if isinstance(run, Run):
        return open_run(run.path)
    root = _folder_of(runs)
    for folder in (Path(run), root / run):
        if (folder / 'run.json').is_file():
            return Run(folder.resolve(), _read_record(folder / 'run.json'))
        numbers = list_runs(folder.name, runs=folder.parent)
        if numbers:
            return open_run(numbers[-1])
    raise RunError(f'There is no run {str(run)!r} in {root}: no run.json there. `ls {root}` shows the names.')


def _folder_of(runs: str | os.PathLike[str] | None) -> Path:
    if runs is None:
        return runs_dir()
    if re.match(r'[A-Za-z][A-Za-z0-9+]*:/', os.fspath(runs)):
        raise ConfigError(
            f"runs='{os.fspath(runs)}': a run is a folder, which its process appends to and locks. Name one of this "
            f'machine or of a shared disk, and copy what is finished.'
        )
    return Path(runs)


def list_runs(name: str, *, runs: str | os.PathLike[str] | None = None) -> list[Path]:
    """Folders of the runs called `name`, oldest first.

    >>> list_runs('nothing', runs='/tmp')
    []
    """
    folder = _folder_of(runs) / name
    if not folder.is_dir():
        return []
    found = [entry for entry in folder.iterdir() if entry.name.isdecimal() and (entry / 'run.json').is_file()]
    return sorted(found, key=lambda entry: int(entry.name))


def create_run(name: str, record: Mapping[str, Any], *, runs: str | os.PathLike[str] | None = None) -> Run:
    """Claim the next number of `name` and write its first record.

    Args:
        name: letters, digits, `.`, `_` and `-`.
        record: what run.json is to hold beside format, id, status, time and versions.
        runs: where to put it; the project's `.mmpipe/runs` when None.

    Raises:
        ConfigError: a name that is no folder name, or a URL for `runs`.

    >>> import tempfile
    >>> run = create_run('shop', {'metrics': {}}, runs=tempfile.mkdtemp())
    >>> run.id, run.status
    ('shop/0001', 'running')
    """
    if not re.fullmatch(r'[A-Za-z0-9][A-Za-z0-9._-]*', name):
        raise ConfigError(f"A run cannot be called {name!r}: use letters, digits, `.`, `_` and `-`, as in name='shop'.")
    folder = _folder_of(runs) / name
    make_folders(folder)
    taken = [int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()]
    number = max(taken, default=0) + 1
    while True:  # mkdir is the claim: of two processes, one moves on to the next number
        path = folder / f'{number:04d}'
        try:
            path.mkdir()
            break
        except FileExistsError:
            number += 1
    sync_directory(folder)
    full = {
        'format': FORMAT,
        'id': f'{name}/{number:04d}',
        'status': 'running',
        'created': datetime.now(UTC).isoformat(timespec='seconds'),
        **record,
        'versions': installed_versions(),
    }
    write_json(path / 'run.json', full)
    return Run(path.resolve(), full)


def update_run(run: Run, **changes: Any) -> Run:
    """Replace entries of run.json in one atomic write.

    >>> import tempfile
    >>> run = create_run('shop', {'metrics': {}}, runs=tempfile.mkdtemp())
    >>> open_run(update_run(run, status='finished').path).status
    'finished'
    """
    record = {**run.record, **changes}
    write_json(run.path / 'run.json', record)
    return Run(run.path, record)


def append_metrics(run: Run, lines: list[dict[str, Any]]) -> None:
    """Add lines to metrics.jsonl; they survive a kill of this process, and a power cut after `sync_metrics`.

    >>> import tempfile
    >>> run = create_run('shop', {}, runs=tempfile.mkdtemp())
    >>> append_metrics(run, [{'step': 1, 'loss': 0.5}]); run.history()
    [{'step': 1, 'loss': 0.5}]
    """
    if not lines:
        return
    with open(run.path / 'metrics.jsonl', 'a', encoding='utf-8') as file:
        file.writelines(json.dumps(line, allow_nan=False) + '\n' for line in lines)


def sync_metrics(run: Run) -> None:
    """Flush metrics.jsonl to the disk, as a checkpoint does before it is written."""
    if (run.path / 'metrics.jsonl').is_file():
        sync_file(run.path / 'metrics.jsonl')


def cut_metrics(run: Run, step: int) -> None:
    """Drop the lines after `step` (and a line that a kill left half-written), before training on from there.

    >>> import tempfile
    >>> run = create_run('shop', {}, runs=tempfile.mkdtemp())
    >>> append_metrics(run, [{'step': 1}, {'step': 2}]); cut_metrics(run, 1); run.history()
    [{'step': 1}]
    """
    file = run.path / 'metrics.jsonl'
    if not file.is_file():
        return
    kept = []
    for line in file.read_text(encoding='utf-8').splitlines():
        try:
            if json.loads(line)['step'] <= step:
                kept.append(line + '\n')
        except ValueError:
            break
    write_bytes(file, ''.join(kept).encode())


def drop_checkpoints(run: Run, *, newest: int = 1, best: bool = False, every: int | None = None) -> None:
    """Delete the checkpoints that `which_to_keep` does not name, and what a kill left of half-written ones."""
    folder = run.path / 'checkpoints'
    if not folder.is_dir():
        return
    steps = run.checkpoints()
    scores = {step: _score(path) if best else None for step, path in steps.items()}
    kept = which_to_keep(scores, newest=newest, best=best, every=every)
    gone = [path for step, path in steps.items() if step not in kept]
    for entry in gone + [entry for entry in folder.iterdir() if entry.name.endswith('.tmp')]:
        shutil.rmtree(entry, ignore_errors=True)


def _score(checkpoint: Path) -> float | None:
    try:
        return json.loads((checkpoint / 'checkpoint.json').read_text(encoding='utf-8'))['about'].get('score')
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def installed_versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes.

    >>> 'python' in installed_versions()
    True
    """
    versions = {'python': platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _metric_line(task: str, split: str, scores: Mapping[str, Any]) -> str:
    shown = (f'{name} {value:.4g}' if isinstance(value, float) else f'{name} {value}' for name, value in scores.items())
    return f'  {task} ({split}): {", ".join(shown)}'


def _read_record(file: Path) -> dict[str, Any]:
    try:
        record = json.loads(file.read_text(encoding='utf-8'))
        version = record['format']
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(
            f'{file} is not a run record ({type(error).__name__}: {error}). Restore it from a copy, or train again.'
        ) from error
    if version != FORMAT:
        raise RunError(
            f'{file} has format {version}; this mmpipe reads format {FORMAT}. Install the mmpipe that wrote it: '
            f'{record.get("versions", {}).get("mmpipe", "unknown version")}.'
        )
    return record

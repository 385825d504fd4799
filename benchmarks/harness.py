"""What every benchmark shares: interleaved repeats, medians with their spread, and a record of what was measured where.

A benchmark is a script with variants that it wants to compare:

    def main():
        bench = Bench.from_arguments('gather', __doc__)
        with bench.recording():
            bench.compare({'ours': ours, 'theirs': theirs}, repeats=9)

A variant is a function without arguments. It returns None, and its seconds are the figure; or {figure: (value, unit)}
of what it timed itself. Variants take turns, in an order that rotates, so that a machine that slows down or is busy for
a while does so for all of them. A figure is the median of its repeats with the first and third quartile.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'
PACKAGES = (
    'mmpipe', 'pixeltable', 'torch', 'torchvision', 'torchaudio', 'timm', 'numpy', 'pyarrow', 'pillow', 'av',
    'soundfile', 'wordllama',
)  # fmt: skip

Measured = Mapping[str, tuple[float, str]] | None
Variant = Callable[[], Measured]


@dataclass(frozen=True)
class Figure:
    """One number of a benchmark.

    Attributes:
        unit: of the value, such as 's' or 'rows/s'.
        values: one per repeat, in the order they were measured.
    """

    unit: str
    values: tuple[float, ...]

    @property
    def median(self) -> float:
        return float(np.median(self.values))

    @property
    def quartiles(self) -> tuple[float, float]:
        low, high = np.percentile(self.values, [25, 75])
        return float(low), float(high)

    def to_json(self) -> dict[str, Any]:
        low, high = self.quartiles
        values = list(self.values)
        return {'unit': self.unit, 'median': self.median, 'q1': low, 'q3': high, 'iqr': high - low, 'values': values}

    def __str__(self) -> str:
        low, high = self.quartiles
        return f'{self.median:,.4g} {self.unit}  ({low:,.4g} to {high:,.4g}, n={len(self.values)})'


@dataclass
class Bench:
    """One benchmark while it runs.

    Args:
        name: of its results file.
        quick: whether it only has to show that it works; nothing is stored unless `out` says where.
        repeats: overrides the repeats that the benchmark asks for.
        as_json: print one JSON object instead of a table.
        out: folder of the results file.
    """

    name: str
    quick: bool = False
    repeats: int | None = None
    as_json: bool = False
    out: Path | None = None
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_arguments(cls, name: str, doc: str | None, arguments: Sequence[str] | None = None) -> Bench:
        """A benchmark as the command line wants it."""
        parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument('--quick', action='store_true', help='little data, one repeat, no results file')
        parser.add_argument('--repeats', type=int, help='repeats of each variant')
        parser.add_argument('--json', action='store_true', help='print one JSON object')
        parser.add_argument('--out', type=Path, help='folder of the results file; benchmarks/results unless --quick')
        asked = parser.parse_args(arguments)
        if asked.repeats is not None and asked.repeats < 1:
            parser.error(f'--repeats {asked.repeats}: at least 1')
        out = asked.out or (None if asked.quick else RESULTS)
        return cls(name, quick=asked.quick, repeats=asked.repeats, as_json=asked.json, out=out)

    def compare(self, variants: Mapping[str, Variant], *, repeats: int = 5, warmup: bool = True) -> None:
        """Run each variant `repeats` times, taking turns, and keep its figures.

        Args:
            variants: by name, which is the name of the figure where the variant returns None.
            repeats: of each; one when quick, what --repeats says when it is given.
            warmup: run each once before, uncounted; not when quick.
        """
        rounds = self.repeats or (1 if self.quick else repeats)
        values: dict[str, list[float]] = {}
        units: dict[str, str] = {}
        for number in range(-1 if warmup and not self.quick else 0, rounds):
            for name in rotated(list(variants), max(number, 0)):
                self._say(f'{self.name}: {name}, ' + (f'repeat {number + 1} of {rounds}' if number >= 0 else 'warm-up'))
                started = time.perf_counter()
                measured = variants[name]()
                seconds = time.perf_counter() - started
                if number < 0:
                    continue
                for figure, (value, unit) in (measured or {name: (seconds, 's')}).items():
                    if units.setdefault(figure, unit) != unit or figure in self.figures:
                        raise ValueError(f'{figure!r} is measured twice, or in {unit} and {units[figure]}')
                    values.setdefault(figure, []).append(float(value))
        self.figures |= {name: Figure(units[name], tuple(found)) for name, found in values.items()}

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Around the measuring: afterwards the figures are printed, and stored with what they were measured on."""
        commit, dirty = git_state()
        started, load = datetime.now(UTC), os.getloadavg()[0]
        yield
        record = {
            'benchmark': self.name,
            'started': started.isoformat(timespec='seconds'),
            'commit': commit,
            'dirty': dirty,
            'quick': self.quick,
            'machine': {**machine(), 'load_before': round(load, 2)},
            'versions': versions(),
            'notes': self.notes,
            'figures': {name: figure.to_json() for name, figure in self.figures.items()},
        }
        text = json.dumps(record, indent=1, allow_nan=False)
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            path = self.out / f'{self.name}.json'
            path.write_text(text + '\n')
            self._say(f'stored in {path}')
        print(text if self.as_json else self.table())

    def table(self) -> str:
        """The figures as lines of text."""
        width = max((len(name) for name in self.figures), default=0)
        return '\n'.join(f'{name:<{width}}  {figure}' for name, figure in self.figures.items())

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def rotated(names: list[str], by: int) -> list[str]:
    """The names from position `by` on, then those before it; so each comes first equally often.

    >>> rotated(['a', 'b', 'c'], 4)
    ['b', 'c', 'a']
    """
    at = by % len(names) if names else 0
    return names[at:] + names[:at]


def git_state() -> tuple[str | None, bool | None]:
    """(commit, whether the tree differs from it); results files do not count. (None, None) outside a checkout."""
    try:
        commit = _git('rev-parse', 'HEAD').strip()
        status = _git('status', '--porcelain', '--', '.', ':!benchmarks/results')
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, bool(status.strip())


def _git(*arguments: str) -> str:
    return subprocess.run(['git', *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code: processor, cores, memory, accelerator, system."""
    found = {'system': platform.platform(), 'cpu': _cpu(), 'cores': len(os.sched_getaffinity(0))}
    found['memory_gb'] = round(os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 1e9, 1)
    if 'torch' in sys.modules:
        import torch

        found['torch_threads'] = torch.get_num_threads()
        if torch.cuda.is_available():
            found['accelerator'] = torch.cuda.get_device_name()
    return found


def _cpu() -> str:
    try:
        lines = Path('/proc/cpuinfo').read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(':')[2].strip() for line in lines if line.startswith('model name')), platform.machine())


def versions() -> dict[str, str]:
    """Versions of Python and of the packages whose speed is measured, those that are installed."""
    found = {'python': platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found

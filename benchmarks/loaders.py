"""mmpipe's loader beside others, in images/s: all in one run, taking turns, contents checked.

Decoded: 3,000 rows of 3 x 224 x 224 uint8 with label and key, shuffled epochs to uint8 batches on the CPU, of 64 and
256. A ratio without a batch size in its name is the lower one of the two.

`decoded_b64_over_ffcv`, `decoded_b256_over_ffcv`   mmpipe over FFCV's NDArray
`decoded_over_best_streaming`         over the best of LitData, Mosaic MDS, WebDataset, Lance and HF datasets
`decoded_over_dataloader_workers`     over torch's DataLoader with two workers and the same vectorised gather
`decoded_over_pixeltable`             over Pixeltable's `to_pytorch_dataset`, which does not shuffle
`decoded_of_memcpy`                   over what two threads copy to memory that is used again
`decoded_fragmented`                  a snapshot after 100 deltas with 10 % of its rows deleted, over the same compacted

Encoded: JPEG files of 500 x 375 pixels and some 81 KB to random resized crops of 224 x 224, uint8 batches of 64, where
all average over the pixels that they scale down.

`encoded_over_best_peer`              over the best of DALI, FFCV, SPDL and torchvision v2 on tensors
`encoded_over_imagefolder`            over ImageFolder with PIL and two workers
`encoded_large_over_full_decode`      1600 x 1200 pixels, over the same loader where it decodes whole photos

`first_batch_s`                       from making the loader to its first batch, on 100,000 rows, in a new process
`order_overhead`                      seconds of an epoch's order, keys, masks and states, of those of an epoch, in
                                      turn; the higher of both batch sizes. Beside it, without a wish:
                                      `whole_over_gather_b64`, the epoch over its gather of images alone

Each loader is a process of its own that stays between rounds, with OMP_NUM_THREADS=1. It is tried with its settings
first, and takes part with the fastest. The first two epochs are compared with what was stored, byte for byte; of
those that are timed, keys, labels and some bytes of every row. During a turn all other loaders are stopped, and rounds
in which other processes took over a tenth of a core are measured again. What a loader reads is read once before each
of its turns, so all comes from the page cache.

The others are installed into an environment of this benchmark's own, once:

    python benchmarks/loaders.py --install [--env DIR]
    python benchmarks/loaders.py [--env DIR] [--work DIR] [--only NAME,...] [--quick] [--repeats N] [--json] [--out DIR]

`--work` keeps the written data for another run. Beside the record, --out gets the plot.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import loaders_decoded  # noqa: E402
import loaders_encoded  # noqa: E402
import loaders_install  # noqa: E402
import loaders_mmpipe  # noqa: E402
from harness import Bench, Figure  # noqa: E402
from loaders_data import QUICK, Sizes  # noqa: E402
from loaders_peer import Setting  # noqa: E402
from loaders_process import Failed, Process, busy_s  # noqa: E402

PEERS = {**loaders_mmpipe.PEERS, **loaders_decoded.PEERS, **loaders_encoded.PEERS}
STREAMING = [name for name, peer in PEERS.items() if peer.streaming]
ENCODED = ['dali', 'ffcv_photos', 'spdl', 'torchvision']
# Seconds of epochs in a round. DALI has two batches ready when a round starts, which is a twentieth of so many photos.
LEAST_S, PHOTOS_S = 1.0, 3.0
FOREIGN = 0.1  # cores that other processes may take
ATTEMPTS = 3
PATIENCE_S = 20  # Pixeltable's database is stopped, workers are joined
WANTED = {
    'decoded_b64_over_ffcv': 'at least 1.8',
    'decoded_b256_over_ffcv': 'at least 3',
    'decoded_over_best_streaming': 'at least 10',
    'decoded_over_dataloader_workers': 'at least 10',
    'decoded_over_pixeltable': 'at least 60',
    'decoded_of_memcpy': 'at least 0.6',
    'decoded_fragmented': 'at least 0.8',
    'encoded_over_best_peer': 'at least 1.3, aim 1.5',
    'encoded_over_imagefolder': 'at least 2.5',
    'encoded_large_over_full_decode': 'at least 1.5',
    'first_batch_s': 'below 0.5',
    'order_overhead': 'below 0.03',
}
Values = Mapping[str, Sequence[float]]


class Contest:
    """The processes of all loaders, and what is known of each.

    Args:
        bench: told what happens.
        python: of the environment in which loaders are installed.
        work: folder of all data.
        quick: whether one short look at each is enough.
    """

    def __init__(self, bench: Bench, python: Path, work: Path, *, quick: bool) -> None:
        self.bench, self.python, self.work, self.quick = bench, python, work, quick
        self.processes: dict[str, Process] = {}
        self.chosen: dict[str, dict[int, Setting]] = {}
        self.notes: dict[str, Any] = {'skipped': {}, 'tried': {}, 'crops': {}, 'disturbed': {}, 'prepare_s': {}}

    def enter(self, name: str, sizes: Sizes) -> None:
        """Prepare, check and try a loader; a reason why it is left out is noted."""
        started = time.perf_counter()
        process = self.processes[name] = Process(self.python, name, self.work)
        try:
            self.notes['prepare_s'][name] = round(process.ask(do='prepare', many=sizes.many), 1)
            if name in PEERS:
                self.chosen[name] = {batch: self._try(name, batch) for batch in PEERS[name].batches}
                process.ask(do='close', keep=list(self.chosen[name].items()))
        except Failed as error:
            self.notes['skipped'][name] = str(error)
            self.leave(name)
        said = self.notes['skipped'].get(name) or self.chosen.get(name, 'ready')
        print(f'loaders: {name}: {said} ({time.perf_counter() - started:.0f} s)', file=sys.stderr, flush=True)

    def _try(self, name: str, batch: int) -> Setting:
        """The fastest setting of those that a loader knows."""
        rates: dict[int, float] = {}
        peer, process = PEERS[name], self.processes[name]
        for number, setting in enumerate(peer.settings):
            label = ' '.join([f'{name}_b{batch}', *(f'{key}={value}' for key, value in setting.items())])
            checked = process.ask(do='check', batch=batch, setting=setting)
            if checked:
                self.notes['crops'][label] = checked
            timed = process.ask(do='time', batch=batch, setting=setting, least_s=self._seconds(name) / 3)
            self.notes['tried'][label] = round(timed['rate'], 1)
            rates[number] = timed['rate']
        return peer.settings[max(rates, key=rates.__getitem__)]

    def leave(self, name: str) -> None:
        """End a loader's process, and what it started."""
        self.processes.pop(name).stop(patience_s=PATIENCE_S)

    def variants(self) -> dict[str, Callable[[], dict[str, tuple[float, str]]]]:
        """What takes turns: each loader with each size of batch, and the other measures."""
        found: dict[str, Callable[[], dict[str, tuple[float, str]]]] = {}
        for name in self.processes:
            if name not in PEERS:
                found[name] = lambda name=name: self._measured(name)
            for batch, setting in self.chosen.get(name, {}).items():
                found[f'{name}_b{batch}'] = lambda name=name, batch=batch, setting=setting: self._timed(
                    name, batch, setting
                )
        return found

    def _timed(self, name: str, batch: int, setting: Setting) -> dict[str, tuple[float, str]]:
        def turn() -> dict[str, tuple[float, str]]:
            found = self.processes[name].ask(do='time', batch=batch, setting=setting, least_s=self._seconds(name))
            return {f'{name}_b{batch}': (found['rate'], 'images/s')}

        return self._undisturbed(name, turn)

    def _measured(self, name: str) -> dict[str, tuple[float, str]]:
        if loaders_mmpipe.MEASURES[name].fresh:
            self.processes[name].stop()
            self.processes[name] = Process(self.python, name, self.work)
            self.processes[name].ask(do='prepare', many=0)  # nothing is left to prepare: it has started

        def turn() -> dict[str, tuple[float, str]]:
            return {figure: tuple(value) for figure, value in self._run(name).items()}

        if not loaders_mmpipe.MEASURES[name].fresh:
            return self._undisturbed(name, turn)
        with self._alone(name):
            return turn()

    def _run(self, name: str) -> dict[str, Any]:
        return self.processes[name].ask(do='run', least_s=self._seconds(name))

    def _seconds(self, name: str) -> float:
        """Of epochs in a round."""
        if self.quick:
            return 0.01
        return LEAST_S if name not in PEERS or PEERS[name].data == 'decoded' else PHOTOS_S

    def _undisturbed(self, name: str, turn: Callable[[], dict[str, tuple[float, str]]]) -> dict[str, tuple[float, str]]:
        """A turn during which nothing else took a share of a core; the last of some, if there is always something."""
        with self._alone(name):
            return self._tried(name, turn)

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """All other loaders are stopped meanwhile."""
        others = [process for each, process in self.processes.items() if each != name]
        for process in others:
            process.pause(True)
        try:
            yield
        finally:
            for process in others:
                process.pause(False)

    def _tried(self, name: str, turn: Callable[[], dict[str, tuple[float, str]]]) -> dict[str, tuple[float, str]]:
        self.processes[name].ask(do='warm')
        for _ in range(ATTEMPTS):
            started, busy, own = time.perf_counter(), busy_s(), self.processes[name].cpu_s() + time.process_time()
            found = turn()
            others = busy_s() - busy - (self.processes[name].cpu_s() + time.process_time() - own)
            if self.quick or others <= FOREIGN * (time.perf_counter() - started) + 0.03:  # what the clock can tell
                break
            self.notes['disturbed'][name] = self.notes['disturbed'].get(name, 0) + 1
        return found

    def close(self) -> None:
        """End all processes."""
        for name in list(self.processes):
            self.leave(name)


def ratios(values: Values) -> dict[str, tuple[list[float], str]]:
    """The figures by name, one value per round, of those whose loaders took part.

    Args:
        values: of each loader and size of batch, a value per round.

    >>> found = ratios({'mmpipe_b64': [30.0, 40.0], 'ffcv_b64': [10.0, 20.0]})
    >>> found['decoded_b64_over_ffcv']
    ([3.0, 2.0], 'ratio')
    """
    found: dict[str, tuple[list[float], str]] = {}

    def over(figure: str, ours: str, theirs: str) -> None:
        if ours in values and theirs in values:
            found[figure] = ([a / b for a, b in zip(values[ours], values[theirs], strict=True)], 'ratio')

    def best(names: Sequence[str], batch: int) -> str:
        there = [f'{name}_b{batch}' for name in names if f'{name}_b{batch}' in values]
        return max(there, key=lambda name: float(np.median(values[name])), default='')

    for batch in (64, 256):
        ours = f'mmpipe_b{batch}'
        over(f'decoded_b{batch}_over_ffcv', ours, f'ffcv_b{batch}')
        over(f'decoded_b{batch}_over_best_streaming', ours, best(STREAMING, batch))
        over(f'decoded_b{batch}_over_dataloader_workers', ours, f'dataloader_workers_b{batch}')
        over(f'decoded_b{batch}_over_pixeltable', ours, f'pixeltable_b{batch}')
        over(f'decoded_b{batch}_of_memcpy', ours, 'memcpy')
        over(f'decoded_b{batch}_fragmented', f'fragmented_b{batch}', f'compacted_b{batch}')
    for name in ('over_best_streaming', 'over_dataloader_workers', 'over_pixeltable', 'of_memcpy', 'fragmented'):
        both = [found[f'decoded_b{batch}_{name}'] for batch in (64, 256) if f'decoded_b{batch}_{name}' in found]
        if both:
            found[f'decoded_{name}'] = min(both, key=lambda each: float(np.median(each[0])))
    over('encoded_over_best_peer', 'mmpipe_photos_b64', best(ENCODED, 64))
    over('encoded_over_imagefolder', 'mmpipe_photos_b64', 'imagefolder_b64')
    over('encoded_large_over_full_decode', 'mmpipe_large_b32', 'mmpipe_large_whole_b32')
    costs = [values[f'order_overhead_b{batch}'] for batch in (64, 256) if f'order_overhead_b{batch}' in values]
    if costs:
        found['order_overhead'] = (list(max(costs, key=lambda each: float(np.median(each)))), 'of an epoch')
    return found


def contest(bench: Bench, env: Path, work: Path, sizes: Sizes, only: Sequence[str]) -> None:
    """Everything, in rounds."""
    python = loaders_install.python_of(env)
    contestants = [name for name in (*PEERS, *loaders_mmpipe.MEASURES) if not only or name in only]
    maker, data = Process(python, 'data', work), asdict(sizes)
    try:
        for kind in sorted({'decoded', *(PEERS[name].data for name in contestants if name in PEERS)}):
            data |= maker.ask(do='make', kind=kind, sizes=asdict(sizes))
        bench.notes['data'] = data
    finally:
        maker.stop()
    # The first batch of a new process is measured before others are there, who would take the page cache from it.
    alone = [name for name in contestants if name in loaders_mmpipe.MEASURES and loaders_mmpipe.MEASURES[name].fresh]
    for names in (alone, [name for name in contestants if name not in alone]):
        found = Contest(bench, python, work, quick=bench.quick)
        try:
            for name in names:
                found.enter(name, sizes)
            os.sync()  # what was written is not written on during the rounds
            bench.compare(found.variants(), repeats=5, warmup=False)
            chosen = {name: dict(each) for name, each in found.chosen.items()}
            for what, said in {**found.notes, 'chosen': chosen}.items():
                bench.notes.setdefault(what, {}).update(said)
        finally:
            found.close()
    values = {name: figure.values for name, figure in bench.figures.items()}
    named = {name: Figure(unit, tuple(each)) for name, (each, unit) in ratios(values).items()}
    bench.figures = {**named, **bench.figures}
    bench.notes['peers'] = {
        name: {'title': peer.title, 'data': peer.data, 'shuffle': peer.shuffle, 'owned_batches': peer.owned}
        for name, peer in PEERS.items()
        if name in found.chosen
    }
    packages = [peer.package for peer in PEERS.values()]
    bench.notes['peer_versions'] = loaders_install.versions(env, [*packages, 'numpy', 'torch', 'torchvision', 'numba'])


@contextmanager
def folder(kept: Path | None) -> Iterator[Path]:
    """Of the data: one that is kept, or one that is removed afterwards."""
    if kept is not None:
        kept.mkdir(parents=True, exist_ok=True)
        yield kept.resolve()
        return
    with tempfile.TemporaryDirectory(prefix='mmpipe-bench-') as made:
        yield Path(made)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument('--install', action='store_true')
    parser.add_argument('--env', type=Path, default=loaders_install.DEFAULT)
    parser.add_argument('--work', type=Path)
    parser.add_argument('--only', type=lambda text: text.split(','), default=[])
    mine, rest = parser.parse_known_args()
    if mine.install:
        loaders_install.install(mine.env)
        return
    bench = Bench.from_arguments('loaders', __doc__, rest)
    env = mine.env.absolute()
    if not loaders_install.python_of(env).exists():
        raise SystemExit(f'{env} holds no environment of loaders: run `python benchmarks/loaders.py --install` first')
    sizes = QUICK if bench.quick else Sizes()
    bench.notes = {'wanted': WANTED, 'threads': {'OMP_NUM_THREADS': 1, 'cores': len(os.sched_getaffinity(0))}}
    with folder(mine.work) as work, bench.recording():
        contest(bench, env, work, sizes, mine.only)
    if bench.out is not None and any(name in PEERS for name in bench.notes['chosen']):
        plot = [str(HERE / 'loaders_plot.py'), str(bench.out / 'loaders.json'), str(bench.out / 'loaders.png')]
        subprocess.run([str(loaders_install.python_of(env)), *plot], check=True)


if __name__ == '__main__':
    main()

"""A training over several processes, one of which is killed at random, again and again; and what comes of it.

`torchrun` starts all of them again after each kill, and `fit(resume='auto')` goes on from the last checkpoint. A kill
counts as survived if steps are taken again within a minute, and all of them count for nothing unless the run finishes
with the weights of one that nobody disturbed, and with each row in as many steps.

    python benchmarks/scale_kills.py drive COUNT SEED FOLDER '{"parallel": {"dp_shard": 2}}'

prints a JSON object. `rank` instead of `drive` is what each process runs.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import mmpipe as mm
from mmpipe.models.weights_file import load_weights
from mmpipe.runs import Run, open_run
from mmpipe.shards import Block, Field, write_snapshot
from mmpipe.train import Callback

ROWS, BATCH, STEPS_PER_KILL = 40, 8, 8
PATIENCE_S = 60.0
PAUSE_S = 0.03  # per step, so that there is something to kill
ATTEMPT = 'TORCHELASTIC_RESTART_COUNT'


def write_rows(folder: Path) -> None:
    """Vectors with a class and a price, each missing here and there."""
    rng = np.random.default_rng(0)
    fields = [
        Field(name='vector', kind='tensor', dtype='float32', shape=(16,)),
        Field(name='kind', kind='label', vocabulary=('cup', 'hat', 'map')),
        Field(name='price', kind='scalar', dtype='float32'),
    ]
    columns: dict[str, list[Any]] = {
        'vector': list(rng.normal(size=(ROWS, 16)).astype(np.float32)),
        'kind': [None if i % 3 == 0 else ('cup', 'hat', 'map')[i % 3] for i in range(ROWS)],
        'price': [None if i % 4 == 1 else float(rng.normal()) for i in range(ROWS)],
    }
    write_snapshot(folder, fields, Block(keys=[f'{i:03}' for i in range(ROWS)], columns=columns))


def build(seen: str, dropout: float) -> nn.Module:
    """A model that notes the rows of each of its training steps in a file of this process and attempt."""
    model = mm.MultitaskModel(
        encoders={'vector': mm.encoders.vector(16, 32, dropout=dropout)},
        tasks=[mm.classification('kind', ('cup', 'hat', 'map')), mm.regression('price')],
        hidden=32,
        dropout=dropout,
    )
    file = Path(seen) / f'{os.environ.get(ATTEMPT, "0")}-{os.environ.get("RANK", "0")}.jsonl'

    def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        if module.training:
            with file.open('a', encoding='utf-8') as opened:
                opened.write(json.dumps(arguments[0]['_key']) + '\n')

    model.register_forward_pre_hook(note)
    return model


class NoteStart(Callback):
    """Keeps the step at which an attempt begins, on the first process."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_start(self, run: Run) -> None:
        """See `Callback`."""
        kept = open_run(run).newest_checkpoint()
        step = 0 if kept is None else int(kept.name)
        (self.folder / f'{os.environ.get(ATTEMPT, "0")}-start').write_text(str(step))


def rank(folder: Path, options: Mapping[str, Any]) -> Run:
    """What each process does."""
    torch.set_num_threads(1)
    seen = folder / 'seen'
    seen.mkdir(parents=True, exist_ok=True)
    with mm.process_group(timeout_s=options.get('timeout_s', 30.0)):
        rows = mm.open_snapshot(str(options['rows'])).rows()
        loader = mm.DataLoader(rows, global_batch_size=BATCH, shuffle=True, seed=3, device='cpu')
        trainer = mm.Trainer(
            epochs=options['epochs'], runs=folder / 'runs', parallel=mm.Parallel(**options.get('parallel', {})),
            optimizer=functools.partial(torch.optim.SGD, lr=0.01, momentum=0.9), schedule='cosine', clip=1.0,
            checkpoint_every=2, checkpoint_seconds=None, log_every=1, callbacks=[NoteStart(seen)],
            sharded_checkpoints=options.get('sharded', 'auto'),
            progress=lambda *_: time.sleep(options.get('pause_s', PAUSE_S)),
        )  # fmt: skip
        arguments = {'seen': str(seen), 'dropout': options.get('dropout', 0.2)}
        return trainer.fit(build, loader, args=arguments, name='ranks', resume='auto')


def launched(folder: Path, options: Mapping[str, Any], *, processes: int, restarts: int = 0) -> subprocess.Popen[str]:
    """Start `torchrun` with as many processes; what they say goes to the file 'said' of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(processes),
        '--max-restarts', str(restarts), __file__, 'rank', str(folder), json.dumps(options),
    ]  # fmt: skip
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'TORCH_ELASTIC_SHUTDOWN_TIMEOUT': '3'}
    with (folder / 'said').open('a') as said:
        return subprocess.Popen(command, env=environment, stdout=said, stderr=said, text=True)


def ranks_of(launcher: int, attempt: int) -> dict[int, int]:
    """{rank: number of its process} of an attempt that runs."""
    found = {}
    for entry in Path('/proc').glob('[0-9]*'):
        try:
            if int((entry / 'stat').read_text().rpartition(')')[2].split()[1]) != launcher:
                continue
            pairs = (pair.partition('=') for pair in (entry / 'environ').read_text().split('\0'))
            variables = {name: value for name, _, value in pairs}
        except (OSError, ValueError):
            continue  # it ended meanwhile
        if variables.get(ATTEMPT) == str(attempt) and 'RANK' in variables:
            found[int(variables['RANK'])] = int(entry.name)
    return found


def steps_of(folder: Path, attempt: int, rank: int = 0) -> list[list[str]]:
    """Keys of the steps that a process has begun in an attempt."""
    file = folder / 'seen' / f'{attempt}-{rank}.jsonl'
    if not file.is_file():
        return []
    lines = file.read_text(encoding='utf-8').split('\n')[:-1]  # the last one ends with a line feed, or was cut
    return [json.loads(line) for line in lines]


def rows_by_step(folder: Path) -> dict[int, list[str]]:
    """{step: sorted keys of its rows, on all processes} of what reached the weights."""
    found: dict[int, list[str]] = {}
    starts = {int(file.name.partition('-')[0]): int(file.read_text()) for file in (folder / 'seen').glob('*-start')}
    for attempt, start in sorted(starts.items()):
        found = {step: keys for step, keys in found.items() if step < start}
        for file in (folder / 'seen').glob(f'{attempt}-*.jsonl'):
            for number, keys in enumerate(steps_of(folder, attempt, int(file.stem.partition('-')[2]))):
                found.setdefault(start + number, []).extend(keys)
    return {step: sorted(keys) for step, keys in found.items()}


def until_steps(folder: Path, attempt: int, count: int, launcher: subprocess.Popen[str]) -> float:
    """Seconds until an attempt has begun so many steps, or all is over.

    Raises:
        TimeoutError: nothing went on for `PATIENCE_S`.
    """
    began = moved = time.monotonic()
    seen = 0
    while seen < count and launcher.poll() is None:
        now = len(steps_of(folder, attempt))
        if now > seen:
            seen, moved = now, time.monotonic()
        if time.monotonic() - moved > PATIENCE_S:
            raise TimeoutError(f'attempt {attempt} took no step for {PATIENCE_S:g} s; see {folder / "said"}')
        time.sleep(0.01)
    return time.monotonic() - began


def drive(folder: Path, count: int, seed: int, options: Mapping[str, Any], *, processes: int = 2) -> dict[str, Any]:
    """Kill one of the processes `count` times, each time when some steps were taken again.

    Returns:
        Kills, how many of them were survived in time, the longest pause in seconds from kill to the next step, steps
        that were taken with the rows of an undisturbed run and steps in all, and the largest difference of a weight.
    """
    rng = random.Random(seed)
    rows = folder / 'rows'
    write_rows(rows)
    epochs = -(-STEPS_PER_KILL * max(count, 2) // (ROWS // BATCH))
    options = {'rows': str(rows), 'epochs': epochs, **options}
    disturbed = folder / 'disturbed'
    launcher = launched(disturbed, options, processes=processes, restarts=count + 1)
    kills, survived, longest = 0, 0, 0.0
    try:
        for attempt in range(count):
            until_steps(disturbed, attempt, rng.randrange(1, STEPS_PER_KILL - 1), launcher)
            time.sleep(rng.uniform(0.0, 2 * PAUSE_S))  # anywhere in a step, or in a save
            victims = ranks_of(launcher.pid, attempt)
            if not victims:
                break  # it has finished
            os.kill(victims[rng.choice(sorted(victims))], signal.SIGKILL)
            kills += 1
            try:
                took = until_steps(disturbed, attempt + 1, 1, launcher)
            except TimeoutError:
                break
            longest, survived = max(longest, took), survived + (launcher.poll() in (None, 0))
        status = launcher.wait(timeout=PATIENCE_S + epochs)
    finally:
        if launcher.poll() is None:
            launcher.kill()
    if status:
        survived = 0
    undisturbed = folder / 'undisturbed'
    launched(undisturbed, {**options, 'pause_s': 0.0}, processes=processes).wait(timeout=PATIENCE_S + epochs)
    ours, theirs = (open_run('ranks', runs=each / 'runs') for each in (disturbed, undisturbed))
    there, wanted = rows_by_step(disturbed), rows_by_step(undisturbed)
    return {
        'kills': kills,
        'survived': survived,
        'longest_s': round(longest, 1),
        'status': ours.status,
        'steps': len(wanted),
        'same_rows': sum(there.get(step) == keys for step, keys in wanted.items()) if len(there) == len(wanted) else 0,
        'difference': difference(ours, theirs) if ours.status == 'finished' else None,
    }


def difference(one: Run, other: Run) -> float:
    """The largest difference of a weight between two runs."""
    a, b = (load_weights(run.checkpoint() / 'model.safetensors') for run in (one, other))
    return max(float((a[name].double() - b[name].double()).abs().max()) for name in a)


def figures(*, quick: bool) -> dict[str, tuple[float, str]]:
    """How many of 20 kills were survived: in time, and with the weights of an undisturbed run at the end."""
    count = 2 if quick else 20
    with tempfile.TemporaryDirectory() as folder:
        found = drive(Path(folder), count, 0, {'parallel': {'dp_shard': 2}})
    right = found['status'] == 'finished' and found['same_rows'] == found['steps'] and found['difference'] <= 1e-6
    return {'rank_kills_ok': (found['survived'] if right else 0, f'of {count}')}


def main(what: str, *arguments: str) -> None:
    """The command."""
    if what == 'rank':
        rank(Path(arguments[0]), json.loads(arguments[1]))
        return
    count, seed, folder, *options = arguments
    print(json.dumps(drive(Path(folder), int(count), int(seed), json.loads(options[0]) if options else {})))


if __name__ == '__main__':
    main(*sys.argv[1:])

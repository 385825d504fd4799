"""What lies past one process: several ranks, a search, a federation, Ray, very long lists of shards, and kills.

Each part is a script of its own, run in a process of its own; this one collects what they found.

`parity_max_rel_fp32`, `parity_max_rel_bf16`  `scale_parallel.py`: five steps over processes beside one process
`dp_input_overhead`                           `scale_parallel.py`: two ranks, share of the time that waits for data
`tune_scaling`                                `scale_tuning.py`: two processes of a search beside one
`manifest_open_s`, `manifest_rss_mb`,         `scale_manifest.py`: a snapshot of 10^6 shards
`manifest_first_batch_s`
`federated_overhead`                          `scale_federated.py`: a round beside the trainings in it
`random_kills_ok`                             ranks (`scale_kills.py`), processes of Ray (`scale_ray.py`) and clients of
                                              a federation, 20 kills each: those that were survived

The whole takes some 50 minutes on two cores. It wants the extras `federated`, `ray` and `tune`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from harness import Bench, Figure

HERE = Path(__file__).resolve().parent
PARTS = {
    'scale_parallel': 'function', 'scale_manifest': 'script', 'scale_tuning': 'script', 'scale_federated': 'script',
    'scale_kills': 'function', 'scale_ray': 'function',
}  # fmt: skip
"""Whether a part is asked by its `figures(quick=...)`, or by its command line."""
KILLS = ('rank_kills_ok', 'ray_kills_ok', 'federated_kills_ok')
WANTED = {
    'parity_max_rel_fp32': 'at most 1e-5', 'parity_max_rel_bf16': 'at most 1e-2', 'dp_input_overhead': 'below 0.05',
    'tune_scaling': 'at least 1.8', 'manifest_open_s': 'below 2', 'manifest_rss_mb': 'below 500',
    'manifest_first_batch_s': 'below 3', 'federated_overhead': 'below 0.10', 'random_kills_ok': '60 of 60',
}  # fmt: skip
ASK = 'import json, {part}; print("\\n" + json.dumps({part}.figures(quick={quick})))'


def measured(part: str, folder: str, *, quick: bool, repeats: int | None) -> tuple[dict[str, Figure], Any]:
    """Figures of one part, and its notes.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, '-c', ASK.format(part=part, quick=quick)]
    if PARTS[part] == 'script':
        command = [sys.executable, f'{part}.py', '--json', '--out', folder, *(['--quick'] if quick else [])]
        command += [] if repeats is None else ['--repeats', str(repeats)]
    done = subprocess.run(command, cwd=HERE, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f'{part} ended with {done.returncode}')
    if PARTS[part] == 'function':
        found = json.loads(done.stdout.strip().splitlines()[-1])
        return {name: Figure(unit, (float(value),)) for name, (value, unit) in found.items()}, None
    record = json.loads(done.stdout[done.stdout.index('{') :])
    figures = {name: Figure(about['unit'], tuple(about['values'])) for name, about in record['figures'].items()}
    return figures, record['notes']


def main() -> None:
    """The command."""
    bench = Bench.from_arguments('scale', __doc__)
    bench.notes = {'wanted': WANTED}
    with tempfile.TemporaryDirectory() as folder, bench.recording():
        for part in PARTS:
            print(f'scale: {part}', file=sys.stderr, flush=True)
            try:
                figures, notes = measured(part, folder, quick=bench.quick, repeats=bench.repeats)
            except RuntimeError as error:  # its figures are missing then; what the others found is not lost
                bench.notes.setdefault('failed', []).append(str(error))
                continue
            for name, figure in figures.items():
                print(f'{name}  {figure}', file=sys.stderr, flush=True)
            bench.figures |= figures
            if notes:
                bench.notes[part] = notes
        survived = [bench.figures[name].median for name in KILLS if name in bench.figures]
        bench.figures['random_kills_ok'] = Figure('kills', (sum(survived),))


if __name__ == '__main__':
    main()

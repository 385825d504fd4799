"""What the demo's model reaches, beside the majority answer and linear probes, and what its second run costs.

A repeat is `mmpipe demo --json` in a fresh home. The figures are those it prints at its end: per task the mean over
grouped splits, in the metric of the task, on all bundled rows.

    python benchmarks/demo_quality.py [--quick] [--repeats N] [--json] [--out DIR]
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile

from harness import Bench


def one(*, quick: bool) -> dict[str, tuple[float, str]]:
    """Scores of one demo, and the seconds of its three parts."""
    with tempfile.TemporaryDirectory(prefix='mmpipe-bench-') as home:
        kept = {name: value for name, value in os.environ.items() if name != 'PIXELTABLE_HOME'}
        environment = {**kept, 'MMPIPE_HOME': home}
        command = [sys.executable, '-m', 'mmpipe.cli', 'demo', '--json', *(['--quick'] if quick else [])]
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
        stop = 'from mmpipe.store import stop_postgres; stop_postgres()'
        subprocess.run([sys.executable, '-c', stop], env=environment, check=True)
    parts = json.loads(done.stdout)
    figures = {f'seconds, {name}': (sum(part['seconds'].values()), 's') for name, part in parts.items()}
    last = parts['added']
    for task, scores in last['metrics'].items():
        for name, summary in {'model': scores, **last['baselines'][task]}.items():
            if summary['mean'] is not None:
                figures[f'{task}, {name}'] = (summary['mean'], scores['metric'])
                figures[f'{task}, {name}, deviation over splits'] = (summary['std'], scores['metric'])
    return figures


def main() -> None:
    """The command."""
    bench = Bench.from_arguments('demo_quality', __doc__)
    bench.notes = {'data': 'examples/data'}
    with bench.recording():
        bench.compare({'demo': lambda: one(quick=bench.quick)}, repeats=1, warmup=False)


if __name__ == '__main__':
    main()

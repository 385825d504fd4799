"""What a snapshot of 10^6 shards costs to open, shuffle, resume, grow and compare.

Real: every entry of the manifest (digest, size and rows of the very file of its block), the indexes of all 2.5 million
rows, and each of the shards that the first batches read. Not real: the other shards are not on the disk, as nothing
that is measured reads them, and a shard holds 1 to 4 small rows, not 64 MB. Files are in the page cache, on a local
disk. Each figure is measured in a process of its own, from after its imports; memory is its peak, imports included.
The rate of ordering is per second of one core.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import many_shards
import numpy as np
from harness import ROOT, Bench

from mmpipe.shards import Rows, open_snapshot, write_block

BATCH = 256
START = """
import json, re, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
root, blocks = Path(sys.argv[1]), int(sys.argv[3])
import numpy as np
from mmpipe.shards import Snapshot, commit, open_snapshot, write_block
def peak():  # getrusage would count what the parent had before this program began
    return int(re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())[1]) / 1024
"""
OPEN = """
base, began = peak(), time.perf_counter()
snapshot = open_snapshot(root)
train = snapshot.split('train')
opened = time.perf_counter()
out = {'manifest_open_s': opened - began, 'manifest_rss_mb': peak(), 'manifest_imports_mb': base}
"""
LEAVES = """
snapshot = open_snapshot(root)
began = time.perf_counter()
count = sum(len(snapshot.shards.leaf(at)) for at in range(len(snapshot.shards.branches)))
assert count == len(snapshot.shards)
out = {'manifest_every_entry_s': time.perf_counter() - began, 'manifest_every_entry_rss_mb': peak()}
"""
ORDER = """
from mmpipe.data.order import epoch_order
train = open_snapshot(root).split('train')
began = time.perf_counter()
hashes = train.hashes
read, cpu = time.perf_counter(), time.process_time()
epoch_order(hashes, 0, 0)
rate = len(train) / (time.process_time() - cpu)
out = {'manifest_hashes_s': read - began, 'manifest_order_rows_per_s': rate}
"""
FIRST = """
import mmpipe as mm
mm.DataLoader
base, began = peak(), time.perf_counter()
loader = mm.DataLoader(open_snapshot(root).split('train'), batch_size=256, shuffle=True, device='cpu')
batch = next(iter(loader))
out = {'manifest_first_batch_s': time.perf_counter() - began, 'manifest_first_batch_rss_mb': peak(),
       'manifest_torch_imports_mb': base}
assert len(batch['_key']) == 256
"""
RESUME = """
import mmpipe as mm
state = json.loads((root / 'state.json').read_text())
mm.DataLoader
began = time.perf_counter()
loader = mm.DataLoader(open_snapshot(root).split('train'), batch_size=256, shuffle=True, device='cpu')
loader.load_state_dict(state)
batch = next(iter(loader))
out = {'manifest_resume_s': time.perf_counter() - began}
"""
GROW = """
import many_shards
old = open_snapshot(root, (root / 'first').read_text())
sizes = {path: path.stat().st_size for path in (root / 'manifests').iterdir()}
number = blocks + int(time.time() * 1000) % 1000  # another one each time
shard = write_block(root, many_shards.FIELDS, many_shards.rows_block(number), index=number)
began = time.perf_counter()
shards = old.shards.revised(lambda shard: shard.fields, blocks=(), new=[shard])
made = commit(root, many_shards.FIELDS, shards, splits={**old.splits}, parent=old.id)
committed = time.perf_counter()
written = sum(path.stat().st_size for path in (root / 'manifests').iterdir() if path not in sizes)
before = open_snapshot(root, old.id)
begun = time.perf_counter()
found = made.diff(before)
out = {'manifest_commit_s': committed - began, 'manifest_commit_bytes': written,
       'manifest_diff_s': time.perf_counter() - begun, 'manifest_diff_leaves_read': len(before.shards.leaves_read)}
assert len(found.added) == shard.rows
(root / 'LATEST').write_text(old.id)
"""
PARTS = {'open': OPEN, 'leaves': LEAVES, 'order': ORDER, 'first': FIRST, 'resume': RESUME, 'grow': GROW}
UNITS = {'s': 's', 'mb': 'MB', 'bytes': 'B', 'read': 'leaves'}


def prepare(root: Path, blocks: int) -> None:
    """The manifest, the shards that first batches read, and a state in the middle of an epoch."""
    made = many_shards.write_manifest(root, blocks)
    (root / 'first').write_text(made.id)
    import mmpipe as mm

    train = open_snapshot(root).split('train')
    loader = mm.DataLoader(train, batch_size=BATCH, shuffle=True, device='cpu')
    sequence, ahead = loader.batches.sequence(0), 64 * BATCH  # more than is made ahead of the first batches
    middle = len(train) // 2 // BATCH * BATCH
    some = np.concatenate([sequence[:ahead], sequence[middle : middle + ahead]])
    many_shards.write_shards(root, np.unique(Rows(train.snapshot, train.index[some]).places[:, 0]).tolist())
    write_block(root, many_shards.FIELDS, many_shards.rows_block(blocks), index=blocks)
    state = {**loader.state_dict(), 'consumed': middle, 'order': loader.batches.digest(0)}
    (root / 'state.json').write_text(json.dumps(state))


def measure(part: str, root: Path, blocks: int) -> dict[str, tuple[float, str]]:
    """The figures of a part, in a process of its own."""
    code = f'{START}{PARTS[part]}print(json.dumps(out))'
    command = [sys.executable, '-c', code, str(root), str(ROOT / 'benchmarks'), str(blocks)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    return {name: (value, _unit(name)) for name, value in found.items()}


def _unit(name: str) -> str:
    return 'rows/s' if name.endswith('per_s') else UNITS[name.rpartition('_')[2]]


def fixed(root: Path) -> dict[str, tuple[float, str]]:
    """Sizes of what is on the disk."""
    snapshot = open_snapshot(root, (root / 'first').read_text())
    rows, shards = snapshot.shards.rows, len(snapshot.shards)
    size = {kind: sum(getattr(branch, kind).bytes for branch in snapshot.shards.branches)
            for kind in ('list', 'keys', 'rowids')}  # fmt: skip
    return {
        'manifest_bytes_per_shard': (size['list'] / shards, 'B'),
        'manifest_key_bytes_per_row': (size['keys'] / rows, 'B'),
        'manifest_rowid_bytes_per_row': (size['rowids'] / rows, 'B'),
    }


def figures(*, quick: bool) -> dict[str, tuple[float, str]]:
    """Medians of repeats."""
    blocks, repeats = (20_000, 1) if quick else (1_000_000, 5)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        prepare(root, blocks)
        found: dict[str, list[float]] = {}
        units = {}
        for _ in range(repeats):
            for part in PARTS:
                for name, (value, unit) in measure(part, root, blocks).items():
                    found.setdefault(name, []).append(value)
                    units[name] = unit
        return {name: (statistics.median(values), units[name]) for name, values in found.items()} | fixed(root)


def main() -> None:
    bench = Bench.from_arguments('scale_manifest', __doc__)
    with bench.recording(), tempfile.TemporaryDirectory() as folder:
        blocks, root = (20_000 if bench.quick else 1_000_000), Path(folder)
        prepare(root, blocks)
        bench.notes['entries'] = blocks
        variants = {part: (lambda part=part: measure(part, root, blocks)) for part in PARTS}
        bench.compare({**variants, 'sizes': lambda: fixed(root)}, repeats=1 if bench.quick else 5)


if __name__ == '__main__':
    main()

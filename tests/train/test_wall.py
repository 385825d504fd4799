"""The wall: training needs no Pixeltable, neither to import nor to run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from shop_snapshot import write_shop

SUPPORT = str(Path(__file__).parents[1] / 'support')

IMPORTS = """
import sys
import mmpipe.data, mmpipe.models, mmpipe.train, mmpipe.runs
assert not [name for name in sys.modules if name.split('.')[0] == 'pixeltable']
"""

TRAINING = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'pixeltable':
            raise ImportError('pixeltable is not installed here')

sys.meta_path.insert(0, Blocked())
import mmpipe as mm

def build():
    return mm.MultitaskModel(encoders={'title': mm.encoders.vector(8, 8)}, tasks=[mm.classification('kind', 3)])

snapshot = mm.open_snapshot(sys.argv[1])
train = mm.DataLoader(snapshot.split('train'), batch_size=16, shuffle=True, device='cpu')
val = mm.DataLoader(snapshot.split('val'), batch_size=16, device='cpu')
run = mm.Trainer(epochs=1, runs=sys.argv[2]).fit(build, train, val)
assert mm.evaluate(mm.load_model(run), val) == mm.open_run(run.path).metrics
wider = mm.Trainer(epochs=1, runs=sys.argv[2]).fit(mm.transfer(run, tasks=[mm.regression('price')]), train, val)
assert wider.status == 'finished'
assert not [name for name in sys.modules if name.split('.')[0] == 'pixeltable']
"""


def run_python(code, *args, cwd=None):
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': os.pathsep.join(p for p in sys.path if p)}
    done = subprocess.run(
        [sys.executable, *code, *map(str, args)], capture_output=True, text=True, env=environment, cwd=cwd
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_torch_side_imports_no_pixeltable():
    run_python(['-c', IMPORTS])


def test_a_whole_training_runs_where_pixeltable_cannot_be_imported(tmp_path):
    write_shop(tmp_path / 'shop')
    (tmp_path / 'training.py').write_text(TRAINING)
    run_python([str(tmp_path / 'training.py')], tmp_path / 'shop', tmp_path / 'runs', cwd=tmp_path)

"""The store side and the torch side share shards and runs, and nothing else."""

from __future__ import annotations

import json
import os
import site
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

import mmpipe

ROOT = Path(mmpipe.__file__).parent.parent


def modules_after(code: str) -> set[str]:
    script = f'{code}\nimport sys; print("\\n".join(sys.modules))'
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.split('.')[0] for name in done.stdout.split()}


def test_importing_mmpipe_imports_no_library() -> None:
    heavy = {'torch', 'pixeltable', 'numpy', 'pyarrow', 'PIL', 'av', 'rich', 'typer', 'fsspec', 'sqlalchemy'}
    assert modules_after('import mmpipe') & heavy == set()


def test_the_torch_side_imports_no_pixeltable() -> None:
    packages = 'mmpipe.data, mmpipe.models, mmpipe.train, mmpipe.runs, mmpipe.shards'
    training = 'pipelines.demo.training, pipelines.demo.baselines, pipelines.stamps.training'
    loaded = modules_after(f'import {packages}, {training}')
    assert 'torch' in loaded
    assert 'pixeltable' not in loaded


def test_the_store_side_imports_no_torch() -> None:
    packages = 'mmpipe.store, mmpipe.sources, mmpipe.functions, mmpipe.plans, mmpipe.snapshots, mmpipe.overview'
    loaded = modules_after(f'import {packages}, pipelines.demo.views, pipelines.stamps.views')
    assert 'pixeltable' in loaded
    assert 'torch' not in loaded


def test_the_formats_import_neither_side() -> None:
    assert (
        modules_after(
            'import mmpipe.shards, mmpipe.runs, mmpipe.leaks, mmpipe.workers, mmpipe.decode, mmpipe.data.batch'
        )
        & {'torch', 'pixeltable'}
        == set()
    )


def test_showing_help_imports_neither_side() -> None:
    loaded = modules_after(
        'import mmpipe.cli, sys\nsys.argv = ["mmpipe", "--help"]\ntry: mmpipe.cli.main()\nexcept SystemExit: pass'
    )
    assert loaded & {'torch', 'pixeltable'} == set()


def test_training_runs_in_an_environment_without_pixeltable(tmp_path: Path) -> None:
    """A real environment: every installed package is linked into it, except Pixeltable and what only it brings."""
    venv.create(tmp_path / 'env', symlinks=True)
    packages = next((tmp_path / 'env' / 'lib').glob('python3*')) / 'site-packages'
    for entry in Path(site.getsitepackages()[0]).iterdir():
        if not entry.name.lower().startswith(('pixeltable', 'mmpipe', '_mmpipe', 'pip', 'sqlalchemy', 'psycopg')):
            (packages / entry.name).symlink_to(entry)
    (packages / 'checkout.pth').write_text(str(ROOT))
    script = textwrap.dedent("""
        import importlib.util
        assert importlib.util.find_spec('pixeltable') is None
        import numpy as np
        from mmpipe.shards import Block, Field, write_snapshot
        rng = np.random.default_rng(0)
        x = rng.normal(size=(64, 4)).astype('float32')
        x_field = Field(name='x', kind='tensor', dtype='float32', shape=(4,))
        fields = [x_field, Field(name='y', kind='scalar', dtype='float32')]
        columns = {'x': list(x), 'y': x.sum(1).tolist()}
        splits = ['train'] * 48 + ['val'] * 16
        block = Block(keys=[str(i) for i in range(64)], columns=columns, splits=splits)
        write_snapshot('.mmpipe/shards/tiny', fields, block)
    """)
    training = textwrap.dedent("""
        import mmpipe as mm
        def build():
            return mm.MultitaskModel(encoders={'x': mm.encoders.vector(4, 8)}, tasks=[mm.regression('y')], hidden=8)
        def train(snapshot, *, runs=None, continue_from=None, progress=None):
            train, val = (mm.DataLoader(snapshot.split(name), batch_size=16) for name in ('train', 'val'))
            trainer = mm.Trainer(epochs=2, runs=runs, progress=progress)
            return trainer.fit(build, train, val, continue_from=continue_from)
    """)
    (tmp_path / 'pipelines' / 'tiny').mkdir(parents=True)
    (tmp_path / 'pipelines' / 'tiny' / 'training.py').write_text(training)
    (tmp_path / 'pyproject.toml').touch()
    clean = {key: value for key, value in os.environ.items() if not key.startswith(('PYTHON', 'MMPIPE'))}
    for arguments in (['-c', script], ['-m', 'mmpipe.cli', 'train', 'tiny', '--json']):
        command = [tmp_path / 'env' / 'bin' / 'python', *arguments]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=clean, check=False)
        assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result['run'] == 'tiny/0001'
    assert result['metrics']['y']['n'] == 16
    assert Path(result['path']).is_relative_to(tmp_path / '.mmpipe' / 'runs')

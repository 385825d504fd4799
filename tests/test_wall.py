"""The store side and the torch side share shards and runs, and nothing else."""

from __future__ import annotations

import os
import site
import subprocess
import sys
import textwrap
import venv
from pathlib import Path

import pytest

import mmpipe

ROOT = Path(mmpipe.__file__).parent.parent


def modules_after(code: str) -> set[str]:
    script = f'{code}\nimport sys; print("\\n".join(sys.modules))'
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.split('.')[0] for name in done.stdout.split()}


def test_importing_mmpipe_imports_no_library() -> None:
    heavy = {'torch', 'pixeltable', 'numpy', 'pyarrow', 'PIL', 'av', 'rich', 'typer', 'fsspec', 'sqlalchemy'}
    assert modules_after('import mmpipe') & heavy == set()


@pytest.mark.parametrize('package', ['data', 'models', 'train', 'runs', 'shards'])
def test_the_torch_side_imports_no_pixeltable(package: str) -> None:
    assert 'pixeltable' not in modules_after(f'import mmpipe.{package}')


@pytest.mark.parametrize(
    'package', ['store', 'sources', 'functions', 'plans', 'snapshots', 'overview', 'shards', 'runs']
)
def test_the_store_side_imports_no_torch(package: str) -> None:
    assert 'torch' not in modules_after(f'import mmpipe.{package}')


def test_the_demo_pipeline_keeps_the_wall() -> None:
    assert 'torch' not in modules_after('import mmpipe.functions, pipelines.demo.views')
    assert 'pixeltable' not in modules_after('import pipelines.demo.training')


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
        import numpy as np, mmpipe as mm
        from mmpipe.shards import Block, Field, write_snapshot
        rng = np.random.default_rng(0)
        x = rng.normal(size=(64, 4)).astype('float32')
        x_field = Field(name='x', kind='tensor', dtype='float32', shape=(4,))
        fields = [x_field, Field(name='y', kind='scalar', dtype='float32')]
        columns = {'x': list(x), 'y': x.sum(1).tolist()}
        snapshot = write_snapshot('shards', fields, Block(keys=[str(i) for i in range(64)], columns=columns))
        def build():
            return mm.MultitaskModel(encoders={'x': mm.encoders.vector(4, 8)}, tasks=[mm.regression('y')], hidden=8)
        train = mm.DataLoader(snapshot.rows(), batch_size=16, shuffle=True)
        run = mm.Trainer(epochs=2, runs='runs').fit(build, train, train)
        print(mm.load_model(run)(next(iter(train)))['y'].shape)
    """)
    (tmp_path / 'script.py').write_text(script)
    clean = {key: value for key, value in os.environ.items() if not key.startswith('PYTHON')}
    python = tmp_path / 'env' / 'bin' / 'python'
    done = subprocess.run([python, 'script.py'], cwd=tmp_path, capture_output=True, text=True, env=clean, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == 'torch.Size([16])'

"""Several machines, which here are processes with runs of their own, tune one study in a real Postgres."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import tuned_shop
from postgres_server import postgres_server
from shop_snapshot import write_shop

import mmpipe as mm
from mmpipe.tuning import Float, Int

optuna = pytest.importorskip('optuna')
optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = pytest.mark.slow
ROOT = Path(mm.__file__).parents[1]
STATE = optuna.trial.TrialState
DEADLINE_S = 180


@pytest.fixture(scope='module')
def postgres():
    """URL of an empty database on a server of its own, stopped at the end."""
    with postgres_server() as server:
        yield server.url()


MACHINE = """
    import functools
    import time
    from pathlib import Path
    import mmpipe as mm
    import tuned_shop
    from mmpipe.tuning import Float, Int

    if __name__ == '__main__':
        Path({runs!r} + '.ready').touch()
        while len(list(Path({runs!r}).parent.glob('*.ready'))) < 2:  # else the first could be done before the second
            time.sleep(0.02)
        mm.tune(
            functools.partial(tuned_shop.fit, {shop!r}),
            space={{'lr': Float(1e-4, 1e-1, log=True), 'hidden': Int(2, 8)}},
            metric='kind.loss', trials=8, processes={processes}, runs={runs!r}, storage={url!r}, name='shared',
            trainer=tuned_shop.trainer(),
        )
"""


def test_two_machines_add_to_one_study_and_draw_different_values(postgres, tmp_path):
    shop = str(write_shop(tmp_path / 'shop', 64, holes=0.0).root)
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    environment['PYTHONPATH'] = os.pathsep.join(map(str, (ROOT, ROOT / 'tests' / 'support')))
    machines = []
    for number, processes in enumerate((2, 2)):
        runs, script = tmp_path / f'runs{number}', tmp_path / f'machine{number}.py'
        script.write_text(textwrap.dedent(MACHINE.format(shop=shop, runs=str(runs), url=postgres, processes=processes)))
        machines.append(subprocess.Popen([sys.executable, str(script)], env=environment, stderr=subprocess.PIPE))
    for machine in machines:
        _, said = machine.communicate(timeout=DEADLINE_S)
        assert machine.returncode == 0, said.decode()
    url = postgres.replace('postgresql://', 'postgresql+psycopg://')
    study = optuna.load_study(study_name='shared', storage=url)
    assert 8 <= len(study.trials) <= 12  # each looks before it begins one
    assert {trial.state for trial in study.trials} <= {STATE.COMPLETE, STATE.PRUNED}
    assert len({trial.params['lr'] for trial in study.trials}) == len(study.trials)
    folders = [Path(trial.user_attrs['run']) for trial in study.trials]
    assert {path.relative_to(tmp_path).parts[0] for path in folders} == {'runs0', 'runs1'}
    for trial, path in zip(study.trials, folders, strict=True):
        assert f'{trial.number:04d}' in path.parts
        told = [line['val']['kind']['loss'] for line in mm.open_run(path).history() if 'val' in line]
        assert list(trial.intermediate_values.values()) == told
        assert trial.value == told[-1]
    # A third one, later.
    before = len(study.trials)
    again = mm.tune(
        functools.partial(tuned_shop.fit, shop), space={'lr': Float(1e-4, 1e-1, log=True), 'hidden': Int(2, 8)},
        metric='kind.loss', trials=before + 1, runs=tmp_path / 'runs2', storage=postgres, name='shared',
    )  # fmt: skip
    assert len(again.trials) == before + 1

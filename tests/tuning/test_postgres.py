"""Several machines, which here are processes with runs of their own, tune one study in a real Postgres."""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest
import tuned_shop
from shop_snapshot import write_shop

import mmpipe as mm
from mmpipe.tuning import Float, Int

optuna = pytest.importorskip('optuna')
optuna.logging.set_verbosity(optuna.logging.WARNING)
pytestmark = pytest.mark.slow
ROOT = Path(mm.__file__).parents[1]
STATE = optuna.trial.TrialState
DEADLINE_S = 180


def binaries():
    """Folder of Debian's Postgres, of any version, or of one in the path."""
    found = sorted(Path('/usr/lib/postgresql').glob('*/bin/initdb'), key=lambda path: int(path.parts[-3]))
    named = shutil.which('initdb')
    return found[-1].parent if found else Path(named).parent if named else None


@pytest.fixture(scope='module')
def postgres():
    """URL of an empty database on a server of its own, stopped at the end."""
    programs = binaries()
    if programs is None:
        pytest.skip('no Postgres server is installed (Debian: postgresql)')
    as_user: list[str] = []
    if os.getuid() == 0:  # which Postgres refuses to run as
        if shutil.which('runuser') is None or subprocess.run(['id', 'postgres'], capture_output=True).returncode:
            pytest.skip('a Postgres server does not run as root, and there is no user postgres or no runuser')
        as_user = ['runuser', '-u', 'postgres', '--']
    # Not pytest's tmp_path, whose parent is closed to other users.
    with tempfile.TemporaryDirectory(prefix='mmpipe-postgres-') as folder:
        data = Path(folder) / 'data'
        data.mkdir(mode=0o700)
        os.chmod(folder, 0o755)
        if as_user:
            shutil.chown(data, 'postgres')
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]

        def program(name, *arguments):
            return subprocess.run(
                [*as_user, str(programs / name), '-D', str(data), *arguments], check=True, timeout=DEADLINE_S,
                stdout=subprocess.DEVNULL, cwd='/',
            )  # fmt: skip

        program('initdb', '-U', 'mmpipe', '--auth=trust', '--no-sync')
        options = f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories='' -c fsync=off"
        program('pg_ctl', '-w', '-l', str(data / 'log'), '-o', options, 'start')
        try:
            yield f'postgresql://mmpipe@127.0.0.1:{port}/postgres'
        finally:
            program('pg_ctl', '-w', '-m', 'immediate', 'stop')


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

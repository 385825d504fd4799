"""`mmpipe train`, with a pipeline of the user's own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from shop_snapshot import write_shop

from mmpipe.cli import main
from mmpipe.runs import open_run

TRAINING = """
import os, signal, time
import mmpipe as mm

def watched(progress):
    def show(*said):
        mine = os.environ.get('RANK', '')
        if mine and os.environ.get('FAILS') == mine:
            raise ValueError('no such thing')
        if mine and os.environ.get('ENDS') == mine:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(float(os.environ.get('PAUSE', '0')))
        progress(*said)
    return show

def build():
    return mm.MultitaskModel(
        encoders={'title': mm.encoders.vector(8, 8)}, tasks=[mm.classification('kind', 3)], hidden=8)

def train(snapshot, *, runs=None, continue_from=None, progress=None):
    loaders = [mm.DataLoader(snapshot.split(name), global_batch_size=16, device='cpu') for name in ('train', 'val')]
    return mm.Trainer(epochs=2, runs=runs, progress=watched(progress), log_every=1).fit(
        build, *loaders, continue_from=continue_from, resume='auto')
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs `mmpipe train` in a project with one pipeline: (exit status, stdout, stderr), with its path as PATH."""
    (tmp_path / 'pipelines' / 'trained_here').mkdir(parents=True)
    (tmp_path / 'pipelines' / 'trained_here' / 'training.py').write_text(TRAINING)
    (tmp_path / '.mmpipe').mkdir()
    write_shop(tmp_path / '.mmpipe' / 'shards' / 'shop')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MMPIPE_HOME', raising=False)
    monkeypatch.setattr(sys, 'path', list(sys.path))

    def run(*options):
        monkeypatch.setattr(sys, 'argv', ['mmpipe', 'train', 'trained_here', '--dir', 'shop', *options])
        with pytest.raises(SystemExit) as exited:
            main()
        said = capsys.readouterr()
        return exited.value.code, said.out.replace(str(tmp_path), 'PATH'), said.err

    yield run
    sys.modules.pop('pipelines.trained_here.training', None)


def test_the_text_names_split_parent_and_new_rows_and_a_further_run_is_told(command, caplog):
    status, text, _ = command()
    assert (status, caplog.messages) == (0, [])
    first, kind = text.splitlines()
    snapshot = open_run('shop').snapshot['id']
    assert first == f'run shop/0001 (finished) on snapshot {snapshot}: PATH/.mmpipe/runs/shop/0001'
    assert re.fullmatch(r'  kind \(val\): loss [\d.]+, accuracy [\d.]+.*, n \d+', kind)

    status, text, _ = command()
    assert (status, text.split()[1]) == (0, 'shop/0002')
    assert caplog.messages == ['run shop/0001 finished on this snapshot already; training another']

    _, text, _ = command('--continue')
    assert text.startswith(
        f'run shop/0003 (finished) on snapshot {snapshot}, continued from shop/0002 with 0 new rows:'
    )
    assert len(caplog.messages) == 1


def in_processes(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """The command as a process of its own, which starts others; in the folder that this test is in."""
    command = [sys.executable, '-m', 'mmpipe.cli', 'train', 'trained_here', '--dir', 'shop', '--nproc', '2', *options]
    return subprocess.run(command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=120)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_with_nproc_two_processes_train_what_one_does_and_say_it_once(command, tmp_path):
    done = in_processes('--json')
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found['run'] == 'shop/0001'
    other = json.loads(command('--json')[1])
    assert found['metrics']['kind']['n'] == other['metrics']['kind']['n']
    assert done.stderr.count('train: ') == 1


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_what_one_of_several_processes_raises_is_said_once_with_its_rank(command):
    done = in_processes(FAILS='1')
    assert (done.returncode, done.stdout) == (1, '')
    assert done.stderr.splitlines()[-1] == 'error: TrainError: rank 1 of 2: ValueError: no such thing'
    assert done.stderr.count('no such thing') == 1
    done = in_processes(ENDS='1')
    assert done.stderr.splitlines()[-1] == 'error: TrainError: rank 1 of 2: ended by SIGKILL (out of memory?)'


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_ctrl_c_saves_and_ends_all_processes_and_the_same_command_goes_on(command):
    words = [sys.executable, '-m', 'mmpipe.cli', 'train', 'trained_here', '--dir', 'shop', '--nproc', '2']
    pausing = {**os.environ, 'PAUSE': '0.2'}
    with subprocess.Popen(words, env=pausing, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(Path('.mmpipe/runs').glob('shop/0001/metrics.jsonl')) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.count('interrupted; run the same command again to go on') == 1
    stopped = open_run('shop')
    assert stopped.status == 'interrupted'
    assert stopped.newest_checkpoint() is not None
    done = in_processes()
    assert done.stdout.startswith('run shop/0001 (finished)'), done.stderr


def test_processes_of_a_launcher_start_no_others(command, monkeypatch):
    assert command('--nproc', '0')[2].startswith(
        'error: ConfigError: --nproc 0 --restarts 0: give at least one process'
    )
    monkeypatch.setenv('RANK', '1')
    assert 'This is rank 1 of a launcher such as torchrun' in command('--nproc', '2')[2]


def test_after_ctrl_c_the_same_command_goes_on_from_the_step_it_was_in(command, monkeypatch):
    from mmpipe.progress import StageProgress

    def press(self, stage, done, total, unit):
        if done == 32:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(StageProgress, '__call__', press)
            status, text, said = command()
    finally:
        signal.signal(signal.SIGINT, before)
    assert (status, text) == (130, '')
    assert said.endswith('interrupted; run the same command again to go on\n')
    stopped = open_run('shop')
    assert (stopped.status, stopped.checkpoint().name) == ('interrupted', '00000002')
    assert command()[1].startswith('run shop/0001 (finished)')

"""`mmpipe train`, with a pipeline of the user's own."""

from __future__ import annotations

import os
import re
import signal
import sys

import pytest
from shop_snapshot import write_shop

from mmpipe.cli import main
from mmpipe.runs import open_run

TRAINING = """
import mmpipe as mm

def build():
    return mm.MultitaskModel(
        encoders={'title': mm.encoders.vector(8, 8)}, tasks=[mm.classification('kind', 3)], hidden=8)

def train(snapshot, *, runs=None, continue_from=None, progress=None):
    loaders = [mm.DataLoader(snapshot.split(name), batch_size=16, device='cpu') for name in ('train', 'val')]
    return mm.Trainer(epochs=2, runs=runs, progress=progress).fit(
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

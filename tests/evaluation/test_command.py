"""`mmpipe report`, with a pipeline of the user's own."""

from __future__ import annotations

import json
import sys

import pytest
from shop_snapshot import write_shop

import mmpipe as mm
from mmpipe.cli import main
from mmpipe.runs import list_runs, open_run

TRAINING = """
import mmpipe as mm

def build():
    tasks = [mm.classification('kind', ['cup', 'hat', 'map'])]
    return mm.MultitaskModel(encoders={'title': mm.encoders.vector(8, 8)}, tasks=tasks, hidden=8)

def train(snapshot, *, runs=None, continue_from=None, progress=None):
    loaders = [mm.DataLoader(snapshot.split(name), batch_size=16, device='cpu', transforms={'title': lambda t: t * 2})
               for name in ('train', VAL) if name]
    return mm.Trainer(epochs=2, runs=runs, progress=progress).fit(build, *loaders)
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Runs a command in a project with one pipeline: (exit status, stdout, stderr)."""
    folder = tmp_path / 'pipelines' / 'reported_here'
    folder.mkdir(parents=True)
    (folder / 'training.py').write_text(TRAINING.replace('VAL', "'val'"))
    (tmp_path / '.mmpipe').mkdir()
    write_shop(tmp_path / '.mmpipe' / 'shards' / 'shop')
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('MMPIPE_HOME', raising=False)
    monkeypatch.setattr(sys, 'path', list(sys.path))

    def run(name, *options):
        monkeypatch.setattr(sys, 'argv', ['mmpipe', name, 'reported_here', '--dir', 'shop', *map(str, options)])
        with pytest.raises(SystemExit) as exited:
            main()
        said = capsys.readouterr()
        return exited.value.code, said.out, said.err

    yield run
    sys.modules.pop('pipelines.reported_here.training', None)


def test_it_reports_the_newest_finished_run_on_the_rows_it_was_validated_on(command, tmp_path):
    status, _, said = command('report')
    assert status == 1
    assert 'no finished run was trained on' in said
    assert '`mmpipe train reported_here --dir shop`' in said
    assert command('train')[0] == command('train')[0] == 0
    status, text, _ = command('report', '--by', 'note', '--by', 'weight')
    assert status == 0
    assert text.startswith("report of run shop/0002 on 24 rows of split 'val'")
    assert 'by note' in text
    assert 'by weight' in text
    status, text, _ = command('report', '--json')
    metrics = json.loads(text)['tasks'][0]['metrics']
    for name, value in open_run('shop/0002').metrics['kind'].items():
        if name != 'n':
            assert metrics[name]['value'] == pytest.approx(value, rel=1e-5)
    assert len(list_runs('shop')) == 2  # nothing was trained


def test_another_run_on_another_split_uses_the_same_transforms_and_writes_a_folder(command, tmp_path):
    command('train')
    command('train')
    status, text, _ = command(
        'report', '--run', 'shop/0001', '--split', 'train', '--out', 'out', '--images', 'photo', '--group', 'note'
    )
    assert status == 0
    assert text.startswith("report of run shop/0001 on 72 rows of split 'train'")
    assert 'the run was trained on 72 of these rows' in text
    assert 'resamples of groups by note' in text
    assert text.splitlines()[-1] == 'wrote out/report.json and 4 plots'
    stored = json.loads((tmp_path / 'out' / 'report.json').read_text())
    rows = mm.open_snapshot(tmp_path / '.mmpipe' / 'shards' / 'shop').split('train')
    loader = mm.DataLoader(rows, batch_size=72, device='cpu', transforms={'title': lambda title: title * 2})
    expected = mm.evaluate(mm.load_model('shop/0001'), loader)['kind']
    for name, each in stored['tasks'][0]['metrics'].items():
        assert each['value'] == pytest.approx(expected[name], rel=1e-5)


def test_what_cannot_be_reported_is_told_with_the_next_move(command, tmp_path):
    command('train')
    assert "has no split 'tset'" in command('report', '--split', 'tset')[2]
    assert "no field 'colour'" in command('report', '--by', 'colour')[2]
    assert "no run 'shop/0009'" in command('report', '--run', 'shop/0009')[2]
    sys.modules.pop('pipelines.reported_here.training')
    (tmp_path / 'pipelines' / 'reported_here' / 'training.py').write_text(TRAINING.replace('VAL', 'None'))
    assert 'passes no validation rows to mm.Trainer.fit' in command('report')[2]

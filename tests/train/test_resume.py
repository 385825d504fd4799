"""Resuming after a kill: bit for bit what an undisturbed run gives."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from shop_snapshot import write_shop
from torch import nn

from mmpipe.data import DataLoader
from mmpipe.errors import RunError, TrainError
from mmpipe.models import BareModel, MultitaskModel, encoders, load_model
from mmpipe.runs import open_run, update_run
from mmpipe.runs.factory import source_fingerprint
from mmpipe.runs.lock import training
from mmpipe.shards import open_snapshot
from mmpipe.train import Trainer, classification, multilabel, regression

SCRIPT = """
import os, signal, sys
import mmpipe.data, mmpipe.train
from mmpipe.data import DataLoader, transforms
from mmpipe.models import MultitaskModel, encoders
from mmpipe.shards import open_snapshot
from mmpipe.train import Trainer, classification, multilabel, regression

def build(hidden):
    # Dropout of both sorts, augmentation and fitted buffers: everything that a resumed run could get wrong.
    return MultitaskModel(
        encoders={'photo': encoders.image(8, width=8), 'title': encoders.vector(8, 16, dropout=0.3)},
        tasks=[classification('kind', 3), regression('price'), multilabel('tags', 4)],
        hidden=hidden, dropout=0.3, modality_dropout=0.2)

def main(shards, runs, signal_at, how=''):
    snapshot = open_snapshot(shards)
    train = DataLoader(snapshot.split('train'), batch_size=8, shuffle=True, seed=5, device='cpu',
                       transforms={'photo': transforms.image(crop=12, flip=True)})
    val = DataLoader(snapshot.split('val'), batch_size=32, device='cpu',
                     transforms={'photo': transforms.image(crop=12)})

    def send(stage, done, total, unit):
        if done == signal_at:
            os.kill(os.getpid(), signal.Signals[how])

    trainer = Trainer(epochs=3, runs=runs, accumulate=2, schedule='cosine', warmup=3, checkpoint_every=2, log_every=3,
                      seed=7, progress=send)
    run = trainer.fit(build, train, val, args={'hidden': 16}, resume='auto', name='shop')
    print(run.path)

if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), *sys.argv[4:])
"""


def run_script(script, *args):
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    return subprocess.run(
        [sys.executable, str(script), *map(str, args)], capture_output=True, text=True, env=environment
    )


@pytest.fixture(scope='module')
def undisturbed(tmp_path_factory):
    """A whole run of the script in this process: (folder of script and shards, run)."""
    folder = tmp_path_factory.mktemp('undisturbed')
    write_shop(folder / 'shop')
    script = folder / 'training.py'
    script.write_text(SCRIPT)
    sys.argv, argv = [str(script)], sys.argv
    try:
        namespace = {'__name__': 'undisturbed', '__file__': str(script)}
        exec(compile(SCRIPT, str(script), 'exec'), namespace)
        namespace['main'](str(folder / 'shop'), str(folder / 'whole'), -1)
    finally:
        sys.argv = argv
    return folder, open_run('shop', runs=folder / 'whole')


def assert_equal_bit_for_bit(run, whole):
    for file in ('model.safetensors', 'optimizer.safetensors'):
        assert (run.checkpoint() / file).read_bytes() == (whole.checkpoint() / file).read_bytes(), file
    assert run.history() == whole.history()
    assert run.metrics == whole.metrics
    assert [entry.name for entry in (run.path / 'checkpoints').iterdir()] == [whole.checkpoint().name]


def test_a_run_stopped_by_ctrl_c_then_killed_equals_one_that_was_not_bit_for_bit(undisturbed, tmp_path):
    folder, whole = undisturbed
    script, shop = folder / 'training.py', folder / 'shop'

    # 72 rows, 16 a step: 5 steps an epoch. Ctrl-C comes in step 3, for which no checkpoint is due.
    stopped = run_script(script, shop, tmp_path, 48, 'SIGINT')
    assert stopped.returncode == -signal.SIGINT, stopped.stderr
    assert 'KeyboardInterrupt: run shop/0001 is saved after step 3 of 15' in stopped.stderr
    run = open_run('shop', runs=tmp_path)
    assert (run.status, run.checkpoint().name) == ('interrupted', '00000003')

    # The kill comes after step 8, before its checkpoint is written: steps 7 and 8 are taken twice.
    killed = run_script(script, shop, tmp_path, 72 + 3 * 16, 'SIGKILL')
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    run = open_run('shop', runs=tmp_path)
    assert (run.record['status'], run.status, run.checkpoint().name) == ('running', 'killed', '00000006')

    done = run_script(script, shop, tmp_path, -1)
    assert done.returncode == 0, done.stderr
    resumed = open_run(done.stdout.strip())
    assert resumed.id == 'shop/0001'
    assert_equal_bit_for_bit(resumed, whole)

    # And the model comes back in a process that never ran the script.
    model = load_model(resumed)
    assert isinstance(model, MultitaskModel)
    assert resumed.record['factory']['module'] == '__main__'
    assert resumed.record['factory']['fingerprint'] == source_fingerprint(SCRIPT, 'build')


def build(hidden=8):
    return MultitaskModel(
        encoders={'title': encoders.vector(8, 16)},
        tasks=[classification('kind', 3), regression('price'), multilabel('tags', 4)],
        hidden=hidden,
    )


def loaders(snapshot, batch_size=16):
    return (
        DataLoader(snapshot.split('train'), batch_size=batch_size, shuffle=True, device='cpu'),
        DataLoader(snapshot.split('val'), batch_size=16, device='cpu'),
    )


class Stop(Exception):
    pass


def interrupted(trainer_options, snapshot, rows, **how):
    def stop(stage, done, total, unit):
        if done >= rows:
            raise Stop

    with pytest.raises(Stop):
        Trainer(**trainer_options, progress=stop).fit(build, *loaders(snapshot), **how)
    return open_run('shop', runs=trainer_options['runs'])


@pytest.fixture
def ctrl_c(monkeypatch):
    """Sends SIGINT to this process once per listed count of rows; SIGINT itself raises, as outside of tests."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def make(*counts):
        left = list(counts)

        def press(stage, done, total, unit):
            while left and done == left[0]:
                left.pop(0)
                os.kill(os.getpid(), signal.SIGINT)

        return press

    yield make
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_at_the_last_step_and_at_the_end_of_an_epoch_loses_nothing(shop, tmp_path, ctrl_c):
    options = {'epochs': 2, 'log_every': 1}
    whole = Trainer(**options, runs=tmp_path / 'whole').fit(build, *loaders(shop))
    for rows, name in ((16, '00000001'), (72, '00000005'), (144, '00000010')):
        runs = tmp_path / name
        with pytest.raises(KeyboardInterrupt, match=f'step {int(name)} of 10'):
            Trainer(**options, runs=runs, progress=ctrl_c(rows)).fit(build, *loaders(shop))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        stopped = open_run('shop', runs=runs)
        assert (stopped.status, stopped.checkpoint().name) == ('interrupted', name)
        assert_equal_bit_for_bit(Trainer(**options, runs=runs).fit(build, *loaders(shop), resume='auto'), whole)


def test_a_second_ctrl_c_stops_at_once_without_a_checkpoint(shop, tmp_path, ctrl_c):
    with pytest.raises(KeyboardInterrupt):
        Trainer(runs=tmp_path, progress=ctrl_c(32, 32)).fit(build, *loaders(shop))
    run = open_run('shop', runs=tmp_path)
    assert (run.status, run.newest_checkpoint()) == ('interrupted', None)


def test_a_program_that_handles_sigint_itself_is_left_to_it(shop, tmp_path, ctrl_c):
    pressed = []
    signal.signal(signal.SIGINT, lambda *_: pressed.append(1))
    run = Trainer(runs=tmp_path, progress=ctrl_c(32)).fit(build, *loaders(shop))
    assert (run.status, pressed) == ('finished', [1])


def test_ctrl_c_stores_no_weights_that_are_not_finite(shop, tmp_path, ctrl_c):
    model = BareModel(Root(), inputs='weight', tasks=[regression('price')])
    with pytest.raises(TrainError, match='not finite after step 1'):
        Trainer(runs=tmp_path, progress=ctrl_c(16)).fit(model, *loaders(shop))
    run = open_run('shop', runs=tmp_path)
    assert (run.status, run.newest_checkpoint()) == ('failed', None)


def test_a_further_run_of_what_has_finished_is_told(shop, tmp_path, caplog):
    options = {'epochs': 1, 'runs': tmp_path}
    for number in (1, 2):
        assert Trainer(**options).fit(build, *loaders(shop), resume='auto').id == f'shop/000{number}'
    Trainer(**options, lr=0.1).fit(build, *loaders(shop), resume='auto')
    assert [record.getMessage() for record in caplog.records] == [
        'run shop/0001 finished on this snapshot already; training another'
    ]


def test_a_run_that_failed_resumes_and_a_finished_one_trains_on_when_given_more_epochs(shop, tmp_path):
    options = {'epochs': 4, 'runs': tmp_path / 'a', 'checkpoint_every': 3}
    failed = interrupted(options, shop, 100)
    assert failed.status == 'failed'
    run = Trainer(**options).fit(build, *loaders(shop), resume=failed)
    assert (run.id, run.status) == ('shop/0001', 'finished')
    assert run.record['error'] is None

    short = Trainer(epochs=2, runs=tmp_path / 'b').fit(build, *loaders(shop))
    longer = Trainer(epochs=4, runs=tmp_path / 'b').fit(build, *loaders(shop), resume=short)
    assert longer.id == short.id
    for name, value in load_model(run).state_dict().items():
        assert torch.equal(value, load_model(longer).state_dict()[name])
    again = Trainer(epochs=4, runs=tmp_path / 'b').fit(build, *loaders(shop), resume=longer)
    assert again.metrics == longer.metrics
    assert again.history() == longer.history()


def test_a_run_killed_before_its_first_checkpoint_starts_over_in_its_place(shop, tmp_path):
    options = {'epochs': 2, 'runs': tmp_path, 'log_every': 1}
    failed = interrupted(options, shop, 32)
    assert failed.newest_checkpoint() is None
    run = Trainer(**options).fit(build, *loaders(shop), resume='auto')
    fresh = Trainer(**options).fit(build, *loaders(shop), resume='auto')  # nothing unfinished is left: a new run
    assert (run.id, fresh.id) == ('shop/0001', 'shop/0002')
    assert run.history() == fresh.history()


def test_a_run_that_is_being_trained_is_left_alone(shop, tmp_path):
    """Its record says 'running', as that of a killed one does: only the lock of its process tells."""
    options = {'epochs': 2, 'runs': tmp_path, 'checkpoint_every': 2}
    unfinished = update_run(interrupted(options, shop, 64), status='running')
    with training(unfinished):
        with pytest.raises(RunError, match=r'Run shop/0001 is being trained by another process\. Wait for it'):
            Trainer(**options).fit(build, *loaders(shop), resume=unfinished)
        assert Trainer(**options).fit(build, *loaders(shop), resume='auto').id == 'shop/0002'
    assert Trainer(**options).fit(build, *loaders(shop), resume='auto').id == 'shop/0001'


def test_a_run_goes_on_only_for_the_parent_it_came_from(shop, tmp_path):
    options = {'epochs': 2, 'runs': tmp_path, 'checkpoint_every': 2}
    parent = Trainer(**options).fit(build, *loaders(shop))
    child = interrupted(options, shop, 64, continue_from=parent)
    assert (child.id, child.parent['run']) == ('shop/0002', 'shop/0001')
    other = Trainer(**options).fit(build, *loaders(shop), resume='auto')
    assert (other.id, other.parent) == ('shop/0003', None)
    assert Trainer(**options).fit(build, *loaders(shop), resume='auto', continue_from=other).id == 'shop/0004'
    assert Trainer(**options).fit(build, *loaders(shop), resume='auto', continue_from=parent).id == 'shop/0002'


def test_a_run_killed_before_its_rows_were_stored_has_them_after_all(shop, tmp_path):
    options = {'epochs': 1, 'runs': tmp_path}
    failed = interrupted(options, shop, 32)
    (failed.path / 'train_rows.npy').unlink()
    train, val = loaders(shop)
    run = Trainer(**options).fit(build, train, val, resume='auto')
    assert run.id == failed.id
    assert run.trained_on(train.rows.hashes).all()
    assert not run.trained_on(val.rows.hashes).any()


class Root(nn.Module):
    """Finite as long as it is not trained: the gradient of a square root at 0 is infinite."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, weight):
        return torch.sqrt(self.weight * weight.abs())


def test_weights_that_are_not_finite_are_never_stored(shop, tmp_path):
    model = BareModel(Root(), inputs='weight', tasks=[regression('price')])
    with pytest.raises(
        TrainError, match=r'module.weight of the model is not finite after step 1\. Lower lr=.*no check'
    ):
        Trainer(max_steps=1, runs=tmp_path).fit(model, *loaders(shop))
    run = open_run('shop', runs=tmp_path)
    assert (run.status, run.newest_checkpoint()) == ('failed', None)


def test_what_would_change_a_step_cannot_differ_on_resume(shop, full_shop, tmp_path):
    options = {'epochs': 2, 'runs': tmp_path, 'checkpoint_every': 2}
    failed = interrupted(options, shop, 64)
    for changed, args, data, words in (
        ({'lr': 0.1}, {}, loaders(shop), 'lr = 0.1.*0.001'),
        ({'accumulate': 2}, {}, loaders(shop), 'accumulate'),
        ({}, {'hidden': 9}, loaders(shop), "factory = .*'hidden': 9"),
        ({}, {}, loaders(shop, 8), 'batch_size = 8'),
        ({}, {}, loaders(full_shop), 'snapshot'),
    ):
        with pytest.raises(RunError, match=words):
            Trainer(**{**options, **changed}).fit(build, *data, args=args, resume=failed)
    edited = update_run(failed, factory={**failed.record['factory'], 'fingerprint': '0' * 64})
    with pytest.raises(RunError, match='factory'):
        Trainer(**options).fit(build, *loaders(shop), resume=edited)
    other = Trainer(**{**options, 'lr': 0.1}).fit(build, *loaders(shop), resume='auto')
    assert (other.id, open_run(failed).status) == ('shop/0002', 'failed')
    with pytest.raises(RunError, match='no run'):
        Trainer(**options).fit(build, *loaders(shop), resume='shop/0009')


@pytest.mark.parametrize('file', ['state.json', 'optimizer.safetensors', 'model.safetensors', 'checkpoint.json'])
def test_a_damaged_checkpoint_is_named_with_the_next_move(shop, tmp_path, file):
    options = {'epochs': 2, 'runs': tmp_path, 'checkpoint_every': 2}
    failed = interrupted(options, shop, 64)
    (failed.checkpoint() / file).write_bytes(b'{')
    with pytest.raises(RunError, match=rf'is damaged: {file} .* delete its folder, and the training starts anew'):
        Trainer(**options).fit(build, *loaders(shop), resume=failed)


def test_a_checkpoint_is_never_half_there(shop, tmp_path, monkeypatch):
    from mmpipe.train import checkpoint

    run = Trainer(epochs=1, runs=tmp_path).fit(build, *loaders(shop))
    before = run.checkpoint()
    monkeypatch.setattr(checkpoint, 'save_file', lambda *_: (_ for _ in ()).throw(OSError('disk full')))
    with pytest.raises(OSError, match='disk full'):
        Trainer(epochs=2, runs=tmp_path).fit(build, *loaders(shop), resume=run)
    assert open_run(run).checkpoint() == before
    assert open_run(run).status == 'failed'
    assert [entry.name for entry in Path(before).parent.iterdir()] == [before.name]


def test_a_moved_checkout_resumes(shop, tmp_path):
    """The path of the source and of the shards is where they lie, not what they are."""
    options = {'epochs': 2, 'runs': tmp_path, 'checkpoint_every': 2}
    failed = interrupted(options, shop, 64)
    moved = {**failed.record['factory'], 'file': '/elsewhere/training.py'}
    failed = update_run(failed, factory=moved, snapshot={**failed.snapshot, 'root': '/elsewhere/shop'})
    assert Trainer(**options).fit(build, *loaders(open_snapshot(shop.root)), resume=failed).status == 'finished'

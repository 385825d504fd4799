"""Two ranks take the steps of one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from shop_snapshot import write_shop

from mmpipe.models.weights_file import load_weights
from mmpipe.runs import open_run

SCRIPT = """
import json
import os
import signal
import sys
import torch
from mmpipe.data import DataLoader
from mmpipe.models import MultitaskModel, encoders
from mmpipe.models.weights_file import load_weights, put_weights
from mmpipe.shards import open_snapshot
from mmpipe.train import Trainer, classification, evaluate, multilabel, predict, regression

def build():
    return MultitaskModel(
        encoders={'title': encoders.vector(8, 16, dropout=0.0), 'frames': encoders.sequence(4, 8, dropout=0.0)},
        tasks=[classification('kind', 3), regression('price'), multilabel('tags', 4)], hidden=8, dropout=0.0)

def main(shards, runs, rank, world, port, press_at=-1):
    torch.set_num_threads(1)
    if world > 1:
        torch.distributed.init_process_group(
            'gloo', init_method=f'file://{port}', rank=rank, world_size=world)
    snapshot = open_snapshot(shards)
    # 72 rows in global batches of 14: the last one has 2 rows, so ranks have unequal parts of most steps.
    train = DataLoader(snapshot.split('train'), batch_size=14 // world, shuffle=True, device='cpu')
    val = DataLoader(snapshot.split('val').take(range(23)), batch_size=5, device='cpu')

    def press(stage, done, total, unit):
        if rank == 1 and done == press_at:
            os.kill(os.getpid(), signal.SIGINT)

    trainer = Trainer(epochs=2, runs=runs, log_every=1, accumulate=2, progress=press)
    run = trainer.fit(build, train, val, name='shop', resume='auto')

    # Fewer rows than ranks: the last rank has none, by a loader of ours and by batches of any kind.
    model, few = build(), DataLoader(snapshot.split('val').take(range(1)), batch_size=1, device='cpu')
    put_weights(model, load_weights(run.checkpoint() / 'model.safetensors'), source=run.id)
    predicted = predict(model, few)
    found = {
        'loader': evaluate(model, few), 'batches': evaluate(model, list(few)), 'nothing': evaluate(model, []),
        'predicted': {name: list(getattr(values, 'shape', values)) for name, values in predicted.items()},
    }
    with open(f'{runs}-{rank}.json', 'w') as file:
        json.dump(found, file)
    if world > 1:
        torch.distributed.destroy_process_group()

if __name__ == '__main__':
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), *sys.argv[5:6], *map(int, sys.argv[6:]))
"""


@pytest.mark.slow  # a rank sometimes aborts at its end, after all its work; why is not known yet
def test_two_ranks_stopped_by_ctrl_c_and_resumed_take_the_steps_of_one_process_to_rounding(tmp_path):
    """Losses are divided by the labels of all ranks: a mean of the ranks' means would be another number."""
    write_shop(tmp_path / 'shop')
    script = tmp_path / 'training.py'
    script.write_text(SCRIPT)
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}

    def two_ranks(press_at):
        ranks = []
        for rank in range(2):
            command = [
                sys.executable,
                script,
                tmp_path / 'shop',
                tmp_path / 'two',
                rank,
                2,
                tmp_path / f'meet{press_at}',
            ]
            ranks.append(
                subprocess.Popen(
                    [*map(str, command), str(press_at)], env=environment, stderr=subprocess.PIPE, text=True
                )
            )
        said = [process.communicate(timeout=120)[1] for process in ranks]
        return [process.returncode for process in ranks], '\n'.join(said)

    # Ctrl-C reaches one rank after its first step; both stop after the second one, and go on from there.
    codes, said = two_ranks(28)
    assert codes == [-signal.SIGINT] * 2, said
    stopped = open_run('shop', runs=tmp_path / 'two')
    assert (stopped.status, stopped.checkpoint().name) == ('interrupted', '00000002')
    codes, said = two_ranks(-1)
    assert codes == [0, 0], said
    namespace = {'__name__': 'alone'}
    exec(compile(SCRIPT, str(script), 'exec'), namespace)
    namespace['main'](str(tmp_path / 'shop'), str(tmp_path / 'one'), 0, 1, '')

    assert_few_rows_are_measured_alike(tmp_path)

    one, two = (open_run('shop', runs=tmp_path / name) for name in ('one', 'two'))
    assert two.id == 'shop/0001'
    losses = [[line['loss'] for line in run.history() if 'loss' in line] for run in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    for task, values in one.metrics.items():
        assert two.metrics[task]['n'] == values['n']
        for name, value in values.items():
            assert two.metrics[task][name] == pytest.approx(value, rel=1e-2), (task, name)
    a, b = (load_weights(run.checkpoint() / 'model.safetensors') for run in (one, two))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-2, atol=1e-3)


def assert_few_rows_are_measured_alike(folder):
    alone, first, last = (
        json.loads((folder / name).read_text()) for name in ('one-0.json', 'two-0.json', 'two-1.json')
    )
    shapes = {'kind': 3, 'tags': 4}
    for found, rows in ((alone, 1), (first, 1), (last, 0)):
        assert len(found['predicted'].pop('_key')) == rows
        assert found.pop('predicted') == {'price': [rows], **{task: [rows, n] for task, n in shapes.items()}}
    assert first == last
    assert first['loader'] == first['batches']
    for task, values in alone['loader'].items():
        assert first['loader'][task]['n'] == values['n']
        assert first['loader'][task].keys() == values.keys()
        assert {value for name, value in first['nothing'][task].items() if name != 'n'} == {None}
        assert first['nothing'][task]['n'] == 0
    assert {task: values['n'] for task, values in alone['loader'].items()} == {
        'kind': 0,
        'price': 1,
        'tags': 1,
    }  # the first row of 'val' has no kind

"""Arrays you already have become shards, and a multitask model learns from rows whose labels are incomplete.

No table, no database: `write_snapshot` takes any columns, None where a value is missing. scikit-learn's wines (178 of
them, chemical analyses by three growers) give three tasks: the grower, and the alcohol and hue that the other
measurements do not include. Two of three labels are hidden at random. A loss masked per task still learns from every
row; dropping the incomplete rows, as most loaders make one do, leaves almost none.

    python examples/03_bring_your_own_data_no_pixeltable.py [--quick]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_wine

import mmpipe as mm
from mmpipe.shards import Block, Field, Rows, Snapshot, write_snapshot

GROWERS = ('A', 'B', 'C')
TARGETS = {'alcohol': 'alcohol', 'hue': 'hue'}  # task to the measurement that is taken out of the inputs
HIDDEN = 0.5


def write(root: Path, seed: int) -> Snapshot:
    """The wines as a snapshot; labels of training rows are hidden, those of test rows are all there."""
    wine = load_wine(as_frame=True)
    table, draw = wine.frame, np.random.default_rng(seed)
    inputs = table.drop(columns=['target', *TARGETS.values()]).to_numpy(np.float32)
    test = draw.random(len(table)) < 0.3
    labels = {'grower': [GROWERS[i] for i in table['target']]}
    labels |= {task: table[column].tolist() for task, column in TARGETS.items()}
    for values in labels.values():
        for row in np.flatnonzero(~test & (draw.random(len(table)) < HIDDEN)):
            values[row] = None
    fields = [
        Field(name='measured', kind='tensor', dtype='float32', shape=(inputs.shape[1],)),
        Field(name='grower', kind='label', vocabulary=GROWERS),
        *(Field(name=task, kind='scalar', dtype='float32') for task in TARGETS),
    ]
    block = Block(
        keys=[f'wine-{i:03d}' for i in range(len(table))],
        columns={'measured': list(inputs), **labels},
        splits=['test' if t else 'train' for t in test],
    )
    return write_snapshot(root, fields, block)


def build_model(features: int) -> mm.MultitaskModel:
    """One encoder, three heads. A function at the top of a file, so that a run can find it again."""
    return mm.MultitaskModel(
        encoders={'measured': mm.encoders.vector(features, 32)},
        tasks=[mm.classification('grower', GROWERS), *(mm.regression(task) for task in TARGETS)],
        hidden=32,
    )


def score(rows: Rows, test: Rows, *, steps: int, seed: int, runs: Path) -> dict[str, float]:
    """Accuracy of the grower and r2 of the others on the test rows, after the same number of steps."""
    train = mm.DataLoader(rows, batch_size=32, shuffle=True, seed=seed, device='cpu')
    stop = {'epochs': steps, 'max_steps': steps, 'evaluate_every': steps}
    trainer = mm.Trainer(**stop, lr=3e-3, seed=seed, runs=runs, device='cpu')
    args = {'features': rows.fields['measured'].shape[0]}
    run = trainer.fit(build_model, train, mm.DataLoader(test, batch_size=256, device='cpu'), args=args, name='wine')
    return {'grower': run.metrics['grower']['accuracy'], **{task: run.metrics[task]['r2'] for task in TARGETS}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='one seed, fewer steps')
    quick = parser.parse_args().quick
    found: dict[str, list[dict[str, float]]] = {'masked losses, all rows': [], 'complete rows only': []}
    for seed in range(1 if quick else 5):
        with tempfile.TemporaryDirectory() as folder:
            snapshot = write(Path(folder) / 'shards', seed)
            rows, test = snapshot.split('train'), snapshot.split('test')
            labelled = np.all([rows.read(task)[1] for task in ('grower', *TARGETS)], axis=0)
            complete = rows.take(np.flatnonzero(labelled))
            print(f'seed {seed}: {len(rows)} training rows, {len(complete)} of them with all three labels')
            for name, some in zip(found, (rows, complete), strict=True):
                found[name].append(score(some, test, steps=60 if quick else 300, seed=seed, runs=Path(folder) / 'runs'))
    for name, scores in found.items():
        means = {task: np.mean([s[task] for s in scores]) for task in scores[0]}
        print(f'{name:<24}' + '   '.join(f'{task} {value:.2f}' for task, value in means.items()))


if __name__ == '__main__':
    main()

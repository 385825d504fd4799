"""A Bayesian search for the settings of a model of handwritten digits, two trials at a time, each in its own process.

Real data, scikit-learn's 1,797 digits of 8 x 8 pixels: 600 to train on, 400 to choose settings by, the rest to tell how
good the choice is. Optuna's TPE draws learning rate, width, dropout and weight decay from what earlier trials came to;
its median pruner ends trials that are behind. What the defaults of the trainer come to stands beside it.

    python examples/08_tuning.py [--quick] [--plots DIR]
"""

from __future__ import annotations

import argparse
import functools
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import mmpipe as mm
from mmpipe.runs import Run
from mmpipe.shards import Block, Field, Snapshot, write_snapshot
from mmpipe.tuning import Choice, Float, Int

SIZES = {'train': 600, 'val': 400, 'test': 797}
SPACE = {
    'lr': Float(1e-4, 3e-1, log=True),  # a field of the trainer
    'weight_decay': Float(1e-3, 1.0, log=True),
    'schedule': Choice('constant', 'cosine'),
    'width': Int(8, 256, log=True),  # an argument of `fit`
    'dropout': Float(0.0, 0.6),
}


def write(root: Path) -> Snapshot:
    """The digits as a snapshot, in an order drawn once."""
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    fields = [
        Field(name='image', kind='tensor', dtype='float32', shape=(64,)),
        Field(name='digit', kind='label', vocabulary=tuple('0123456789')),
    ]
    columns = {
        'image': list((digits.data[order] / 16).astype(np.float32)),
        'digit': [str(label) for label in digits.target[order]],
    }
    splits = [split for split, size in SIZES.items() for _ in range(size)]
    return write_snapshot(root, fields, Block(keys=[f'{i:04d}' for i in order], columns=columns, splits=splits))


def build_model(width: int, dropout: float) -> mm.MultitaskModel:
    return mm.MultitaskModel(
        encoders={'image': mm.encoders.vector(64, width, dropout=dropout)},
        tasks=[mm.classification('digit', list('0123456789'))],
        hidden=width,
        dropout=dropout,
    )


def loader(snapshot: Snapshot, split: str) -> mm.DataLoader:
    learning = split == 'train'
    return mm.DataLoader(snapshot.split(split), batch_size=32 if learning else 400, shuffle=learning, device='cpu')


def fit(snapshot: Snapshot, trainer: mm.Trainer, *, width: int = 64, dropout: float = 0.0) -> Run:
    """One trial. At the top of the file, so that other processes find it; `resume='auto'` goes on after a kill."""
    args = {'width': width, 'dropout': dropout}
    return trainer.fit(build_model, loader(snapshot, 'train'), loader(snapshot, 'val'), args=args, resume='auto')


def test_accuracy(snapshot: Snapshot, run: Run) -> float:
    return mm.evaluate(mm.load_model(run), loader(snapshot, 'test'))['digit']['accuracy']


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='six trials of a few epochs')
    parser.add_argument('--plots', metavar='DIR', help='write history and importances there')
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        snapshot = write(Path(folder) / 'digits')
        trainer = mm.Trainer(epochs=4 if asked.quick else 12, runs=Path(folder) / 'runs', device='cpu')
        study = mm.tune(
            functools.partial(fit, snapshot),
            space=SPACE,
            metric='digit.accuracy',
            trainer=trainer,
            trials=6 if asked.quick else 40,
            processes=2,
        )
        states = [trial.state.name.lower() for trial in study.trials]
        print(f'{len(states)} trials: ' + ', '.join(f'{states.count(each)} {each}' for each in sorted(set(states))))
        best = mm.open_run(study.best_trial.user_attrs['run'])
        print('best:', ', '.join(f'{name} {value}' for name, value in study.best_params.items()))
        usual = fit(snapshot, trainer)
        for name, run in {'defaults': usual, 'tuned': best}.items():
            chosen = run.metrics['digit']['accuracy']
            print(f'{name:<9} accuracy {chosen:.3f} (val), {test_accuracy(snapshot, run):.3f} (test)')
        if asked.plots:
            from mmpipe.tuning.plots import save_plots

            print('wrote', *save_plots(study, asked.plots))


if __name__ == '__main__':
    main()

"""A trained encoder with new heads: learn some classes from many labels, then others from few.

scikit-learn's digits (1,797 scans of 8x8 pixels): a network learns to tell 0 to 6 apart from all their scans. Then 7,
8 and 9 have to be told apart from a handful of examples each: by a new head on what is frozen, with more and more of
the network trained on, by adapters in it, and by the same network from scratch. (Needs peft: `pip install mmpipe[lora]`.)

    python examples/05_transfer.py [--quick]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

import mmpipe as mm
from mmpipe.runs import Run
from mmpipe.shards import Block, Field, Rows, Snapshot, write_snapshot

EXAMPLES = 3  # labels of each new digit
OLD, NEW = tuple('0123456'), tuple('789')


def write(root: Path, seed: int) -> Snapshot:
    """Scans in three splits: 'old' with the digits 0 to 6, 'few' and 'test' with the others."""
    scans, digits = load_digits(return_X_y=True)
    words = [str(digit) for digit in digits]
    splits = ['old' if word in OLD else 'test' for word in words]
    order = np.random.default_rng(seed).permutation(len(scans))
    for word in NEW:
        for i in [i for i in order if words[i] == word][:EXAMPLES]:
            splits[i] = 'few'
    fields = [
        Field(name='scan', kind='tensor', dtype='uint8', shape=(1, 8, 8)),
        Field(name='old', kind='label', vocabulary=OLD),
        Field(name='new', kind='label', vocabulary=NEW),
    ]
    columns = {
        'scan': list((scans.reshape(-1, 1, 8, 8) * 15).astype(np.uint8)),  # 0..16 stored as 0..240
        'old': [word if word in OLD else None for word in words],
        'new': [word if word in NEW else None for word in words],
    }
    keys = [f'scan-{i:04d}' for i in range(len(scans))]
    return write_snapshot(root, fields, Block(keys=keys, columns=columns, splits=splits))


def build_model(task: str, classes: list[str]) -> mm.MultitaskModel:
    """A small convolutional network from scratch, and one head."""
    return mm.MultitaskModel(
        encoders={'scan': mm.encoders.image(64, channels=1, width=16)},
        tasks=[mm.classification(task, classes)],
        hidden=64,
    )


def fit(factory, rows: Rows, test: Rows | None, *, epochs: int, runs: Path, seed: int, args: dict | None = None) -> Run:
    """Train, and evaluate on the test scans at the end."""
    trainer = mm.Trainer(
        epochs=epochs, evaluate_every=epochs, lr=3e-3, schedule='cosine', seed=seed, runs=runs, device='cpu'
    )
    train = mm.DataLoader(rows, batch_size=32, shuffle=True, seed=seed, device='cpu')
    val = mm.DataLoader(test, batch_size=256, device='cpu') if test is not None else None
    return trainer.fit(factory, train, val, args=args, name='digits')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--quick', action='store_true', help='one seed, fewer epochs')
    quick = parser.parse_args().quick
    scores: dict[str, list[float]] = {}
    for seed in range(1 if quick else 5):
        with tempfile.TemporaryDirectory() as folder:
            runs = Path(folder) / 'runs'
            snapshot = write(Path(folder) / 'shards', seed)
            old, few, test = (snapshot.split(name) for name in ('old', 'few', 'test'))
            args = {'task': 'old', 'classes': list(OLD)}
            first = fit(build_model, old, None, epochs=3 if quick else 10, runs=runs, seed=seed, args=args)
            print(f'{first.id}: trained on {len(old)} scans of {", ".join(OLD)}; now {len(few)} of {", ".join(NEW)}')
            tasks = [mm.classification('new', NEW)]
            factories = {
                'head only, the rest frozen': (mm.transfer(first, tasks=tasks, freeze='trunk'), None),
                'fusion and head, encoder frozen': (mm.transfer(first, tasks=tasks, freeze='encoders'), None),
                'adapters in the encoder (LoRA)': (mm.transfer(first, tasks=tasks, lora=mm.Lora(rank=4)), None),
                'everything trained on': (mm.transfer(first, tasks=tasks, freeze=None), None),
                'from scratch': (build_model, {'task': 'new', 'classes': list(NEW)}),
            }
            for name, (factory, args) in factories.items():
                run = fit(factory, few, test, epochs=30, runs=runs, seed=seed, args=args)
                origin = f'weights of {run.parent["run"]}' if run.parent else 'random weights'
                print(f'  {run.id}: {name} ({origin}), accuracy {run.metrics["new"]["accuracy"]:.3f}')
                scores.setdefault(name, []).append(run.metrics['new']['accuracy'])
            # A frozen encoder gives the same for a scan in every epoch: compute it once, and train on that.
            loader = mm.DataLoader(snapshot.rows(), batch_size=256, device='cpu')
            features = mm.embed(first, loader, folder=Path(folder) / 'features').snapshot
            factory = mm.transfer(first, tasks=tasks, freeze='encoders', cached=True)
            run = fit(factory, features.split('few'), features.split('test'), epochs=30, runs=runs, seed=seed)
            print(f'  {run.id}: the same on features, accuracy {run.metrics["new"]["accuracy"]:.3f}')
            again = mm.load_model(first)  # a run names its factory, so any process can have its model back
            print(f'  {first.id} rebuilt: {sum(p.numel() for p in again.parameters()):,} parameters')
    for name, values in scores.items():
        print(f'{name:<34} accuracy {np.mean(values):.3f} ± {np.std(values):.3f} over {len(values)} seeds')


if __name__ == '__main__':
    main()

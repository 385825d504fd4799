"""The torch side of the demo: one model, six inputs, three tasks. Imports no Pixeltable."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mmpipe as mm
from mmpipe.runs import Run
from mmpipe.shards import Rows, Snapshot

TASKS = {'category': 'accuracy', 'words': 'map', 'detail': 'r2'}
"""Task to the metric it is reported by: share of right classes, mean average precision, R squared."""

EPOCHS, MORE_EPOCHS = 24, 6  # from scratch, and on from an earlier run
CROP = 48  # of the 64 pixels that are stored


def build_model(*, category: Sequence[str], words: Sequence[str]) -> mm.MultitaskModel:
    """An encoder per modality, concatenated, and a head per task.

    Args:
        category: vocabulary of this task, in the order of the snapshot's.
        words: as `category`.
    """
    return mm.MultitaskModel(
        encoders={
            'photo': mm.encoders.image(16, width=8),
            'photo_vector': mm.encoders.vector(1280, 128, dropout=0.3),
            'caption_vector': mm.encoders.vector(256, 64, dropout=0.3),
            'clip_vector': mm.encoders.vector(1280, 64, dropout=0.3),
            'document_vector': mm.encoders.vector(256, 64, dropout=0.3),
            'speech_mel': mm.encoders.spectrogram(32, 16, width=4),
            'facts': mm.encoders.vector(10, 64),
        },
        tasks=[mm.classification('category', category), mm.multilabel('words', words), mm.regression('detail')],
        hidden=128,
        dropout=0.3,
        modality_dropout=0.1,
    )


def model_args(snapshot: Snapshot) -> dict[str, list[str]]:
    """Arguments of `build_model` for a snapshot: its vocabularies."""
    return {task: list(snapshot.fields[task].vocabulary or ()) for task in ('category', 'words')}


def loader(rows: Rows, *, train: bool, seed: int = 0) -> mm.DataLoader:
    """Batches of some rows; photos cross to the device as uint8 and are cropped, flipped and normalised there."""
    transforms = {'photo': mm.transforms.image(crop=CROP, flip=train, resize=CROP // 2)}
    return mm.DataLoader(rows, batch_size=32 if train else 256, shuffle=train, seed=seed, transforms=transforms)


def fit(
    train_rows: Rows, val_rows: Rows, *, epochs: int = EPOCHS, lr: float = 2e-3, seed: int = 0, name: str | None = None,
    runs: str | Path | None = None, continue_from: Run | None = None, progress: Callable[..., Any] | None = None,
) -> Run:  # fmt: skip
    """Train on some rows and evaluate on others; a run of the same settings that was stopped goes on."""
    trainer = mm.Trainer(
        epochs=epochs,
        lr=lr,
        weight_decay=0.05,
        schedule='cosine',
        seed=seed,
        runs=runs,
        evaluate_every=epochs,
        progress=progress,
    )
    return trainer.fit(
        build_model,
        loader(train_rows, train=True, seed=seed),
        loader(val_rows, train=False),
        args=model_args(train_rows.snapshot),
        name=name,
        continue_from=continue_from,
        resume='auto',
        allow_unseen=True,  # splits go by a hash, and a category of somebody's own media may have few items
    )


def train(
    snapshot: Snapshot, *, runs: str | Path | None = None, continue_from: Run | None = None, epochs: int | None = None,
    progress: Callable[..., Any] | None = None,
) -> Run:  # fmt: skip
    """Train on the snapshot's training split; a continued run takes fewer, smaller steps over old and new rows.

    A run on the same snapshot from the same parent that was killed goes on where it was.

    Args:
        snapshot: of `views.training_view`.
        runs: folder of the runs; the project's when None.
        continue_from: a run on an earlier snapshot, whose weights to start from.
        epochs: passes over the training rows; 24, or 6 for a continued run, when None.
        progress: called with ('train', rows done, rows in all, 'rows').
    """
    usual, lr = (EPOCHS, 2e-3) if continue_from is None else (MORE_EPOCHS, 5e-4)
    return fit(
        snapshot.split('train'),
        snapshot.split('val'),
        epochs=epochs or usual,
        lr=lr,
        runs=runs,
        continue_from=continue_from,
        progress=progress,
    )


def fit_trial(snapshot: Snapshot, trainer: mm.Trainer) -> Run:
    """Train one trial of a search."""
    return trainer.fit(
        build_model,
        loader(snapshot.split('train'), train=True),
        loader(snapshot.split('val'), train=False),
        args=model_args(snapshot),
        resume='auto',
        allow_unseen=True,
    )


def tuning(snapshot: Snapshot) -> dict[str, Any]:
    """What `mmpipe tune demo` searches: arguments of `mm.tune`."""
    from mmpipe.tuning import Float

    return {
        'fit': functools.partial(fit_trial, snapshot),
        'space': {'lr': Float(3e-4, 1e-2, log=True), 'weight_decay': Float(1e-3, 0.5, log=True)},
        'metric': 'category.accuracy',
        'trainer': mm.Trainer(epochs=EPOCHS, schedule='cosine', evaluate_every=4),
    }


def test(run: Run, snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    """Metrics of a run's model on the snapshot's test split."""
    return mm.evaluate(mm.load_model(run), loader(snapshot.split('test'), train=False))

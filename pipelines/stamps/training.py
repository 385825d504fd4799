"""The torch side: picture, caption and recording in, four tasks out, each learned from the rows that have its label."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mmpipe as mm
from mmpipe.runs import Run
from mmpipe.shards import Rows, Snapshot

TASKS = {'category': 'accuracy', 'kind': 'accuracy', 'rules': 'map', 'language': 'accuracy'}
"""Task to the metric it is reported by: share of right classes, mean average precision."""

CROP = 56  # of the 64 pixels that are stored


def build_model(
    *, category: Sequence[str], kind: Sequence[str], rules: Sequence[str], language: Sequence[str]
) -> mm.MultitaskModel:
    """An encoder per modality, concatenated, and a head per task.

    Args:
        category: vocabulary of this task, in the order of the snapshot's, as are the others.
        kind: see `category`.
        rules: see `category`.
        language: see `category`.
    """
    return mm.MultitaskModel(
        encoders={
            'photo': mm.encoders.image(16, width=8),
            'photo_vector': mm.encoders.vector(1280, 128, dropout=0.3),
            'caption_vector': mm.encoders.vector(256, 64, dropout=0.3),
            'speech_bands': mm.encoders.vector(80, 64),
        },
        tasks=[
            mm.classification('category', category),
            mm.classification('kind', kind),
            mm.multilabel('rules', rules),
            mm.classification('language', language),
        ],
        hidden=128,
        dropout=0.3,
        modality_dropout=0.1,
    )


def loader(rows: Rows, *, train: bool, seed: int = 0) -> mm.DataLoader:
    """Batches of some rows. No flips: whether a stamp may be flipped is one of the labels."""
    transforms = {'photo': mm.transforms.image(crop=CROP, random=train)}
    return mm.DataLoader(rows, batch_size=32 if train else 256, shuffle=train, seed=seed, transforms=transforms)


def train(
    snapshot: Snapshot, *, runs: str | Path | None = None, continue_from: Run | None = None,
    progress: Callable[..., Any] | None = None, epochs: int | None = None, seed: int = 0,
) -> Run:  # fmt: skip
    """Train on the snapshot's training split; a continued run takes fewer, smaller steps over old and new rows.

    A run on the same snapshot from the same parent that was killed goes on where it was.

    Args:
        snapshot: of `views.training_view`.
        runs: folder of the runs; the project's when None.
        continue_from: a run on an earlier snapshot, whose weights to start from.
        progress: called with ('train', rows done, rows in all, 'rows').
        epochs: passes over the training rows; 20 when None, or 5 for a continued run.
        seed: of initial weights, order and augmentation.
    """
    usual, lr = (20, 1e-3) if continue_from is None else (5, 3e-4)
    epochs = epochs or usual
    trainer = mm.Trainer(
        epochs=epochs, lr=lr, weight_decay=0.05, schedule='cosine', seed=seed, runs=runs, evaluate_every=epochs,
        progress=progress,
    )  # fmt: skip
    return trainer.fit(
        build_model,
        loader(snapshot.split('train'), train=True, seed=seed),
        loader(snapshot.split('val'), train=False) if 'val' in snapshot.splits else None,
        args={task: list(snapshot.fields[task].vocabulary or ()) for task in TASKS},
        continue_from=continue_from,
        resume='auto',
        allow_unseen=True,  # splits go by a hash, and some kinds have few series
    )


def test(run: Run, snapshot: Snapshot) -> dict[str, dict[str, Any]]:
    """Metrics of a run's model on the snapshot's test split."""
    return mm.evaluate(mm.load_model(run), loader(snapshot.split('test'), train=False))

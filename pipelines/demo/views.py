"""The store side of the demo: where its rows come from, and what a training snapshot holds. Imports no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mmpipe as mm
from mmpipe.errors import SourceError
from mmpipe.functions import mean_pool
from pipelines.demo.folder import MediaFolder
from pipelines.demo.schema import Frames, Items, Labelled, Pages

CATEGORIES = ('boat', 'bug', 'dessert', 'flag', 'hardware', 'mammal', 'plant', 'vehicle')


def sources(folder: str | Path, *, manifest: str = 'items.csv') -> list[tuple[Any, Any]]:
    """Tables with the source of their rows.

    Args:
        folder: a directory like `examples/data`, or one with loose media: then files of one stem are an item, and a
            folder named like a category labels what lies in it.
        manifest: the CSV file in it that lists the items.

    Raises:
        SourceError: there is no such folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise SourceError(
            f"there is no folder '{folder}'. Give one with {manifest}, or with images, audio, video and documents."
        )
    if (root / manifest).is_file():
        return [(Items, mm.sources.rows(root / manifest))]
    return [(Items, MediaFolder(root=root, categories=CATEGORIES))]


def training_view() -> dict[str, Any]:
    """Arguments of `mm.snapshot`: the named filter view, with the frames and pages of each item pooled in."""
    return {
        'query': Labelled,
        'fields': {
            'photo': mm.field.image(Labelled.photo, size=64, fit='pad'),
            'photo_vector': Labelled.photo_vector,
            'caption_vector': Labelled.caption_vector,
            'speech_mel': Labelled.speech_mel,
            'clip_vector': mm.field.pooled(mean_pool(Frames.vector)),
            'document_vector': mm.field.pooled(mean_pool(Pages.vector)),
            'facts': Labelled.facts,
            'group': Labelled.group,
            'category': mm.field.label(Labelled.category, vocabulary=CATEGORIES),
            'words': mm.field.labels(Labelled.words),
            'detail': Labelled.detail,
        },
    }

"""A run for the examples of what takes one."""

from __future__ import annotations

import tempfile

from mmpipe.data.collate import example_rows
from mmpipe.data.loader import DataLoader
from mmpipe.models import MultitaskModel, encoders
from mmpipe.runs import Run
from mmpipe.train.tasks import classification
from mmpipe.train.trainer import Trainer


def example_model() -> MultitaskModel:
    """A model that tells cats from dogs by their price.

    >>> example_model().tasks[0].classes
    ('cat', 'dog')
    """
    return MultitaskModel(
        encoders={'price': encoders.vector(1, 4)}, tasks=[classification('kind', ['cat', 'dog'])], hidden=4
    )


def example_run() -> Run:
    """A finished run of one epoch over two rows, in a temporary folder.

    >>> example_run().status
    'finished'
    """
    loader = DataLoader(example_rows(), batch_size=2, device='cpu')
    return Trainer(runs=tempfile.mkdtemp()).fit(example_model, loader, name='animals')

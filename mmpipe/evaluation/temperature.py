"""Temperature scaling: one number per task that probabilities are set right with, afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from mmpipe.data.loader import DataLoader
from mmpipe.evaluation.models import model_of
from mmpipe.evaluation.outputs import Labelled, collect
from mmpipe.runs import Run
from mmpipe.train.evaluate import tasks_of
from mmpipe.train.tasks import Classification, Multilabel, Task

COLDEST, HOTTEST = 0.01, 100.0


def calibrate(
    run: Run | str | os.PathLike[str] | nn.Module,
    loader: DataLoader | Iterable[Mapping[str, Any]],
    *,
    tasks: Sequence[Task] | None = None,
    precision: str = 'fp32',
) -> dict[str, float]:
    """The temperature per task at which the model's probabilities fit some rows best.

    Logits divided by it give the highest likelihood (Guo et al.: On Calibration of Modern Neural Networks, ICML 2017,
    section 4.2). It changes no class that is predicted, nor any other metric but the loss. Above 1, the model was too
    sure. Fit it on validation rows and look at the calibration of others: `mm.report(run, test, temperature=...)`.

    Args:
        run: a run, its folder or id, or a model.
        loader: batches of rows that the model was not trained on.
        tasks: which; the model's own when None.
        precision: 'fp32' or 'bf16' (autocast).

    Returns:
        {task: temperature} of classifications and tasks of several labels that have a labelled row; 0.01 or 100 where
        the likelihood still rises there, as of logits that are right in every row.

    Raises:
        ConfigError: the model has no tasks.
        ModelError: an output is not finite.

    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.train.example import example_run
    >>> sorted(calibrate(example_run(), DataLoader(example_rows(), batch_size=2, device='cpu')))
    ['kind']
    """
    model = model_of(run, loader)
    wanted = [task for task in tasks_of(model, tasks) if isinstance(task, Classification | Multilabel)]
    if isinstance(loader, DataLoader):
        for task in wanted:
            task.check(loader.rows, what='calibration')
    outputs = collect(model, loader, wanted, precision=precision)
    return {name: best_temperature(found) for name, found in outputs.tasks.items() if len(found)}


def best_temperature(found: Labelled) -> float:
    """The temperature of one task; the negative log-likelihood is convex in its inverse, so its slope is bisected.

    >>> import numpy as np
    >>> from mmpipe.train.tasks import classification
    >>> logits = np.float32([[4, 0]] * 4)  # says 98 %, and is right in 3 of 4: log(3) would say so
    >>> found = Labelled(task=classification('kind', 2), rows=np.arange(4), output=logits,
    ...     target=np.int64([0, 0, 0, 1]), loss=np.zeros(4, np.float32))
    >>> round(best_temperature(found), 3), round(4 / float(np.log(3)), 3)
    (3.641, 3.641)
    """
    logits = torch.tensor(found.output, dtype=torch.float64)
    target = torch.tensor(found.target)
    if isinstance(found.task, Classification):
        right = logits.gather(1, target.long()[:, None])[:, 0].mean()

        def slope(inverse: float) -> float:
            return float(((inverse * logits).softmax(1) * logits).sum(1).mean() - right)
    else:
        there = (target > 0).double()

        def slope(inverse: float) -> float:
            return float((((inverse * logits).sigmoid() - there) * logits).mean())

    low, high = 1 / HOTTEST, 1 / COLDEST
    if max(abs(slope(low)), abs(slope(high))) < 1e-12 and abs(slope(1.0)) < 1e-12:
        return 1.0  # all logits of a row are equal, and stay so
    if slope(high) <= 0:
        return COLDEST
    if slope(low) >= 0:
        return HOTTEST
    for _ in range(60):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / (low * high) ** 0.5

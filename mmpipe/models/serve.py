"""A run's model over values that lie in no snapshot, read and transformed as its validation rows were.

    values ──► as the snapshot stores them ──► decoders, host transforms ──► transforms ──► model ──► predictions
               Field                           `inputs` of the run record    on the device

Nothing is written here a second time: the batch is made by the code that makes those of a loader.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from mmpipe.data.batch import BatchTask, Request
from mmpipe.data.collate import as_tensors
from mmpipe.data.device import resolve, to_device
from mmpipe.data.transforms.calling import apply_all, select, steps_of
from mmpipe.data.transforms.draw import Draw
from mmpipe.errors import RunError
from mmpipe.models.rebuild import load_model
from mmpipe.runs import Run, open_run
from mmpipe.runs.described import rebuilt
from mmpipe.runs.served import check_served
from mmpipe.shards import Field
from mmpipe.shards.loose import LooseRows


class Served:
    """The model of a run, ready to be asked; loads it.

    Args:
        run: a run, its folder or its id.
        device: where to put it; this machine's accelerator where there is one when 'auto'.

    Attributes:
        run: the run.
        model: in eval mode.
        inputs: names of the fields it reads.

    Raises:
        RunError: the run cannot be rebuilt, or does not say how its inputs were made.

    >>> from mmpipe.train.example import example_run
    >>> served = Served(example_run(), device='cpu')
    >>> [found] = served.predict([{'price': 1.5}])
    >>> sorted(found['kind'])
    ['label', 'probabilities', 'probability']
    """

    def __init__(self, run: Run | str, *, device: str = 'auto') -> None:
        from mmpipe.train.tasks import task_from_json

        self.run = open_run(run)
        description = check_served(self.run)
        self.model: Any = load_model(self.run, device=resolve(device))
        self._device = resolve(device)
        self.tasks = [task_from_json(task) for task in self.run.tasks]
        stored = {name: Field.from_json(each['field']) for name, each in self.run.record['fields'].items()}
        self.inputs = list(getattr(self.model, 'inputs', description['fields']))
        self._fields = [stored[name] for name in self.inputs]
        self._words = {task.name: stored[task.field].vocabulary for task in self.tasks if task.field in stored}
        self._decode, self._host = (
            rebuilt(description[what], run=self.run.id) for what in ('decode', 'host_transforms')
        )
        self._transforms = select(rebuilt(description['transforms'], run=self.run.id), self.inputs)
        self._on_error, self._seed = description['on_error'], description['seed']
        random = [name for name, steps in self._transforms.items() if any(_random(step) for step in steps_of(steps))]
        if random:
            raise RunError(
                f'Run {self.run.id} was given no validation rows, and the transforms of {random[0]!r} in training draw '
                f'at random: what it is served with cannot be told. Train with a validation loader.'
            )

    def outputs(self, rows: Sequence[Mapping[str, Any]], *, fused: bool = False) -> dict[str, np.ndarray]:
        """What the model gives for some rows.

        Args:
            rows: {field: value as the snapshot stores it, or None} each.
            fused: give what lies before the heads instead.

        Returns:
            {task: float32 `[n, outputs]` or `[n]`}; or {'': float32 `[n, width]`}.

        Raises:
            DataError, FieldError: a value that cannot be decoded, or does not fit its field.
        """
        keys = [str(number) for number in range(len(rows))]
        loose: Any = LooseRows(self._fields, {name: [row[name] for row in rows] for name in self.inputs}, keys=keys)
        named = set(self.inputs)
        task = BatchTask(
            loose, self.inputs, seed=self._seed, on_error=self._on_error,
            decode={name: each for name, each in self._decode.items() if name in named},
            host={name: each for name, each in self._host.items() if name in named},
        )  # fmt: skip
        batch = task(Request(np.arange(len(rows))))
        batch.pop('_failed', None)
        batch['_present'] = {name: np.flatnonzero(mask) for name, mask in batch['_mask'].items()}
        tensors = to_device(as_tensors(batch), self._device)
        tensors = apply_all(self._transforms, tensors, Draw(loose.hashes, self._seed))
        with torch.inference_mode():
            if fused:
                return {'': self.model.fused(tensors).float().cpu().numpy()}
            found = self.model(tensors)
        return {task.name: found[task.name].float().cpu().numpy() for task in self.tasks}

    def predict(self, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """Predictions as JSON, one per row.

        Args:
            rows: as for `outputs`.

        Returns:
            {task: ...} each: of one class per row 'label', 'probability' and 'probabilities' by word (or number, where
            there are no words); of several 'labels', those with a probability of 0.5 and more, and 'probabilities'; of
            a number 'value'; of a task of your own 'output'.
        """
        found = self.outputs(rows)
        return [{task.name: self._said(task, found[task.name][i]) for task in self.tasks} for i in range(len(rows))]

    def _said(self, task: Any, output: np.ndarray) -> dict[str, Any]:
        from mmpipe.train.tasks import Classification, Multilabel, Regression

        if isinstance(task, Regression):
            return {'value': float(output)}
        if not isinstance(task, Classification | Multilabel):
            return {'output': np.asarray(output).tolist()}
        logits = torch.from_numpy(np.asarray(output, dtype=np.float64))
        classes = task.classes if not isinstance(task.classes, int) else self._words.get(task.name)
        words = [str(word) for word in (classes or range(len(logits)))][: len(logits)]
        if isinstance(task, Multilabel):
            chances = logits.sigmoid().tolist()
            sure = [word for word, chance in zip(words, chances, strict=True) if chance >= 0.5]
            return {'labels': sure, 'probabilities': dict(zip(words, chances, strict=True))}
        chances = logits.softmax(0).tolist()
        best = int(np.argmax(chances))
        return {
            'label': words[best],
            'probability': chances[best],
            'probabilities': dict(zip(words, chances, strict=True)),
        }


def _random(step: Any) -> bool:
    return bool(getattr(step, 'random', False))

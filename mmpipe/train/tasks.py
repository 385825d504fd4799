"""Tasks: what a model learns from a field of the snapshot. Frozen, and as JSON part of every run record.

A task of your own is a frozen dataclass derived from `Task`, with a `kind`, a `loss` as (sum, count) over labelled
rows, and `metrics`; `outputs` or `output_shape` where it has more than one number per row, and `check_field` and
`wrong` to refuse fields and values that do not fit (`examples/07_your_own_parts.py`). At the top level of a module it
can be rebuilt from a run.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from mmpipe.errors import ConfigError, DataError, LabelError, RunError, TrainError
from mmpipe.shards import Field, Rows
from mmpipe.train import losses, metrics


def classification(
    field: str, classes: int | Sequence[str], *, name: str | None = None, weight: float = 1.0
) -> Classification:
    """One class out of several per row; softmax and cross-entropy.

    Args:
        field: a label field, or a scalar field of integers (or booleans) from 0.
        classes: how many, or their names in the order of the field's vocabulary.
        name: of the task and its output; the field's when None.
        weight: of its loss in the sum over tasks, positive.

    >>> classification('kind', ('cat', 'dog')).outputs
    2
    """
    return Classification(field=field, classes=_checked(classes), name=name or field, weight=weight)


def multilabel(field: str, classes: int | Sequence[str], *, name: str | None = None, weight: float = 1.0) -> Multilabel:
    """Any number of classes per row; a sigmoid and binary cross-entropy each.

    Args:
        field: a labels field, or a tensor field `[classes]` of 0 and 1.
        classes: how many, or their names in the order of the field's vocabulary.
        name: of the task and its output; the field's when None.
        weight: of its loss in the sum over tasks, positive.

    >>> multilabel('tags', 3).name
    'tags'
    """
    return Multilabel(field=field, classes=_checked(classes), name=name or field, weight=weight)


def regression(field: str, *, name: str | None = None, weight: float = 1.0) -> Regression:
    """A number per row; squared error of the standardised target.

    Args:
        field: a scalar field.
        name: of the task and its output; the field's when None.
        weight: of its loss in the sum over tasks, positive.

    >>> regression('price', weight=0.5).to_json()
    {'kind': 'regression', 'field': 'price', 'name': 'price', 'weight': 0.5}
    """
    return Regression(field=field, name=name or field, weight=weight)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What all tasks have in common.

    Attributes:
        field: where the target is.
        name: of the task and its output.
        weight: of its loss in the sum over tasks.
    """

    field: str
    name: str
    weight: float = 1.0

    kind = ''

    def __post_init__(self) -> None:
        if not self.weight > 0:
            raise ConfigError(
                f'{self.kind}({self.field!r}, weight={self.weight}): a weight is positive; or leave the task out.'
            )
        if not self.name or '.' in self.name or self.name.startswith('_'):
            raise ConfigError(f'A task cannot be called {self.name!r}: no `.` in it, no `_` before it. Pass name=.')

    @property
    def outputs(self) -> int:
        """Numbers per row that the model gives for it."""
        return 1

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of the output of one row: `(outputs,)`, or `()` for a regression."""
        return (self.outputs,)

    def loss(
        self, output: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, *, std: torch.Tensor | float = 1.0
    ) -> losses.Sums:
        """(sum over labelled rows, labelled rows).

        Args:
            output: the model's, `[B, outputs]`, or `[B]` for a regression.
            target: the field's batch.
            mask: bool `[B]`, True where labelled.
            std: standard deviation of a regression's target on the training rows.
        """
        raise NotImplementedError(f'{type(self).__name__}.loss')

    def metrics(self, output: np.ndarray, target: np.ndarray) -> dict[str, float | None]:
        """Metrics of labelled rows.

        Args:
            output: float32 `[n, outputs]` or `[n]`.
            target: `[n]` or `[n, outputs]`.

        Returns:
            {metric: value}; None where it is not defined (no rows, for one).
        """
        return {}

    def check(self, rows: Rows, *, what: str) -> None:
        """Check every target of the rows before any training.

        Args:
            rows: to be trained or evaluated on.
            what: 'train', 'val' or 'evaluation', for messages.

        Raises:
            DataError: the rows have no such field.
            LabelError: a target outside the classes; names task, key and value.
            TrainError: no row has a target.

        >>> from mmpipe.data.collate import example_rows
        >>> classification('kind', ['cat', 'dog']).check(example_rows(), what='train')
        """
        if self.field not in rows.fields:
            raise DataError(
                f'Task {self.name!r} is learned from field {self.field!r}, which snapshot {rows.snapshot.id} has not; '
                f'it has {", ".join(rows.fields)}. Add it to fields= of mm.snapshot, or leave the task out.'
            )
        self.check_field(rows.fields[self.field])
        labelled = 0
        for start in range(0, len(rows), 4096):
            positions = np.arange(start, min(start + 4096, len(rows)))
            values, valid = rows.read(self.field, positions)
            wrong = np.flatnonzero(valid & self.wrong(values))
            if len(wrong):
                row = int(wrong[0])
                raise LabelError(
                    f'Task {self.name!r}: row {rows.keys[start + row]!r} of the {what} rows has {self.field} = '
                    f'{np.asarray(values[row]).tolist()!r}, which is not {self.expected()}. Correct the label, store '
                    f'a null instead, or give the task the classes it needs.'
                )
            labelled += int(valid.sum())
        if labelled == 0 and what == 'train':
            raise TrainError(
                f'Task {self.name!r} has no label: {self.field!r} is missing in all {len(rows)} training rows of '
                f'snapshot {rows.snapshot.id}. Leave the task out, or check the join that brings the field.'
            )

    def to_json(self) -> dict[str, Any]:
        """As a JSON object, which `task_from_json` takes."""
        mine = type(self)
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {'kind': f'{mine.__module__}:{mine.__qualname__}', **values}

    def check_field(self, field: Field) -> None:
        """Refuse a field that the task cannot be learned from, by a ConfigError or LabelError.

        Args:
            field: what the snapshot says of it.
        """

    def wrong(self, values: Any) -> np.ndarray:
        """bool `[n]`: which of some targets do not fit; those that are missing do not matter."""
        return np.zeros(len(values), dtype=bool)

    def expected(self) -> str:
        """What a target is, for the message about one that does not fit: 'which is not ...'."""
        return f'a target of {type(self).__name__}'

    def _refuse(self, kind: str, wanted: str) -> None:
        raise ConfigError(
            f'Task {self.name!r}: field {self.field!r} is of kind {kind!r}, and {self.kind} takes {wanted}. '
            f'Declare the field so, or choose another task.'
        )


@dataclass(frozen=True, kw_only=True)
class _Classes(Task):
    classes: int | tuple[str, ...]

    @property
    def outputs(self) -> int:
        """Number of classes."""
        return self.classes if isinstance(self.classes, int) else len(self.classes)

    def to_json(self) -> dict[str, Any]:
        """See `Task.to_json`."""
        classes = self.classes if isinstance(self.classes, int) else list(self.classes)
        return {'kind': self.kind, 'field': self.field, 'name': self.name, 'weight': self.weight, 'classes': classes}

    def _check_vocabulary(self, vocabulary: tuple[str, ...] | None) -> None:
        if isinstance(self.classes, int) or vocabulary is None:
            return
        # Vocabularies only grow at their end, so of two states of one vocabulary, one begins with the other.
        for position, (mine, theirs) in enumerate(zip(self.classes, vocabulary, strict=False)):
            if mine != theirs:
                raise LabelError(
                    f'Task {self.name!r} calls class {position} {mine!r}, but the vocabulary of {self.field!r} has '
                    f'{theirs!r} there. Pass classes=snapshot.fields[{self.field!r}].vocabulary.'
                )


@dataclass(frozen=True, kw_only=True)
class Classification(_Classes):
    """What `classification` returns."""

    kind = 'classification'

    def loss(
        self, output: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, *, std: torch.Tensor | float = 1.0
    ) -> losses.Sums:
        """See `Task.loss`."""
        return losses.cross_entropy(output, target if target.ndim == 1 else _widened(target, self.outputs), mask)

    def metrics(self, output: np.ndarray, target: np.ndarray) -> dict[str, float | None]:
        """See `Task.metrics`."""
        if len(target) == 0:
            return {'accuracy': None, 'macro_f1': None}
        predicted = output.argmax(axis=1)
        target = target.astype(np.int64)
        return {'accuracy': metrics.accuracy(predicted, target), 'macro_f1': metrics.macro_f1(predicted, target)}

    def check_field(self, field: Field) -> None:
        """See `Task.check_field`."""
        if field.kind not in ('label', 'scalar'):
            self._refuse(field.kind, 'a label or an integer')
        self._check_vocabulary(field.vocabulary)

    def wrong(self, values: Any) -> np.ndarray:
        """See `Task.wrong`."""
        whole = values == np.floor(values) if values.dtype.kind == 'f' else True
        return ~((values >= 0) & (values < self.outputs) & whole)

    def expected(self) -> str:
        """See `Task.expected`."""
        return f'a class from 0 to {self.outputs - 1}'


@dataclass(frozen=True, kw_only=True)
class Multilabel(_Classes):
    """What `multilabel` returns."""

    kind = 'multilabel'

    def loss(
        self, output: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, *, std: torch.Tensor | float = 1.0
    ) -> losses.Sums:
        """See `Task.loss`."""
        return losses.binary_cross_entropy(output, _widened(target, self.outputs), mask)

    def metrics(self, output: np.ndarray, target: np.ndarray) -> dict[str, float | None]:
        """See `Task.metrics`."""
        if len(target) == 0:
            return {'micro_f1': None, 'map': None}
        there = np.zeros(output.shape, dtype=bool)
        there[:, : target.shape[1]] = target[:, : self.outputs] > 0
        # A logit above 0 is a probability above 1/2.
        return {'micro_f1': metrics.micro_f1(output > 0, there), 'map': metrics.mean_average_precision(output, there)}

    def check_field(self, field: Field) -> None:
        """See `Task.check_field`."""
        if field.kind == 'tensor' and field.shape != (self.outputs,):
            self._refuse(f'tensor {list(field.shape)}', f'several labels, or a tensor [{self.outputs}] of 0 and 1')
        if field.kind not in ('labels', 'tensor'):
            self._refuse(field.kind, f'several labels, or a tensor [{self.outputs}] of 0 and 1')
        self._check_vocabulary(field.vocabulary)

    def wrong(self, values: Any) -> np.ndarray:
        """See `Task.wrong`."""
        return ((values != 0) & (values != 1)).any(axis=1) | (values[:, self.outputs :] != 0).any(axis=1)

    def expected(self) -> str:
        """See `Task.expected`."""
        return f'0 or 1 for each of {self.outputs} classes'


@dataclass(frozen=True, kw_only=True)
class Regression(Task):
    """What `regression` returns."""

    kind = 'regression'

    @property
    def output_shape(self) -> tuple[int, ...]:
        """See `Task.output_shape`."""
        return ()

    def loss(
        self, output: torch.Tensor, target: torch.Tensor, mask: torch.Tensor, *, std: torch.Tensor | float = 1.0
    ) -> losses.Sums:
        """See `Task.loss`."""
        return losses.squared_error(output, target, mask, std)

    def metrics(self, output: np.ndarray, target: np.ndarray) -> dict[str, float | None]:
        """See `Task.metrics`."""
        if len(target) == 0:
            return {'mae': None, 'rmse': None, 'r2': None}
        output, target = output.astype(np.float64), target.astype(np.float64)
        return {
            'mae': metrics.mae(output, target),
            'rmse': metrics.rmse(output, target),
            'r2': metrics.r2(output, target),
        }

    def to_json(self) -> dict[str, Any]:
        """See `Task.to_json`."""
        return {'kind': self.kind, 'field': self.field, 'name': self.name, 'weight': self.weight}

    def check_field(self, field: Field) -> None:
        """See `Task.check_field`."""
        if field.kind != 'scalar':
            self._refuse(field.kind, 'a number')

    def wrong(self, values: Any) -> np.ndarray:
        """See `Task.wrong`."""
        return ~np.isfinite(values)

    def expected(self) -> str:
        """See `Task.expected`."""
        return 'a finite number'


KINDS = {'classification': Classification, 'multilabel': Multilabel, 'regression': Regression}


def task_from_json(value: Mapping[str, Any]) -> Task:
    """The task that `to_json` described.

    Raises:
        RunError: a kind that this mmpipe does not know.

    >>> task_from_json(regression('price').to_json()) == regression('price')
    True
    """
    arguments = dict(value)
    kind = arguments.pop('kind', None)
    made = KINDS[kind] if kind in KINDS else _own_kind(str(kind))
    for field in dataclasses.fields(made):
        if isinstance(arguments.get(field.name), list):  # JSON knows no tuples
            arguments[field.name] = tuple(arguments[field.name])
    return made(**arguments)


def _own_kind(name: str) -> type[Task]:
    """The class that 'module:qualname' names."""
    module, _, qualname = name.partition(':')
    try:
        found: Any = importlib.import_module(module) if qualname else None
        for part in qualname.split('.'):
            found = getattr(found, part)
    except (ImportError, AttributeError):
        found = None
    if not (isinstance(found, type) and issubclass(found, Task)):
        raise RunError(
            f'A run record names a task of kind {name!r}; this mmpipe knows {", ".join(KINDS)}, and finds no such '
            f'class. Run from the folder that holds it, or upgrade mmpipe.'
        )
    return found


def _checked(classes: int | Sequence[str]) -> int | tuple[str, ...]:
    if isinstance(classes, str):
        raise ConfigError(f'classes={classes!r}: a number or a list of names is meant, not one string.')
    checked = int(classes) if isinstance(classes, (int, np.integer)) else tuple(str(word) for word in classes)
    count = checked if isinstance(checked, int) else len(checked)
    if count < 1 or (not isinstance(checked, int) and len(set(checked)) < count):
        raise ConfigError(f'classes={classes!r}: at least one class, and no name twice.')
    return checked


def _widened(target: torch.Tensor, width: int) -> torch.Tensor:
    """A snapshot's vocabulary can be shorter than the task's; `check` saw to it that what is cut off is 0."""
    if target.shape[1] == width:
        return target
    return torch.nn.functional.pad(target, (0, width - target.shape[1]))

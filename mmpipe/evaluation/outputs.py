"""What a model makes of the labelled rows of a split, from all ranks, in the order of the rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from mmpipe.data.loader import DataLoader, world
from mmpipe.errors import ConfigError, ModelError
from mmpipe.train.distributed import gather_rows
from mmpipe.train.evaluate import device_of, mask_of, outputs_of, target_stds
from mmpipe.train.tasks import Multilabel, Task
from mmpipe.wording import how_many

NAMED = 5  # rows that an error names


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The rows that have the label of a task, on every rank those of all.

    Args:
        task: what the model was asked.
        rows: int64 `[n]`, which of the keys.
        output: what the model said, float32 `[n, ...]`.
        target: what is right, `[n, ...]`; of several labels as wide as the output.
        loss: float32 `[n]`.
    """

    task: Task
    rows: np.ndarray
    output: np.ndarray
    target: np.ndarray
    loss: np.ndarray

    def take(self, which: np.ndarray) -> Labelled:
        """Some of them, by position or bool mask."""
        return replace(
            self,
            rows=self.rows[which],
            output=self.output[which],
            target=self.target[which],
            loss=self.loss[which],
        )

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, kw_only=True)
class Outputs:
    """What `collect` found.

    Args:
        keys: of the rows, object `[N]`. Of an `mm.DataLoader` all of its rows, in their order; of other batches those
            that came, in the order of ranks and batches.
        tasks: what is labelled, by task.
    """

    keys: np.ndarray
    tasks: Mapping[str, Labelled]


def collect(
    model: nn.Module,
    loader: DataLoader | Iterable[Mapping[str, Any]],
    tasks: Sequence[Task],
    *,
    precision: str = 'fp32',
    temperature: Mapping[str, float] | None = None,
) -> Outputs:
    """Run a model over a split and keep what it says of labelled rows.

    A row that a sampler draws several times counts as often; one that only fills a batch does not.

    Args:
        model: from a batch to {task name: output}.
        loader: batches of the split.
        tasks: what to keep.
        precision: 'fp32' or 'bf16' (autocast).
        temperature: {task: what to divide its output by}.

    Raises:
        ModelError: an output of a labelled row is not finite; names rows.

    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.train.example import example_model
    >>> model = example_model()
    >>> found = collect(model, DataLoader(example_rows(), batch_size=2, device='cpu', shuffle=True), model.tasks)
    >>> found.keys.tolist(), found.tasks['kind'].target.tolist()
    (['a', 'b'], [1, 0])
    """
    known = isinstance(loader, DataLoader)
    place = {key: i for i, key in enumerate(loader.rows.keys.tolist())} if known else {}  # type: ignore[union-attr]
    stds, heat = target_stds(model), dict(temperature or {})
    keys: list[str] = []
    parts: dict[str, list[tuple[torch.Tensor, ...]]] = {task.name: [] for task in tasks}
    for batch, output in outputs_of(model, loader, tasks, precision):
        first = len(keys)
        keys += batch['_key']
        at = [place[key] for key in batch['_key']] if known else range(first, len(keys))
        for task in tasks:
            mask = mask_of(batch, task)
            said, target = output[task.name][mask].float() / heat.get(task.name, 1.0), batch[task.field][mask]
            loss = row_losses(task, said, target, std=stds.get(task.name, 1.0))
            rows = torch.tensor(list(at), device=mask.device)[mask]
            parts[task.name].append((rows, said, _as_wide(task, target), loss))
    device = loader.device if known else device_of(model)  # type: ignore[union-attr]
    if known:
        all_keys, before = loader.rows.keys, 0  # type: ignore[union-attr]
    else:
        all_keys, before = _keys_of_all(keys, device)
    nothing = (torch.zeros(0, device=device),) * 4
    gathered = {}
    for task in tasks:
        columns = [torch.cat(column) for column in zip(*parts[task.name], strict=True)] or nothing
        columns = [columns[0] + before, *columns[1:]]
        gathered[task.name] = _ordered(task, [gather_rows(column).cpu().numpy() for column in columns], all_keys)
    return Outputs(keys=all_keys, tasks=gathered)


def row_losses(
    task: Task, output: torch.Tensor, target: torch.Tensor, *, std: torch.Tensor | float = 1.0
) -> torch.Tensor:
    """The loss of each row by itself.

    Args:
        task: what is measured.
        output: `[n, ...]` of labelled rows.
        target: `[n, ...]`.
        std: standard deviation of a regression's target on the training rows.

    Returns:
        float32 `[n]`.

    >>> from mmpipe.train.tasks import regression
    >>> row_losses(regression('price'), torch.tensor([3.0, 5.0]), torch.tensor([1.0, 5.0]), std=2.0)
    tensor([1., 0.])
    """
    if len(output) == 0:
        return torch.zeros(0, device=output.device)
    there = torch.ones(len(output), dtype=torch.bool, device=output.device)

    def one(said: torch.Tensor, right: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return task.loss(said[None], right[None], mask[None], std=std)[0]

    try:
        return torch.vmap(one)(output, target, there).float()
    except RuntimeError:  # a loss of the user's that asks for values, which a batched one cannot
        return torch.stack([one(*row) for row in zip(output, target, there, strict=True)]).float()


def _as_wide(task: Task, target: torch.Tensor) -> torch.Tensor:
    """A vocabulary can be shorter than the task's, and longer by words that no row has."""
    if isinstance(task, Multilabel):
        return nn.functional.pad(target, (0, task.outputs - target.shape[1]))
    return target


def _ordered(task: Task, columns: list[np.ndarray], keys: np.ndarray) -> Labelled:
    """Rows, outputs, targets and losses in the order of the rows, if all are finite."""
    order = np.argsort(columns[0], kind='stable')
    rows, output, target, loss = (column[order] for column in columns)
    rows = rows.astype(np.int64)
    if len(rows) == 0:  # no rank has a row, so none knows the shapes
        output = np.zeros((0, *task.output_shape), dtype=np.float32)
        target = np.zeros((0, task.outputs) if isinstance(task, Multilabel) else (0,), dtype=np.int64)
    finite = np.isfinite(output.reshape(len(rows), -1)).all(axis=1) if len(rows) else np.ones(0, dtype=bool)
    if not finite.all():
        wrong = keys[rows[~finite]]
        more = ', ...' if len(wrong) > NAMED else ''
        raise ModelError(
            f'Task {task.name!r}: the output of {how_many(len(wrong), "row")} of {len(rows):,} is not finite: '
            f'{", ".join(map(repr, wrong[:NAMED].tolist()))}{more}. Look at their inputs, and at the weights; with '
            f"precision='bf16', try 'fp32'."
        )
    return Labelled(task=task, rows=rows, output=output, target=target, loss=loss)


def _keys_of_all(keys: list[str], device: torch.device) -> tuple[np.ndarray, int]:
    """(keys of the batches of all ranks, how many of them are of ranks before this one); as bytes, not pickled."""
    encoded = [key.encode() for key in keys]
    lengths = gather_rows(torch.tensor([len(key) for key in encoded], dtype=torch.int64, device=device))
    counts = gather_rows(torch.tensor([len(keys)], dtype=torch.int64, device=device)).tolist()
    text = torch.frombuffer(bytearray(b''.join(encoded) or b'\0'), dtype=torch.uint8).to(device)
    joined = bytes(gather_rows(text if keys else text[:0]).cpu().numpy())
    stops = lengths.cumsum(0).tolist()
    found = [joined[start:stop].decode() for start, stop in zip([0, *stops], stops, strict=False)]
    return np.array(found, dtype=object), sum(counts[: world()[0]])


def words_of(task: Task, loader: Any) -> list[str]:
    """What the classes of a task are called: its own words, or else those of the field, or else numbers.

    >>> from mmpipe.train.tasks import classification
    >>> words_of(classification('kind', 2), [])
    ['0', '1']
    """
    classes = getattr(task, 'classes', 0)
    if not isinstance(classes, int):
        return list(classes)
    vocabulary: Sequence[str] = ()
    if isinstance(loader, DataLoader) and task.field in loader.rows.fields:
        vocabulary = loader.rows.fields[task.field].vocabulary or ()
    return [vocabulary[c] if c < len(vocabulary) else str(c) for c in range(classes)]


def check_names(what: str, given: Iterable[str], tasks: Sequence[Task]) -> None:
    """Refuse an argument that names tasks there are not.

    Raises:
        ConfigError: with the tasks there are.

    >>> from mmpipe.train.tasks import regression
    >>> check_names('temperature', ['prize'], [regression('price')])
    Traceback (most recent call last):
    ...
    mmpipe.errors.ConfigError: temperature= names the task 'prize'; there are price.
    """
    names = [task.name for task in tasks]
    for name in given:
        if name not in names:
            raise ConfigError(f'{what}= names the task {name!r}; there are {", ".join(names)}.')

"""What encoders are given, compared with what they say that they take, before the first step.

    stored field ──► decoder ──► host transform ──► transforms ──► encoder
    Field.rate       .rate                          .rate          input_spec()

A row or two of each field go that way; of the rate of sound, each part says what it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import nn

from mmpipe.data.batch import Request
from mmpipe.data.collate import as_tensors
from mmpipe.data.device import to_device
from mmpipe.data.loader import DataLoader, world
from mmpipe.data.transforms.calling import apply_all, steps_of
from mmpipe.data.transforms.draw import Draw
from mmpipe.errors import ConfigError, DataError, TrainError
from mmpipe.models.contract import InputSpec, input_specs
from mmpipe.wording import how_many

ROWS = 2  # of each field; no transform has to cope with a batch of one
LOOKED_AT = (64, 1024, 16384)  # rows, growing, among which some with a value are searched
CLOSE = 5e-3  # between constants of normalisation that are rounded differently: less than two of 255 steps


class InputWarning(UserWarning):
    """An encoder is given something else than its weights were trained with."""


def check_batches(loader: DataLoader, *, what: str) -> None:
    """Refuse a loader whose epochs have no batch.

    Args:
        loader: it is not moved.
        what: 'train' or 'val', for messages.

    Raises:
        TrainError: there are fewer rows than one batch has, and `drop_last` leaves them out.

    >>> from mmpipe.data.collate import example_rows
    >>> check_batches(DataLoader(example_rows(), batch_size=2, device='cpu'), what='train')
    """
    if loader.batches.count(0) == 0:
        raise TrainError(
            f'There is no batch to {"train" if what == "train" else "evaluate"} on: {what} has '
            f'{how_many(len(loader.rows), "row")} of snapshot {loader.rows.snapshot.id}, a batch has '
            f'{loader.batch_size} on each of {how_many(world()[1], "rank")}, and drop_last leaves the rest out. Use a '
            f'smaller batch_size, or drop_last=False.'
        )


def check_shared(loader: DataLoader) -> None:
    """Refuse a loader that leaves a rank without rows, where every rank has to take part in every step.

    Args:
        loader: of the training.

    Raises:
        ConfigError: the last step of an epoch has fewer rows than there are ranks.

    >>> from mmpipe.data.collate import example_rows
    >>> check_shared(DataLoader(example_rows(), batch_size=2, device='cpu'))
    """
    if loader.batches.least() == 0:
        raise ConfigError(
            f'A step of an epoch has fewer rows than the {how_many(world()[1], "rank")} that share it, and with '
            f'dp_shard every rank has to take part. Give the training loader pad_last=True or drop_last=True.'
        )


def check_inputs(model: nn.Module, loader: DataLoader, *, what: str) -> None:
    """Compare what a loader gives with what the encoders of a model take.

    Args:
        model: any; checked is what its encoders say of themselves (see `mmpipe.models.contract`).
        loader: of its batches. It is not moved.
        what: 'train' or 'val', for messages.

    Raises:
        DataError: a shape, dtype or rate that does not fit; names field, encoder, expected and found.

    Warns:
        InputWarning: images are normalised by other constants than the weights of their encoder were trained with.

    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.models import MultitaskModel, encoders
    >>> from mmpipe.train.tasks import classification
    >>> model = MultitaskModel(encoders={'price': encoders.vector(3)}, tasks=[classification('kind', 2)])
    >>> check_inputs(model, DataLoader(example_rows(), batch_size=2, device='cpu'), what='train')
    Traceback (most recent call last):
    ...
    mmpipe.errors.DataError: Field 'price' of the train loader does not fit encoders.vector(3):
    it takes a vector: number [3], and is given float32 []. Make the encoder for that shape, or change the field by
    transforms= of the loader, or where the snapshot is written.
    """
    features = getattr(model, 'cached', ())  # are compared with what made them (`mmpipe.train.embed`)
    specs = {name: spec for name, spec in input_specs(model).items() if name in loader.fields and name not in features}
    if not specs:
        return
    for field, spec in specs.items():
        check_rate(loader, field, spec, what=what)
        _tell_of_constants(loader, field, spec, what)
    batch = _example(loader, specs)
    for field, spec in specs.items():
        difference = spec.differs(batch[field])
        if difference is not None:
            raise DataError(
                f'Field {field!r} of the {what} loader does not fit {spec.encoder}: it takes {spec}, and is given '
                f'{_form(batch[field])}. {_way_out(field, spec, difference, batch[field])}'
            )


def check_rate(loader: DataLoader, field: str, spec: InputSpec | None = None, *, what: str = 'train') -> int | None:
    """Follow the rate of sound from the stored field to its encoder.

    Args:
        loader: that decodes and transforms it.
        field: its name.
        spec: what its encoder takes.
        what: 'train' or 'val', for messages.

    Returns:
        Samples a second that reach the encoder, in Hz; None where nothing says so.

    Raises:
        DataError: a transform or the encoder is made for another rate than it is given.

    >>> from mmpipe.data.collate import example_rows
    >>> check_rate(DataLoader(example_rows(), batch_size=2, device='cpu'), 'price')
    """
    task = loader.dataset.task
    decoder = task.decode.get(field)
    rate = loader.rows.fields[field].rate if decoder is None else getattr(decoder, 'rate', None)
    if field in task.host:
        rate = None  # a function of somebody's, which may resample
    consumers: list[tuple[str, Any]] = [
        (f'transforms.{type(step).__name__}', step) for step in steps_of(loader.transforms.get(field, ()))
    ]
    for name, step in [*consumers, *([] if spec is None else [(spec.encoder, spec)])]:
        wanted = getattr(step, 'rate', None)
        if rate is not None and wanted is not None and rate != wanted:
            raise DataError(
                f'Field {field!r} of the {what} loader has {rate} samples a second, and {name} takes {wanted} Hz: '
                f'everything would sound {rate / wanted:g} times as {"slow" if rate > wanted else "fast"}. Decode it '
                f'at that rate (mm.decode.audio(rate={wanted})), resample it, or make {name} for {rate} Hz.'
            )
        if not getattr(step, 'keeps_rate', False):
            rate = getattr(step, 'new_freq', None)  # of torchaudio's Resample
    return rate if spec is None else getattr(spec, 'rate', None) or rate


def _example(loader: DataLoader, fields: Iterable[str]) -> dict[str, Any]:
    """Rows that have a value of each of some fields, as the first batch of a training would have them."""
    rows, task = loader.rows, loader.dataset.task
    positions = np.unique(np.concatenate([_with_value(loader, field) for field in fields]))
    positions = np.resize(positions, max(ROWS, len(positions)))
    batch = task(Request(positions))
    batch.pop('_failed', None)
    batch['_present'] = {name: np.flatnonzero(mask) for name, mask in batch['_mask'].items()}
    tensors = to_device(as_tensors(batch), loader.device)
    return apply_all(loader.transforms, tensors, Draw(rows.hashes[positions], loader.batches.seed))


def _with_value(loader: DataLoader, field: str) -> np.ndarray:
    """int64: positions of the first rows that have a field; of the first rows where none of many has it."""
    start = 0
    for stop in LOOKED_AT:
        where = np.arange(start, min(stop, len(loader.rows)))
        found = start + np.flatnonzero(loader.rows.read(field, where)[1])
        if len(found):
            return found[:ROWS]
        start = stop
        if start >= len(loader.rows):
            break
    return np.arange(min(ROWS, len(loader.rows)))


def _form(values: Any) -> str:
    if isinstance(values, torch.Tensor):
        return f'{str(values.dtype).removeprefix("torch.")} {list(values.shape[1:])}'
    return 'text' if any(isinstance(value, str) for value in values) else 'encoded files'


def _way_out(field: str, spec: InputSpec, difference: str, values: Any) -> str:
    if difference == 'shape':
        return (
            'Make the encoder for that shape, or change the field by transforms= of the loader, or where the snapshot '
            'is written.'
        )
    if difference == 'kind' and _form(values) == 'text':
        return (
            f'Turn it into ids by decode={{{field!r}: mm.decode.tokens(...)}} of the loader, for encoders.tokens; or '
            f'store vectors of it in the snapshot (mm.functions.embed_text).'
        )
    if difference == 'kind':
        return f'Decode it by decode={{{field!r}: ...}} of the loader: mm.decode.image, audio or video.'
    if spec.dtypes == ('float',):
        return f'Make floats of it by transforms={{{field!r}: ...}} of the loader.'
    return f'Convert it by transforms={{{field!r}: ...}} of the loader, or where the snapshot is written.'


def _tell_of_constants(loader: DataLoader, field: str, spec: InputSpec, what: str) -> None:
    if spec.weights is None or spec.mean is None or spec.std is None:
        return
    for step in steps_of(loader.transforms.get(field, ())):
        used = getattr(step, 'mean', None), getattr(step, 'std', None)
        if not all(isinstance(each, tuple) and len(each) == len(spec.mean) for each in used):
            continue
        pairs = zip(spec.mean + spec.std, used[0] + used[1], strict=True)  # type: ignore[operator]
        if any(abs(right - given) > CLOSE for right, given in pairs):
            warnings.warn(
                f'Field {field!r} of the {what} loader is normalised with mean {used[0]} and std {used[1]}, and the '
                f'weights of {spec.encoder} were trained with {spec.mean} and {spec.std}. Pass '
                f'weights={spec.weights!r} to mm.transforms.image, or leave the transform out: the encoder normalises '
                f'uint8 itself.',
                InputWarning,
                stacklevel=5,
            )

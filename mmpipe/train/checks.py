"""What a training refuses before it makes a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from mmpipe.data.device import resolve
from mmpipe.data.loader import DataLoader
from mmpipe.errors import ConfigError, DataError
from mmpipe.train.balancing import make_balancing, takes_gradients
from mmpipe.train.embed import check_features
from mmpipe.train.evaluate import fields_of
from mmpipe.train.inputs import check_batches, check_inputs, check_shared
from mmpipe.train.parallel import Parallel
from mmpipe.train.pipelined import places_of
from mmpipe.train.sharded import tensor_plan_of
from mmpipe.train.tasks import Task
from mmpipe.train.zero import STAGES, check_beside

if TYPE_CHECKING:
    from mmpipe.train.trainer import Trainer


def check_parallel(trainer: Trainer) -> None:
    """Refuse settings that do not go with how the model is spread.

    Args:
        trainer: its settings.

    Raises:
        ConfigError: one that needs the whole model on every rank, beside parts of it; fewer micro-batches than stages.

    >>> from mmpipe.train import Trainer
    >>> check_parallel(Trainer())
    """
    parallel = trainer.parallel
    if not isinstance(parallel, Parallel):
        raise ConfigError(f'Trainer(parallel={parallel!r}): an mm.Parallel is meant.')
    without = {
        'ema': trainer.ema is not None, 'unfreeze': trainer.unfreeze is not None, 'compile': bool(trainer.compile),
        'precision': trainer.precision == 'fp16', 'balancing': takes_gradients(trainer.balancing),
    }  # fmt: skip
    for name in [name for name, given in without.items() if given and not parallel.whole]:
        raise ConfigError(
            f'Trainer({name}={getattr(trainer, name)!r}) needs the whole model on every rank, and {parallel} has '
            f'it in parts: leave {name} out{" (bf16 works)" if name == "precision" else ""}, or use Parallel().'
        )
    if trainer.accumulate < parallel.pp:
        raise ConfigError(
            f'Trainer(accumulate={trainer.accumulate}) gives {parallel} fewer micro-batches in a step than it has '
            f'stages, so that some would always wait: pass accumulate={4 * parallel.pp}, and a smaller batch.'
        )


def check_loaders(train: Any, val: Any, *, device: str) -> None:
    """Refuse loaders that do not go together.

    Args:
        train: of the training rows.
        val: of the validation rows, or None.
        device: of the trainer.

    Raises:
        ConfigError: something else than a loader, or several devices.

    >>> check_loaders([], None, device='cpu')
    Traceback (most recent call last):
    ...
    mmpipe.errors.ConfigError: train= is a list. The trainer needs an mm.DataLoader: it must know rows and position to
    check labels and to resume. (An mm.ShardDataset works in your own loop.)
    """
    for what, loader in (('train', train), ('val', val)):
        if loader is not None and not isinstance(loader, DataLoader):
            raise ConfigError(
                f'{what}= is a {type(loader).__name__}. The trainer needs an mm.DataLoader: it must know rows and '
                f'position to check labels and to resume. (An mm.ShardDataset works in your own loop.)'
            )
    if device != 'auto' and resolve(device).type != train.device.type:
        raise ConfigError(f"Trainer(device={device!r}), but train loads to '{train.device}': give both one device=.")
    if val is not None and val.device != train.device:
        raise ConfigError(f"train loads to '{train.device}' and val to '{val.device}': give both one device=.")
    check_batches(train, what='train')
    if val is not None:
        check_batches(val, what='val')


def check_fields(
    model: nn.Module, tasks: tuple[Task, ...], train: DataLoader, val: DataLoader | None
) -> list[str] | None:
    """Refuse loaders that do not give what the model and its tasks take.

    Args:
        model: as it was made.
        tasks: what to learn.
        train: of the training rows.
        val: of the validation rows, or None.

    Returns:
        The fields that they read; None where the model does not say.

    Raises:
        DataError: a field is not loaded, or does not fit its encoder.
        LabelError: labels that do not fit a task.

    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.train.example import example_model
    >>> model = example_model()
    >>> check_fields(model, model.tasks, DataLoader(example_rows(), batch_size=2, device='cpu'), None)
    ['price', 'kind']
    """
    fields = fields_of(model, tasks)
    for what, loader in (('train', train), ('val', val)):
        if loader is None:
            continue
        for field in fields or [task.field for task in tasks]:
            if field not in loader.fields:
                snapshot = loader.rows.snapshot
                raise DataError(
                    f'The model needs field {field!r}, which the {what} loader does not load; it loads '
                    f'{", ".join(loader.fields)} of snapshot {snapshot.id} in {snapshot.root!r}. Add the field to '
                    f'fields= of mm.snapshot or of the loader, or leave out its encoder or task.'
                )
        check_features(model, loader.rows)
        for task in tasks:
            task.check(loader.rows, what=what)
        check_inputs(model, loader.fresh(fields=fields), what=what)
    return fields


def check_spread(trainer: Trainer, model: nn.Module, tasks: tuple[Task, ...], train: DataLoader) -> None:
    """Refuse a model or a loader that cannot be spread as is asked for.

    Args:
        trainer: with its `parallel`.
        model: as it was made.
        tasks: what to learn.
        train: of the training rows.

    Raises:
        ConfigError: steps too small for all ranks, no plan for tensor parallelism or stages, or a balancing that
            DeepSpeed does not take.

    >>> from mmpipe.data.collate import example_rows
    >>> from mmpipe.train import Trainer
    >>> from mmpipe.train.example import example_model
    >>> model = example_model()
    >>> loader = DataLoader(example_rows(), batch_size=2, device='cpu')
    >>> check_spread(Trainer(parallel=Parallel(pp=2), accumulate=2), model, model.tasks, loader)
    Traceback (most recent call last):
    ...
    mmpipe.errors.ConfigError: Parallel(pp=2): none of the encoders (price) can be cut. Give one a method
    pipeline_plan(stages) (see mmpipe.models.cut), or use an nn.Sequential or a vision transformer of mm.encoders.timm.
    """
    check_shared(train)
    parallel = trainer.parallel
    if parallel.tp > 1:
        tensor_plan_of(model)
    if parallel.pp > 1:
        places_of(model, parallel.pp)
    if parallel.sharding in STAGES:
        check_beside(make_balancing(trainer.balancing, tasks))

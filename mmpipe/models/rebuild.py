"""From a run back to its model, in any process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from mmpipe.data.device import resolve
from mmpipe.errors import RunError
from mmpipe.models.encoders import weights_follow
from mmpipe.models.pieces import FILE as PIECES
from mmpipe.models.pieces import stored_tensors, whole_tensors
from mmpipe.models.weights_file import load_weights, put_weights
from mmpipe.runs import Run, find_factory, open_run
from mmpipe.runs.seal import check_seal

if TYPE_CHECKING:
    from mmpipe.models.multitask import MultitaskModel


def run_weights(run: Run, which: str | int = 'newest') -> dict[str, torch.Tensor]:
    """The weights of a checkpoint of a run, by the names of its model's `state_dict`; averaged ones where it has them.

    Args:
        run: trained before.
        which: 'newest', 'best', or a number of optimizer steps.

    Raises:
        RunError: there is no such checkpoint, or its weights are damaged.
    """
    folder = run.checkpoint(which)
    in_pieces = {name.partition('/')[0] for name in stored_tensors(folder)}
    if 'model' in in_pieces:  # the newest of a run that was killed or stopped
        check_seal(folder, only=[PIECES])
        return whole_tensors(folder, 'average/' if 'average' in in_pieces else 'model/')
    name = 'average.safetensors' if (folder / 'average.safetensors').exists() else 'model.safetensors'
    check_seal(folder, only=[name])
    return load_weights(folder / name)


def load_model(
    run: str | os.PathLike[str] | Run, *, device: str | torch.device = 'cpu', which: str | int = 'newest'
) -> nn.Module:
    """The trained model of a run, in eval mode.

    Its factory is imported and called with the recorded arguments, then the weights of a checkpoint are put in, which
    must fit exactly.

    Args:
        run: a run, its folder or its id.
        device: where to put it.
        which: the checkpoint: 'newest', 'best', or a number of optimizer steps.

    Returns:
        The model; called with a batch, it gives {task name: output}.

    Raises:
        RunError: the run cannot be rebuilt (it says why), has no checkpoint, or its source is gone.
        ModelError: the code builds another model now than the weights are for.

    Warns:
        ChangedSourceWarning: the source of the factory has changed since.

    >>> from mmpipe.train.example import example_run
    >>> model = load_model(example_run())
    >>> model({'price': torch.tensor([1.5])})['kind'].shape
    torch.Size([1, 2])
    """
    run = open_run(run)
    if run.record['factory'] is None:
        raise RunError(
            f'Run {run.id} cannot be rebuilt: {run.cannot["rebuild"]}. Build the model yourself and load '
            f'{run.checkpoint() / "model.safetensors"} into it, or train with a factory at the top level of a module.'
        )
    model = build_recorded(run.record['factory'], run=run.id)
    put_weights(model, run_weights(run, which), source=f'run {run.id}')
    return model.to(resolve(device)).eval()


def build_recorded(record: Mapping[str, Any], *, run: str) -> nn.Module:
    """Call the factory of a record; its weights are random, since trained ones are about to replace them.

    Args:
        record: `factory` of a run record.
        run: id of the run, for messages.
    """
    from mmpipe.models.transfer import build_transferred

    # The initial values are thrown away, so the caller's random numbers should not notice that they were drawn.
    with torch.random.fork_rng(devices=[]), weights_follow():
        if record['kind'] == 'transfer':
            return build_transferred(record, run=run)
        return find_factory(record, run=run)(**record['args'])


def load_multitask(run: Run, *, why: str) -> MultitaskModel:
    """`load_model` for what needs encoders and heads.

    Raises:
        RunError: the run's model is a module without them.
    """
    from mmpipe.models.multitask import MultitaskModel

    model = load_model(run)
    if not isinstance(model, MultitaskModel):
        raise RunError(
            f'{why} needs a MultitaskModel, but run {run.id} trained a {type(model).__name__}. Load it with '
            f'mm.load_model, and build on it by hand.'
        )
    return model

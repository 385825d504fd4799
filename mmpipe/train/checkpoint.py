"""Checkpoints: weights and optimizer as safetensors, everything else as JSON, in one atomic directory.

    checkpoints/<step>/model.safetensors       state_dict, buffers included
                       optimizer.safetensors   '<parameter>/<state>'
                       state.json              step, loader, sums of the epoch, learning rates

Random numbers need no state: those of step n are seeded by (seed, n).
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmpipe.durable import new_directory
from mmpipe.errors import TrainError
from mmpipe.models.weights_file import load_weights, put_weights, save_weights
from mmpipe.runs import Run
from mmpipe.runs.record import drop_checkpoints

LEAST_PAUSE_S = 5.0
PAUSE_PER_COST = 20
"""What 'auto' leaves between checkpoints: at most one second in 21 goes into them."""


def seconds_between(setting: float | str | None, took: float) -> float:
    """How long to wait for the next checkpoint by time.

    Args:
        setting: `checkpoint_seconds` of the trainer.
        took: seconds that the last checkpoint took; 0 before the first.

    >>> seconds_between('auto', 0.1), seconds_between('auto', 3.0), seconds_between(60, 3.0), seconds_between(None, 3.0)
    (5.0, 60.0, 60, inf)
    """
    if setting is None:
        return math.inf
    return max(LEAST_PAUSE_S, PAUSE_PER_COST * took) if isinstance(setting, str) else setting


def save_checkpoint(
    run: Run, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], *, keep: int = 1
) -> Path:
    """Write a checkpoint; older ones go once it is complete.

    Args:
        run: whose it is.
        model: any.
        optimizer: its state must be tensors per parameter, as torch's optimizers have.
        state: JSON, with the number of optimizer steps taken as 'step'.
        keep: complete checkpoints to keep.

    Returns:
        Its folder. One that is there already is kept.

    >>> import tempfile
    >>> from mmpipe.runs import create_run
    >>> model, run = nn.Linear(1, 1), create_run('shop', {}, runs=tempfile.mkdtemp())
    >>> save_checkpoint(run, model, torch.optim.AdamW(model.parameters()), {'step': 3}).name
    '00000003'
    """
    path = run.path / 'checkpoints' / f'{state["step"]:08d}'
    path.parent.mkdir(exist_ok=True)
    if path.is_dir():  # a resumed run came here again without a step in between
        return path
    with new_directory(path) as folder:
        save_weights(model, folder / 'model.safetensors')
        # Named by parameter, not by position: positions say nothing when a head is frozen or added.
        names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
        tensors = {
            f'{names[parameter]}/{key}': torch.as_tensor(value).detach().to('cpu').contiguous()
            for parameter, values in optimizer.state.items()
            for key, value in values.items()
        }
        save_file(tensors, folder / 'optimizer.safetensors')
        (folder / 'state.json').write_text(json.dumps(state, indent=2, allow_nan=False) + '\n', encoding='utf-8')
    drop_checkpoints(run, keep=keep)
    return path


def load_checkpoint(folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put a checkpoint into a model and its optimizer.

    Args:
        folder: as `save_checkpoint` returned it.
        model: built as then, on its device.
        optimizer: built as then.

    Returns:
        The state that was saved.

    Raises:
        TrainError: a file is missing or damaged, or the optimizer's state is of parameters that are not there.
        ModelError: the weights do not fit the model.

    >>> import tempfile
    >>> from mmpipe.runs import create_run
    >>> model, run = nn.Linear(1, 1), create_run('shop', {}, runs=tempfile.mkdtemp())
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> load_checkpoint(save_checkpoint(run, model, optimizer, {'step': 3}), model, optimizer)
    {'step': 3}
    """
    put_weights(model, load_weights(folder / 'model.safetensors'), source=f'checkpoint {folder}')
    try:
        state = json.loads((folder / 'state.json').read_text(encoding='utf-8'))
        tensors = load_file(folder / 'optimizer.safetensors')
    except Exception as error:
        raise TrainError(
            f'Checkpoint {folder} cannot be read ({type(error).__name__}: {error}). Delete the folder to go back '
            f'to the checkpoint before it, or to the start, with resume=.'
        ) from error
    names = {parameter: name for name, parameter in model.named_parameters()}
    order = [names[parameter] for group in optimizer.param_groups for parameter in group['params']]
    values: dict[int, dict[str, torch.Tensor]] = {}
    for full, value in tensors.items():
        name, key = full.rsplit('/', 1)
        if name not in order:
            raise TrainError(
                f'Checkpoint {folder} has optimizer state of {name!r}, which is not trained now. Build the model as it '
                f'was then, or start a new run from its weights with continue_from=.'
            )
        values.setdefault(order.index(name), {})[key] = value
    # Through load_state_dict, which knows on which device and in which dtype each kind of state belongs.
    optimizer.load_state_dict({'state': values, 'param_groups': optimizer.state_dict()['param_groups']})
    return state

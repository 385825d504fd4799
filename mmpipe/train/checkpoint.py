"""Checkpoints: weights and optimizer as safetensors, everything else as JSON, in one atomic directory.

    checkpoints/<step>/model.safetensors       state_dict, buffers included
                       <part>.safetensors      of what is trained or kept beside the model, such as a balancing
                       optimizer.safetensors   '<parameter>/<state>', '<part>:<parameter>/<state>'
                       state.json              step, loader, sums of the epoch, loss scale, scheduler
                       checkpoint.json         of which run, step, snapshot and code it is; digests of the others

It is written under another name, flushed to the disk and renamed; then it is read back from the disk, and older ones go
only when its digests are right. Random numbers need no state: those of step n are seeded by (seed, n).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmpipe.data.ranks import is_first
from mmpipe.durable import new_directory
from mmpipe.errors import TrainError
from mmpipe.models.spread import held_of, is_sharded, like, union, whole_of
from mmpipe.models.weights_file import load_weights, put_weights, whole_weights
from mmpipe.runs import Run
from mmpipe.runs.keep import score_of
from mmpipe.runs.record import drop_checkpoints
from mmpipe.runs.seal import check_seal, seal

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


@dataclass(frozen=True, kw_only=True)
class Keep:
    """Which checkpoints stay; see `mmpipe.runs.keep.which_to_keep`.

    Args:
        newest: so many of the last ones.
        best: 'task.metric' of the validation rows whose best checkpoint stays, too; None for none.
        every: those of steps that this divides stay, too.
    """

    newest: int = 1
    best: str | None = None
    every: int | None = None


def save_checkpoint(
    run: Run,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    *,
    parts: Mapping[str, nn.Module] | None = None,
    keep: Keep | None = None,
) -> Path:
    """Write a checkpoint; older ones go once it is complete, and right on the disk.

    Args:
        run: whose it is.
        model: any.
        optimizer: its state must be tensors per parameter, as torch's optimizers have.
        state: JSON, with the number of optimizer steps taken as 'step', and metrics as 'metrics' where there are any.
        parts: modules with weights of their own beside the model, by names that are no names of files here.
        keep: which others stay; none when None.

    Returns:
        Its folder. One that is there already is kept.

    Raises:
        RunError: what the disk holds is not what was written; older checkpoints are still there.

    >>> import tempfile
    >>> from mmpipe.runs import create_run
    >>> model, run = nn.Linear(1, 1), create_run('shop', {}, runs=tempfile.mkdtemp())
    >>> save_checkpoint(run, model, torch.optim.AdamW(model.parameters()), {'step': 3}).name
    '00000003'
    """
    keep = keep or Keep()
    path = run.path / 'checkpoints' / f'{state["step"]:08d}'
    path.parent.mkdir(exist_ok=True)
    stateful = {name: part for name, part in (parts or {}).items() if part.state_dict()}
    # Of a model that is spread over processes, all of them bring their parts, and the first one writes.
    if not is_sharded(model) and path.is_dir():  # a resumed run came here again without a step in between
        return path
    names, writes = _names(model, stateful), is_first()
    files = {name: whole_weights(part, keep=writes) for name, part in {'model': model, **stateful}.items()}
    held = held_of(model)
    kept: dict[str, torch.Tensor] = {}
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            whole = whole_of(torch.as_tensor(value).detach())
            if writes or held is not None:
                kept[f'{names[parameter]}/{key}'] = whole.contiguous() if held is not None else whole.to('cpu').contiguous()
    files['optimizer'] = kept if held is None else union(kept, held, keep=writes)
    if not writes or path.is_dir():
        return path
    with new_directory(path) as folder:
        for name, tensors in files.items():
            save_file(tensors, folder / f'{name}.safetensors')
        (folder / 'state.json').write_text(json.dumps(state, indent=2, allow_nan=False) + '\n', encoding='utf-8')
        score = None if keep.best is None else score_of(state.get('metrics') or {}, keep.best)
        seal(folder, {**identity(run), 'step': state['step'], 'score': score})
    check_seal(path, from_disk=True)
    drop_checkpoints(run, newest=keep.newest, best=keep.best is not None, every=keep.every)
    return path


def identity(run: Run) -> dict[str, Any]:
    """What a checkpoint of a run is of, wherever its folder lies.

    >>> import tempfile
    >>> from mmpipe.runs import create_run
    >>> found = identity(create_run('shop', {'snapshot': {'id': 'a1'}}, runs=tempfile.mkdtemp()))
    >>> found['run'], found['snapshot'], found['factory']
    ('shop/0001', 'a1', None)
    """
    factory = run.record.get('factory')
    return {
        'run': run.id,
        'created': run.record.get('created'),
        'snapshot': run.record.get('snapshot', {}).get('id'),
        'factory': None if factory is None else hashlib.sha256(json.dumps(_code(factory)).encode()).hexdigest()[:16],
    }


def load_checkpoint(
    run: Run,
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    parts: Mapping[str, nn.Module] | None = None,
) -> dict[str, Any]:
    """Put a checkpoint into a model and its optimizer.

    Args:
        run: whose it must be.
        folder: as `save_checkpoint` returned it.
        model: built as then, on its device.
        optimizer: built as then.
        parts: as then.

    Returns:
        The state that was saved.

    Raises:
        RunError: a file is missing or damaged, or it is of another run, snapshot or code.
        TrainError: the optimizer's state is of parameters that are not there.
        ModelError: the weights do not fit the model.

    >>> import tempfile
    >>> from mmpipe.runs import create_run
    >>> model, run = nn.Linear(1, 1), create_run('shop', {}, runs=tempfile.mkdtemp())
    >>> optimizer = torch.optim.AdamW(model.parameters())
    >>> load_checkpoint(run, save_checkpoint(run, model, optimizer, {'step': 3}), model, optimizer)
    {'step': 3}
    """
    check_seal(folder, about=identity(run))
    stateful = {name: part for name, part in (parts or {}).items() if part.state_dict()}
    put_weights(model, load_weights(folder / 'model.safetensors'), source=f'checkpoint {folder}')
    for name, part in stateful.items():
        put_weights(part, load_weights(folder / f'{name}.safetensors'), source=f'checkpoint {folder}')
    state = json.loads((folder / 'state.json').read_text(encoding='utf-8'))
    tensors = load_file(folder / 'optimizer.safetensors')
    names = _names(model, stateful)
    trained = [parameter for group in optimizer.param_groups for parameter in group['params']]
    order = [names[parameter] for parameter in trained]
    elsewhere = {name for parameter, name in names.items() if parameter.is_meta}
    values: dict[int, dict[str, torch.Tensor]] = {}
    for full, value in tensors.items():
        name, key = full.rsplit('/', 1)
        if name in elsewhere:
            continue
        if name not in order:
            raise TrainError(
                f'Checkpoint {folder} has optimizer state of {name!r}, which is not trained now. Build the model as it '
                f'was then, or start a new run from its weights with continue_from=.'
            )
        position = order.index(name)
        values.setdefault(position, {})[key] = like(trained[position], value)
    # Through load_state_dict, which knows on which device and in which dtype each kind of state belongs.
    optimizer.load_state_dict({'state': values, 'param_groups': optimizer.state_dict()['param_groups']})
    return state


def _names(model: nn.Module, parts: Mapping[str, nn.Module]) -> dict[torch.Tensor, str]:
    """By parameter, not by position: positions say nothing when a head is frozen or added."""
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for part, module in parts.items():
        names |= {parameter: f'{part}:{name}' for name, parameter in module.named_parameters()}
    return names


def _code(factory: Any) -> Any:
    """A factory's record without where it lies: a checkout can move."""
    if not isinstance(factory, Mapping):
        return factory
    return {key: _code(value) for key, value in factory.items() if key != 'file'}

"""Checkpoints: weights and optimizer as safetensors, everything else as JSON, in one atomic directory.

    checkpoints/<step>/model.safetensors       state_dict, buffers included
                       <part>.safetensors      of what is trained or kept beside the model, such as a balancing
                       optimizer.safetensors   '<parameter>/<state>', '<part>:<parameter>/<state>'
                       state.json              step, loader, sums of the epoch, loss scale, scheduler
                       checkpoint.json         of which run, step, snapshot and code it is; digests of the others

It is written under another name, flushed to the disk and renamed; then it is read back from the disk, and older ones go
only when its digests are right. Random numbers need no state: those of step n are seeded by (seed, n).

Of a model that is spread over processes, each writes the pieces that it holds (mmpipe.models.pieces), while training
goes on (mmpipe.train.writing); any of the first three is then in pieces instead. They load over any number of
processes.
"""

from __future__ import annotations

import hashlib
import json
import math
import secrets
import shutil
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.distributed.tensor import DTensor

from mmpipe.data.ranks import is_first
from mmpipe.durable import make_folders, new_directory
from mmpipe.errors import TrainError
from mmpipe.models.pieces import FILE as PIECES
from mmpipe.models.pieces import Pieces, Stored, read_pieces, stored_tensors, take_pieces
from mmpipe.models.spread import held_of, is_sharded, like, union, whole_of
from mmpipe.models.weights_file import check_weights, load_weights, put_weights, whole_weights
from mmpipe.runs import Run
from mmpipe.runs.keep import score_of
from mmpipe.runs.record import drop_checkpoints
from mmpipe.runs.seal import check_seal, seal
from mmpipe.train.distributed import from_rank_0, processes
from mmpipe.train.group import patience
from mmpipe.train.strategy import OWNED, OwnedState
from mmpipe.train.writing import Writing, publish, wait_for_pieces, write_piece

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
    owned: OwnedState | None = None,
) -> Path:
    """Write a checkpoint; older ones go once it is complete, and right on the disk.

    Args:
        run: whose it is.
        model: any.
        optimizer: its state must be tensors per parameter, as torch's optimizers have.
        state: JSON, with the number of optimizer steps taken as 'step', and metrics as 'metrics' where there are any.
        parts: modules with weights of their own beside the model, by names that are no names of files here.
        keep: which others stay; none when None.
        owned: of an engine that owns the optimizer.

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
    tensors = _optimizer_tensors(optimizer, names, owned)
    held = held_of(model)
    if held is not None:
        files['optimizer'] = union(tensors, held, keep=writes)
    else:
        files['optimizer'] = {}
        for name, tensor in tensors.items():
            whole = whole_of(tensor)
            if writes:
                files['optimizer'][name] = whole.to('cpu').contiguous()
    if not writes or path.is_dir():
        return path
    with new_directory(path) as folder:
        _write_whole(folder, files, state)
        seal(folder, _about(run, state, keep))
    check_seal(path, from_disk=True)
    _drop(run, keep)
    return path


def save_in_pieces(
    run: Run,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    *,
    writing: Writing,
    parts: Mapping[str, nn.Module] | None = None,
    keep: Keep | None = None,
    owned: OwnedState | None = None,
    whole: bool = False,
) -> None:
    """Copy what each process holds, and write it while training goes on; all processes must ask.

    Args:
        run: as for `save_checkpoint`.
        model: the same.
        optimizer: the same.
        state: the same; that of the first process counts.
        writing: of this process. What it wrote before is waited for.
        parts: as for `save_checkpoint`.
        keep: the same.
        owned: the same.
        whole: write weights whole, besides the optimizer's state in pieces, and wait: what the end of a run is to have.

    Raises:
        RunError: this checkpoint (if `whole`) or the one before could not be written.

    >>> import tempfile
    >>> from mmpipe.runs import create_run
    >>> model, run, writing = nn.Linear(1, 1), create_run('shop', {}, runs=tempfile.mkdtemp()), Writing()
    >>> save_in_pieces(run, model, torch.optim.AdamW(model.parameters()), {'step': 3}, writing=writing)
    >>> writing.wait(); sorted(file.name for file in run.checkpoint().iterdir())
    ['checkpoint.json', 'pieces-00000-of-00001.safetensors', 'pieces.json', 'state.json']
    """
    writing.wait()
    keep = keep or Keep()
    path = run.path / 'checkpoints' / f'{state["step"]:08d}'
    folder = path.with_name(f'.{path.name}.{secrets.token_hex(4)}.tmp')
    if is_first() and not path.is_dir():
        make_folders(folder)
    # The first process says where, so that no piece of an attempt that was killed is taken for one of this.
    said = from_rank_0('' if path.is_dir() else str(folder))
    if not said:
        return
    folder = Path(said)
    stateful = {name: part for name, part in (parts or {}).items() if part.state_dict()}
    files = {name: whole_weights(part, keep=is_first()) for name, part in {'model': model, **stateful}.items() if whole}
    held = {} if whole else _weights_of({'model': model, **stateful})
    tensors = _optimizer_tensors(optimizer, _names(model, stateful), owned)
    held |= {f'optimizer/{name}': tensor for name, tensor in tensors.items()}
    pieces, count, first, patience_s = take_pieces(held), processes(), is_first(), patience()

    def write(given_up: threading.Event) -> None:
        if not first:
            write_piece(folder, pieces.file, lambda file: save_file(pieces.own, file))
            return
        try:
            _write_whole(folder, files, state)
            (folder / PIECES).write_text(json.dumps(pieces.index) + '\n', encoding='utf-8')
            write_piece(folder, pieces.file, lambda file: save_file(pieces.own, file))
            found = wait_for_pieces(folder, _files(pieces, count), patience_s=patience_s, given_up=given_up)
            seal(folder, _about(run, state, keep), known=found)
            publish(folder, path)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        mine = {file.name for file in path.iterdir()} - set(found)  # every rank has read its own back
        check_seal(path, only=mine, from_disk=True)
        _drop(run, keep)

    writing.start(write)
    if whole:
        writing.wait()


def _files(pieces: Pieces, count: int) -> list[str]:
    return [pieces.file.replace('-00000-', f'-{rank:05d}-') for rank in range(count)]


def _weights_of(modules: Mapping[str, nn.Module], *, all_here: bool = False) -> dict[str, torch.Tensor]:
    """What this process is to write of some modules, by name; or all that it has a place for."""
    found = {}
    for name, part in modules.items():
        held = held_of(part)
        for key, tensor in part.state_dict().items():
            # Stages of a pipeline have all buffers, and keep those of their own layers up to date.
            if not tensor.is_meta and (held is None or all_here or key in held.names):
                found[f'{name}/{key}'] = tensor.detach()
    return found


def _optimizer_tensors(
    optimizer: torch.optim.Optimizer, names: Mapping[torch.Tensor, str], owned: OwnedState | None
) -> dict[str, torch.Tensor]:
    if owned is not None:
        return owned.state()
    return {
        f'{names[parameter]}/{key}': torch.as_tensor(value).detach()
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }


def _write_whole(folder: Path, files: Mapping[str, dict[str, torch.Tensor]], state: Mapping[str, Any]) -> None:
    for name, tensors in files.items():
        save_file(tensors, folder / f'{name}.safetensors')
    (folder / 'state.json').write_text(json.dumps(state, indent=2, allow_nan=False) + '\n', encoding='utf-8')


def _about(run: Run, state: Mapping[str, Any], keep: Keep) -> dict[str, Any]:
    score = None if keep.best is None else score_of(state.get('metrics') or {}, keep.best)
    return {**identity(run), 'step': state['step'], 'score': score}


def _drop(run: Run, keep: Keep) -> None:
    drop_checkpoints(run, newest=keep.newest, best=keep.best is not None, every=keep.every)


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
    owned: OwnedState | None = None,
) -> dict[str, Any]:
    """Put a checkpoint into a model and its optimizer.

    Args:
        run: whose it must be.
        folder: as `save_checkpoint` returned it.
        model: built as then, on its device.
        optimizer: built as then.
        parts: as then.
        owned: of an engine that owns the optimizer.

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
    # Pieces are checked by those who read them.
    check_seal(folder, about=identity(run), only={file.name for file in folder.iterdir()} - _piece_files(folder))
    in_pieces = stored_tensors(folder)
    stateful = {name: part for name, part in (parts or {}).items() if part.state_dict()}
    source = f'checkpoint {folder}'
    held: dict[str, torch.Tensor] = {}
    for name, part in {'model': model, **stateful}.items():
        if (folder / f'{name}.safetensors').is_file():
            put_weights(part, load_weights(folder / f'{name}.safetensors'), source=source)
        else:
            shapes = {key: found.shape for key, found in _under(name, in_pieces).items()}
            check_weights(part, shapes, source=source)
            held |= _weights_of({name: part}, all_here=True)
    trained = [parameter for group in optimizer.param_groups for parameter in group['params']]
    names = _names(model, stateful)
    order = [names[parameter] for parameter in trained]
    elsewhere = {name for parameter, name in names.items() if parameter.is_meta}
    whole: dict[str, torch.Tensor] = {}
    if (folder / 'optimizer.safetensors').is_file():
        whole = load_file(folder / 'optimizer.safetensors')
    spread = _under('optimizer', in_pieces)
    state = json.loads((folder / 'state.json').read_text(encoding='utf-8'))
    if owned is not None:
        room = owned.room([*whole, *spread], source=source)
        held |= {f'optimizer/{name}': tensor for name, tensor in room.items()}
        if held:
            read_pieces(folder, held)
        owned.put(room)
        return state
    values: dict[int, dict[str, torch.Tensor]] = {}
    for full in [*whole, *spread]:
        name, key = full.rsplit('/', 1)
        if name in elsewhere:
            continue
        if name.startswith(OWNED):
            raise TrainError(
                f'The optimizer of {source} was that of {name.removeprefix(OWNED).split("/")[0]}, whose state is made '
                f'for that: resume with the same Parallel and processes, or start from its weights with continue_from=.'
            )
        if name not in order:
            raise TrainError(
                f'Checkpoint {folder} has optimizer state of {name!r}, which is not trained now. Build the model as it '
                f'was then, or start a new run from its weights with continue_from=.'
            )
        position = order.index(name)
        if full in whole:
            value = like(trained[position], whole[full])
        else:
            value = held[f'optimizer/{full}'] = _empty(spread[full], beside=trained[position])
        values.setdefault(position, {})[key] = value
    if held:
        read_pieces(folder, held)
    # Through load_state_dict, which knows on which device and in which dtype each kind of state belongs.
    optimizer.load_state_dict({'state': values, 'param_groups': optimizer.state_dict()['param_groups']})
    return state


def _piece_files(folder: Path) -> set[str]:
    return {file.name for file in folder.glob('pieces-*.safetensors')}


def _under(name: str, tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    return {key.removeprefix(f'{name}/'): value for key, value in tensors.items() if key.startswith(f'{name}/')}


def _empty(stored: Stored, *, beside: torch.Tensor) -> torch.Tensor:
    """Room for a state of a parameter, spread as that is where it has its shape."""
    if isinstance(beside, DTensor) and stored.shape == beside.shape:
        return torch.empty_like(beside, dtype=stored.dtype).detach()
    return torch.empty(stored.shape, dtype=stored.dtype, device='cpu')


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

"""Weights of a module as one safetensors file, and back, without a name left over on either side."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mmpipe.errors import ModelError
from mmpipe.models.spread import held_of, like, union, whole_of


def save_weights(module: nn.Module, file: Path) -> None:
    """Write the `state_dict` of a module, in the dtypes it has.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / 'model.safetensors'
    >>> save_weights(nn.Linear(2, 1), file); sorted(load_weights(file))
    ['bias', 'weight']
    """
    save_file(whole_weights(module), file)


def whole_weights(module: nn.Module, *, keep: bool = True) -> dict[str, torch.Tensor]:
    """The `state_dict` of a module on the CPU; of one that is spread over processes, all of them must ask.

    Args:
        module: any.
        keep: False to only take part in that, and hold nothing.

    >>> sorted(whole_weights(nn.Linear(2, 1)))
    ['bias', 'weight']
    """
    # A safetensors file holds no shared memory, so tied weights are written once per name.
    seen: set[int] = set()
    tensors = {}
    held, state = held_of(module), module.state_dict()
    if held is not None:
        state = union({name: tensor.detach() for name, tensor in state.items() if name in held.names}, held, keep=keep)
    for name, tensor in state.items():
        whole = whole_of(tensor.detach())
        if not keep:
            continue
        value = whole.to('cpu').contiguous()
        tensors[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return tensors


def load_weights(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a safetensors file, on the CPU.

    Raises:
        ModelError: the file is missing or damaged.
    """
    try:
        return load_file(file)
    except Exception as error:
        raise ModelError(f'{file} holds no weights that can be read ({error}). Restore it, or train again.') from error


def put_weights(
    module: nn.Module, tensors: Mapping[str, torch.Tensor], *, source: str, new: tuple[str, ...] = ()
) -> None:
    """Copy tensors into a module; every name and shape must fit.

    Args:
        module: what they go into, on any device.
        tensors: by the names of its `state_dict`.
        source: where they come from, for messages.
        new: prefixes of names that the source may lack, such as `heads.season.`.

    Raises:
        ModelError: a name is missing or left over, or a shape differs.

    >>> put_weights(nn.Linear(2, 1), {'weight': torch.zeros(1, 2)}, source='a file')
    Traceback (most recent call last):
    ...
    mmpipe.errors.ModelError: The weights of a file do not fit Linear: it lacks 'bias'.
    Build the model with the arguments that the weights were trained with.
    """
    check_weights(module, {name: tensor.shape for name, tensor in tensors.items()}, source=source, new=new)
    own = module.state_dict()
    module.load_state_dict({**own, **{name: like(own[name], tensor) for name, tensor in tensors.items()}})


def check_weights(
    module: nn.Module, there: Mapping[str, torch.Size], *, source: str, new: tuple[str, ...] = ()
) -> None:
    """Whether weights would fit a module, by their shapes alone.

    Args:
        module: what they are to go into.
        there: shapes by the names of its `state_dict`.
        source: as for `put_weights`.
        new: the same.

    Raises:
        ModelError: a name is missing or left over, or a shape differs.

    >>> check_weights(nn.Linear(2, 1, bias=False), {'weight': torch.Size([1, 2])}, source='a file')
    """
    own = module.state_dict()
    lacking = [name for name in own if name not in there and not name.startswith(new or ('\0',))]
    extra = [name for name in there if name not in own]
    shapes = [name for name in own if name in there and own[name].shape != there[name]]
    problem = None
    if lacking:
        problem = f'it lacks {lacking[0]!r}' + (f' and {len(lacking) - 1} more' if len(lacking) > 1 else '')
    elif extra:
        problem = (
            f'it has {extra[0]!r}'
            + (f' and {len(extra) - 1} more' if len(extra) > 1 else '')
            + ' that the model has not'
        )
    elif shapes:
        name = shapes[0]
        problem = f'{name!r} has shape {list(there[name])} there and {list(own[name].shape)} here'
    if problem:
        raise ModelError(
            f'The weights of {source} do not fit {type(module).__name__}: {problem}. '
            f'Build the model with the arguments that the weights were trained with.'
        )

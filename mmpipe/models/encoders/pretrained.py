"""Weights that encoders start from: of packages and caches on this machine, and skipped where a checkpoint follows."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch

from mmpipe.errors import ModelError

_weights_follow: ContextVar[bool] = ContextVar('weights_follow', default=False)


@contextmanager
def weights_follow() -> Iterator[None]:
    """Inside, encoders skip loading pretrained weights: a checkpoint is about to replace them anyway.

    >>> with weights_follow():
    ...     do_weights_follow()
    True
    """
    token = _weights_follow.set(True)
    try:
        yield
    finally:
        _weights_follow.reset(token)


def do_weights_follow() -> bool:
    """Whether this is inside of `weights_follow`.

    >>> do_weights_follow()
    False
    """
    return _weights_follow.get()


def packaged_weights(name: str) -> dict[str, torch.Tensor] | None:
    """The weights of a timm model that an installed package brings; None where none does.

    >>> packaged_weights('resnet18')
    """
    from mmpipe import weights

    return weights.load(name)[0] if weights.packaged(name) else None


def cached_weights(weights: Any) -> dict[str, torch.Tensor]:
    """The state that torchvision's weights stand for, from torch's cache on this machine; nothing is downloaded.

    Args:
        weights: a torchvision weights enum.

    Raises:
        ModelError: the file is not there, or is damaged.

    >>> from torchvision.models import ResNet18_Weights
    >>> from unittest import mock
    >>> with mock.patch('torch.hub.get_dir', return_value='/no/such/folder'):
    ...     cached_weights(ResNet18_Weights.DEFAULT)
    Traceback (most recent call last):
    ...
    mmpipe.errors.ModelError: The weights ResNet18_Weights.IMAGENET1K_V1 are not on this machine:
    there is no /no/such/folder/checkpoints/resnet18-f37072fd.pth. Nothing is downloaded in a training: fetch
    https://download.pytorch.org/models/resnet18-f37072fd.pth to that place first, or pass file= or weights=None.
    """
    file = Path(torch.hub.get_dir(), 'checkpoints', weights.url.rsplit('/', 1)[-1])
    if not file.is_file():
        raise ModelError(
            f'The weights {weights} are not on this machine: there is no {file}. Nothing is downloaded in a training: '
            f'fetch {weights.url} to that place first, or pass file= or weights=None.'
        )
    # torchvision names files by the first digits of their digest: resnet18-f37072fd.pth.
    wanted = file.stem.rsplit('-', 1)[-1]
    with file.open('rb') as content:
        found = hashlib.file_digest(content, 'sha256').hexdigest()
    if not found.startswith(wanted):
        raise ModelError(f'{file} is damaged: its SHA-256 begins with {found[:8]}, not {wanted}. Fetch it again.')
    return stored_weights(file)


def stored_weights(file: str | os.PathLike[str]) -> dict[str, torch.Tensor]:
    """The `state_dict` of a file, safetensors or torch's own, on the CPU; of the latter, nothing but tensors is read.

    Args:
        file: that ends in `.safetensors`, or in anything else for torch's format.

    Raises:
        ModelError: there is no such file, or it is none.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / 'model.pth'
    >>> torch.save({'weight': torch.zeros(2)}, file); stored_weights(file)
    {'weight': tensor([0., 0.])}
    """
    from mmpipe.models.weights_file import load_weights

    if Path(file).suffix == '.safetensors':
        return load_weights(Path(file))
    try:
        found = torch.load(file, map_location='cpu', weights_only=True)
        return {str(name): tensor for name, tensor in found.items() if isinstance(tensor, torch.Tensor)}
    except Exception as error:
        raise ModelError(
            f'{file} holds no weights that can be read ({error}). Give a file of a state_dict, as safetensors or as '
            f'torch.save writes it.'
        ) from error


def take_weights(module: torch.nn.Module, state: dict[str, torch.Tensor], *, source: str) -> None:
    """Put trained weights into a module without a classifier, whose own are left over; everything else must fit.

    Args:
        module: what they go into.
        state: by the names of its `state_dict`.
        source: where they are from, for messages.

    Raises:
        ModelError: a name is missing, or a shape differs.

    >>> take_weights(torch.nn.Linear(2, 1), {'weight': torch.ones(1, 2)}, source='a file')
    Traceback (most recent call last):
    ...
    mmpipe.errors.ModelError: a file does not fit Linear: it lacks 'bias', or has it in another shape. Pass
    weights of this model, or none.
    """
    own = module.state_dict()
    wrong = [name for name in own if name not in state or state[name].shape != own[name].shape]
    if wrong:
        more = f' and {len(wrong) - 1} more' if len(wrong) > 1 else ''
        raise ModelError(
            f'{source} does not fit {type(module).__name__}: it lacks {wrong[0]!r}{more}, or has it in another shape. '
            f'Pass weights of this model, or none.'
        )
    own.update({name: state[name] for name in own})  # and keeps the versions that a state_dict carries
    module.load_state_dict(own)

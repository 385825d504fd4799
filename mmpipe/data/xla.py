"""XLA devices, such as TPUs, through torch_xla: operators are collected, and run as one program where a step ends.

Not yet run on a TPU: no test machine had one.
"""

from __future__ import annotations

from types import ModuleType

import torch

from mmpipe.errors import ConfigError


def xla_device() -> torch.device:
    """The first XLA device of this machine.

    Raises:
        ConfigError: torch_xla is not installed, or does not go with this torch.
    """
    return _torch_xla().device()


def seed_xla(seed: int) -> None:
    """Seed the generator of all XLA devices."""
    _torch_xla().manual_seed(seed)


def end_of_step(device: torch.device) -> None:
    """Let the device begin with what was collected for it; nothing for devices that begin at once.

    >>> end_of_step(torch.device('cpu'))
    """
    if device.type == 'xla':
        _torch_xla().sync()


def _torch_xla() -> ModuleType:
    try:
        import torch_xla
    except ImportError as error:  # also where its compiled part is of another torch
        raise ConfigError(
            f"device='xla' needs torch_xla in the version of torch {torch.__version__} ({error}). "
            f'Install both as its documentation says for your machine.'
        ) from error
    return torch_xla

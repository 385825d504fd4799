"""The model of a run, or the one that was given, where the batches are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from mmpipe.data.loader import DataLoader
from mmpipe.models.rebuild import load_model
from mmpipe.runs import Run


def model_of(run: Run | str | os.PathLike[str] | nn.Module, loader: DataLoader | Iterable[Mapping[str, Any]]) -> Any:
    """The model itself, or that of a run on the loader's device.

    >>> model_of(nn.Linear(1, 1), [])
    Linear(in_features=1, out_features=1, bias=True)
    """
    if isinstance(run, nn.Module):
        return run
    return load_model(run, device=loader.device if isinstance(loader, DataLoader) else 'cpu')

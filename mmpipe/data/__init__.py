"""Loading: datasets over shards, the order of an epoch, batches on the device, device transforms.

Names are imported on first use, so that worker processes get what makes a batch without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_WHERE = {
    'DataLoader': 'loader',
    'ShardDataset': 'dataset',
    'epoch_order': 'order',
    'resolve': 'device',
    'to_device': 'device',
    'sampling': None,
    'transforms': None,
}

__all__ = ['DataLoader', 'ShardDataset', 'epoch_order', 'resolve', 'sampling', 'to_device', 'transforms']

if TYPE_CHECKING:
    from mmpipe.data import sampling as sampling
    from mmpipe.data import transforms as transforms
    from mmpipe.data.dataset import ShardDataset as ShardDataset
    from mmpipe.data.device import resolve as resolve
    from mmpipe.data.device import to_device as to_device
    from mmpipe.data.loader import DataLoader as DataLoader
    from mmpipe.data.order import epoch_order as epoch_order


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f'module mmpipe.data has no attribute {name!r}')
    where = _WHERE[name]
    module = importlib.import_module(f'mmpipe.data.{where or name}')
    value = module if where is None else getattr(module, name)
    globals()[name] = value  # also over a submodule of the same name, which importing it has just put here
    return value

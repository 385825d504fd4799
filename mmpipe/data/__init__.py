"""Loading: datasets over shards, the order of an epoch, batches on the device, device transforms."""

from mmpipe.data import transforms
from mmpipe.data.collate import collate
from mmpipe.data.dataset import ShardDataset
from mmpipe.data.device import resolve, to_device
from mmpipe.data.loader import DataLoader
from mmpipe.data.order import epoch_order

__all__ = ['DataLoader', 'ShardDataset', 'collate', 'epoch_order', 'resolve', 'to_device', 'transforms']

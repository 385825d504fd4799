"""Parts of your own: a task (segmentation), an encoder, and a balancing of losses (PCGrad), some twenty lines each.

Images of discs and bars on noise: which pixels are of the object, which object it is, and how large. The masks are
known for half of the images, the sizes for a third.

    python examples/07_your_own_parts.py
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import mmpipe as mm
from mmpipe.errors import ConfigError
from mmpipe.shards import Block, Field, write_snapshot
from mmpipe.train import Balancing
from mmpipe.train.tasks import Task

SIDE = 24


# A task: what it learns from, its loss as a sum and a count, and how good it is.
@dataclass(frozen=True, kw_only=True)
class Segmentation(Task):
    """Whether each pixel belongs to the object: binary cross-entropy, intersection over union."""

    kind = 'segmentation'

    @property
    def output_shape(self) -> tuple[int, ...]:
        return (SIDE, SIDE)

    def loss(self, output, target, mask, *, std=1.0):
        losses = nn.functional.binary_cross_entropy_with_logits(output, target.float(), reduction='none').mean((1, 2))
        return losses.where(mask, 0.0).sum(), mask.sum().float()

    def metrics(self, output, target):
        found, there = output > 0, target > 0
        return {'iou': float((found & there).sum() / max((found | there).sum(), 1))}

    def check_field(self, field):
        if field.shape != (SIDE, SIDE):
            raise ConfigError(f'Segmentation {self.name!r}: masks are [{SIDE}, {SIDE}], not {list(field.shape)}.')


# An encoder: `out_features`, and a forward from the field's tensor to them. This one keeps its map for the task above.
class Maps(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.out_features = width
        self.stages = nn.Sequential(
            nn.Conv2d(1, width, 5, padding=2), nn.ReLU(), nn.Conv2d(width, width, 5, padding=2), nn.ReLU()
        )

    def forward_features(self, images: torch.Tensor) -> torch.Tensor:
        return self.stages(images.float() / 255)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.forward_features(images).amax((2, 3))


# A model of your own takes a batch and returns an output per task.
class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Maps()
        self.pixels = nn.Conv2d(16, 1, 1)
        self.kind, self.size = nn.Linear(16, 2), nn.Linear(16, 1)
        self.tasks = (
            Segmentation(field='outline', name='outline'),
            mm.classification('kind', ['disc', 'bar']),
            mm.regression('size'),
        )
        self.inputs = ['image']

    def forward(self, batch):
        maps = self.encoder.forward_features(batch['image'])
        pooled = maps.amax((2, 3))
        return {'outline': self.pixels(maps)[:, 0], 'kind': self.kind(pooled), 'size': self.size(pooled)[:, 0]}


# A balancing that has to see the gradients of each task.
class PCGrad(Balancing):
    """Yu et al. 2020, "Gradient Surgery for Multi-Task Learning", algorithm 1: of two gradients that point against each
    other, each loses its part along the other."""

    def backward(self, losses, *, share, parameters, scale):
        flat = []
        for loss in losses.values():
            found = torch.autograd.grad(scale(loss), parameters, retain_graph=True, allow_unused=True)
            filled = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
            flat.append(torch.cat([each.flatten() for each in filled]))
        surgical = [each.clone() for each in flat]
        for i, mine in enumerate(surgical):
            for j in torch.randperm(len(flat)).tolist():
                if i != j:
                    along = mine @ flat[j]
                    mine -= flat[j] * (along.clamp(max=0) / (flat[j] @ flat[j]).clamp(min=1e-12))
        for parameter, part in zip(
            parameters, torch.stack(surgical).sum(0).split([p.numel() for p in parameters]), strict=True
        ):
            part = part.view_as(parameter)
            parameter.grad = part.clone() if parameter.grad is None else parameter.grad + part
        return torch.stack(list(losses.values())).sum().detach()


def block(count: int) -> Block:
    """Discs and bars, masks for every second one, sizes for every third."""
    rng = np.random.default_rng(0)
    columns: dict[str, list] = {'image': [], 'outline': [], 'kind': [], 'size': []}
    y, x = np.mgrid[:SIDE, :SIDE]
    for i in range(count):
        radius, cy, cx = rng.uniform(3, 6), *rng.uniform(6, SIDE - 6, 2)
        disc = i % 2 == 0
        inside = (y - cy) ** 2 + (x - cx) ** 2 < radius**2 if disc else (abs(y - cy) < 2) & (abs(x - cx) < radius + 2)
        image = np.clip(rng.normal(60, 25, (SIDE, SIDE)) + 90 * inside, 0, 255).astype(np.uint8)
        columns['image'].append(image[None])
        columns['outline'].append(inside.astype(np.uint8) if rng.random() < 1 / 2 else None)
        columns['kind'].append('disc' if disc else 'bar')
        columns['size'].append(float(inside.mean() * 10) if rng.random() < 1 / 3 else None)
    splits = ['val' if i % 5 == 0 else 'train' for i in range(count)]
    return Block(keys=[f'{i:04d}' for i in range(count)], columns=columns, splits=splits)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        train_with_each_balancing(Path(folder))


def train_with_each_balancing(root: Path) -> None:
    fields = [
        Field(name='image', kind='tensor', dtype='uint8', shape=(1, SIDE, SIDE)),
        Field(name='outline', kind='tensor', dtype='uint8', shape=(SIDE, SIDE)),
        Field(name='kind', kind='label', vocabulary=('disc', 'bar')),
        Field(name='size', kind='scalar', dtype='float32'),
    ]
    snapshot = write_snapshot(root / 'shapes', fields, block(400))
    for balancing in ('fixed', 'uncertainty', PCGrad()):  # fixed weights, learned ones, and ours
        train = mm.DataLoader(snapshot.split('train'), batch_size=32, shuffle=True)
        val = mm.DataLoader(snapshot.split('val'), batch_size=80)
        run = mm.Trainer(epochs=10, lr=5e-3, balancing=balancing, runs=root / 'runs').fit(Model, train, val)
        print(run.record['trainer']['balancing'], *str(run).splitlines()[1:], sep='\n')


if __name__ == '__main__':
    main()

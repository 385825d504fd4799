"""JPEG files that are decoded behind the transfer."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import PIL.Image
import pytest
import torch

import mmpipe as mm
from mmpipe.shards import Block, Field, write_snapshot

PHOTOS = sorted((Path(__file__).parents[3] / 'examples' / 'data' / 'photos').glob('*.jpg'))[:9]


@pytest.fixture(scope='module')
def rows(tmp_path_factory):
    fields = [Field(name='photo', kind='binary')]
    columns = {'photo': [None, *(file.read_bytes() for file in PHOTOS)]}
    block = Block(keys=['none', *(file.stem for file in PHOTOS)], columns=columns)
    return write_snapshot(tmp_path_factory.mktemp('photos'), fields, block).rows()


def batch_of(rows, device='cpu', **options):
    decode = [mm.transforms.jpeg(64, device=device, **options)]
    (batch,) = mm.DataLoader(rows, batch_size=16, device=device, transforms={'photo': decode})
    return batch


def test_squares_are_those_that_threads_decode(rows):
    behind = batch_of(rows)
    decode = {'photo': mm.decode.image(size=64, crop='center')}
    (before,) = mm.DataLoader(rows, batch_size=16, device='cpu', decode=decode)
    assert behind['photo'].dtype == torch.uint8
    assert not behind['photo'][0].any()
    for name, one, other in zip(behind['_key'][1:], behind['photo'][1:], before['photo'][1:], strict=True):
        with PIL.Image.open(next(file for file in PHOTOS if file.stem == name)) as image:
            upright = image.getexif().get(0x0112, 1) == 1
        if upright:
            assert np.abs(one.numpy().astype(int) - other.numpy().astype(int)).mean() < 2, name


def test_random_crops_are_the_same_in_any_batch_and_others_in_the_next_epoch(rows):
    decode = {'photo': [mm.transforms.jpeg(32, device='cpu', scale=(0.1, 1))]}
    found = []
    for size in (3, 10):
        loader = mm.DataLoader(rows, batch_size=size, shuffle=True, device='cpu', transforms=decode)
        found.append([{k: p for b in loader for k, p in zip(b['_key'], b['photo'], strict=True)} for _ in range(2)])
    (first, second), (again, _) = found
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert sum(not torch.equal(first[key], second[key]) for key in first) >= len(PHOTOS) - 1


@pytest.mark.gpu
def test_on_cuda_they_are_those_of_the_cpu(rows):
    here, there = batch_of(rows), batch_of(rows, device='cuda')
    difference = (there['photo'].cpu().int() - here['photo'].int()).abs().float()
    assert difference.mean() < 2

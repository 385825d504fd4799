"""Tensors in pieces come back bit for bit, however they were cut and however they are read."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from mmpipe.errors import RunError
from mmpipe.models.pieces import FILE, read_pieces, stored_tensors, take_pieces, whole_tensors
from mmpipe.runs.seal import seal

SCRIPT = Path(__file__).parents[1] / 'support' / 'pieces_script.py'
DTYPES = {name: getattr(torch, name) for name in ('float32', 'bfloat16', 'int64', 'bool', 'uint8')}
SHAPES = st.lists(st.integers(0, 5), max_size=3)


def written(folder: Path, files: dict[str, dict[str, torch.Tensor]], index: dict) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, blocks in files.items():
        save_file(blocks, folder / name)
    (folder / FILE).write_text(json.dumps(index))
    seal(folder, {})


def some(shape, dtype: str, seed: int) -> torch.Tensor:
    return torch.randint(-99, 99, shape, generator=torch.Generator().manual_seed(seed)).to(DTYPES[dtype])


@settings(max_examples=40, deadline=None)
@given(tensors=st.lists(st.tuples(SHAPES, st.sampled_from(sorted(DTYPES)), st.booleans()), max_size=4))
def test_one_process_reads_what_it_wrote(tmp_path_factory, tensors):
    folder = tmp_path_factory.mktemp('pieces')
    wholes = {f't{i}': some(shape, dtype, i) for i, (shape, dtype, _) in enumerate(tensors)}
    views = [name for name, (_, _, turned) in zip(wholes, tensors, strict=True) if turned]
    wholes |= {name: wholes[name].mT.contiguous().mT for name in views if wholes[name].ndim > 1}
    pieces = take_pieces(wholes)
    for tensor in wholes.values():
        tensor.zero_()  # as training goes on, what was taken stays
    written(folder, {pieces.file: pieces.own}, pieces.index)
    found = {name: torch.ones_like(tensor) for name, tensor in wholes.items()}
    read_pieces(folder, found)
    for i, (name, (shape, dtype, _)) in enumerate(zip(wholes, tensors, strict=True)):
        assert torch.equal(found[name], some(shape, dtype, i))
        assert stored_tensors(folder)[name].dtype == DTYPES[dtype]


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_wrote_it_in_whatever_blocks_one_process_reads_it_whole(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp('cut')
    shape = data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    whole, count = some(shape, 'float32', 0), data.draw(st.integers(1, 4))
    cuts = [sorted({0, size, *data.draw(st.lists(st.integers(0, size), max_size=2))}) for size in shape]
    files: dict[str, dict[str, torch.Tensor]] = {f'pieces-{i:05d}-of-{count:05d}.safetensors': {} for i in range(count)}
    blocks = []
    for ranges in itertools.product(*(list(itertools.pairwise(cut)) for cut in cuts)):
        name = data.draw(st.sampled_from(sorted(files)))
        key = '@'.join(['model/w', ','.join(str(start) for start, _ in ranges)])
        files[name][key] = whole[tuple(slice(*each) for each in ranges)].clone()
        sizes = [end - start for start, end in ranges]
        blocks.append({'offsets': [start for start, _ in ranges], 'shape': sizes, 'file': name, 'key': key})
    about = {'dtype': 'float32', 'shape': shape, 'blocks': blocks}
    written(folder, files, {'format': 1, 'tensors': {'model/w': about}})
    assert torch.equal(whole_tensors(folder, 'model/')['w'], whole)


def test_a_damaged_piece_is_named_and_what_is_not_there_too(tmp_path):
    pieces = take_pieces({'w': torch.ones(4)})
    written(tmp_path, {pieces.file: pieces.own}, pieces.index)
    with pytest.raises(RunError, match='v'):
        read_pieces(tmp_path, {'v': torch.ones(4)})
    data = bytearray((tmp_path / pieces.file).read_bytes())
    data[-1] ^= 1
    (tmp_path / pieces.file).write_bytes(data)
    with pytest.raises(RunError, match=r'pieces-00000-of-00001\.safetensors has SHA-256 .* was written'):
        read_pieces(tmp_path, {'w': torch.ones(4)})


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ('{"format": 2}', r'has format 2; this mmpipe reads format 1'),
        ('{"format": 1}', r'does not say which pieces lie where \(KeyError'),
        ('{"format": 1, "tensors": {"w": {"dtype": "x", "shape": [], "blocks": []}}}', r'AttributeError'),
        ('nothing', r'JSONDecodeError'),
    ],
)
def test_an_index_of_another_format_or_none_is_refused(tmp_path, content, message):
    (tmp_path / FILE).write_text(content)
    with pytest.raises(RunError, match=message):
        stored_tensors(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize('processes', [2, 4])
def test_tensors_spread_in_random_ways_are_read_spread_in_others(tmp_path, processes):
    command = [
        sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', str(processes), str(SCRIPT),
        str(tmp_path), '40',
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-3000:]

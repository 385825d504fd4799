"""Tensors of which each process holds a part, written by each process for itself, and read by any number of others.

    pieces-00000-of-00002.safetensors   what the first process writes: of each tensor a block, '<name>@<offsets>'
    pieces-00001-of-00002.safetensors   the second
    pieces.json                         which block of which tensor lies where

`torch.distributed.checkpoint` plans who writes and who reads what, and cuts blocks to the parts that are asked for;
what lies on the disk is ours: safetensors and JSON, where its own writer pickles.
"""

from __future__ import annotations

import dataclasses
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import distributed
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from mmpipe.errors import MmpipeError, RunError
from mmpipe.runs.seal import check_seal

FILE = 'pieces.json'
FORMAT = 1


@dataclass(kw_only=True)
class Pieces:
    """What one process writes of some tensors.

    Args:
        file: its name.
        own: blocks on the CPU, that nothing else changes.
        index: what pieces.json is to hold; on the first process alone.
    """

    file: str = ''
    own: dict[str, torch.Tensor] = field(default_factory=dict)
    index: dict[str, Any] | None = None


@dataclass(frozen=True)
class Stored:
    """A tensor in pieces.

    Args:
        dtype: of it.
        shape: of the whole.
    """

    dtype: torch.dtype
    shape: torch.Size


def take_pieces(tensors: Mapping[str, torch.Tensor]) -> Pieces:
    """Copy what this process is to write of some tensors; all processes must ask, each with those it has.

    Each block is written by one process alone, also where several hold it.

    Args:
        tensors: plain ones, the same on all processes that have them, or spread (`DTensor`).

    >>> sorted(take_pieces({'weight': torch.ones(2, 3)}).own)
    ['weight@0,0']
    """
    writer = _Writer()
    _planned(lambda: dcp.save(dict(tensors), storage_writer=writer, planner=_save_planner(), no_dist=_alone()))
    return writer.pieces


def read_pieces(folder: Path, into: Mapping[str, torch.Tensor], *, alone: bool = False) -> None:
    """Put values into tensors, in place; each process reads the blocks that it needs, of files that are as sealed.

    Args:
        folder: with `pieces.json`, sealed.
        into: by name, plain or spread in any way; all of them must be there, with this shape.
        alone: whether this process asks for itself; otherwise all processes must ask, for the same names.

    Raises:
        RunError: a file is missing or damaged; on all processes.

    >>> import tempfile
    >>> from safetensors.torch import save_file
    >>> from mmpipe.runs.seal import seal
    >>> folder, pieces, found = Path(tempfile.mkdtemp()), take_pieces({'weight': torch.ones(2)}), torch.zeros(2)
    >>> save_file(pieces.own, folder / pieces.file)
    >>> _ = (folder / FILE).write_text(json.dumps(pieces.index)); seal(folder, {})
    >>> read_pieces(folder, {'weight': found}); found
    tensor([1., 1.])
    """
    planner = dcp.DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    reader = _Reader(folder)
    _planned(lambda: dcp.load(dict(into), storage_reader=reader, planner=planner, no_dist=alone or _alone()))


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Which tensors there are in pieces; none where a folder has no pieces.

    >>> stored_tensors(Path('/nowhere'))
    {}
    """
    if not (folder / FILE).is_file():
        return {}
    return {
        name: Stored(about.properties.dtype, about.size)  # type: ignore[union-attr]
        for name, about in _metadata(folder).state_dict_metadata.items()
    }


def whole_tensors(folder: Path, prefix: str) -> dict[str, torch.Tensor]:
    """Tensors in pieces whose names have a prefix, whole and without it, on the CPU of this process.

    Raises:
        RunError: a file is missing or damaged.
    """
    found = {name: torch.empty(s.shape, dtype=s.dtype) for name, s in stored_tensors(folder).items()}
    found = {name: tensor for name, tensor in found.items() if name.startswith(prefix)}
    read_pieces(folder, found, alone=True)
    return {name.removeprefix(prefix): tensor for name, tensor in found.items()}


class _Writer(StorageWriter):
    """Keeps in memory what others would write: the copy is taken in a step, and written while training goes on."""

    def __init__(self) -> None:
        self.pieces = Pieces()

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        pass

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        names = [f'pieces-{rank:05d}-of-{len(plans):05d}.safetensors' for rank in range(len(plans))]
        return [dataclasses.replace(plan, storage_data=name) for plan, name in zip(plans, names, strict=True)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        self.pieces.file, results = plan.storage_data, []
        for item in plan.items:
            block = planner.resolve_data(item)
            assert isinstance(block, torch.Tensor), item.index.fqn
            key = f'{item.index.fqn}@{",".join(map(str, item.index.offset or ()))}'
            self.pieces.own[key] = torch.empty(block.shape, dtype=block.dtype).copy_(block.detach())
            place = {'file': plan.storage_data, 'key': key}
            results.append(WriteResult(item.index, block.nbytes, place))
        return _done(results)

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        places = {result.index: result.storage_data for of_rank in results for result in of_rank}
        self.pieces.index = _as_json(metadata, places)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False  # it has none


class _Reader(StorageReader):
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places: dict[MetadataIndex, dict[str, str]] = {}

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        pass

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return _metadata(self.folder)

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        self.places = metadata.storage_data

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file: dict[str, list[Any]] = {}
        for item in plan.items:
            by_file.setdefault(self.places[item.storage_index]['file'], []).append(item)
        check_seal(self.folder, only=list(by_file))
        for name, items in by_file.items():
            with safe_open(self.folder / name, framework='pt') as file:
                for item in items:
                    key = self.places[item.storage_index]['key']
                    cut = tuple(
                        slice(at, at + length) for at, length in zip(item.storage_offsets, item.lengths, strict=True)
                    )
                    value = file.get_slice(key)[cut] if cut else file.get_tensor(key)
                    target = planner.resolve_tensor(item).detach()
                    target.copy_(value)
                    planner.commit_tensor(item, target)
        return _done(None)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return False


def _as_json(metadata: Metadata, places: Mapping[MetadataIndex, Mapping[str, str]]) -> dict[str, Any]:
    tensors = {}
    for name, about in sorted(metadata.state_dict_metadata.items()):
        assert isinstance(about, TensorStorageMetadata), name
        blocks = [
            {'offsets': list(chunk.offsets), 'shape': list(chunk.sizes), **places[MetadataIndex(name, chunk.offsets)]}
            for chunk in about.chunks
        ]
        dtype = str(about.properties.dtype).removeprefix('torch.')
        tensors[name] = {'dtype': dtype, 'shape': list(about.size), 'blocks': blocks}
    return {'format': FORMAT, 'tensors': tensors}


def _metadata(folder: Path) -> Metadata:
    file = folder / FILE
    try:
        content = json.loads(file.read_text(encoding='utf-8'))
        if content['format'] != FORMAT:
            raise RunError(
                f'{file} has format {content["format"]}; this mmpipe reads format {FORMAT}. Use the mmpipe that wrote '
                f'it.'
            )
        tensors: dict[str, Any] = {}
        places = {}
        for name, about in content['tensors'].items():
            properties = TensorProperties(dtype=getattr(torch, about['dtype']))
            chunks = []
            for block in about['blocks']:
                offsets = torch.Size(block['offsets'])
                chunks.append(ChunkStorageMetadata(offsets, torch.Size(block['shape'])))
                places[MetadataIndex(name, offsets)] = {'file': block['file'], 'key': block['key']}
            tensors[name] = TensorStorageMetadata(properties, torch.Size(about['shape']), chunks)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(
            f'{file} does not say which pieces lie where ({type(error).__name__}: {error}). Delete its folder, and the '
            f'training goes on from an earlier checkpoint.'
        ) from error
    return Metadata(state_dict_metadata=tensors, storage_data=places)


def _save_planner() -> dcp.DefaultSavePlanner:
    return dcp.DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)


def _alone() -> bool:
    return not (distributed.is_available() and distributed.is_initialized())


def _planned(work: Any) -> None:
    """DCP gathers what each process raised, as one exception that is no `Exception`; of ours, the first is raised."""
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings('ignore', message='torch.distributed is disabled')  # it is meant to be
            work()
    except dcp.CheckpointException as error:
        rank, (first, _) = min(error.failures.items())
        if isinstance(first, MmpipeError):
            where = '' if _alone() else f' (seen by rank {rank})'
            raise type(first)(f'{first}{where}') from error
        raise RunError(f'Rank {rank}: {type(first).__name__}: {first}') from error


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future

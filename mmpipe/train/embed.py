"""Features of a frozen encoder, computed once and kept: what trains on them runs no encoder.

    rows of a loader ──► encoders of a model, in eval mode ──► rows of the same keys, labels and splits, whose input
                                                               fields hold features

They lie in a snapshot of their own, in a folder named after what decides them: weights and code of the encoders,
decoders, transforms. Each feature is stored under the digest of the content it was computed from, so a second call
computes what is new or has changed, and a row whose label alone has changed costs no pass of an encoder. What is done
stays done when the process is killed.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mmpipe.data.loader import DataLoader
from mmpipe.data.transforms.calling import steps_of
from mmpipe.errors import ConfigError, DataError, ModelError
from mmpipe.home import features_dir
from mmpipe.models.multitask import MultitaskModel, slot
from mmpipe.models.rebuild import load_multitask
from mmpipe.runs import Run, open_run
from mmpipe.runs.described import NotDescribed
from mmpipe.shards import Block, Field, Rows, Snapshot, open_snapshot
from mmpipe.shards.field import content_digest
from mmpipe.shards.manifest import ids
from mmpipe.shards.writer import BLOCK_BYTES, NO_ROWS_DROPPED, commit, write_block
from mmpipe.train.precision import autocast, check_precision

KEPT = ('label', 'labels', 'scalar', 'string')
SOURCE = 'features'
"""Key of a snapshot's source that says of which encoders its features are."""


def embed(
    model: str | os.PathLike[str] | Run | MultitaskModel,
    loader: DataLoader,
    *,
    folder: str | os.PathLike[str] | None = None,
    precision: str = 'fp32',
    progress: Callable[[str, int, int, str], None] | None = None,
) -> Rows:
    """One pass of a model's encoders over the rows of a loader, or over those that none has seen yet.

    Args:
        model: a run, or a model; its encoders are used as they are now.
        loader: as for validation, without random transforms; its order does not matter.
        folder: of the snapshots of features; the project's `.mmpipe/features` when None.
        precision: of the pass, as in `Trainer`.
        progress: called with ('embed', rows done, rows in all, 'rows').

    Returns:
        The loader's rows in a snapshot of features: same keys, splits and order, fields of labels, numbers and strings
        as they were, and for each encoder float32 `[out_features]`, null where the row lacks the modality. A
        `DataLoader` of them trains `mm.transfer(run, tasks=..., cached=True)`.

    Raises:
        ConfigError: a transform draws at random, or cannot be told from another one.
        DataError: an input field that the loader does not load.
        RunError: the run cannot be rebuilt.
        ModelError: an encoder gives something else than `[rows, out_features]`.

    >>> import tempfile
    >>> import mmpipe as mm
    >>> from mmpipe.train.example import example_run
    >>> run = example_run()
    >>> loader = mm.DataLoader(mm.open_snapshot(run.snapshot['root']).rows(), batch_size=2, device='cpu')
    >>> rows = embed(run, loader, folder=tempfile.mkdtemp())
    >>> rows.fields['price'].shape, rows.keys.tolist() == loader.rows.keys.tolist()
    ((4,), True)
    """
    check_precision(precision)
    if not isinstance(model, MultitaskModel):
        model = load_multitask(open_run(model), why='mm.embed')
    model = model.to(loader.device)
    _check_loader(model, loader)
    made = _made_by(model, loader, precision)
    root = Path(folder if folder is not None else features_dir()) / _digest(json.dumps(made, sort_keys=True))
    fields = _fields(model, loader.rows)
    store = _Store(root, fields, model.inputs, {SOURCE: made})
    rows = loader.rows
    wanted = {field.name: rows.system(f'_digest.{field.name}') for field in fields}
    missing = store.without(rows, wanted)
    missing = missing[np.sort(np.unique(rows.keys[missing], return_index=True)[1])]  # rows may come more than once
    step = max(1, BLOCK_BYTES // sum(field.bytes_per_row or 64 for field in fields))
    for start in range(0, len(missing), step):
        chosen = missing[start : start + step]
        part = rows.take(chosen)
        of = {name: values[chosen] for name, values in wanted.items()}

        def tell(done: int, before: int = start) -> None:
            if progress is not None:
                progress('embed', before + done, len(missing), 'rows')

        features = {name: store.known(name, of[name]) for name in model.inputs}
        _compute(model, loader, part, of, features, precision, tell)
        store.add(part, of, features)
    return store.rows(rows.keys)


def check_features(model: nn.Module, rows: Any) -> None:
    """Refuse features where an encoder wants inputs, features of other encoders, and inputs where features are wanted.

    Args:
        model: about to be trained or evaluated.
        rows: what it is given.

    Raises:
        DataError: they do not fit each other.
    """
    snapshot: Any = getattr(rows, 'snapshot', None)
    source = getattr(getattr(snapshot, 'manifest', None), 'source', None) or {}
    made: Mapping[str, Any] = source.get(SOURCE, {}).get('encoders', {})
    cached = getattr(model, 'cached', ())
    encoders: Any = getattr(model, 'encoders', {})
    for field in getattr(model, 'inputs', ()):
        if field in made and field not in cached:
            raise DataError(
                f'Field {field!r} of snapshot {snapshot.id} holds features of an encoder, and this model encodes it '
                f'itself. Train on the rows they were made of, or with mm.transfer(run, tasks=..., cached=True).'
            )
        if field in cached and field not in made:
            raise DataError(
                f'This model takes features of {field!r}, and snapshot {snapshot.id if snapshot else "?"} holds none: '
                f'make them with mm.embed(run, loader).'
            )
        if field in cached and made[field] != encoder_digest(encoders[slot(field)]):
            raise DataError(
                f'The features of {field!r} in snapshot {snapshot.id} were made by other weights than this model has. '
                f'Make them anew, with mm.embed of the run that is transferred from.'
            )


def encoder_digest(encoder: nn.Module) -> str:
    """What decides the features of an encoder: its modules, parameters and buffers. 32 hexadecimal characters.

    >>> layer = nn.Linear(2, 3)
    >>> before = encoder_digest(layer); _ = layer.weight.data.add_(1)
    >>> before == encoder_digest(layer)
    False
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, part in encoder.named_modules():
        digest.update(f'{name}:{type(part).__module__}.{type(part).__qualname__}({part.extra_repr()});'.encode())
    for name, tensor in [*encoder.named_parameters(), *encoder.named_buffers()]:
        values = tensor.detach().cpu().contiguous()
        digest.update(f'{name}:{values.dtype}{list(values.shape)};'.encode())
        digest.update(values.flatten().view(torch.uint8).numpy().data if values.numel() else b'')
    return digest.hexdigest()


def _check_loader(model: MultitaskModel, loader: DataLoader) -> None:
    for field in model.inputs:
        if field not in loader.fields:
            raise DataError(
                f'mm.embed: the model reads field {field!r}, which the loader does not load; it loads '
                f'{", ".join(loader.fields)}. Leave out fields=, or add it.'
            )
    for name, chosen in loader.transforms.items():
        for step in steps_of(chosen):
            if getattr(step, 'random', False) and (name == '*' or name in model.inputs):
                raise ConfigError(
                    f'mm.embed: a transform of {name!r} draws at random ({step!r}), and a feature is computed once. '
                    f'Give the loader that you validate with.'
                )


def _made_by(model: MultitaskModel, loader: DataLoader, precision: str) -> dict[str, Any]:
    """Everything but the rows that decides what is computed."""
    try:
        described = loader.over(loader.rows, fields=model.inputs).description()
    except NotDescribed as why:
        raise ConfigError(
            f'mm.embed: {why}. Features are kept under the name of what made them, so it must be possible to tell.'
        ) from why
    return {
        'encoders': {field: encoder_digest(model.encoders[slot(field)]) for field in model.inputs},
        'inputs': {name: described[name] for name in ('decode', 'host_transforms', 'transforms', 'on_error')},
        'precision': precision,
    }


def _fields(model: MultitaskModel, rows: Rows) -> list[Field]:
    features = [
        Field(name=name, kind='tensor', dtype='float32', shape=(int(model.encoders[slot(name)].out_features),))  # type: ignore[arg-type]
        for name in model.inputs
    ]
    return features + [field for name, field in rows.fields.items() if name not in model.inputs and field.kind in KEPT]


def _compute(
    model: MultitaskModel,
    loader: DataLoader,
    rows: Rows,
    digests: Mapping[str, np.ndarray],
    features: dict[str, dict[bytes, np.ndarray]],
    precision: str,
    tell: Callable[[int], None],
) -> None:
    """Add the features of some rows to `features`, {field: {digest of the content: feature}}."""
    lacking = np.zeros(len(rows), dtype=bool)
    for name in model.inputs:
        known = {*features[name], content_digest(rows.fields[name], None)}
        lacking |= np.array([digest not in known for digest in digests[name].tolist()], dtype=bool)
    todo = np.flatnonzero(lacking)
    if not len(todo):
        tell(len(rows))
        return
    was_training, done = model.training, len(rows) - len(todo)
    model.eval()
    try:
        for batch in loader.over(rows.take(todo), fields=model.inputs):
            count = len(batch['_key'])
            with torch.no_grad(), autocast(precision, loader.device):
                found = model.features(batch)
            for name, (positions, values) in found.items():
                width = int(model.encoders[slot(name)].out_features)  # type: ignore[arg-type]
                if values.shape != (len(positions), width):
                    raise ModelError(
                        f'The encoder of {name!r} gave {list(values.shape)} for {len(positions)} rows: '
                        f'[{len(positions)}, {width}] is meant, [rows, out_features].'
                    )
                now = todo[done - (len(rows) - len(todo)) :][:count][positions]
                for at, value in zip(now.tolist(), values.float().cpu().numpy(), strict=True):
                    features[name][digests[name][at]] = value
            done += count
            tell(done)
    finally:
        model.train(was_training)


class _Store:
    """The snapshot of features of one folder, and what is added to it."""

    def __init__(self, root: Path, fields: list[Field], inputs: list[str], source: dict[str, Any]) -> None:
        self.root, self.fields, self.inputs, self.source = root, fields, inputs, source
        self.before: Snapshot | None = open_snapshot(root) if root.is_dir() and ids(root) else None
        names = {field.name for field in fields}
        self._fresh = self.before is None or set(self.before.fields) != names  # other labels: written anew
        self._at: dict[str, int] = {}
        self._known: dict[str, dict[bytes, int]] = {}
        self._splits: dict[str, str] = {}
        if self.before is not None:
            self._old = self.before.rows()
            self._digests = {name: self._old.system(f'_digest.{name}') for name in names & set(self.before.fields)}
            if not self._fresh:
                self._at = {key: at for at, key in enumerate(self._old.keys.tolist())}
                self._splits = dict(zip(self._at, self._old.system('_split').tolist(), strict=True))
            for name in inputs:
                self._known[name] = {digest: at for at, digest in enumerate(self._digests[name].tolist())}
        self.shards = [] if self._fresh or self.before is None else list(self.before.manifest.shards)
        self.dropped = NO_ROWS_DROPPED if self._fresh or self.before is None else self.before.manifest.dropped

    def without(self, rows: Rows, wanted: Mapping[str, np.ndarray]) -> np.ndarray:
        """Positions of the rows that are not stored as they are now, in the split that they are in now."""
        places = zip(rows.keys.tolist(), rows.system('_split').tolist(), strict=True)
        at = np.array([self._at[k] if self._splits.get(k) == split else -1 for k, split in places], dtype=np.int64)
        same = at >= 0
        for name, digests in wanted.items():
            if same.any():
                same[same] &= self._digests[name][at[same]] == digests[same]
        return np.flatnonzero(~same)

    def known(self, name: str, digests: np.ndarray) -> dict[bytes, np.ndarray]:
        """{digest: feature} of the contents among these whose feature is stored."""
        places = self._known.get(name, {})
        found = sorted({(places[digest], digest) for digest in digests.tolist() if digest in places})
        if not found:
            return {}
        values, valid = self._old.read(name, np.array([at for at, _ in found]))
        return {digest: value for (_, digest), value, ok in zip(found, values, valid, strict=True) if ok}

    def add(
        self, rows: Rows, digests: Mapping[str, np.ndarray], features: Mapping[str, Mapping[bytes, np.ndarray]]
    ) -> None:
        """Write rows with their features, in place of what is stored under their keys, and commit."""
        keys = rows.keys.tolist()
        columns: dict[str, list[Any]] = {}
        for field in self.fields:
            if field.name in self.inputs:
                columns[field.name] = [features[field.name].get(digest) for digest in digests[field.name].tolist()]
            else:
                columns[field.name] = _values(rows, field)
        block = Block(
            keys=keys, columns=columns, splits=rows.system('_split').tolist(),
            digests={name: values.tolist() for name, values in digests.items()},
        )  # fmt: skip
        index = 1 + max((shard.block for shard in self.shards), default=-1)
        self.shards.append(write_block(self.root, self.fields, block, index=index))
        if self.before is not None and not self._fresh:
            gone = np.array([self._at[key] for key in keys if key in self._at], dtype=np.int64)
            if len(gone):
                self.dropped = np.concatenate([self.dropped, self._old.places[gone]])
        self._splits |= dict(zip(keys, block.splits or (), strict=True))
        splits = Counter(self._splits.values())
        commit(self.root, self.fields, self.shards, dropped=self.dropped, source=self.source, splits=splits)

    def rows(self, keys: np.ndarray) -> Rows:
        """The rows of these keys, in this order."""
        rows = open_snapshot(self.root).rows()
        at = {key: position for position, key in enumerate(rows.keys.tolist())}
        return rows.take([at[key] for key in keys.tolist()])


def _values(rows: Rows, field: Field) -> list[Any]:
    if field.kind != 'labels':
        return rows.words(field.name)
    values, valid = rows.read(field.name)
    words = np.array(field.vocabulary or (), dtype=object)
    return [words[row.astype(bool)].tolist() if ok else None for row, ok in zip(values, valid, strict=True)]


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()

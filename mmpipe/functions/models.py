"""The pretrained models behind the embedding functions: each is loaded once per process and only used for inference."""

from __future__ import annotations

import difflib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mmpipe import weights
from mmpipe.errors import MmpipeError, ModelError, require

if TYPE_CHECKING:
    import tokenizers
    import torch

DEFAULT_IMAGE_MODEL = 'tf_efficientnet_lite0'
DEFAULT_TEXT_MODEL = 'wordllama'

# Widths known without building the model, so that declaring a column imports no torch.
IMAGE_FEATURES = {DEFAULT_IMAGE_MODEL: 1280}
TEXT_FEATURES = {DEFAULT_TEXT_MODEL: 256}

_loaded: dict[str, Any] = {}
# A download without a network fails after most of a minute; a table of a thousand batches must not wait for each.
_failed: dict[str, tuple[MmpipeError, float]] = {}
_RETRY_AFTER = 300.0  # seconds
# One lock for all: two threads asking for the same model must not both load it, and loading is rare.
_lock = threading.Lock()

# Rows of the text table gathered at a time: 8 MB of float32 at 256 wide, however long a document is.
_TOKENS = 8192


@dataclass(frozen=True, kw_only=True)
class ImageModel:
    """A backbone in evaluation mode and what its weights expect.

    Attributes:
        name: timm name.
        module: float32 (B, 3, H, W) -> (B, features), no classifier.
        mean: per channel, for pixels in [0, 1].
        std: per channel, for pixels in [0, 1].
        size: edge in pixels it was trained at.
        device: where it lives.
    """

    name: str
    module: torch.nn.Module
    mean: tuple[float, ...]
    std: tuple[float, ...]
    size: int
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class TextModel:
    """A table of token vectors and the tokenizer that numbers them.

    Attributes:
        name: what users call it.
        tokenizer: without padding and truncation.
        table: float16 (tokens, features), as the package stores it.
    """

    name: str
    tokenizer: tokenizers.Tokenizer
    table: np.ndarray


def image_model(name: str = DEFAULT_IMAGE_MODEL) -> ImageModel:
    """The backbone `name`, loaded by the first caller.

    Args:
        name: a timm model; packaged weights are taken where mmpipe knows some, else timm downloads its own.

    Raises:
        ModelError: timm does not know the model, or its weights cannot be had.
        MissingExtraError: timm or the weights' package is not installed.

    >>> image_model() is image_model()
    True
    """
    return _once(f'image:{name}', lambda: _load_image_model(name))


def text_model(name: str = DEFAULT_TEXT_MODEL) -> TextModel:
    """The text vectors `name`, loaded by the first caller.

    Raises:
        ModelError: there is no such text model.
        MissingExtraError: its package or tokenizers is not installed.

    >>> text_model().table.shape
    (32000, 256)
    """
    return _once(f'text:{name}', lambda: _load_text_model(name))


def image_files(model: str = DEFAULT_IMAGE_MODEL, **_: Any) -> list[Path]:
    """Files that `image_model` reads; none for a model that timm downloads, which its name has to stand for.

    >>> [file.suffix for file in image_files()], image_files('resnet18')
    (['.pth'], [])
    """
    return [weights.path(model)] if weights.packaged(model) else []


def text_files(model: str = DEFAULT_TEXT_MODEL, **_: Any) -> list[Path]:
    """Files that `text_model` reads: the table of vectors, the tokenizer.

    >>> [file.suffix for file in text_files()]
    ['.safetensors', '.json']
    """
    tokenizer = 'tokenizers/l2_supercat_tokenizer_config.json'
    return [weights.path(model), weights.package_file('text', model, tokenizer, why=f"the text model '{model}'")]


def embed_images(name: str, images: Sequence[np.ndarray]) -> np.ndarray:
    """Pooled features of a batch.

    Args:
        name: a timm model.
        images: B arrays, uint8 (3, H, W).

    Returns:
        float32 (B, features), on the CPU.

    Raises:
        ModelError: the model does not take images of this size.

    >>> embed_images('tf_efficientnet_lite0', np.zeros((2, 3, 32, 32), np.uint8)).shape
    (2, 1280)
    """
    model = image_model(name)
    import torch

    with torch.inference_mode():
        # uint8 crosses to the device; it is a quarter of the bytes.
        batch = torch.from_numpy(np.stack(images)).to(model.device)
        mean = torch.tensor(model.mean, device=model.device).mul(255).view(3, 1, 1)
        std = torch.tensor(model.std, device=model.device).mul(255).view(3, 1, 1)
        try:
            features = model.module((batch.float() - mean) / std)
        except (AssertionError, RuntimeError) as error:
            height, width = images[0].shape[-2:]
            raise ModelError(
                f"model '{name}' failed on {len(images)} images of {height} x {width}: {error}. "
                f'It was trained at {model.size}: pass size={model.size}.'
            ) from error
        return features.float().cpu().numpy()


def embed_texts(name: str, texts: list[str]) -> np.ndarray:
    """Mean token vectors.

    Args:
        name: a text model.
        texts: any strings.

    Returns:
        float32 (len(texts), features); zeros for a text without tokens.

    >>> embed_texts('wordllama', ['a cat', '']).any(axis=1).tolist()
    [True, False]
    """
    model = text_model(name)
    result = np.zeros((len(texts), model.table.shape[1]), np.float32)
    for row, encoding in zip(result, model.tokenizer.encode_batch(texts, add_special_tokens=False), strict=True):
        ids = np.asarray(encoding.ids, np.int64)
        for start in range(0, len(ids), _TOKENS):
            row += model.table[ids[start : start + _TOKENS]].sum(axis=0, dtype=np.float32)
        row /= max(1, len(ids))
    return result


def _once(key: str, load: Callable[[], Any]) -> Any:
    # Unlocked first look: a dict read is atomic, and every batch after the first takes this way.
    if key in _loaded:
        return _loaded[key]
    with _lock:
        if key not in _loaded:
            error, since = _failed.get(key, (None, 0.0))
            if error is not None and time.monotonic() - since < _RETRY_AFTER:
                raise error
            try:
                _loaded[key] = load()
            except MmpipeError as failure:
                _failed[key] = (failure, time.monotonic())
                raise
        return _loaded[key]


def _load_image_model(name: str) -> ImageModel:
    require('vision', 'timm', why=f"the image model '{name}'")
    import timm
    import torch

    base = name.split('.')[0]
    if not timm.is_model(base):
        near = difflib.get_close_matches(base, timm.list_models(), 3, 0.5)
        raise ModelError(
            f"timm {timm.__version__} has no model '{name}'"
            + (f'; near are {", ".join(near)}' if near else '')
            + f". timm.list_models() lists them; '{DEFAULT_IMAGE_MODEL}' needs no download."
        )
    # Building a network draws initial weights, and a caller's own random numbers must not depend on our loading.
    with torch.random.fork_rng():
        if weights.packaged(name):
            module = timm.create_model(name, pretrained=False, num_classes=0)
            tensors, meta = weights.load(name)
            head = meta['classifier'] + '.'
            module.load_state_dict({key: t for key, t in tensors.items() if not key.startswith(head)}, strict=True)
        else:
            try:
                module = timm.create_model(name, pretrained=True, num_classes=0)
            except Exception as error:  # timm, its hub client and its cache each raise their own kinds
                raise ModelError(
                    f"timm could not get pretrained weights for '{name}' ({type(error).__name__}: {_line(error)}). "
                    f'Connect to the hub it downloads from, or fill its cache (HF_HOME), or use '
                    f"model='{DEFAULT_IMAGE_MODEL}', which needs no download."
                ) from error
    config: dict[str, Any] = module.pretrained_cfg  # type: ignore[assignment]  # torch types every attribute as a tensor
    device = _device()
    return ImageModel(
        name=name,
        module=module.eval().requires_grad_(False).to(device),
        mean=tuple(config['mean']),
        std=tuple(config['std']),
        size=config['input_size'][-1],
        device=device,
    )


def _load_text_model(name: str) -> TextModel:
    if name not in TEXT_FEATURES:
        raise ModelError(f"there is no text model '{name}'; there is {', '.join(TEXT_FEATURES)}.")
    require('text', 'tokenizers', 'safetensors', 'wordllama', why=f"the text model '{name}'")
    import tokenizers
    from safetensors.numpy import load_file

    # Its own loader looks for the tokenizer in a folder the wheel does not have and then downloads: read the files.
    table_file, tokenizer_file = text_files(name)
    table = load_file(table_file)['embedding.weight']
    tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer_file))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return TextModel(name=name, tokenizer=tokenizer, table=table)


def _device() -> torch.device:
    """The accelerator when there is one (CUDA, MPS and XPU share this path), else the CPU."""
    import torch

    return torch.accelerator.current_accelerator(check_available=True) or torch.device('cpu')


def _line(error: Exception) -> str:
    text = ' '.join(str(error).split())
    return text if len(text) <= 200 else text[:200] + '...'

"""Whether a loader gave what it was asked for: every row once, its own label and key, and its own content."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from loaders_data import Decoded, Photos
from loaders_peer import Batch, Epoch

BLOCK = 16  # pixels of a side of the squares whose mean colours a crop's lies between
SLACK = 12  # how far it may lie outside, of 255: squares at the edges are left out
LIKE = 0.6  # least correlation between the mean colours of photos and of their crops


class Wrong(AssertionError):
    """A loader gave something else than the rows."""


def probed(size: int) -> np.ndarray:
    """Which bytes of a flat image of `size` are looked at in every timed epoch."""
    return np.array([0, size // 3, size // 2, size - 1])


def keys_of(found: Any) -> np.ndarray:
    """Keys as int64, however a loader has them: of a tensor, an array, numbers or names.

    >>> keys_of(['000007', '000001'])
    array([7, 1])
    """
    return np.array([int(key) for key in found]) if isinstance(found, (list, tuple)) else np.array(found).reshape(-1)


def check_rows(keys: Sequence[np.ndarray], labels: Sequence[np.ndarray], expected: np.ndarray) -> None:
    """Every row once, and each with its label.

    Raises:
        Wrong: a key is missing, comes twice, or has another label.
    """
    all_keys, all_labels = np.concatenate(keys), np.concatenate(labels)
    if not np.array_equal(np.sort(all_keys), np.arange(len(expected))):
        raise Wrong(f'{len(all_keys)} rows came, {len(np.unique(all_keys))} of them different, of {len(expected)}')
    if not np.array_equal(all_labels, expected[all_keys]):
        raise Wrong('labels of other rows came')


def check_decoded(epoch: Epoch, decoded: Decoded, *, shuffles: bool = True) -> None:
    """Two epochs, or one where it is not shuffled: every byte of them.

    Raises:
        Wrong: another content, dtype or shape than stored, or the same order twice where it should be shuffled.
    """
    orders = []
    for number in range(2 if shuffles else 1):
        keys, labels = [], []
        for images, found_labels, found_keys in epoch(number):
            keys.append(keys_of(found_keys))
            labels.append(np.array(found_labels))
            array = np.asarray(images)
            if array.dtype != np.uint8 or not np.array_equal(array, decoded.images[keys[-1]]):
                raise Wrong(f'batch {len(keys) - 1} of epoch {number} has other contents than were stored')
        check_rows(keys, labels, decoded.labels)
        orders.append(np.concatenate(keys))
    if shuffles and (np.array_equal(*orders) or np.array_equal(orders[0], np.sort(orders[0]))):
        raise Wrong('the rows came in the order stored, or in the same order twice')


def check_photos(epoch: Epoch, photos: Photos, edge: int = 224) -> dict[str, float]:
    """Two epochs: each crop has the size asked for, and mean colours that lie in its own photo.

    Returns:
        How like the colours of crops and photos are, and how sharp the crops are: the mean difference between
        neighbours, which tells resizing that averages from resizing that does not.

    Raises:
        Wrong: crops of other photos, of another size or dtype, or the same crops twice.
    """
    low, high, mean = colours(photos)
    means, sharpness = [], []
    for number in range(2):
        keys, labels = [], []
        seen = np.zeros((len(photos), 3))
        for images, found_labels, found_keys in epoch(number):
            keys.append(keys_of(found_keys))
            labels.append(np.array(found_labels))
            array = channels_last(images, edge)
            seen[keys[-1]] = array.mean(axis=(1, 2))
            sharpness.append(np.abs(np.diff(array[..., 1].astype(np.int16), axis=2)).mean())
        check_rows(keys, labels, photos.labels)
        outside = (seen < low - SLACK) | (seen > high + SLACK)
        if outside.any():
            raise Wrong(f'{int(outside.any(axis=1).sum())} crops have colours that their photos do not have')
        means.append(seen)
    like = min(float(np.corrcoef(seen.ravel(), mean.ravel())[0, 1]) for seen in means)
    if like < LIKE:
        raise Wrong(f'crops and photos are alike by {like:.2f} only, so crops of other photos came')
    if np.abs(means[0] - means[1]).mean() < 0.1:
        raise Wrong('both epochs had the same crops')
    return {'likeness': round(like, 3), 'sharpness': round(float(np.mean(sharpness)), 2)}


def channels_last(images: Any, edge: int) -> np.ndarray:
    """uint8 `[B, edge, edge, 3]` of a batch in either layout.

    Raises:
        Wrong: another shape or dtype.
    """
    array = np.asarray(images)
    if array.shape[1:] == (3, edge, edge):
        array = array.transpose(0, 2, 3, 1)
    if array.dtype != np.uint8 or array.shape[1:] != (edge, edge, 3):
        raise Wrong(f'a batch is {array.dtype} {list(array.shape)}, not uint8 crops of {edge} x {edge}')
    return array


def colours(photos: Photos) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least, greatest and mean colour `[N, 3]` of photos, the first two over squares."""
    from PIL import Image

    low, high, mean = (np.zeros((len(photos), 3)) for _ in range(3))
    for i, path in enumerate(photos.paths):
        image = np.asarray(Image.open(path))
        down, across = (side // BLOCK for side in image.shape[:2])
        squares = image[: down * BLOCK, : across * BLOCK].reshape(down, BLOCK, across, BLOCK, 3).mean(axis=(1, 3))
        low[i], high[i], mean[i] = squares.min((0, 1)), squares.max((0, 1)), image.mean((0, 1))
    return low, high, mean


class Seen:
    """What is kept of the batches of a timed epoch, and looked at when the clock has stopped.

    Args:
        data: what is loaded.
    """

    def __init__(self, data: Decoded | Photos) -> None:
        self.data = data
        self.probes: list[np.ndarray] = []
        self.labels: list[np.ndarray] = []
        self.keys: list[Any] = []

    def add(self, batch: Batch) -> None:
        """Look at one batch; a few microseconds, the same for every loader."""
        images, labels, keys = batch
        array = np.asarray(images)
        if isinstance(self.data, Decoded):
            flat = array.reshape(len(array), -1)
            self.probes.append(flat[:, probed(flat.shape[1])])
        else:
            self.probes.append(array[:, 0, 0].copy())
        self.labels.append(np.array(labels))
        # Memory of keys may be lent again; names and numbers in lists are not.
        self.keys.append(keys if isinstance(keys, (list, tuple)) else np.array(keys))

    def check(self) -> int:
        """Rows seen.

        Raises:
            Wrong: not every row once with its label and, of decoded rows, its bytes.
        """
        keys = [keys_of(found) for found in self.keys]
        check_rows(keys, self.labels, self.data.labels)
        if isinstance(self.data, Decoded):
            flat = self.data.images.reshape(len(self.data), -1)
            at = probed(flat.shape[1])[None]
            if not np.array_equal(np.concatenate(self.probes), flat[np.concatenate(keys)[:, None], at]):
                raise Wrong('other contents than were stored')
        return sum(map(len, keys))

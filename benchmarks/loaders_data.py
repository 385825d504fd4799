"""The rows that every loader of `loaders.py` is given, and photos in files."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

SHAPE = (3, 224, 224)
WORDS = tuple(f'kind_{i}' for i in range(10))
PHOTO, LARGE = (500, 375), (1600, 1200)  # width, height
QUALITY = {PHOTO: 93, LARGE: 85}  # some 81 KB and 430 KB, as photos of such sizes have


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much of everything.

    Attributes:
        rows: stored decoded.
        photos: JPEG files of `PHOTO`.
        large: JPEG files of `LARGE`.
        many: rows of the table whose first batch is waited for.
    """

    rows: int = 3000
    photos: int = 1000
    large: int = 96
    many: int = 100_000


QUICK = Sizes(rows=330, photos=130, large=12, many=2000)


@dataclass(frozen=True)
class Decoded:
    """Images that are stored as they are: row i has key i.

    Args:
        folder: of the files.
    """

    folder: Path

    @cached_property
    def images(self) -> np.ndarray:
        """uint8 `[N, 3, 224, 224]`, mapped."""
        return np.load(self.folder / 'images.npy', mmap_mode='r')

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 `[N]`."""
        return np.load(self.folder / 'labels.npy')

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int, int]:
        """(image, label, key), which is what FFCV and others write from."""
        if i >= len(self):
            raise IndexError(i)
        return np.asarray(self.images[i]), int(self.labels[i]), i


@dataclass(frozen=True)
class Photos:
    """Files of JPEG images: photo i has key i and lies in the folder of its label.

    Args:
        folder: of the files.
    """

    folder: Path

    @cached_property
    def labels(self) -> np.ndarray:
        """int64 `[N]`."""
        return np.load(self.folder / 'labels.npy')

    @cached_property
    def paths(self) -> list[str]:
        """Of the files, in the order of keys."""
        return [str(photo_path(self.folder, i, int(label))) for i, label in enumerate(self.labels)]

    def __len__(self) -> int:
        return len(self.labels)


def photo_path(folder: Path, key: int, label: int) -> Path:
    """File of a photo.

    >>> str(photo_path(Path('x'), 7, 3))
    'x/files/kind_3/00007.jpg'
    """
    return folder / 'files' / WORDS[label] / f'{key:05}.jpg'


def make(folder: Path, kind: str, sizes: Sizes) -> dict[str, float]:
    """The data of one kind, where it is not there already; says how large photos are on average.

    Args:
        folder: of all data.
        kind: 'decoded', 'photos' or 'large'; the folder of its name gets it.
        sizes: how much of it.
    """
    made = folder / f'{kind}.json'
    if not made.exists():
        known: dict[str, float] = {}
        if kind == 'decoded':
            make_decoded(folder / kind, sizes.rows)
        else:
            count, size = (sizes.photos, PHOTO) if kind == 'photos' else (sizes.large, LARGE)
            known[f'{kind}_mean_bytes'] = make_photos(folder / kind, count, size)
        made.write_text(json.dumps(known))
    return json.loads(made.read_text())


def make_decoded(folder: Path, rows: int) -> None:
    """Noise, so that no two rows are alike and nothing can be gained by compressing."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    images = np.lib.format.open_memmap(folder / 'images.npy', mode='w+', dtype=np.uint8, shape=(rows, *SHAPE))
    for start in range(0, rows, 100):
        part = images[start : start + 100]
        part[:] = random.integers(0, 256, part.shape, dtype=np.uint8)
    images.flush()
    np.save(folder / 'labels.npy', random.integers(0, len(WORDS), rows))


def make_photos(folder: Path, count: int, size: tuple[int, int]) -> float:
    """Parts of real photos in other colours, with the grain of a camera, as JPEG; returns their mean bytes."""
    random = np.random.default_rng(1)
    sources, total = real_photos(), 0
    labels = random.integers(0, len(WORDS), count)
    for key, label in enumerate(labels.tolist()):
        path = photo_path(folder, key, label)
        path.parent.mkdir(parents=True, exist_ok=True)
        data = jpeg(part_of(sources[key % len(sources)], size, random), quality=QUALITY[size])
        path.write_bytes(data)
        total += len(data)
    np.save(folder / 'labels.npy', labels)
    return total / count


def real_photos() -> list[np.ndarray]:
    """Photos that packages bring along, uint8 `[H, W, 3]`."""
    import skimage
    import sklearn.datasets
    from PIL import Image

    inside = Path(skimage.__file__).parent / 'data'
    names = ('astronaut.png', 'chelsea.png', 'coffee.png', 'motorcycle_left.png', 'rocket.jpg', 'ihc.png')
    with_sklearn = sklearn.datasets.load_sample_images().images
    return [*with_sklearn, *(np.asarray(Image.open(inside / name).convert('RGB')) for name in names)]


def part_of(photo: np.ndarray, size: tuple[int, int], random: np.random.Generator) -> np.ndarray:
    """Between half and all of a photo's width, in the shape of `size`, mirrored or not, in shifted colours."""
    from PIL import Image

    width, height = size
    high, wide = photo.shape[:2]
    across = min(wide, high * width / height) * random.uniform(0.5, 1)
    down = across * height / width
    left, top = random.uniform(0, wide - across), random.uniform(0, high - down)
    box = (left, top, left + across, top + down)
    part = Image.fromarray(photo).resize(size, Image.Resampling.LANCZOS, box=box)
    values = np.asarray(part, np.float32)[:, :: random.choice((1, -1))]
    values = values * random.uniform(0.6, 1.1, 3) + random.uniform(0, 40, 3)
    values += random.normal(0, 6, (height, width, 1))
    return np.clip(values, 0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, *, quality: int) -> bytes:
    """As a camera or the web would have it: 4:2:0, no restart markers."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format='JPEG', quality=quality, subsampling='4:2:0')
    return buffer.getvalue()

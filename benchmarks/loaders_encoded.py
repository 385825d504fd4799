"""Loaders of JPEG files: each makes uint8 batches of random resized crops of 224 x 224 pixels.

All draw 8 to 100 % of the area and 3:4 to 4:3 as shape, as torchvision's `RandomResizedCrop` does, and average over
what a pixel covers when they scale down: the same work at the same quality. All read the same bytes.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from loaders_data import Photos
from loaders_decoded import SEED, torch_loader
from loaders_peer import Batch, Epoch, Peer

EDGE = 224
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)
THREADS = 2


def draw_crop(width: int, height: int, draw: random.Random) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a crop, in torchvision's way.

    >>> left, top, width, height = draw_crop(500, 375, random.Random(0))
    >>> 0 <= left <= left + width <= 500, 0 <= top <= top + height <= 375
    (True, True)
    """
    for _ in range(10):
        area = width * height * draw.uniform(*AREA)
        aspect = math.exp(draw.uniform(math.log(ASPECT[0]), math.log(ASPECT[1])))
        across, down = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < across <= width and 0 < down <= height:
            return draw.randint(0, width - across), draw.randint(0, height - down), across, down
    edge = min(width, height)
    return (width - edge) // 2, (height - edge) // 2, edge, edge


class Files:
    """A dataset of tensors: a file is decoded whole by torchvision, and cropped and resized as a tensor."""

    def __init__(self, folder: Path) -> None:
        from torchvision.transforms import v2

        self.photos = Photos(folder)
        self.crop = v2.RandomResizedCrop(EDGE, scale=AREA, ratio=ASPECT, antialias=True)

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, key: int) -> Batch:
        from torchvision.io import ImageReadMode, decode_image

        image = decode_image(self.photos.paths[key], mode=ImageReadMode.RGB)
        return self.crop(image), int(self.photos.labels[key]), key


def shuffled(dataset: Any, batch: int) -> Epoch:
    """The stock loader with its workers."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    loader = torch_loader(dataset, batch, THREADS, shuffle=True, generator=generator)
    return lambda number: iter(loader)


def open_torchvision(data: Path, own: Path, batch: int) -> Epoch:
    return shuffled(Files(data), batch)


def open_imagefolder(data: Path, own: Path, batch: int) -> Epoch:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    class WithKeys(ImageFolder):
        def __getitem__(self, index: int) -> Batch:
            image, label = super().__getitem__(index)
            return image, label, int(Path(self.samples[index][0]).stem)

    crop = v2.RandomResizedCrop(EDGE, scale=AREA, ratio=ASPECT)  # PIL always averages
    return shuffled(WithKeys(str(data / 'files'), transform=v2.Compose([crop, v2.PILToTensor()])), batch)


class StoredPhotos:
    """What FFCV writes from: (bytes with their size, label, key)."""

    def __init__(self, folder: Path) -> None:
        self.photos = Photos(folder)

    def __len__(self) -> int:
        return len(self.photos)

    def __getitem__(self, key: int) -> tuple[bytes, int, int]:
        return Path(self.photos.paths[key]).read_bytes(), int(self.photos.labels[key]), key


def prepare_ffcv(data: Path, own: Path) -> None:
    from ffcv.fields import IntField, RGBImageField
    from ffcv.fields.rgb_image import IMAGE_MODES
    from ffcv.writer import DatasetWriter
    from PIL import Image

    def store_as_it_is(field: Any, destination: Any, stored: bytes, malloc: Any) -> None:
        import io

        destination['mode'] = IMAGE_MODES['jpg']
        destination['width'], destination['height'] = Image.open(io.BytesIO(stored)).size
        destination['data_ptr'], storage = malloc(len(stored))
        storage[:] = np.frombuffer(stored, np.uint8)

    # Its own encoder would compress the photos again, to another size.
    RGBImageField.encode = store_as_it_is
    fields = {'image': RGBImageField(write_mode='jpg'), 'label': IntField(), 'key': IntField()}
    DatasetWriter(str(own / 'photos.beton'), fields, num_workers=1).from_indexed_dataset(StoredPhotos(data))


def open_ffcv(data: Path, own: Path, batch: int) -> Epoch:
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import Squeeze, ToTensor, ToTorchImage

    loader = Loader(
        str(own / 'photos.beton'),
        batch_size=batch,
        num_workers=THREADS,
        order=OrderOption.RANDOM,
        os_cache=True,
        seed=SEED,
        drop_last=False,
        pipelines={
            'image': [
                RandomResizedCropRGBImageDecoder((EDGE, EDGE), scale=AREA, ratio=ASPECT), ToTensor(), ToTorchImage(),
            ],
            'label': [IntDecoder(), ToTensor(), Squeeze(1)],
            'key': [IntDecoder(), ToTensor(), Squeeze(1)],
        },
    )  # fmt: skip
    return lambda number: iter(loader)


def open_dali(data: Path, own: Path, batch: int) -> Epoch:
    from nvidia.dali import fn, pipeline_def, types
    from nvidia.dali.plugin.base_iterator import LastBatchPolicy
    from nvidia.dali.plugin.pytorch import DALIGenericIterator

    photos = Photos(data)

    @pipeline_def(batch_size=batch, num_threads=THREADS, device_id=None, seed=SEED)
    def pipeline() -> tuple[Any, Any]:
        # The labels of the reader are the keys; its buffer holds all files, so that the whole epoch is shuffled.
        files, keys = fn.readers.file(
            files=photos.paths, labels=list(range(len(photos))), random_shuffle=True, initial_fill=len(photos),
            pad_last_batch=True, name='files',
        )  # fmt: skip
        images = fn.decoders.image_random_crop(
            files, device='cpu', output_type=types.RGB, random_area=list(AREA), random_aspect_ratio=list(ASPECT)
        )
        return fn.resize(images, size=[EDGE, EDGE], antialias=True, interp_type=types.INTERP_LINEAR), keys

    made = pipeline()
    made.build()
    loader = DALIGenericIterator(
        made, ['image', 'key'], reader_name='files', last_batch_policy=LastBatchPolicy.PARTIAL, auto_reset=True
    )

    def epoch(number: int) -> Iterator[Batch]:
        for (found,) in loader:
            keys = found['key'].flatten().numpy()
            yield found['image'], photos.labels[keys], keys

    return epoch


def open_spdl(data: Path, own: Path, batch: int, *, threads: int) -> Epoch:
    import spdl.io
    from spdl.dataloader import DataLoader

    photos = Photos(data)

    def decode(key: int) -> tuple[Any, int]:
        packets = spdl.io.demux_image(photos.paths[key])
        left, top, across, down = draw_crop(packets.width, packets.height, random)  # type: ignore[arg-type]
        scaled = f'scale={EDGE}:{EDGE}:flags=bilinear,format=pix_fmts=rgb24'
        return spdl.io.decode_packets(packets, filter_desc=f'crop={across}:{down}:{left}:{top},{scaled}'), key

    def together(found: list[tuple[Any, int]]) -> Batch:
        keys = np.array([key for _, key in found])
        images = spdl.io.to_torch(spdl.io.convert_frames([frames for frames, _ in found]))
        return images, photos.labels[keys], keys

    def epoch(number: int) -> Iterator[Batch]:
        order = np.random.default_rng([SEED, number]).permutation(len(photos)).tolist()
        return iter(DataLoader(order, preprocessor=decode, batch_size=batch, aggregator=together, num_threads=threads))

    return epoch


PEERS = {
    'imagefolder': Peer(
        title='ImageFolder + PIL, 2 workers', data='photos', open=open_imagefolder, package='torchvision', batches=(64,)
    ),
    'torchvision': Peer(
        title='torchvision v2 tensors, 2 workers', data='photos', open=open_torchvision, package='torchvision',
        batches=(64,),
    ),
    'ffcv_photos': Peer(
        title='FFCV', data='photos', prepare=prepare_ffcv, open=open_ffcv, package='ffcv', batches=(64,), owned=False
    ),
    'dali': Peer(title='DALI on the CPU', data='photos', open=open_dali, package='nvidia-dali-cuda120', batches=(64,)),
    'spdl': Peer(
        title='SPDL', data='photos', open=open_spdl, package='spdl', batches=(64,),
        settings=({'threads': 2}, {'threads': 3}),
    ),
}  # fmt: skip

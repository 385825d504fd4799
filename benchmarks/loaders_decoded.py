"""Loaders of decoded rows: each writes them in its own format, and reads shuffled epochs as its documentation says.

Where a loader can do it in several ways, the settings that are tried hold them, and the fastest takes part.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from loaders_data import SHAPE, Decoded
from loaders_peer import WORKERS, Batch, Epoch, Peer

CHUNK = 64 << 20  # bytes of a file of those that write several, which is what most of them advise
FILES = 4  # at least, so that there is something to shuffle and to split over workers
SEED = 1


def chunk_bytes(data: Path) -> int:
    """Of a file of those that write several."""
    return min(CHUNK, Decoded(data).images.nbytes // FILES)


class Mapped:
    """A dataset over the array in its file, which gathers whole batches with one call."""

    def __init__(self, folder: Path) -> None:
        self.data = Decoded(folder)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, keys: Sequence[int]) -> Any:
        import torch

        keys = np.asarray(keys)
        return torch.from_numpy(self.data.images[keys]), torch.from_numpy(self.data.labels[keys]), keys


def torch_loader(dataset: Any, batch: int | None, workers: int, **options: Any) -> Any:
    """The stock loader, with workers that stay between epochs."""
    from torch.utils.data import DataLoader

    return DataLoader(dataset, batch_size=batch, num_workers=workers, persistent_workers=workers > 0, **options)


def whole_batches(dataset: Any, batch: int, workers: int) -> Any:
    """The stock loader over a dataset that is asked for whole batches: no collating, one gather each."""
    import torch
    from torch.utils.data import BatchSampler, RandomSampler

    order = RandomSampler(dataset, generator=torch.Generator().manual_seed(SEED))
    return torch_loader(dataset, None, workers, sampler=BatchSampler(order, batch, drop_last=False))


def open_torch(data: Path, own: Path, batch: int, *, over: str, workers: int) -> Epoch:
    """The stock loader over a mapped array, or over a snapshot."""
    if over == 'memmap':
        loader = whole_batches(Mapped(data), batch, workers)
        return lambda number: iter(loader)
    from mmpipe.data import ShardDataset
    from mmpipe.shards import open_snapshot

    shards = whole_batches(ShardDataset(open_snapshot(data.parent / 'mmpipe').split('train')), batch, workers)
    return lambda number: ((found['image'], found['label'], found['_key']) for found in shards)


def prepare_ffcv(data: Path, own: Path) -> None:
    from ffcv.fields import IntField, NDArrayField
    from ffcv.writer import DatasetWriter

    fields = {'image': NDArrayField(dtype=np.dtype('uint8'), shape=SHAPE), 'label': IntField(), 'key': IntField()}
    DatasetWriter(str(own / 'rows.beton'), fields, num_workers=1).from_indexed_dataset(Decoded(data))


def open_ffcv(data: Path, own: Path, batch: int, *, workers: int) -> Epoch:
    from ffcv.fields.decoders import IntDecoder, NDArrayDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import Squeeze, ToTensor

    loader = Loader(
        str(own / 'rows.beton'),
        batch_size=batch,
        num_workers=workers,
        order=OrderOption.RANDOM,
        os_cache=True,
        seed=SEED,
        drop_last=False,
        pipelines={
            'image': [NDArrayDecoder(), ToTensor()],
            'label': [IntDecoder(), ToTensor(), Squeeze(1)],
            'key': [IntDecoder(), ToTensor(), Squeeze(1)],
        },
    )
    return lambda number: iter(loader)


def litdata_row(row: tuple[str, int]) -> dict[str, Any]:
    """One sample, for LitData's writing processes."""
    import torch

    image, label, key = Decoded(Path(row[0]))[row[1]]
    return {'image': torch.from_numpy(image.copy()), 'label': label, 'key': key}


def prepare_litdata(data: Path, own: Path) -> None:
    import litdata

    rows, size = [(str(data), i) for i in range(len(Decoded(data)))], chunk_bytes(data)
    litdata.optimize(litdata_row, rows, output_dir=str(own / 'chunks'), chunk_bytes=size, num_workers=1, verbose=False)


def open_litdata(data: Path, own: Path, batch: int, *, workers: int) -> Epoch:
    from litdata import StreamingDataLoader, StreamingDataset

    dataset = StreamingDataset(str(own / 'chunks'), shuffle=True, seed=SEED, item_shuffle_window='full')
    loader = StreamingDataLoader(dataset, batch_size=batch, num_workers=workers, persistent_workers=workers > 0)
    return lambda number: in_dicts(loader)


def in_dicts(loader: Any) -> Iterator[Batch]:
    """Of batches that are dicts."""
    return ((found['image'], found['label'], found['key']) for found in loader)


def prepare_mosaic(data: Path, own: Path) -> None:
    from streaming import MDSWriter

    columns = {'image': f'ndarray:uint8:{",".join(map(str, SHAPE))}', 'label': 'int', 'key': 'int'}
    with MDSWriter(out=str(own / 'shards'), columns=columns, size_limit=chunk_bytes(data)) as writer:
        for image, label, key in Decoded(data):
            writer.write({'image': image, 'label': label, 'key': key})


def open_mosaic(data: Path, own: Path, batch: int, *, workers: int) -> Epoch:
    from streaming import StreamingDataset

    # A folder each, since two datasets of a process may not share one.
    local = own / f'local_{batch}_{workers}'
    local.mkdir(exist_ok=True)
    for path in (own / 'shards').iterdir():
        if not (local / path.name).exists():
            os.link(path, local / path.name)
    dataset = StreamingDataset(local=str(local), shuffle=True, shuffle_seed=SEED, batch_size=batch)
    loader = torch_loader(dataset, batch, workers)
    return lambda number: in_dicts(loader)


def prepare_webdataset(data: Path, own: Path) -> None:
    import webdataset as wds

    with wds.ShardWriter(str(own / '%03d.tar'), maxsize=chunk_bytes(data), verbose=0) as writer:
        for image, label, key in Decoded(data):
            writer.write({'__key__': f'{key:06}', 'image.bin': image.tobytes(), 'label.cls': label})


def webdataset_row(row: dict[str, Any]) -> Batch:
    import torch

    image = np.frombuffer(row['image.bin'], np.uint8).reshape(SHAPE)
    return torch.from_numpy(image.copy()), int(row['label.cls']), int(row['__key__'])


def open_webdataset(data: Path, own: Path, batch: int, *, workers: int) -> Epoch:
    import webdataset as wds

    urls = sorted(str(path) for path in own.glob('*.tar'))
    # No nodes here, so shards are split over workers only; 1000 rows are shuffled within each.
    dataset = wds.WebDataset(urls, shardshuffle=len(urls), seed=SEED).shuffle(1000).map(webdataset_row)
    loader = wds.WebLoader(
        dataset.batched(batch, partial=True), batch_size=None, num_workers=workers, persistent_workers=workers > 0
    )
    return lambda number: iter(loader)


def arrow_table(data: Path, part: slice) -> Any:
    """Rows as Arrow: an image is a list of a fixed size."""
    import pyarrow as pa

    decoded = Decoded(data)
    images = np.asarray(decoded.images[part]).reshape(-1)
    return pa.table({
        'image': pa.FixedSizeListArray.from_arrays(pa.array(images), int(np.prod(SHAPE))),
        'label': decoded.labels[part],
        'key': np.arange(part.start, part.start + len(images) // int(np.prod(SHAPE))),
    })  # fmt: skip


def arrow_batch(table: Any) -> Batch:
    """A taken table as tensors of its own memory."""
    import torch

    table = table.combine_chunks()
    image = table['image'].chunk(0).flatten().to_numpy().reshape(-1, *SHAPE)
    owned = torch.from_numpy(image.copy() if not image.flags.writeable else image)
    return owned, torch.tensor(table['label'].to_numpy()), table['key'].to_numpy()


def prepare_lance(data: Path, own: Path) -> None:
    import lance

    for start in range(0, len(Decoded(data)), 500):
        mode = 'append' if start else 'create'
        lance.write_dataset(arrow_table(data, slice(start, start + 500)), str(own / 'rows.lance'), mode=mode)


class LanceRows:
    """As `lance.torch.data.SafeLanceDataset`: opened in each worker; but what is taken stays in Arrow."""

    def __init__(self, uri: str) -> None:
        import lance

        self.uri, self._dataset = uri, None
        self.count = lance.dataset(uri).count_rows()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, keys: Sequence[int]) -> Batch:
        import lance

        if self._dataset is None:
            self._dataset = lance.dataset(self.uri)
        return arrow_batch(self._dataset.take(keys))


def open_lance(data: Path, own: Path, batch: int, *, workers: int) -> Epoch:
    import torch
    from torch.utils.data import BatchSampler, RandomSampler

    dataset = LanceRows(str(own / 'rows.lance'))
    order = RandomSampler(dataset, generator=torch.Generator().manual_seed(SEED))
    spawned = {'multiprocessing_context': 'spawn'} if workers else {}
    loader = torch_loader(dataset, None, workers, sampler=BatchSampler(order, batch, drop_last=False), **spawned)
    return lambda number: iter(loader)


def prepare_hf(data: Path, own: Path) -> None:
    import datasets

    decoded = Decoded(data)
    kinds = {'label': datasets.Value('int64'), 'key': datasets.Value('int64')}
    features = datasets.Features({'image': datasets.Value('large_binary'), **kinds})

    def rows() -> Iterator[dict[str, Any]]:
        for image, label, key in decoded:
            yield {'image': image.tobytes(), 'label': label, 'key': key}

    made = datasets.Dataset.from_generator(rows, features=features, cache_dir=str(own / 'cache'), writer_batch_size=200)
    made.save_to_disk(str(own / 'rows'))


def hf_collate(rows: Sequence[dict[str, Any]]) -> Batch:
    import torch

    images = np.stack([np.frombuffer(row['image'], np.uint8) for row in rows]).reshape(-1, *SHAPE)
    labels = torch.tensor([row['label'] for row in rows])
    return torch.from_numpy(images), labels, np.array([row['key'] for row in rows])


def open_hf(data: Path, own: Path, batch: int, *, workers: int) -> Epoch:
    import datasets
    import torch

    dataset = datasets.load_from_disk(str(own / 'rows'))
    generator = torch.Generator().manual_seed(SEED)
    loader = torch_loader(dataset, batch, workers, shuffle=True, generator=generator, collate_fn=hf_collate)
    return lambda number: iter(loader)


def start_pixeltable() -> Any:
    from mmpipe.home import configure_pixeltable

    configure_pixeltable()  # MMPIPE_HOME is a folder of this loader's own
    import pixeltable as pxt

    return pxt


def prepare_pixeltable(data: Path, own: Path) -> None:
    pxt = start_pixeltable()
    decoded = Decoded(data)
    columns = {'image': pxt.Array[SHAPE, np.uint8], 'label': pxt.Int, 'key': pxt.Int}
    table = pxt.create_table('rows', columns)
    for start in range(0, len(decoded), 500):
        rows = (decoded[i] for i in range(start, min(start + 500, len(decoded))))
        table.insert([{'image': image, 'label': label, 'key': key} for image, label, key in rows])


def open_pixeltable(data: Path, own: Path, batch: int, *, workers: int) -> Epoch:
    table = start_pixeltable().get_table('rows')
    dataset = table.select(image=table.image, label=table.label, key=table.key).to_pytorch_dataset(image_format='np')
    loader = torch_loader(dataset, batch, workers)
    return lambda number: in_dicts(loader)


PEERS = {
    'ffcv': Peer(
        title='FFCV', data='decoded', prepare=prepare_ffcv, open=open_ffcv, package='ffcv', owned=False,
        settings=({'workers': 1}, {'workers': 2}),
    ),
    'litdata': Peer(
        title='LitData', data='decoded', prepare=prepare_litdata, open=open_litdata, package='litdata',
        settings=WORKERS, streaming=True, shuffle='chunks of 64 MiB, and within each',
    ),
    'mosaic': Peer(
        title='Mosaic MDS', data='decoded', prepare=prepare_mosaic, open=open_mosaic, package='mosaicml-streaming',
        settings=WORKERS, streaming=True, shuffle='shards of 64 MiB, and in blocks of several',
    ),
    'webdataset': Peer(
        title='WebDataset', data='decoded', prepare=prepare_webdataset, open=open_webdataset, package='webdataset',
        settings=WORKERS, streaming=True, shuffle='shards of 64 MiB, and a buffer of 1,000 rows',
    ),
    'lance': Peer(
        title='Lance take', data='decoded', prepare=prepare_lance, open=open_lance, package='pylance',
        settings=WORKERS, streaming=True,
    ),
    'hf_datasets': Peer(
        title='HF datasets', data='decoded', prepare=prepare_hf, open=open_hf, package='datasets', settings=WORKERS,
        streaming=True,
    ),
    'dataloader_workers': Peer(
        title='torch DataLoader, 2 workers', data='decoded', open=open_torch, package='torch',
        reads='mmpipe', settings=({'over': 'memmap', 'workers': 2}, {'over': 'shards', 'workers': 2}),
    ),
    'dataloader_single': Peer(
        title='torch DataLoader, no workers', data='decoded', open=open_torch, package='torch',
        reads='mmpipe', settings=({'over': 'memmap', 'workers': 0}, {'over': 'shards', 'workers': 0}),
    ),
    'pixeltable': Peer(
        title='Pixeltable to_pytorch_dataset', data='decoded', prepare=prepare_pixeltable, open=open_pixeltable,
        package='pixeltable', settings=WORKERS, shuffle='none',
    ),
}  # fmt: skip

"""What 8 and 64 GPUs and 10^9 rows need, derived from measured rates: writes docs/scale.md.

    python benchmarks/scale_paper.py            prints the page
    python benchmarks/scale_paper.py --write    writes it

Every number of the page is measured (benchmarks/results), assumed (`ASSUMED`, which the page lists), a constant of the
code, or computed here from these. A test holds the page to this script.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

from mmpipe.shards.ahead import THREADS
from mmpipe.shards.leaf import LEAF_BLOCKS
from mmpipe.shards.manifest import FLAT_SHARDS
from mmpipe.shards.writer import BLOCK_BYTES

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'scale.md'
ASSUMED = {
    'rate': 2_500,  # images/s that one GPU takes in ResNet-50-like training
    'per_host': 8,  # GPUs in a host, a process each
    'jpeg': 110_000,  # bytes of an encoded image
    'connection': 75e6,  # bytes/s of one connection to an object store
    'gets': 5_500,  # requests/s that S3 grants for a prefix
    'window': 64,  # blocks of a BlockShuffle
}
DECODED = 3 * 224 * 224  # bytes of a stored image
ROWS = 10**9
ORDER_BYTES = {'kept': 24, 'peak': 56}  # per row of a selection: positions, hashes, sequence; and while it is sorted


def measured(name: str) -> dict[str, float]:
    """Medians of a record."""
    record = json.loads((ROOT / 'benchmarks' / 'results' / f'{name}.json').read_text(encoding='utf-8'))
    notes = record['notes'].get('data', {})
    found = {key: figure['median'] for key, figure in record['figures'].items()}
    return {**notes, **found, 'cores': record['machine']['cores'], 'load': record['machine']['load_before']}


def stages() -> dict[str, float]:
    """Rates of one core, in images/s, and bytes per sample."""
    loaders = measured('loaders')
    photos = loaders['mmpipe_photos_b64'] / loaders['cores']
    return {
        'gather': loaders['mmpipe_b256'] / loaders['cores'],
        'photos': photos,
        'photo_bytes': loaders['photos_mean_bytes'],
        'decode': photos * loaders['photos_mean_bytes'] / ASSUMED['jpeg'],
    }


def needs(gpus: int, size: int, per_core: float) -> dict[str, float]:
    """Of so many GPUs, for samples of a size that a core makes at a rate."""
    hosts = math.ceil(gpus / ASSUMED['per_host'])
    rate = gpus * ASSUMED['rate']
    return {
        'hosts': hosts,
        'rate': rate,
        'bytes': rate * size,
        'host_bytes': rate * size / hosts,
        'connections': rate * size / hosts / ASSUMED['connection'],
        'cores': rate / hosts / per_core,
        'epoch_h': ROWS / rate / 3600,
        'block_shuffle_bytes': rate * size * hosts,
    }


def stored(size: int) -> dict[str, float]:
    """Of 10^9 rows of a size: shards, and what lies beside them."""
    manifest = measured('scale_manifest')
    per_shard = BLOCK_BYTES // size
    shards = math.ceil(ROWS / per_shard)
    keys, rowids = manifest['manifest_key_bytes_per_row'], manifest['manifest_rowid_bytes_per_row']
    return {
        'bytes': ROWS * size,
        'per_shard': per_shard,
        'shards': shards,
        'leaves': math.ceil(shards / LEAF_BLOCKS),
        'list': shards * manifest['manifest_bytes_per_shard'],
        'keys': ROWS * keys,
        'rowids': ROWS * rowids,
        'delta': LEAF_BLOCKS * (manifest['manifest_bytes_per_shard'] + per_shard * (keys + rowids)),
        'listing': math.ceil(shards / 1000),
        'window': ASSUMED['window'] * BLOCK_BYTES,
    }


def table(rows: list[tuple[str, ...]]) -> str:
    head, *rest = rows
    return '\n'.join(f'| {" | ".join(row)} |' for row in (head, ('---',) * len(head), *rest))


def page() -> str:
    """The page, as Markdown."""
    rate, manifest = stages(), measured('scale_manifest')
    kinds = {f'JPEG of {ASSUMED["jpeg"] // 1000} KB': (ASSUMED['jpeg'], rate['decode']),
             f'uint8 of {DECODED // 1000} KB': (DECODED, rate['gather'])}  # fmt: skip
    asked = {(gpus, name): needs(gpus, *kind) for name, kind in kinds.items() for gpus in (8, 64)}
    kept = {name: stored(size) for name, (size, _) in kinds.items()}
    columns = [('', *(f'{gpus} GPUs, {name}' for gpus, name in asked))]
    lines = {
        'hosts': lambda n: f'{n["hosts"]:.0f}',
        'samples/s': lambda n: f'{n["rate"]:,.0f}',
        'GB/s, all hosts': lambda n: f'{n["bytes"] / 1e9:.1f}',
        'GB/s, each host': lambda n: f'{n["host_bytes"] / 1e9:.1f}',
        'connections of a host': lambda n: f'{n["connections"]:.0f}',
        'cores of a host that make samples': lambda n: f'{n["cores"]:.1f}',
        'hours for 10^9 rows': lambda n: f'{n["epoch_h"]:.1f}',
        'GB/s, all hosts, under `BlockShuffle`': lambda n: f'{n["block_shuffle_bytes"] / 1e9:.1f}',
    }
    gpus = table(columns + [(name, *(show(each) for each in asked.values())) for name, show in lines.items()])
    shown = {
        'data, TB': lambda n: f'{n["bytes"] / 1e12:.0f}',
        'rows of a 64 MiB shard': lambda n: f'{n["per_shard"]:.0f}',
        'shards': lambda n: f'{n["shards"]:,.0f}',
        'leaves': lambda n: f'{n["leaves"]:,.0f}',
        'shard list, GB': lambda n: f'{n["list"] / 1e9:.2f}',
        'key index, GB (what a training process reads)': lambda n: f'{n["keys"] / 1e9:.1f}',
        'name index, GB (what `mm.snapshot` reads)': lambda n: f'{n["rowids"] / 1e9:.1f}',
        'written beside the shard by a snapshot with one shard more, MB': lambda n: f'{n["delta"] / 1e6:.1f}',
        'requests that list the shards (`gc`)': lambda n: f'{n["listing"]:,.0f}',
        f'cache of a `BlockShuffle(window={ASSUMED["window"]})`, GB': lambda n: f'{n["window"] / 1e9:.1f}',
    }
    files = table(
        [('10^9 rows', *kept)] + [(name, *(show(each) for each in kept.values())) for name, show in shown.items()]
    )
    one = asked[8, next(iter(kinds))]
    values: dict[str, Any] = {
        'gpus': gpus,
        'files': files,
        'gather': f'{rate["gather"]:,.0f}',
        'photos': f'{rate["photos"]:,.0f}',
        'photo_kb': f'{rate["photo_bytes"] / 1000:.0f}',
        'decode': f'{rate["decode"]:,.0f}',
        'rate': f'{ASSUMED["rate"]:,}',
        'per_host': ASSUMED['per_host'],
        'jpeg': ASSUMED['jpeg'] // 1000,
        'connection': f'{ASSUMED["connection"] / 1e6:.0f}',
        'threads': THREADS,
        'all_threads': THREADS * ASSUMED['per_host'],
        'gets': f'{ASSUMED["gets"]:,}',
        'asked': f'{one["rate"]:,.0f}',
        'kept': ORDER_BYTES['kept'],
        'peak': ORDER_BYTES['peak'],
        'kept_gb': f'{ROWS * ORDER_BYTES["kept"] / 1e9:.0f}',
        'peak_gb': f'{ROWS * ORDER_BYTES["peak"] / 1e9:.0f}',
        'kept_host': f'{ROWS * ORDER_BYTES["kept"] * ASSUMED["per_host"] / 1e9:.0f}',
        'places_gb': f'{ROWS * 16 / 1e9:.0f}',
        'order_rate': f'{manifest["manifest_order_rows_per_s"] / 1e6:.1f}',
        'order_s': f'{ROWS / manifest["manifest_order_rows_per_s"]:,.0f}',
        'flat': f'{FLAT_SHARDS:,}',
        'leaf': f'{LEAF_BLOCKS:,}',
        'open_s': f'{manifest["manifest_open_s"]:.2f}',
        'rss': f'{manifest["manifest_rss_mb"]:.0f}',
        'imports': f'{manifest["manifest_imports_mb"]:.0f}',
        'first_s': f'{manifest["manifest_first_batch_s"]:.1f}',
        'resume_s': f'{manifest["manifest_resume_s"]:.1f}',
        'commit_kb': f'{manifest["manifest_commit_bytes"] / 1000:.0f}',
        'commit_s': f'{manifest["manifest_commit_s"]:.2f}',
        'diff_s': f'{manifest["manifest_diff_s"]:.2f}',
        'diff_leaves': f'{manifest["manifest_diff_leaves_read"]:.0f}',
        'every_s': f'{manifest["manifest_every_entry_s"]:.2f}',
        'load': f'{manifest["load"]:.1f}',
        'cores': f'{manifest["cores"]:.0f}',
        'feed': f'{measured("incremental")["feed_1m_100_s"]:.3f}',
    }
    return TEXT.format(**values)


TEXT = """# Scale

What 8 and 64 GPUs and 10^9 rows need, and where the design bends. Written by `benchmarks/scale_paper.py`: nothing
here was run on that many GPUs or rows. It is arithmetic from rates that were measured on one machine, and from what
is assumed.

## Measured

- One core gathers {gather} stored images/s (uint8, 3x224x224, batches of 256), and decodes and crops {photos} JPEGs/s
  of {photo_kb} KB (`benchmarks/results/loaders.json`).
- A snapshot of 10^6 shards (`benchmarks/results/scale_manifest.json`; {cores} cores, load {load} before it began):
  open and split {open_s} s, {rss} MB at most, {imports} of them imports. First shuffled batch of 256 {first_s} s with
  the opening, first batch after a resume in the middle of an epoch {resume_s} s. Reading and checking every entry
  {every_s} s. A snapshot with one shard more: {commit_kb} KB written beside it in {commit_s} s; its difference from
  the one before {diff_s} s, {diff_leaves} leaf read of each.
- What was real in that: every entry and index, and the shards that batches read. Not real: the other shards were not
  on the disk, a shard held 1 to 4 small rows, and files were in the page cache of a local disk.
- One core orders {order_rate} million rows/s.

## Assumed

A GPU takes {rate} images/s; {per_host} GPUs in a host, a process each; JPEGs of {jpeg} KB, of which decoding takes
time in proportion to their bytes, so {decode} images/s per core; {connection} MB/s over one connection to a store;
{gets} requests/s to one prefix of S3.

## Bandwidth and cores

{gpus}

Without a cache that holds the data, each epoch reads all of it. A process fetches with {threads} connections, a host
of {per_host} with {all_threads}. Comparing what is fetched with its digest takes more cores, which were not measured
here. Decoding is what needs workers; stored images need hardly a core and more bandwidth.

## Files

{files}

Opening reads the head and a row per leaf of {leaf} blocks. An epoch reads the key index of all rows and no list; a
batch reads the leaves of its rows.

## Memory

Per row of what is loaded, a process keeps {kept} bytes (position, hash, sequence), and has up to {peak} while an
epoch is ordered. 10^9 rows: {kept_gb} GB kept and {peak_gb} GB at most, in each process; {kept_host} GB kept in a
host of {per_host}. On an object store, where shards are fetched ahead, their places take {places_gb} GB more.
Ordering takes {order_s} s of one core at the start of each epoch.

## Where it bends

- **Order.** {kept} to {peak} bytes per row and process is the first limit: 10^8 rows are comfortable, 10^9 are not.
  Each process orders all rows, as any may resume under any world size. An order that is computed where it is looked
  at (a cipher over positions), or one copy a host, would lift it.
- **Full shuffles on a store.** Rows of one batch lie in as many shards, so `Shuffle()` over data that the cache does
  not hold is a request per row: {asked} requests/s for 8 GPUs, where a prefix grants {gets}. `BlockShuffle` fetches
  each shard once.
- **`BlockShuffle` over hosts.** Every rank takes part of every global batch, so each host fetches every shard: the
  last line of the first table, not the third. Beyond a host or two, blocks would have to be dealt to hosts first,
  which makes the order depend on their number.
- **Small fields** of more than {flat} shards are not kept in memory, since reading them would open every shard.
- **Index of a leaf.** A snapshot with one shard more writes the index of a whole leaf again: the line in MB above.
  Smaller leaves write less and make more files to read when an epoch begins.
- **Masks.** Dropped rows are one file, 16 bytes a row, which every snapshot that drops a row writes again: compact
  before they are millions.
- **`compact`, `gc`, `verify`, `Buckets`** look at every shard; `gc` lists them, a thousand per request. `mm.embed`
  keeps a dict over all rows.
- **Catalog.** Rows live in Postgres first. The feed of 100 changes in 10^6 rows took {feed} s; at 10^9 rows that is
  an index a thousand times as large, and was not measured.
- **Pointer.** A commit on a store creates one object, and finding the newest lists them, a thousand per request: 10^6
  commits to one root make every opening 1,000 requests.
"""


def main() -> None:
    if '--write' in sys.argv[1:]:
        PAGE.write_text(page(), encoding='utf-8')
    else:
        print(page(), end='')


if __name__ == '__main__':
    main()

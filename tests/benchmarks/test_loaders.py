"""The benchmark of loaders takes nothing for granted that a loader gives it. No test here looks at how long it took."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).parents[2] / 'benchmarks'
RECORD = BENCHMARKS / 'results' / 'loaders.json'
if str(BENCHMARKS) not in sys.path:
    sys.path.insert(0, str(BENCHMARKS))

import loaders  # noqa: E402
import loaders_data  # noqa: E402
import loaders_encoded  # noqa: E402
import loaders_mmpipe  # noqa: E402
import loaders_plot  # noqa: E402
from loaders_checks import Seen, Wrong, check_decoded, check_photos  # noqa: E402
from loaders_data import Decoded, Photos  # noqa: E402

ROWS = 12


@pytest.fixture(scope='module')
def decoded(tmp_path_factory: pytest.TempPathFactory) -> Decoded:
    folder = tmp_path_factory.mktemp('decoded') / 'rows'
    loaders_data.make_decoded(folder, ROWS)
    return Decoded(folder)


def honest(data: Decoded, size: int = 5):
    """A loader that does what it should."""

    def epoch(number: int) -> Iterator[tuple]:
        order = np.random.default_rng([7, number]).permutation(len(data))
        for start in range(0, len(data), size):
            keys = order[start : start + size]
            yield data.images[keys], data.labels[keys], keys.copy()

    return epoch


def changed(data: Decoded, change):
    """A loader that changes each first batch."""

    def epoch(number: int) -> Iterator[tuple]:
        for step, (images, labels, keys) in enumerate(honest(data)(number)):
            if step:
                yield images, labels, keys
            else:
                yield from change(images.copy(), labels.copy(), keys.copy())

    return epoch


def flipped_byte(images, labels, keys):
    images[2, 1, 100, 50] ^= 1
    yield images, labels, keys


def other_label(images, labels, keys):
    labels[1] = (labels[1] + 1) % 10
    yield images, labels, keys


def a_row_left_out(images, labels, keys):
    yield images[1:], labels[1:], keys[1:]


def a_row_twice(images, labels, keys):
    yield images, labels, keys
    yield images[:1], labels[:1], keys[:1]


def neighbours_swapped(images, labels, keys):
    yield images[::-1], labels, keys


def floats(images, labels, keys):
    yield images.astype(np.float32), labels, keys


def test_a_loader_that_gives_what_was_stored_passes(decoded: Decoded) -> None:
    check_decoded(honest(decoded), decoded)
    check_decoded(changed(decoded, lambda *batch: [batch]), decoded)


@pytest.mark.parametrize('change', [flipped_byte, other_label, a_row_left_out, a_row_twice, neighbours_swapped, floats])
def test_a_loader_that_gives_anything_else_is_found_out(decoded: Decoded, change) -> None:
    with pytest.raises(Wrong):
        check_decoded(changed(decoded, change), decoded)


@pytest.mark.parametrize('order', [lambda number: 0, lambda number: None], ids=['the same twice', 'as stored'])
def test_a_loader_that_does_not_shuffle_is_found_out(decoded: Decoded, order) -> None:
    def epoch(number: int) -> Iterator[tuple]:
        seed = order(number)
        keys = np.arange(ROWS) if seed is None else np.random.default_rng(seed).permutation(ROWS)
        yield decoded.images[keys], decoded.labels[keys], keys

    with pytest.raises(Wrong, match='same order'):
        check_decoded(epoch, decoded)
    check_decoded(epoch, decoded, shuffles=False)


@pytest.mark.parametrize('change', [other_label, a_row_left_out, a_row_twice, neighbours_swapped])
def test_timed_epochs_are_looked_at_too(decoded: Decoded, change) -> None:
    seen = Seen(decoded)
    for batch in changed(decoded, change)(0):
        seen.add(batch)
    with pytest.raises(Wrong):
        seen.check()


def test_memory_that_a_loader_uses_again_is_looked_at_before(decoded: Decoded) -> None:
    slot, labels, keys = np.empty((1, *loaders_data.SHAPE), np.uint8), np.empty(1, np.int64), np.empty(1, np.int64)
    seen = Seen(decoded)
    for i in range(ROWS):
        slot[0], labels[0], keys[0] = decoded.images[i], decoded.labels[i], i
        seen.add((slot, labels, keys))
    assert seen.check() == ROWS


@pytest.fixture(scope='module')
def photos(tmp_path_factory: pytest.TempPathFactory) -> Photos:
    from sklearn.datasets import load_sample_images

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(loaders_data, 'real_photos', lambda: load_sample_images().images)
        folder = tmp_path_factory.mktemp('photos')
        loaders_data.make_photos(folder, 14, loaders_data.PHOTO)
    return Photos(folder)


def crops(data: Photos, *, shift: int = 0, fixed: bool = False):
    """A loader of crops by Pillow, of the photos `shift` places further on."""
    from PIL import Image

    def epoch(number: int) -> Iterator[tuple]:
        draw, found = random.Random(0 if fixed else number), []
        for key in range(len(data)):
            with Image.open(data.paths[(key + shift) % len(data)]) as photo:
                left, top, width, height = loaders_encoded.draw_crop(*photo.size, draw)
                box = (left, top, left + width, top + height)
                found.append(np.asarray(photo.resize((224, 224), Image.Resampling.BILINEAR, box=box)))
        yield np.stack(found), data.labels, np.arange(len(data))

    return epoch


def test_crops_of_the_right_photos_pass_in_either_layout(photos: Photos) -> None:
    def channels_first(number: int) -> Iterator[tuple]:
        return ((np.moveaxis(images, 3, 1), labels, keys) for images, labels, keys in crops(photos)(number))

    found = check_photos(crops(photos), photos)
    assert found == check_photos(channels_first, photos)
    assert found['likeness'] > 0.7


def test_crops_of_other_photos_and_the_same_crops_twice_are_found_out(photos: Photos) -> None:
    with pytest.raises(Wrong):
        check_photos(crops(photos, shift=3), photos)
    with pytest.raises(Wrong, match='same crops'):
        check_photos(crops(photos, fixed=True), photos)


def test_photos_are_made_from_their_number(photos: Photos, tmp_path: Path) -> None:
    from PIL import Image

    assert len({Path(path).read_bytes() for path in photos.paths}) == len(photos)
    with Image.open(photos.paths[0]) as photo:
        assert (photo.size, photo.mode, photo.format) == (loaders_data.PHOTO, 'RGB', 'JPEG')
    assert all(
        Path(path).parent.name == f'kind_{label}' for path, label in zip(photos.paths, photos.labels, strict=True)
    )


@given(width=st.integers(1, 2000), height=st.integers(1, 2000), seed=st.integers(0, 2**32))
def test_crops_lie_in_the_photo_and_have_a_share_and_shape_that_were_asked_for(width, height, seed) -> None:
    left, top, across, down = loaders_encoded.draw_crop(width, height, random.Random(seed))
    assert 0 <= left <= left + across <= width
    assert 0 <= top <= top + down <= height
    assert across >= 1
    assert down >= 1
    if min(across, down) >= 50 and across != down:  # rounding counts for less than the slack, and no fallback
        assert across * down / (width * height) >= 0.95 * 0.08
        assert 0.95 * 3 / 4 <= across / down <= 4 / 3 / 0.95


def test_the_fragmented_snapshot_has_the_rows_of_the_compacted_one(decoded: Decoded, tmp_path: Path) -> None:
    own = tmp_path / 'fragmented'
    loaders_mmpipe.prepare_fragmented(decoded.folder, own)
    fragmented, compacted = (loaders_mmpipe.rows_of(own, which) for which in ('fragmented', 'compacted'))
    for rows in (fragmented, compacted):
        keys = [int(key) for key in rows.keys]
        assert sorted(keys) == list(range(ROWS))
        images, valid = rows.read('image')
        assert valid.all()
        assert np.array_equal(images, decoded.images[keys])
        assert np.array_equal(rows.read('label')[0], decoded.labels[keys])
    assert len(fragmented.snapshot.manifest.shards) == 4
    assert len(fragmented.snapshot.manifest.dropped) == round(ROWS / 9)
    assert len(compacted.snapshot.manifest.shards) == 1
    assert len(compacted.snapshot.manifest.dropped) == 0


def test_ratios_are_of_rounds_and_the_best_peer_and_the_lower_size_of_batch_count() -> None:
    values = {
        'mmpipe_b64': [60.0, 80.0], 'mmpipe_b256': [90.0, 90.0], 'memcpy': [100.0, 100.0],
        'litdata_b64': [2.0, 4.0], 'lance_b64': [5.0, 5.0], 'lance_b256': [1.0, 1.0], 'litdata_b256': [3.0, 3.0],
        'mmpipe_photos_b64': [12.0, 12.0], 'dali_b64': [8.0, 8.0], 'spdl_b64': [6.0, 6.0],
        'imagefolder_b64': [4.0, 3.0], 'order_overhead_b64': [0.02, 0.04], 'order_overhead_b256': [0.01, 0.01],
    }  # fmt: skip
    found = {name: value for name, (value, _) in loaders.ratios(values).items()}
    assert found['decoded_b64_over_best_streaming'] == [12, 16]
    assert found['decoded_b256_over_best_streaming'] == [30, 30]
    assert found['decoded_over_best_streaming'] == [12, 16]
    assert found['decoded_of_memcpy'] == [0.6, 0.8]
    assert found['encoded_over_best_peer'] == [1.5, 1.5]
    assert found['encoded_over_imagefolder'] == [3, 4]
    assert found['order_overhead'] == [0.02, 0.04]
    assert not any('ffcv' in name or 'pixeltable' in name for name in found)


def test_the_plot_has_a_bar_for_each_loader_the_fastest_last() -> None:
    figure = {'median': 5.0, 'q1': 4.0, 'q3': 6.0}
    record = {
        'notes': {
            'peers': {
                'mmpipe': {'title': 'mmpipe', 'data': 'decoded'},
                'ffcv': {'title': 'FFCV', 'data': 'decoded'},
                'fragmented': {'title': 'mmpipe, deltas', 'data': 'decoded'},
                'dali': {'title': 'DALI', 'data': 'photos'},
            }
        },
        'figures': {
            'mmpipe_b64': {**figure, 'median': 9.0}, 'ffcv_b64': figure, 'ffcv_b256': figure, 'fragmented_b64': figure,
            'dali_b64': figure, 'memcpy': {**figure, 'median': 7.0},
        },
    }  # fmt: skip
    assert [title for title, _, _ in loaders_plot.bars(record, 64, 'decoded')] == [
        'FFCV', 'copying memory, 2 threads', 'mmpipe',
    ]  # fmt: skip
    assert [title for title, _, _ in loaders_plot.bars(record, 64, 'photos')] == ['DALI']


def test_every_wanted_figure_is_described() -> None:
    assert all(f'`{name}`' in (loaders.__doc__ or '') for name in loaders.WANTED)


@pytest.mark.skipif(not RECORD.exists(), reason='loaders.py has stored no record yet')
def test_the_readme_has_the_figures_of_the_record() -> None:
    readme = (BENCHMARKS / 'README.md').read_text(encoding='utf-8').splitlines()
    record = json.loads(RECORD.read_text(encoding='utf-8'))
    assert record['notes']['wanted'] == loaders.WANTED
    assert [row for row in loaders_plot.table(record) if row not in readme] == []


@pytest.mark.slow  # a dozen processes that each start torch
@pytest.mark.timeout(600)
def test_a_quick_run_measures_mmpipe_and_skips_with_a_word_what_is_not_installed(tmp_path: Path) -> None:
    python = tmp_path / 'env' / 'bin' / 'python'
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    only = 'mmpipe,fragmented,compacted,dataloader_workers,dataloader_single,ffcv,memcpy,order,first_batch'
    command = [sys.executable, str(BENCHMARKS / 'loaders.py'), '--quick', '--json', '--only', only]
    done = subprocess.run([*command, '--env', str(python.parents[1])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads(done.stdout)
    assert record['notes']['skipped'] == {'ffcv': "ModuleNotFoundError: No module named 'ffcv'"}
    assert {
        'decoded_over_dataloader_workers', 'decoded_of_memcpy', 'decoded_fragmented', 'first_batch_s', 'order_overhead',
    } <= record['figures'].keys()  # fmt: skip
    assert all(math.isfinite(value) for figure in record['figures'].values() for value in figure['values'])

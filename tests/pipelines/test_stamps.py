"""The stamps pipeline from a folder to a model, with Debian's stamps where they are installed, else drawn ones."""

from __future__ import annotations

import doctest
import os
import shutil
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageDraw
import pytest
import soundfile

import mmpipe as mm
from mmpipe.errors import SourceError
from mmpipe.functions import counts, reset
from mmpipe.pipeline import find_pipeline

INSTALLED = Path(os.environ.get('MMPIPE_STAMPS', '/usr/share/tuxpaint/stamps'))
REAL = (
    'animals/birds/[c-o]*', 'animals/mammals/cats/*', 'food/fruit/apple_*', 'food/fruit/ch*', 'clothes/[g-s]*',
    'symbols/money/us/coins/*', 'vehicles/locomotive/cartoon/t*', 'animals/insects/cartoon/wing*',
)  # fmt: skip
WORDS = ('ash', 'bay', 'cub', 'dew', 'elk', 'fig', 'gem', 'hen', 'ivy', 'jay', 'kid', 'log')


def draw_stamps(folder: Path) -> Path:
    """A folder laid out like Tux Paint's: 37 stamps in 3 categories, with holes, and one that is SVG only."""
    for number, (category, word) in enumerate(
        (category, word) for category in ('animals/birds', 'food/fruit', 'symbols/money') for word in WORDS
    ):
        stamp(folder / category / f'{word}_{number}', number, spoken=('fr', 'ru', 'nl') if number % 5 else ())
    stamp(folder / 'animals/birds/cartoon/ash', 99, picture='.svg')
    (folder / 'animals/birds/lost_desc_fr.ogg').write_bytes(b'a recording of no stamp')
    return folder


def stamp(path: Path, number: int, *, picture: str = '.png', spoken: tuple[str, ...] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if picture == '.png':
        image = PIL.Image.new('RGBA', (40, 30), (0, 0, 0, 0))
        PIL.ImageDraw.Draw(image).ellipse((5, 5, 20 + number % 15, 25), fill=(7 * number % 256, 90, 200, 255))
        image.save(f'{path}.png')
    else:
        Path(f'{path}.svg').write_text('<svg/>')
    Path(f'{path}.txt').write_text(f'A thing called {path.name}.\nfr.utf8=Une chose.\n', encoding='utf-8')
    if number % 3 == 0:
        Path(f'{path}.dat').write_text('nomirror\r\nnoflip\r\n' if number % 2 else 'scale 15%')
    for pitch, language in enumerate(spoken):
        wave = np.sin(np.arange(8000) * (0.1 + 0.1 * pitch)).astype(np.float32) / 2
        soundfile.write(f'{path}_desc_{language}.ogg', wave, 8000)


def copy_real(folder: Path) -> Path:
    """Some of the installed stamps; copied, so that the test can add and change files."""
    for pattern in REAL:
        for file in INSTALLED.glob(pattern):
            target = folder / file.relative_to(INSTALLED)
            target.parent.mkdir(parents=True, exist_ok=True)
            if file.is_file():
                shutil.copy(file, target)
    return folder


@pytest.fixture(scope='module')
def pipeline(pixeltable_home):
    return find_pipeline('stamps')


@pytest.fixture
def stamps(tmp_path):
    return copy_real(tmp_path / 'stamps') if INSTALLED.is_dir() else draw_stamps(tmp_path / 'stamps')


def test_files_of_one_name_become_one_row_and_the_others_are_reported(pipeline, tmp_path):
    folder = draw_stamps(tmp_path)
    (folder / 'food/fruit/fig_17.txt').write_bytes(b'\xff\xfe')
    ((_, source),) = pipeline.module('views').sources(folder)
    records = list(source.records(key=['key'], media={}))
    assert len(records) == source.total() == 38
    rows = {record.values['key']: record for record in records if isinstance(record, mm.sources.Record)}
    bad = {record.key: record for record in records if isinstance(record, mm.sources.Bad)}

    row = rows['animals/birds/jay_9']
    assert row.values == {
        'key': 'animals/birds/jay_9', 'caption': 'A thing called jay_9.', 'dat': 'nomirror\nnoflip\n',
        'category': 'animals', 'kind': 'animals/birds', 'language': row.values['language'],
    }  # fmt: skip
    assert row.media['photo'] == folder / 'animals/birds/jay_9.png'
    assert row.media['speech'] == folder / f'animals/birds/jay_9_desc_{row.values["language"]}.ogg'
    assert {rows[key].values['language'] for key in rows} == {'fr', 'ru', None}  # 'nl' is spoken by few real stamps
    assert rows['symbols/money/ash_24'].values['kind'] is None
    assert rows['animals/birds/cartoon/ash'].media['photo'] is None
    assert set(bad) == {'animals/birds/lost_desc_fr.ogg', 'food/fruit/fig_17'}
    assert 'UTF-8' in bad['food/fruit/fig_17'].reason
    with pytest.raises(SourceError, match='apt install tuxpaint-stamps-default'):
        pipeline.module('views').sources(tmp_path / 'nowhere')


def test_the_examples_of_its_functions_are_true(pipeline):
    pipeline.module('schema')
    from pipelines.stamps import functions

    assert doctest.testmod(functions).failed == 0


def test_from_a_folder_to_a_model_and_nothing_is_done_twice(pipeline, stamps, tmp_path):
    mm.apply(mm.plan(pipeline.tables, pipeline.directory))
    views, training = pipeline.module('views'), pipeline.module('training')
    root = tmp_path / 'shards'

    def bring_in():
        reset()
        ((table, source),) = views.sources(stamps)
        return mm.ingest(table, source), counts(), mm.snapshot(root=root, **views.training_view())

    first, computed, made = bring_in()
    rows = made.snapshot.rows()
    present = {name: int(rows.read(name)[1].sum()) for name in made.snapshot.fields}
    assert first.inserted == computed['series'] == computed['split_of'] == len(rows) > 30
    assert first.failed_cells == 0
    assert computed['embed_image'] == present['photo_vector'] == present['photo'] > 0
    assert computed['log_mel'] == computed['bands'] == present['speech_bands'] == present['language'] > 0
    assert computed['embed_text'] == present['caption_vector'] > 0
    assert present['category'] == len(rows)
    assert 0 < present['rules'] < len(rows)
    assert 0 < present['kind'] < len(rows)
    groups: dict[str, set[str]] = {}
    for group, split in zip(rows.words('series'), rows.system('_split'), strict=True):
        groups.setdefault(group, set()).add(split)
    assert all(len(splits) == 1 for splits in groups.values())

    again, computed, same = bring_in()
    assert (again.written, computed, same.written) == (0, {}, 0)
    assert same.snapshot.id == made.snapshot.id

    run = training.train(made.snapshot, runs=tmp_path / 'runs', epochs=2)
    assert run.status == 'finished'
    assert set(training.test(run, made.snapshot)) == set(training.TASKS)

    stamp(stamps / 'animals/birds/zebra_finch', 1, spoken=('fr',))
    added, computed, grown = bring_in()
    assert (added.inserted, grown.inserted) == (1, 1)
    assert {name: n for name, n in computed.items() if name in ('embed_image', 'log_mel', 'embed_text', 'rules')} == {
        'embed_image': 1, 'log_mel': 1, 'embed_text': 1,
    }  # fmt: skip
    further = training.train(grown.snapshot, runs=tmp_path / 'runs', continue_from=run, epochs=2)
    assert further.parent['run'] == run.id

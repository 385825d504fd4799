"""What models learn from real data, five seeds each, reported whatever the sign.

Penguins (Palmer Station LTER, package `palmerpenguins`, CC0): measurements to species, sex and body mass; of the
training rows 50 % keep their species, 25 % their sex, 25 % their mass.

`penguins_<task>_masked`     one model, every row with the labels it has
`penguins_<task>_single`     a model per task, on the rows with its label
`penguins_<task>_complete`   one model, on the rows with all three labels

Stamps (Debian's `tuxpaint-stamps-default`), on splits that keep a series of drawings on one side:

`stamps_majority`            the eight largest categories from the picture: the most frequent one,
`stamps_random_probe`        a linear probe on features of an encoder with random weights,
`stamps_linear_probe`        the same with weights from ImageNet,
`stamps_transfer`            a new head with a hidden layer on the same frozen features,
`stamps_finetuned`           and the last two layers of the encoder trained too

`one_<task>`, `separate_<task>`                    one model for four tasks, a model for each
`one_parameters`, `one_s`, `separate_...`          what they take

`inputs_<photo|caption|speech|all>`                category, from one of the inputs and from all; words that name a
                                                   category are taken out of all captions

Metrics are accuracies, mean average precision (rules) and RMSE in grams (mass). A repeat is a seed: of split, hidden
labels, initial weights and order; the spread of a figure is over these.

    python benchmarks/real_data.py [--quick] [--repeats N] [--json] [--out DIR]
"""

from __future__ import annotations

import csv
import functools
import importlib.util
import itertools
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
sys.path.insert(0, str(HERE.parent))

from harness import Bench  # noqa: E402

Figures = dict[str, tuple[float, str]]
STAMPS = Path(os.environ.get('MMPIPE_STAMPS', '/usr/share/tuxpaint/stamps'))
NUMBERS = ('bill_length_mm', 'bill_depth_mm', 'flipper_length_mm')
KEPT = {'species': 0.5, 'sex': 0.25, 'mass': 0.25}
INPUTS = {'photo_vector': 1280, 'caption_vector': 256, 'speech_bands': 80}
TASKS = {'category': 'accuracy', 'kind': 'accuracy', 'rules': 'map', 'language': 'accuracy'}
SIDE = 96


def trained(
    rows: Any, val: Any, build: Callable[..., Any], runs: Path, *, seed: int, transforms: Any = None, **how: Any
):
    """A run on some rows, measured on others."""
    import mmpipe as mm

    loader = mm.DataLoader(rows, batch_size=32, shuffle=True, seed=seed, device='cpu', transforms=transforms)
    epochs = how.pop('epochs')
    trainer = mm.Trainer(
        epochs=epochs, evaluate_every=epochs, seed=seed, runs=runs, schedule='cosine', weight_decay=0.05,
        checkpoint_seconds=None, **how,
    )  # fmt: skip
    measured = mm.DataLoader(val, batch_size=256, device='cpu', transforms=transforms)
    run = trainer.fit(build, loader, measured, name='bench', allow_unseen=True)
    shutil.rmtree(run.path)
    return run


# Penguins


def penguins() -> list[dict[str, str]]:
    """Rows of the package's CSV, without importing the package (which wants pandas)."""
    spec = importlib.util.find_spec('palmerpenguins')
    if spec is None or spec.origin is None:
        raise SystemExit('real_data.py needs the penguins: pip install --no-deps palmerpenguins')
    with open(Path(spec.origin).parent / 'data' / 'penguins.csv', newline='') as file:
        return list(csv.DictReader(file))


def penguin_rows(folder: Path, seed: int) -> tuple[Any, Any]:
    """(training rows, test rows): labels are hidden in the first ones only."""
    from mmpipe.shards import Block, Field, write_snapshot

    rng, found = np.random.default_rng(seed), penguins()
    islands = sorted({row['island'] for row in found})
    test = rng.random(len(found)) < 0.3
    columns: dict[str, list[Any]] = {'facts': [], 'species': [], 'sex': [], 'mass': []}
    for row, held in zip(found, test, strict=True):
        numbers = [float(row[name]) if row[name] != 'NA' else None for name in NUMBERS]
        known = all(number is not None for number in numbers)
        facts = [*numbers, *(float(row['island'] == island) for island in islands)]
        columns['facts'].append(np.array(facts, dtype=np.float32) if known else None)
        labels = {'species': row['species'], 'sex': row['sex'], 'mass': row['body_mass_g']}
        for task, label in labels.items():
            kept = held or rng.random() < KEPT[task]
            value: Any = label if kept and label != 'NA' else None
            columns[task].append(float(value) if task == 'mass' and value is not None else value)
    fields = [
        Field(name='facts', kind='tensor', dtype='float32', shape=(len(NUMBERS) + len(islands),)),
        Field(name='species', kind='label', vocabulary=tuple(sorted({row['species'] for row in found}))),
        Field(name='sex', kind='label', vocabulary=('female', 'male')),
        Field(name='mass', kind='scalar', dtype='float32'),
    ]
    keys = [f'{i:03}' for i in range(len(found))]
    splits = ['test' if held else 'train' for held in test]
    snapshot = write_snapshot(folder, fields, Block(keys=keys, columns=columns, splits=splits))
    return snapshot.split('train'), snapshot.split('test')


def penguin_model(tasks: Sequence[str]) -> Any:
    import mmpipe as mm

    made = {
        'species': lambda: mm.classification('species', 3),
        'sex': lambda: mm.classification('sex', 2),
        'mass': lambda: mm.regression('mass'),
    }
    return mm.MultitaskModel(
        encoders={'facts': mm.encoders.vector(6, 32)}, tasks=[made[task]() for task in tasks], hidden=32
    )


def penguin_seed(folder: Path, seed: int, epochs: int) -> Figures:
    train, test = penguin_rows(folder / f'penguins{seed}', seed)
    labelled = {task: train.read(task)[1] for task in KEPT}
    complete = np.logical_and.reduce(list(labelled.values()))

    def scores(rows: Any, tasks: Sequence[str]) -> dict[str, float]:
        steps = epochs * -(-len(train) // 32)  # the same number of steps on fewer rows
        run = trained(
            rows, test, functools.partial(penguin_model, tuple(tasks)), folder / 'runs', seed=seed,
            epochs=max(1, steps // -(-len(rows) // 32)), lr=3e-3,
        )  # fmt: skip
        return {task: run.metrics[task]['rmse' if task == 'mass' else 'accuracy'] for task in tasks}

    found = {
        'masked': scores(train, list(KEPT)),
        'single': {task: scores(train.take(np.flatnonzero(labelled[task])), [task])[task] for task in KEPT},
        'complete': scores(train.take(np.flatnonzero(complete)), list(KEPT)),
    }
    return {
        f'penguins_{task}_{how}': (value, 'g' if task == 'mass' else 'accuracy')
        for how, values in found.items()
        for task, value in values.items()
    }


# Stamps


def stamps(folder: Path) -> Any:
    """A snapshot of all stamps, through the pipeline, with larger pictures besides."""
    import mmpipe as mm
    from mmpipe.pipeline import find_pipeline

    pipeline = find_pipeline('stamps', directory='bench_stamps')
    mm.apply(mm.plan(pipeline.tables, pipeline.directory))
    views = pipeline.module('views')
    for table, source in views.sources(STAMPS):
        mm.ingest(table, source)
    view = views.training_view()
    view['fields']['picture'] = mm.field.image(view['query'].photo, size=SIDE, fit='pad')
    return mm.snapshot(root=folder / 'stamps', **view).snapshot


def grouped(rows: Any, seed: int) -> tuple[Any, Any]:
    """Two parts of some rows; a series of stamps is in one of them."""
    from sklearn.model_selection import GroupShuffleSplit

    rows = rows.take(np.argsort(rows.keys))
    groups = np.array(rows.words('series'), dtype=object)
    train, test = next(GroupShuffleSplit(1, test_size=0.3, random_state=seed).split(groups, groups=groups))
    return rows.take(train), rows.take(test)


def with_pictures(snapshot: Any, count: int = 8) -> Any:
    """Rows with a picture of the largest categories."""
    rows = snapshot.rows()
    labels, there = rows.read('category')
    there = there & rows.read('picture')[1]
    largest = np.bincount(labels[there]).argsort()[-count:]
    return rows.take(np.flatnonzero(there & np.isin(labels, largest)))


def picture_encoder(*, pretrained: bool) -> Any:
    import mmpipe as mm

    return mm.encoders.timm('tf_efficientnet_lite0', pretrained=pretrained)


def picture_model(classes: int) -> Any:
    import mmpipe as mm

    model = mm.MultitaskModel(
        encoders={'picture': picture_encoder(pretrained=True)}, tasks=[mm.classification('category', classes)],
        hidden=128, dropout=0.3,
    )  # fmt: skip
    model.freeze(2)
    return model


def head_model(classes: int) -> Any:
    import mmpipe as mm

    return mm.MultitaskModel(
        encoders={'feature': mm.encoders.vector(1280, 128, dropout=0.3)},
        tasks=[mm.classification('category', classes)],
        hidden=128,
        dropout=0.3,
    )


def features(rows: Any, *, pretrained: bool, seed: int = 0) -> np.ndarray:
    """Of the frozen encoder, float32 [n, 1280]."""
    import torch

    torch.manual_seed(seed)
    encoder = picture_encoder(pretrained=pretrained).eval()
    pictures = torch.from_numpy(rows.read('picture')[0])
    with torch.no_grad():
        return torch.cat([encoder(part) for part in pictures.split(64)]).numpy()


def probe(train: tuple[np.ndarray, np.ndarray], test: tuple[np.ndarray, np.ndarray]) -> float:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    fitted = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500)).fit(*train)
    return float((fitted.predict(test[0]) == test[1]).mean())


def transfer_seed(snapshot: Any, folder: Path, seed: int, epochs: int) -> Figures:
    from mmpipe.shards import Block, Field, write_snapshot

    train, test = grouped(with_pictures(snapshot), seed)
    labels = [rows.read('category')[0] for rows in (train, test)]
    classes = len(snapshot.fields['category'].vocabulary)
    found = {'majority': float((labels[1] == np.bincount(labels[0]).argmax()).mean())}
    for name, pretrained in (('random', False), ('linear', True)):
        pair = [features(rows, pretrained=pretrained, seed=seed) for rows in (train, test)]
        found[f'{name}_probe'] = probe((pair[0], labels[0]), (pair[1], labels[1]))
    fields = [
        Field(name='feature', kind='tensor', dtype='float32', shape=(1280,)),
        Field(name='category', kind='label', vocabulary=snapshot.fields['category'].vocabulary),
    ]
    both = [*train.words('category'), *test.words('category')]
    block = Block(
        keys=[*train.keys, *test.keys], columns={'feature': [*pair[0], *pair[1]], 'category': both},
        splits=['train'] * len(train) + ['test'] * len(test),
    )  # fmt: skip
    cached = write_snapshot(folder / f'features{seed}', fields, block)
    build = functools.partial(head_model, classes)
    run = trained(
        cached.split('train'), cached.split('test'), build, folder / 'runs', seed=seed, epochs=4 * epochs, lr=1e-3
    )
    found['transfer'] = run.metrics['category']['accuracy']
    build = functools.partial(picture_model, classes)
    run = trained(train, test, build, folder / 'runs', seed=seed, epochs=epochs, lr=1e-3)
    found['finetuned'] = run.metrics['category']['accuracy']
    return {f'stamps_{name}': (value, 'accuracy') for name, value in found.items()}


def vectors_model(inputs: Sequence[str], tasks: Sequence[str], vocabularies: dict[str, Sequence[str]]) -> Any:
    import mmpipe as mm

    made = {task: mm.multilabel if task == 'rules' else mm.classification for task in TASKS}
    return mm.MultitaskModel(
        encoders={name: mm.encoders.vector(INPUTS[name], 64, dropout=0.3) for name in inputs},
        tasks=[made[task](task, vocabularies[task]) for task in tasks],
        hidden=128,
        dropout=0.3,
    )


def stamps_seed(snapshot: Any, folder: Path, seed: int, epochs: int) -> Figures:
    """One model and separate ones; inputs alone and together."""
    train, test = grouped(snapshot.rows(), seed)
    words = {task: snapshot.fields[task].vocabulary for task in TASKS}

    def fitted(inputs: Sequence[str], tasks: Sequence[str]) -> tuple[dict[str, float], int, float]:
        build = functools.partial(vectors_model, tuple(inputs), tuple(tasks), words)
        started = time.perf_counter()
        run = trained(train, test, build, folder / 'runs', seed=seed, epochs=epochs, lr=1e-3)
        took = time.perf_counter() - started
        scores = {task: run.metrics[task][TASKS[task]] for task in tasks}
        return scores, sum(parameter.numel() for parameter in build().parameters()), took

    found: Figures = {}
    scores, parameters, took = fitted(list(INPUTS), list(TASKS))
    found |= {f'one_{task}': (value, TASKS[task]) for task, value in scores.items()}
    found |= {'one_parameters': (parameters, 'parameters'), 'one_s': (took, 's')}
    alone = {task: fitted(list(INPUTS), [task]) for task in TASKS}
    found |= {f'separate_{task}': (values[task], TASKS[task]) for task, (values, _, _) in alone.items()}
    found['separate_parameters'] = (sum(count for _, count, _ in alone.values()), 'parameters')
    found['separate_s'] = (sum(seconds for _, _, seconds in alone.values()), 's')
    for name in INPUTS:
        found[f'inputs_{name.partition("_")[0]}'] = (fitted([name], ['category'])[0]['category'], 'accuracy')
    found['inputs_all'] = (alone['category'][0]['category'], 'accuracy')
    return found


def main() -> None:
    """The command."""
    bench = Bench.from_arguments('real_data', __doc__)
    with tempfile.TemporaryDirectory(prefix='mmpipe-bench-') as name:
        folder = Path(name)
        os.environ['MMPIPE_HOME'] = str(folder / 'home')  # before anything reads it
        seeds = {what: itertools.count() for what in ('penguins', 'transfer', 'stamps')}
        epochs = 1 if bench.quick else 40
        variants: dict[str, Callable[[], Figures]] = {
            'penguins': lambda: penguin_seed(folder, next(seeds['penguins']), epochs)
        }
        try:
            with bench.recording():
                bench.notes = {'seeds': 5, 'labels kept': KEPT, 'test share': 0.3}
                if STAMPS.is_dir() and not bench.quick:
                    frozen = stamps(folder)
                    bench.notes['stamps'] = {'rows': len(frozen), 'with pictures': len(with_pictures(frozen))}
                    variants['transfer'] = lambda: transfer_seed(frozen, folder, next(seeds['transfer']), 8)
                    variants['stamps'] = lambda: stamps_seed(frozen, folder, next(seeds['stamps']), 30)
                bench.compare(variants, repeats=5, warmup=False)
        finally:
            from mmpipe.store import stop_postgres

            stop_postgres()


if __name__ == '__main__':
    main()

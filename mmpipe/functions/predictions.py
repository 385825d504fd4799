"""A run's model as a computed column: new rows are predicted when they are inserted.

    class Products(Tables, name='products'):
        ...
        guess = predict(run='shop/0007', photo=photo, title=title)

Promoting another run is a change of that line, which `mm.plan` prices. A fingerprint of the column holds the digest of
the weights too, so a run that was trained on is noticed as well.
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pixeltable as pxt

from mmpipe.errors import ConfigError, MmpipeError
from mmpipe.fingerprints import loads
from mmpipe.functions.batching import in_batches
from mmpipe.functions.counting import counted
from mmpipe.functions.image import square_array
from mmpipe.runs import open_run
from mmpipe.runs.served import check_served, weight_files

if TYPE_CHECKING:
    from mmpipe.models.serve import Served

# Stands for the code of this module in fingerprints: raise it when what is computed with its help changes.
__fingerprint__ = 1

# Pixeltable wants the type of every argument in the signature, so there are some places for each type.
PLACES = {'image': 4, 'array': 8, 'text': 4, 'number': 8}

_served: dict[str, tuple[list[tuple[Path, int, int, int]], Served]] = {}
_fields: dict[str, tuple[Path, int, Mapping[str, Any]]] = {}
_lock = threading.Lock()


def predict(*, run: str, **inputs: Any) -> Any:
    """Predictions of a run's model for a row, as a computed column.

    Values are stored, decoded and transformed as the run's validation rows were, by the same code, so what a row is
    given here is what `mm.predict` gives for it in a snapshot. The model is loaded once per process, and asked for up
    to 32 rows at a time.

    Args:
        run: id of a run, such as 'shop/0007', or its folder.
        inputs: an expression for each field that the model reads, by the field's name: an image or array as in the
            fields of `mm.snapshot`, a string or a number. A null is a missing
            modality; a row in which all are null is predicted from nothing, as in a snapshot.

    Returns:
        Expression of JSON: {task: {'label', 'probability', 'probabilities'}} for one class per row, {'labels',
        'probabilities'} for several, {'value'} for a number. `guess.category.label` reads a part of it.

    Raises:
        RunError: no such run, or one that cannot be served; raised where the column is declared.
        ConfigError: an input too many or too few, of a type that no field has, or a run on fields of files.

    >>> class Products(Tables, name='products'):  # doctest: +SKIP
    ...     photo: pxt.Image | None
    ...     guess = mm.functions.predict(run='shop/0007', photo=photo)
    """
    return _call(_predict, run, inputs)


def predict_vector(*, run: str, **inputs: Any) -> Any:
    """What a run's model makes of a row before its heads: one vector of all modalities, for search and for probes.

    Args:
        run: as for `predict`.
        inputs: as for `predict`.

    Returns:
        Expression of a float32 array `(width,)`.

    Raises:
        RunError, ConfigError: as for `predict`.

    >>> vector = mm.functions.predict_vector(run='shop/0007', photo=photo)  # doctest: +SKIP
    """
    return _call(_vector, run, inputs)


def run_files(run: str, **_: Any) -> list[Path]:
    """The files that a column of `predict` loads: the weights of its run.

    >>> from mmpipe.train.example import example_run
    >>> [file.name for file in run_files(str(example_run().path))]
    ['model.safetensors']
    """
    return weight_files(open_run(run))


def _call(function: Any, run: str, inputs: Mapping[str, Any]) -> Any:
    opened = open_run(run)
    wanted = _inputs_of(opened)
    if set(inputs) != set(wanted):
        raise ConfigError(
            f'predict(run={run!r}): the model reads {", ".join(wanted)}, and was given '
            f'{", ".join(sorted(inputs)) or "nothing"}. Give an expression for each, by the name of its field.'
        )
    files = [name for name in wanted if opened.record['fields'][name]['field']['kind'] == 'binary']
    if files:
        raise ConfigError(
            f'predict(run={run!r}): field {files[0]!r} of its snapshot holds files, which a column cannot give as they '
            f'are. Train on mm.field.image(...) or another decoded form of it, or predict with mm.predict.'
        )
    arguments: dict[str, Any] = {}
    places: dict[str, str] = {}
    for name in sorted(inputs):
        kind = _kind(name, inputs[name])
        number = sum(place.startswith(kind) for place in places.values())
        if number == PLACES[kind]:
            raise ConfigError(f'predict(run={run!r}): more than {number} inputs of type {kind}; give it fewer.')
        places[name] = f'{kind}_{number}'
        arguments[places[name]] = inputs[name]
    return function(run=run, places=json.dumps(places), **arguments)


def _inputs_of(run: Any) -> list[str]:
    """The fields that a run's model reads, without torch: those that its loader reads and no task has as its label."""
    fields = check_served(run)['fields']
    labels = {task['field'] for task in run.tasks}
    read = run.record.get('model_inputs')
    return sorted(read if read is not None else (name for name in fields if name not in labels))


def _kind(name: str, value: Any) -> str:
    kind = getattr(value, 'col_type', None)
    if kind is None:
        raise ConfigError(f'predict({name}={value!r:.40}): a Pixeltable expression is meant, such as a column.')
    for tests, found in (
        (('is_image_type',), 'image'),
        (('is_array_type',), 'array'),
        (('is_string_type',), 'text'),
        (('is_int_type', 'is_float_type', 'is_bool_type'), 'number'),
    ):
        if any(getattr(kind, test)() for test in tests):
            return found
    raise ConfigError(f'predict({name}=...) is {kind}: an image, array, string or number is meant.')


@pxt.udf
@counted
@loads(run_files)
async def _predict(
    *,
    run: str,
    places: str,
    image_0: pxt.Image | None = None,
    image_1: pxt.Image | None = None,
    image_2: pxt.Image | None = None,
    image_3: pxt.Image | None = None,
    array_0: pxt.Array | None = None,
    array_1: pxt.Array | None = None,
    array_2: pxt.Array | None = None,
    array_3: pxt.Array | None = None,
    array_4: pxt.Array | None = None,
    array_5: pxt.Array | None = None,
    array_6: pxt.Array | None = None,
    array_7: pxt.Array | None = None,
    text_0: pxt.String | None = None,
    text_1: pxt.String | None = None,
    text_2: pxt.String | None = None,
    text_3: pxt.String | None = None,
    number_0: pxt.Float | None = None,
    number_1: pxt.Float | None = None,
    number_2: pxt.Float | None = None,
    number_3: pxt.Float | None = None,
    number_4: pxt.Float | None = None,
    number_5: pxt.Float | None = None,
    number_6: pxt.Float | None = None,
    number_7: pxt.Float | None = None,
) -> pxt.Json:
    return await _cell('predict', run, places, locals())


@pxt.udf
@counted
@loads(run_files)
async def _vector(
    *,
    run: str,
    places: str,
    image_0: pxt.Image | None = None,
    image_1: pxt.Image | None = None,
    image_2: pxt.Image | None = None,
    image_3: pxt.Image | None = None,
    array_0: pxt.Array | None = None,
    array_1: pxt.Array | None = None,
    array_2: pxt.Array | None = None,
    array_3: pxt.Array | None = None,
    array_4: pxt.Array | None = None,
    array_5: pxt.Array | None = None,
    array_6: pxt.Array | None = None,
    array_7: pxt.Array | None = None,
    text_0: pxt.String | None = None,
    text_1: pxt.String | None = None,
    text_2: pxt.String | None = None,
    text_3: pxt.String | None = None,
    number_0: pxt.Float | None = None,
    number_1: pxt.Float | None = None,
    number_2: pxt.Float | None = None,
    number_3: pxt.Float | None = None,
    number_4: pxt.Float | None = None,
    number_5: pxt.Float | None = None,
    number_6: pxt.Float | None = None,
    number_7: pxt.Float | None = None,
) -> pxt.Array[(None,), np.float32]:
    return await _cell('vector', run, places, locals())


async def _cell(what: str, run: str, places: str, arguments: Mapping[str, Any]) -> Any:
    given = {name: arguments[place] for name, place in json.loads(places).items()}
    prepare = functools.partial(_stored, run, given)
    found = await in_batches((what, run), prepare, functools.partial(_asked, what, run))
    if isinstance(found, Exception):
        raise found
    return found


def _stored(run: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Values as the run's snapshot stores them."""
    fields = _fields_of(run)
    row: dict[str, Any] = {}
    for name, value in given.items():
        made = fields[name]
        if value is None:
            row[name] = None
        elif made.get('size') is not None:
            row[name] = square_array(value, size=made['size'], fit=made['fit'])
        elif made['field']['kind'] == 'scalar' and made['field']['dtype'] in ('int64', 'bool'):
            row[name] = int(value) if made['field']['dtype'] == 'int64' else bool(value)
        else:
            row[name] = value
    return row


def _fields_of(run: str) -> Mapping[str, Any]:
    """How a run's fields are stored; its record is read again when it is another one, not for every cell."""
    known = _fields.get(run)
    if known is None or not known[0].is_file() or known[0].stat().st_mtime_ns != known[1]:
        opened = open_run(run)
        file = opened.path / 'run.json'
        known = _fields[run] = file, file.stat().st_mtime_ns, opened.record['fields']
    return known[2]


def _asked(what: str, run: str, rows: Sequence[Mapping[str, Any]]) -> Iterator[Any]:
    """The answers to a batch; where it fails, each row is asked alone, so that the others do not fail with it."""
    served = _model(run)
    try:
        yield from _answers(served, what, rows)
    except (MmpipeError, ValueError, RuntimeError):
        for row in rows:
            try:
                yield from _answers(served, what, [row])
            except (MmpipeError, ValueError, RuntimeError) as error:
                yield error


def _answers(served: Served, what: str, rows: Sequence[Mapping[str, Any]]) -> list[Any]:
    return served.predict(rows) if what == 'predict' else list(served.outputs(rows, fused=True)[''])


def _model(run: str) -> Served:
    """Loaded once per process; again when the weights of its newest checkpoint are others."""
    from mmpipe.models.serve import Served

    with _lock:
        # A run that was trained again under its id may have its last checkpoint at the same step, in the same place.
        stats = [(file, file.stat()) for file in weight_files(open_run(run))]
        now = [(file, stat.st_ino, stat.st_size, stat.st_mtime_ns) for file, stat in stats]
        if run not in _served or _served[run][0] != now:
            _served[run] = now, Served(run)
        return _served[run][1]

"""What a run says of the values its model takes: enough to make them again for new rows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmpipe.errors import RunError
from mmpipe.runs.record import Run


def stored_fields(rows: Any) -> dict[str, dict[str, Any]]:
    """How each field of some rows is stored, for a run record.

    Args:
        rows: of a snapshot.

    Returns:
        {field: {'field': its description, 'size', 'fit', 'is_file': how `mm.snapshot` made it of a medium}}.
    """
    source = getattr(getattr(rows.snapshot, 'manifest', None), 'source', None) or {}
    made: Mapping[str, Any] = source.get('fields') or {}
    return {
        name: {
            'field': field.to_json(),
            **{what: made.get(name, {}).get(what) for what in ('size', 'fit', 'is_file') if name in made},
        }
        for name, field in rows.fields.items()
    }


def check_served(run: Run) -> dict[str, Any]:
    """The description of the loader that a run is served like: that of its validation rows, else of its training rows.

    Raises:
        RunError: the run does not say, or its model cannot be made again.

    >>> from mmpipe.train.example import example_run
    >>> sorted(check_served(example_run())['fields'])
    ['kind', 'price']
    """
    if 'rebuild' in run.cannot:
        raise RunError(f'Run {run.id} cannot be served: {run.cannot["rebuild"]}. Train it with a factory.')
    if 'fields' not in run.record:
        raise RunError(
            f'Run {run.id} does not say how its inputs were made, since an older mmpipe made it. Train it again, or '
            f'continue from it.'
        )
    inputs = run.record['inputs']
    found = inputs.get('val') if run.record.get('val_split') is not None else inputs.get('train')
    if found is None:
        raise RunError(
            f'Run {run.id} cannot be served: {run.cannot.get("resume", "its loader is not described")}. Use transforms '
            f'and decoders that are frozen dataclasses, or functions at the top level of a module.'
        )
    return found


def weight_files(run: Run) -> list[Path]:
    """The files that decide what a run's model gives: the weights of its newest checkpoint, whole or in pieces.

    Raises:
        RunError: it has none.
    """
    folder = run.checkpoint()
    if not (folder / 'model.safetensors').exists():
        return sorted(folder.glob('pieces*'))  # of a run that was stopped
    average = folder / 'average.safetensors'
    return [average if average.exists() else folder / 'model.safetensors']

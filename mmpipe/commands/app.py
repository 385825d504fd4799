"""What commands share: the app they belong to, their common arguments, and how a result is printed."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    name='mmpipe',
    help='Pixeltable tables in, trained PyTorch models out, at a cost proportional to the change.',
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

PipelineName = Annotated[
    str, typer.Argument(metavar='PIPELINE', help='Folder below `pipelines` with schema.py, views.py, training.py.')
]
Directory = Annotated[
    str | None, typer.Option('--dir', help="Pixeltable directory of the tables; the pipeline's name when left out.")
]
# A string: a Path would make one slash of the two of a URL, and a local folder of it.
Root = Annotated[str | None, typer.Option(help='Directory or URL of the shards; .mmpipe/shards/DIR when left out.')]
AsJson = Annotated[bool, typer.Option('--json', help='Print one JSON object on stdout.')]


def place_of_shards(root: str | None, default: Path) -> str | Path:
    """Where the shards are: --root, a directory or the URL of a folder in a store, or the pipeline's own place."""
    if root is not None and '://' in root:
        return root
    return Path(root) if root else default


def print_result(run: Callable[[], tuple[Any, str]], as_json: bool) -> Any:
    """Run a command with stdout kept clean, and print its result: JSON, or text."""
    with contextlib.redirect_stdout(sys.stderr):  # libraries print; what is on stdout is the result alone
        result, text = run()
    if as_json:
        print(json.dumps(result, default=str, allow_nan=False))
    elif text:
        print(text)
    return result

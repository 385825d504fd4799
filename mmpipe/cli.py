"""The `mmpipe` command: results on stdout, progress on stderr, an error as one line with the next move."""

from __future__ import annotations

import re
import sys
from typing import Annotated, NoReturn

import typer

from mmpipe.commands import tables, training, upkeep  # noqa: F401  as they are imported, so they are listed
from mmpipe.commands.app import app
from mmpipe.commands.tables import PENDING
from mmpipe.errors import MmpipeError

__all__ = ['PENDING', 'USAGE', 'app', 'main']

USAGE = 64  # EX_USAGE of sysexits.h
_debug = False


def _show_version(wanted: bool) -> None:
    if wanted:
        from mmpipe import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def options(
    debug: Annotated[bool, typer.Option('--debug', help='Show the whole traceback of an error.')] = False,
    version: Annotated[
        bool, typer.Option('--version', callback=_show_version, is_eager=True, help='Print the version and exit.')
    ] = False,
) -> None:
    """Options before the command."""
    global _debug
    _debug = debug


def main() -> None:
    """Entry point of the console script."""
    try:
        status = app(sys.argv[1:] or ['--help'], standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except MmpipeError as error:
        _fail(error, f'{type(error).__name__}: {error}')
    except Exception as error:  # noqa: BLE001 (the last resort of a command; --debug shows all of it)
        if hasattr(error, 'format_message'):  # what typer says of wrong arguments; the class has moved between versions
            # Its own status for this is 2, which is what `plan` says when changes are pending.
            # Releases of typer differ in how they write an option down.
            said = re.sub(r"^No such option '(.+?)'\.", r'No such option: \1', error.format_message())
            print(f'error: {said} (`mmpipe --help` lists the commands)', file=sys.stderr)
            sys.exit(USAGE)
        name = f'{type(error).__module__}.{type(error).__name__}'
        _fail(error, f'{name}: {" ".join(str(error).split())} (`mmpipe --debug ...` shows where)')
    if status == 130:
        print('interrupted; run the same command again to go on', file=sys.stderr)
    sys.exit(status or 0)


def _fail(error: BaseException, message: str) -> NoReturn:
    if _debug:
        raise error
    print(f'error: {message}', file=sys.stderr)
    sys.exit(1)


if __name__ == '__main__':
    main()

"""A fingerprint of what a function computes: its code, the project code and constants it reaches, and its weights.

    function ─► normal form of its code ─► names it uses ─► functions, classes, constants of the project: the same again
             ─► closure, defaults                        ─► packages: their versions
             ─► files it says it loads: their digests    ─► mutable globals: where they are made, not what they hold

Nothing is run but imports that the function's module has done already. What cannot be followed is listed, not guessed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmpipe.fingerprints.walk import Walk, digest_of, name_of
from mmpipe.settings import chosen

_one_at_a_time = threading.Lock()  # Python 3.11 parses wrongly in two threads at once: "recursion depth mismatch"


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What decides the values that a function computes.

    Args:
        digest: 32 hex digits; equal while everything below but `packages` (unless counted) and the lists is equal.
        parts: digest of each piece of code, constant and file, by name: two of these say what changed.
        packages: version of each package whose code is called.
        excluded: mutable globals; where they are made counts, what they hold does not.
        unresolved: what could not be followed, and where.
    """

    digest: str
    parts: Mapping[str, str]
    packages: Mapping[str, str]
    excluded: tuple[str, ...] = ()
    unresolved: tuple[str, ...] = ()

    def changes(self, older: Mapping[str, str]) -> list[str]:
        """What differs from the parts of an older fingerprint, in words.

        >>> new = Fingerprint(digest='', parts={'code of a.f': '1', 'constant a.X': '2'}, packages={})
        >>> new.changes({'code of a.f': '0', 'code of a.g': '3'})
        ['code of a.f changed', 'code of a.g is no longer used', 'constant a.X is new']
        """
        words = []
        for name in sorted({*self.parts, *older}):
            if name not in older:
                words.append(f'{name} is new')
            elif name not in self.parts:
                words.append(f'{name} is no longer used')
            elif self.parts[name] != older[name]:
                words.append(f'{name} changed')
        return words


def loads(files: Callable[..., Iterable[str | Path]]) -> Callable[[Any], Any]:
    """Say which files a function loads, so that their contents count: goes below `@pxt.udf`.

    Args:
        files: called with the constants of the column's expression by name; returns paths.

    >>> @loads(lambda model='small': [f'{model}.safetensors'])
    ... def embed(text, model='small'): ...
    >>> embed.loads_files(model='large')
    ['large.safetensors']
    """

    def mark(function: Any) -> Any:
        function.loads_files = files
        return function

    return mark


def fingerprint(
    function: Any, *, constants: Mapping[str, Any] | None = None, count_packages: Iterable[str] = ()
) -> Fingerprint:
    """The fingerprint of a function, without running it.

    Args:
        function: a Python function, or a Pixeltable function over one.
        constants: arguments that are the same for all cells, by name; what `loads` is called with.
        count_packages: packages whose version counts, '*' for all; the others' are recorded only.

    Returns:
        The fingerprint.

    >>> fingerprint(loads).digest == fingerprint(loads).digest
    True
    """
    walk = Walk()
    with _one_at_a_time:
        walk.object(function, name_of(function))
        walk.files(function, dict(constants or {}))
    counted = {f'package {name}': version for name, version in chosen(walk.packages, count_packages).items()}
    parts = dict(sorted({**walk.parts, **counted}.items()))
    return Fingerprint(
        digest=digest_of(parts),
        parts=parts,
        packages=dict(sorted(walk.packages.items())),
        excluded=tuple(sorted(walk.excluded)),
        unresolved=tuple(sorted(walk.unresolved)),
    )

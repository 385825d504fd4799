"""What decides the values of a computed column: its expression, the functions in it, and the columns it reads."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from mmpipe.fingerprints import Fingerprint, fingerprint
from mmpipe.fingerprints.walk import digest_of
from mmpipe.settings import chosen
from mmpipe.store.made import Made, made_columns

ColumnName = tuple[str, str]
"""Path of a table or view, and name of a column that it declares; '' for the iterator of a component view."""


@dataclass(frozen=True, kw_only=True)
class Print:
    """The fingerprint of a computed column.

    Args:
        digest: equal while the same inputs give the same values.
        parts: digest of each thing that it depends on, by what a plan calls it.
        packages: versions of the packages that are called; they count where the project says so.
        unresolved: what could not be followed.
    """

    digest: str
    parts: Mapping[str, str]
    packages: Mapping[str, str]
    unresolved: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), 'unresolved': list(self.unresolved)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Print:
        """What `to_json` gave."""
        return cls(**{**content, 'unresolved': tuple(content['unresolved'])})

    def fresh(self, older: Print, counted: Collection[str] = ()) -> bool:
        """Whether what an older print made is what this one would make.

        Args:
            older: the print of stored values.
            counted: packages whose version counts, '*' for all.

        >>> new = Print(digest='a', parts={}, packages={'torch': '2.14'})
        >>> old = Print(digest='a', parts={}, packages={'torch': '2.13'})
        >>> new.fresh(old), new.fresh(old, ['torch'])
        (True, False)
        """
        return self.digest == older.digest and chosen(self.packages, counted) == chosen(older.packages, counted)

    def why(self, older: Print) -> str:
        """What differs from an older print, in words; the first three of it.

        >>> new = Print(digest='b', parts={'expression': '2', 'code of shop.f': '1'}, packages={})
        >>> new.why(Print(digest='a', parts={'expression': '1', 'code of shop.f': '1'}, packages={}))
        'expression changed'
        """
        if older == UNKNOWN:
            return 'others wrote rows around a change of it'
        if older == UNFILLED:
            return 'not computed yet'
        words = Fingerprint(digest='', parts=self.parts, packages={}).changes(older.parts)
        if not words:  # then it is a version that counts
            now, then = self.packages, older.packages
            words = [f'{n} {then.get(n, "none")} -> {now.get(n, "none")}' for n in sorted({*now, *then})
                     if now.get(n) != then.get(n)]  # fmt: skip
        return '; '.join(words[:3]) + (f' and {len(words) - 3} more' if len(words) > 3 else '')


UNKNOWN = Print(digest='', parts={}, packages={})
"""Of rows that one code or another made, so that no code finds them fresh."""

UNFILLED = Print(digest='none', parts={}, packages={})
"""Of rows that were there when a column was added: it is empty for them until it is computed."""


def column_prints(table: Any) -> dict[ColumnName, Print]:
    """The prints of all stored computed columns of a table and its views, as the code is now. Runs none of it.

    Args:
        table: any table or view of the tree.
    """
    found: dict[ColumnName, Print] = {}
    taken: dict[Any, Fingerprint] = {}
    waiting = list(made_columns(table))
    while waiting:
        ready = [made for made in waiting if all(name in found for name in made.inputs)]
        if not ready:  # columns cannot read each other in a circle
            raise AssertionError(f'columns {[made.column for made in waiting]} read each other')
        for made in ready:
            found[made.table, made.column] = _print(made, found, taken)
        waiting = [made for made in waiting if (made.table, made.column) not in found]
    return found


def _print(made: Made, inputs: Mapping[ColumnName, Print], taken: dict[Any, Fingerprint]) -> Print:
    parts = {'expression': digest_of(made.expression)}
    parts |= {f'input {path}.{name}': inputs[path, name].digest for path, name in made.inputs}
    prints = [_taken(function, constants, taken) for function, constants in made.calls]
    for each in prints:
        parts |= each.parts
    packages: dict[str, str] = {}
    for each in prints:
        packages |= each.packages
    unresolved = sorted({text for each in prints for text in each.unresolved})
    return Print(
        digest=digest_of(sorted(parts.items())),
        parts=dict(sorted(parts.items())),
        packages=dict(sorted(packages.items())),
        unresolved=tuple(unresolved),
    )


def _taken(function: Any, constants: Mapping[str, Any], taken: dict[Any, Fingerprint]) -> Fingerprint:
    key = (id(function), digest_of(sorted(constants.items(), key=str)))
    if key not in taken:
        taken[key] = fingerprint(function, constants=constants)
    return taken[key]


def dependents(columns: Iterable[ColumnName], prints: Mapping[ColumnName, Print]) -> set[ColumnName]:
    """Columns that read one of these, directly or not; not the given ones.

    >>> read = Print(digest='', parts={'input shop/a.x': ''}, packages={})
    >>> dependents([('shop/a', 'x')], {('shop/a', 'y'): read})
    {('shop/a', 'y')}
    """
    given, found = set(columns), set(columns)
    while True:
        read = {f'input {path}.{name}' for path, name in found}
        more = {name for name, each in prints.items() if name not in found and read & each.parts.keys()}
        if not more:
            return found - given
        found |= more


def inputs_of(column: ColumnName, prints: Mapping[ColumnName, Print]) -> set[ColumnName]:
    """Columns that a column reads, directly or not.

    >>> read = Print(digest='', parts={'input shop/a.x': ''}, packages={})
    >>> inputs_of(('shop/a', 'y'), {('shop/a', 'y'): read, ('shop/a', 'x'): Print(digest='', parts={}, packages={})})
    {('shop/a', 'x')}
    """
    found: set[ColumnName] = set()
    waiting = [column]
    while waiting:
        parts = prints[waiting.pop()].parts
        more = [name for name in prints if f'input {name[0]}.{name[1]}' in parts and name not in found]
        found.update(more)
        waiting += more
    return found

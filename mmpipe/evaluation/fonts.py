"""Fonts for labels in any script: those installed here that have the characters which the usual one has not."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

USUAL = 'DejaVu Sans'  # comes with matplotlib: Latin, Greek, Cyrillic, Arabic, Hebrew and more


def families_for(texts: Iterable[str]) -> list[str]:
    """Names of fonts that together can write some texts, as far as they are installed; the usual one first.

    Args:
        texts: to be written.

    >>> families_for(['cat', 'кот'])
    ['DejaVu Sans']
    """
    lacking = {ord(each) for text in texts for each in text if not each.isspace()} - _characters(_usual())
    names = [USUAL]
    for name, path in _installed() if lacking else ():
        found = lacking & _characters(path)
        if found:
            names.append(name)
            lacking -= found
        if not lacking:
            break
    return names


@cache
def _usual() -> str:
    from matplotlib import font_manager

    return font_manager.findfont(USUAL)


@cache
def _installed() -> tuple[tuple[str, str], ...]:
    """(name, file) of upright fonts of usual weight, those made for screens and print first."""
    from matplotlib import font_manager

    def upright(entry: Any) -> bool:
        return entry.style == 'normal' and entry.weight in (400, 'normal', 'regular') and entry.name != USUAL

    found = {entry.name: entry.fname for entry in font_manager.fontManager.ttflist if upright(entry)}
    wanted = sorted(found, key=lambda name: (not name.startswith('Noto Sans'), 'Sans' not in name, name))
    return tuple((name, found[name]) for name in wanted)


@cache
def _characters(path: str) -> frozenset[int]:
    """Codes of the characters that a font file has; none where it cannot be read."""
    from matplotlib.ft2font import FT2Font

    try:
        return frozenset(FT2Font(path).get_charmap())
    except (RuntimeError, OSError, ValueError):
        return frozenset()

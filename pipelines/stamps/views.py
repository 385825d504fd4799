"""The store side: stamps as rows of a folder laid out like Tux Paint's, and what a training snapshot holds.

Debian's package tuxpaint-stamps-default puts one at /usr/share/tuxpaint/stamps (GPL-2: used where it is, not copied):

    animals/birds/owl.png            picture (or .svg, which is not read)
    animals/birds/owl.txt            caption: English in the first line, translations below
    animals/birds/owl_desc_fr.ogg    the caption, spoken in French
    animals/birds/owl.dat            what the author forbids or allows: nomirror, noflip, colorable, ...

Four tasks, each with labels that no input was computed from:

- category: the top folder, from picture and caption. Captions say what a thing is, and a few name the category, so all
  words that name one are taken out of all captions (`functions.unnamed`).
- kind: the second folder, where that has enough stamps; null elsewhere.
- rules: several at once; null where there is no .dat file.
- language: which language is spoken. Only the recording tells. Each language has few speakers, so what is learned is
  their voices and microphones as much as the language.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mmpipe as mm
from mmpipe.errors import SourceError
from mmpipe.sources import Bad, Record
from pipelines.stamps.functions import RULES
from pipelines.stamps.schema import Stamps

LANGUAGES = ('be', 'bg', 'ca', 'el', 'es', 'fr', 'ro', 'ru')
"""ISO 639-1 codes of the languages in which most captions are spoken: 681 to 928 recordings each."""

KINDS = (
    'animals/birds', 'animals/fish', 'animals/insects', 'animals/mammals', 'clothes/hats', 'food/fruit',
    'food/vegetables', 'hobbies/music', 'household/dishes', 'household/electronics', 'household/tools',
    'people/body_parts', 'people/cartoon', 'plants/flowers', 'seasonal/christmas', 'seasonal/easter',
    'seasonal/halloween', 'town/houses', 'town/monuments', 'town/roadsigns',
)  # fmt: skip
"""Second folders with ten stamps or more of several series, in version 2022.06.04."""

PICTURES = ('.png', '.svg')
OTHERS = ('.txt', '.dat', '.ogg', '.wav')


@dataclass(frozen=True)
class StampFolder:
    """A source of its own: one row per stamp, put together from up to four files with one name.

    Args:
        folder: the folder with the categories in it.

    Raises:
        SourceError: there is no such folder.
    """

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, 'folder', Path(self.folder).resolve())
        if not self.folder.is_dir():
            raise SourceError(
                f"there is no folder '{self.folder}'. Give the folder of the stamps, /usr/share/tuxpaint/stamps after "
                f'`apt install tuxpaint-stamps-default`.'
            )

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.folder)

    def total(self) -> int | None:
        """Number of stamps and strays."""
        return sum(map(len, self._files()))

    def records(self, *, key: list[str], media: Mapping[str, str]) -> Iterator[Record | Bad]:
        """The stamps, by key, and a `Bad` for every text and recording that belongs to none."""
        stamps, strays = self._files()
        for name, files in stamps.items():
            place = str(self.folder / name)
            try:
                values = {'key': name, **self._labels(name), **self._texts(files)}
            except UnicodeDecodeError as error:
                reason = f'is not UTF-8 ({error.reason}): save its .txt and .dat as UTF-8'
                yield Bad(place=place, key=name, column='caption', reason=reason)
                continue
            language = _language(name, files)
            paths = {'photo': files.get('.png'), 'speech': files.get(f'_desc_{language}.ogg')}
            yield Record(place=place, values={**values, 'language': language}, media=paths, root=self.folder)
        for file in strays:
            name = file.relative_to(self.folder).as_posix()
            yield Bad(place=name, key=name, path=str(file), reason='belongs to no picture: give it the name of one')

    def _files(self) -> tuple[dict[str, dict[str, Path]], list[Path]]:
        """{key: {what follows the name: file}}, and files that belong to no key; both sorted."""
        files = sorted(file for file in self.folder.glob('*/**/*') if file.suffix in (*PICTURES, *OTHERS))
        stamps: dict[str, dict[str, Path]] = {}
        for file in files:
            if file.suffix in PICTURES:
                stamps.setdefault(self._key(file.with_suffix('')), {})[file.suffix] = file
        strays = []
        for file in files:
            if file.suffix in OTHERS:
                # 'owl_desc_fr.ogg' belongs to 'owl', unless there is a picture 'owl_desc'.
                name = self._key(file.with_suffix(''))
                while name not in stamps and '_' in name.rpartition('/')[2]:
                    name = name.rpartition('_')[0]
                if name in stamps:
                    stamps[name][self._key(file)[len(name) :]] = file
                else:
                    strays.append(file)
        return dict(sorted(stamps.items())), strays

    def _key(self, file: Path) -> str:
        return file.relative_to(self.folder).as_posix()

    def _labels(self, name: str) -> dict[str, Any]:
        folders = name.split('/')[:-1]
        kind = '/'.join(folders[:2])
        return {'category': folders[0], 'kind': kind if kind in KINDS else None}

    def _texts(self, files: Mapping[str, Path]) -> dict[str, Any]:
        caption = files['.txt'].read_text(encoding='utf-8-sig').partition('\n')[0].strip() if '.txt' in files else ''
        dat = files['.dat'].read_text(encoding='utf-8-sig') if '.dat' in files else None
        return {'caption': caption or None, 'dat': dat}


def _language(name: str, files: Mapping[str, Path]) -> str | None:
    """One of the languages a stamp is spoken in: by a hash of its key, so that the languages come out about even."""
    spoken = [language for language in LANGUAGES if f'_desc_{language}.ogg' in files]
    draw = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return spoken[int.from_bytes(draw, 'big') % len(spoken)] if spoken else None


def sources(folder: str | Path) -> list[tuple[Any, Any]]:
    """Tables with the source of their rows.

    Args:
        folder: of the stamps, such as /usr/share/tuxpaint/stamps.
    """
    return [(Stamps, StampFolder(Path(folder)))]


def training_view() -> dict[str, Any]:
    """Arguments of `mm.snapshot`: every stamp, since each has a category."""
    return {
        'query': Stamps,
        'fields': {
            'photo': mm.field.image(Stamps.photo, size=64, fit='pad'),
            'photo_vector': Stamps.photo_vector,
            'caption_vector': Stamps.caption_vector,
            'speech_bands': Stamps.speech_bands,
            'series': Stamps.series,
            'category': mm.field.label(Stamps.category),
            'kind': mm.field.label(Stamps.kind),
            'rules': mm.field.labels(Stamps.rules, vocabulary=RULES),
            'language': mm.field.label(Stamps.language, vocabulary=LANGUAGES),
        },
    }

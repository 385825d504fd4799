"""A folder of loose media as rows of the demo: files that share a stem make one item. A `Source` of our own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from mmpipe.sources import Bad, Record
from mmpipe.sources.readers import short_key

ENDINGS = {
    'photo': ('.png', '.jpg', '.jpeg', '.webp', '.gif', '.bmp', '.tif', '.tiff'),
    'speech': ('.wav', '.flac', '.ogg', '.opus', '.mp3', '.m4a', '.aac'),
    'clip': ('.mp4', '.mov', '.mkv', '.webm', '.avi'),
    'document': ('.pdf', '.md', '.html'),
}
CAPTION = '.txt'
KNOWN = (CAPTION, *(ending for endings in ENDINGS.values() for ending in endings))


@dataclass(frozen=True, kw_only=True)
class MediaFolder:
    """The files below a folder; `cat.png`, `cat.wav` and `cat.txt` (its caption) are one item.

    Its key is the folder's name with a digest of its path, then the stem. Hidden files and folders are left out, and
    files whose ending is not in `ENDINGS` go to quarantine.

    Args:
        root: the folder.
        categories: names that a file's folder may have to be taken as its category.
    """

    root: Path
    categories: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The folder."""
        return str(self.root)

    def total(self) -> int | None:
        """Number of items."""
        items, others = self._items()
        return len(items) + len(others)

    def _items(self) -> tuple[dict[str, list[Path]], list[Path]]:
        """Files by stem, and those whose ending nobody knows."""
        items: dict[str, list[Path]] = {}
        others = []
        for path in sorted(self.root.rglob('*')):
            below = path.relative_to(self.root)
            if any(part.startswith('.') for part in below.parts) or not path.is_file():
                continue
            if path.suffix.lower() in KNOWN:
                items.setdefault(below.with_suffix('').as_posix(), []).append(path)
            else:
                others.append(path)
        return items, others

    def records(self, *, key: list[str], media: Mapping[str, str]) -> Iterator[Record | Bad]:
        """One record per stem. A second file for the same column goes to quarantine."""
        root = self.root.resolve()
        # Two folders may have one name, so the key names the folder by its whole path too.
        folder = f'{root.name}-{hashlib.blake2b(os.fsencode(root), digest_size=4).hexdigest()}'
        items, others = self._items()
        for path in others:
            reason = f'has no ending of a medium that the demo takes: one of {" ".join(KNOWN)} is meant'
            yield Bad(place=str(path), key=path.name, path=str(path), reason=reason)
        for stem, paths in items.items():
            item = short_key(f'{folder}/{stem}')
            files: dict[str, Path | None] = dict.fromkeys(ENDINGS)
            caption = None
            for path in paths:
                column = next((name for name, endings in ENDINGS.items() if path.suffix.lower() in endings), None)
                if column is None:
                    try:
                        caption = path.read_text(encoding='utf-8-sig').strip() or None
                    except UnicodeDecodeError:
                        reason = 'is not UTF-8: save it as UTF-8'
                        yield Bad(place=str(path), key=item, column='caption', path=str(path), reason=reason)
                elif (other := files[column]) is not None:
                    reason = f'stands for the same {column} as {other.name}: give it another name'
                    yield Bad(place=str(path), key=item, column=column, path=str(path), reason=reason)
                else:
                    files[column] = path
            category = paths[0].parent.name
            values = {
                'key': item,
                'group': f'{root.name}/{stem}',  # the split it falls into does not depend on where the folder lies
                'caption': caption,
                'category': category if category in self.categories else None,
            }
            yield Record(place=str(paths[0]), values=values, media=files, root=root)

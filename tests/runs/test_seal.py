"""A seal that is damaged itself says so, and blames no other file."""

from __future__ import annotations

import pytest

from mmpipe.errors import RunError
from mmpipe.runs.seal import FILE, check_seal, seal


def test_every_bit_of_a_seal_that_turns_is_found_and_the_seal_is_named(tmp_path):
    (tmp_path / '1').mkdir()
    folder = tmp_path / '2'
    folder.mkdir()
    (folder / 'state.json').write_text('x')
    seal(folder, {'step': 2, 'run': 'shop/0001'})
    sealed = (folder / FILE).read_bytes()
    for at, byte in enumerate(sealed):
        if chr(byte).isspace():
            continue  # layout means nothing
        for bit in range(8):
            turned = bytearray(sealed)
            turned[at] ^= 1 << bit
            (folder / FILE).write_bytes(turned)
            with pytest.raises(RunError, match=rf'(?s)damaged: {FILE} cannot be read.*from the one of step 1'):
                check_seal(folder)
    (folder / FILE).write_bytes(sealed)
    assert check_seal(folder) == {'step': 2, 'run': 'shop/0001'}


def test_a_seal_of_another_format_is_told_apart_from_a_damaged_one(tmp_path):
    (tmp_path / FILE).write_text('{"format": 1, "about": {}, "files": {}}')
    with pytest.raises(RunError, match='has format 1; this mmpipe reads format 2'):
        check_seal(tmp_path)

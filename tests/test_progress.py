"""What a user sees while a stage runs."""

from __future__ import annotations

import io
import re
from types import SimpleNamespace

import pytest

from mmpipe import progress
from mmpipe.progress import StageProgress


def test_without_a_terminal_a_stage_ends_in_one_plain_line() -> None:
    out = io.StringIO()
    show = StageProgress(out)
    with show.stage('ingest'):
        for done in range(1, 101):
            show('ingest', done, 100, 'rows')
    assert re.fullmatch(r'ingest: 100/100 rows, \d+\.\d s\n', out.getvalue())  # too short for a rate
    assert out.getvalue().count('\n') == 1
    assert '\x1b' not in out.getvalue()


def test_a_long_stage_says_how_far_it_is_with_rate_and_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(progress.time, 'monotonic', lambda: float(next(clock)))
    out = io.StringIO()
    show = StageProgress(out)
    with show.stage('ingest'):
        show('ingest', 50, 100, 'rows')
    assert out.getvalue().splitlines()[0] == 'ingest: 50/100 rows, 5.0 rows/s, 10 s left'


def test_on_a_terminal_the_line_is_live_and_the_last_one_stays() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    show = StageProgress(out)
    with show.stage('train'):
        show('train', 1, 2, 'rows')
    plain = re.sub(r'\x1b\[[0-9;?]*[a-zA-Z]', '', out.getvalue())
    assert plain != out.getvalue()
    assert plain.splitlines()[-1].startswith('train: 1/2 rows, ')


def test_what_is_said_during_a_stage_is_kept() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    for out in (Terminal(), io.StringIO()):
        show = StageProgress(out)
        with show.stage('ingest'):
            show.say('row 3: [bad] input')
        assert 'row 3: [bad] input' in out.getvalue()


def test_the_rate_of_a_second_source_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(progress, 'time', SimpleNamespace(monotonic=lambda: now))
    out = io.StringIO()
    show = StageProgress(out)
    with show.stage('ingest'):
        now = 100.0
        show('ingest', 1000, 1000, 'rows')
        show('ingest', 0, 10, 'rows')
        now = 110.0
        show('ingest', 5, 10, 'rows')
    assert out.getvalue().splitlines() == [
        'ingest: 1,000/1,000 rows, 10 rows/s',
        'ingest: 5/10 rows, 0.5 rows/s, 10 s left',
        'ingest: 5/10 rows, 0.5 rows/s, 110.0 s',
    ]


def test_seconds_of_a_stage_add_up_and_an_error_ends_it() -> None:
    show = StageProgress(io.StringIO())
    with pytest.raises(ValueError, match='stop'), show.stage('ingest'):
        raise ValueError('stop')
    with show.stage('ingest'):
        pass
    assert set(show.seconds) == {'ingest'}


def test_a_note_stands_behind_the_numbers_until_the_stage_ends() -> None:
    out = io.StringIO()
    show = StageProgress(out)
    with show.stage('train'):
        show.note('3 % waiting for data')
        show('train', 1, 2, 'rows')
    with show.stage('evaluate'):
        show('evaluate', 1, 2, 'rows')
    first, second = out.getvalue().splitlines()[-2:]
    assert '1/2 rows, 3 % waiting for data' in first
    assert 'waiting' not in second

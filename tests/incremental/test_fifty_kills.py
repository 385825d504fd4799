"""SIGKILLs at random moments of ingest, apply, snapshot and collection: what is lost, and what is done again."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import groupby, product
from pathlib import Path
from typing import Any

import calls
import logged
import pixeltable as pxt
import pytest
from forked import Ended, Forker, Job
from logged import Source
from snapshots import content

import mmpipe as mm
from mmpipe.ledger import Book
from mmpipe.runs import create_run
from mmpipe.shards import Block, Field, collect, open_snapshot, write_block
from mmpipe.shards.manifest import files_of, latest_id
from mmpipe.snapshots import root_lock

OPERATIONS = ('ingest', 'apply', 'snapshot', 'gc')
CHUNK = {'ingest': 8, 'apply': 16, 'snapshot': 0, 'gc': 0}  # rows, in strict rounds
LARGEST = 64  # rows that an apply takes at once in any round: 32, then 64, then what is left of 160
PAUSE_S = 0.003  # per call of a function


@dataclass
class Kill:
    """What one kill did.

    Args:
        operation: of which.
        strict: whether the ledger was stored after every chunk, as it is with slow work.
        hit: the process was still working.
        first: number of the first call that the process noted in its round.
        end: number of the last one, plus one.
        again: rows that it had worked at, had not recorded, and of which anything was computed a second time.
    """

    operation: str
    strict: bool
    hit: bool
    first: int
    end: int
    again: set[str] = field(default_factory=set)


@dataclass
class World:
    """One catalog with everything that is done to it, and what it should hold; thorough: with a snapshot each time."""

    directory: str
    source: Source
    root: Path
    runs: Path
    forker: Forker
    draw: random.Random
    thorough: bool
    factor: int = 2
    trained: tuple[str, dict] = ('', {})
    lasts: dict[tuple[str, bool], float] = field(default_factory=dict)
    rounds: int = 0

    @property
    def calls(self) -> Path:
        return self.root.parent / f'calls-{self.rounds}.jsonl'

    def begin(self, rows: int) -> None:
        """Tables with rows, a snapshot of them, and a run that was trained on it."""
        logged.set_factor(self.factor)
        mm.apply(mm.plan(logged.declared(self.directory), self.directory))
        self.source.add(rows, self.draw)
        mm.ingest(f'{self.directory}/things', mm.sources.rows(self.source.write()))
        snapshot = self.freeze()
        create_run('shop', {'snapshot': {'id': snapshot.id, 'root': str(self.root)}}, runs=self.runs)
        self.trained = (snapshot.id, content(snapshot))

    def advance(self) -> None:
        """A new generation of the source: rows went, came and changed."""
        share = len(self.source.rows) // 8
        self.source.drop(share)
        self.source.add(share, self.draw)
        self.source.change(2 * share, self.draw)
        self.source.write()

    def round(self, operation: str, *, kills: int, strict: bool, at: int = 0) -> list[Kill]:
        """Something to do, processes killed at it one after the other, a look at what there is; then the rest of it.

        At random moments; or `at` as many calls.
        """
        self.rounds += 1
        before, factor = dict(self.source.rows), self.factor
        if operation in ('ingest', 'snapshot'):
            self.advance()
        if operation == 'snapshot':
            mm.ingest(f'{self.directory}/things', mm.sources.rows(self.source.manifest), prune=True)
            before = self.source.rows
        if operation == 'apply':
            self.factor += 1
        if operation == 'gc':
            self.litter()
        pointer = latest_id(self.root)
        held = content(open_snapshot(self.root))
        made = []
        for _ in range(kills or 1):
            after = self.draw.uniform(0, self.lasts[operation, strict]) if kills and not at else None
            begun = len(calls.noted(self.calls))
            ended = self.child(operation, strict, after, at)
            assert not ended.error, f'{ended.error}: {ended.message}'
            if not ended.killed and not made:  # a whole one: what it takes now, other work on the machine counted
                self.lasts[operation, strict] = ended.seconds
            logged.set_factor(self.factor)
            self.check_rows(before, factor)
            self.check_shards(pointer, held)
            made.append(Kill(operation, strict, ended.killed, begun, len(calls.noted(self.calls))))
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(calls.FILE, str(self.calls))
            self.finish()
            if self.thorough:
                self.freeze()
        self.account(made)
        return made if kills else []

    def child(self, operation: str, strict: bool, after: float | None, at: int) -> Ended:
        work: dict[str, dict[str, Any]] = {
            'ingest': {'directory': self.directory, 'manifest': str(self.source.manifest)},
            'apply': {'directory': self.directory},
            'snapshot': {'directory': self.directory, 'root': str(self.root)},
            'gc': {'root': str(self.root), 'runs': str(self.runs)},
        }
        name = {'ingest': 'ingesting', 'apply': 'applying', 'snapshot': 'snapshotting', 'gc': 'collecting'}[operation]
        job = Job(
            work=f'logged:{name}', args={**work[operation], 'factor': self.factor, 'strict': strict},
            env={calls.FILE: str(self.calls), calls.PAUSE: str(PAUSE_S)}, kill_after=after, kill_at=at,
        )  # fmt: skip
        return self.forker.run(job)[0]

    def litter(self) -> None:
        """Shards of writers that never came to their commit."""
        price = Field(name='price', kind='scalar', dtype='float32')
        for number in range(40):
            rows = Block(keys=['a'], columns={'price': [100.0 * self.rounds + number]})
            write_block(self.root, [price], rows, index=0)

    def check_rows(self, before: dict, factor: int) -> None:
        """Every row is whole, as before or as after; none is there twice, none that was to stay is missing."""
        found, after = logged.holds(self.directory), self.source.rows
        assert before.keys() & after.keys() <= found['things'].keys() <= before.keys() | after.keys()
        states = [logged.should_hold(rows, each) for rows in (before, after) for each in {factor, self.factor}]
        for table, rows in found.items():
            for key, row in rows.items():
                assert row in [state[table][key] for state in states if key in state[table]], (table, key)
        for key, row in found['things'].items():  # the rows of views are of the same generation
            mine = [state for state in states if state['things'].get(key) == row]
            assert any(state['large'].get(key, '') == found['large'].get(key, '') for state in mine)
            assert any(_of(key, state['words']) == _of(key, found['words']) for state in mine)

    def check_shards(self, pointer: str, held: dict) -> None:
        """The snapshot of before opens and is whole, and so is that of a run; or else the new one stands."""
        opened = open_snapshot(self.root)
        opened.verify()
        if opened.id == pointer:
            assert content(opened) == held
        identity, trained = self.trained
        if identity:
            open_snapshot(self.root, identity).verify()
            assert content(open_snapshot(self.root, identity)) == trained

    def finish(self) -> None:
        """Do what is left to do, as anyone would, and see that the tables hold what they should."""
        table = pxt.get_table(f'{self.directory}/things')
        mm.ingest(table, mm.sources.rows(self.source.manifest), prune=True)
        Tables = logged.declared(self.directory)
        mm.apply(mm.plan(Tables, self.directory))
        assert not mm.plan(Tables, self.directory).pending
        assert logged.holds(self.directory) == logged.should_hold(self.source.rows, self.factor)
        assert mm.quarantined(table) == []
        assert all(state.fresh == len(self.source.rows) for state in Book(table).states() if state.table.endswith('gs'))

    def freeze(self) -> Any:
        """Make a snapshot, and see that it is as one from scratch."""
        table = pxt.get_table(f'{self.directory}/things')
        assert mm.ingest(table, mm.sources.rows(self.source.manifest), prune=True).written == 0
        fields = logged.fields_of(self.directory)
        snapshot = mm.snapshot(table, root=self.root, fields=fields).snapshot
        scratch = mm.snapshot(table, root=self.root.parent / f'scratch-{self.rounds}', fields=fields).snapshot
        assert content(snapshot) == content(scratch)
        assert open_snapshot(self.root).id == snapshot.id
        snapshot.verify()
        return snapshot

    def clean(self) -> None:
        """A last collection leaves what the snapshot and the run need, and nothing else."""
        with root_lock(self.root):
            collect(self.root, keep=0, runs=self.runs, grace_s=0)
        needed = set().union(*(files_of(self.root, each) for each in (latest_id(self.root), self.trained[0])))
        assert {p.relative_to(self.root).as_posix() for p in self.root.rglob('*') if p.is_file()} == needed | {'LATEST'}
        self.check_shards(latest_id(self.root), content(open_snapshot(self.root)))

    def account(self, kills: list[Kill]) -> None:
        """See what was computed twice: only rows whose making had not been recorded when a process died."""
        noted = calls.noted(self.calls)
        for kill in kills:
            window = noted[kill.first : kill.end]
            recorded = max((place for place, call in enumerate(window) if call[0] == 'recorded'), default=-1)
            lost = {call[1] for call in window[recorded + 1 :] if call[0] != 'recorded'} if kill.hit else set()
            kill.again = {call[1] for call in set(noted[: kill.end]) & set(noted[kill.end :]) if call[1:]} & lost
        again = Counter(call for call in noted if call[0] != 'recorded')
        assert {call[1] for call, count in again.items() if count > 1} <= set().union(*(each.again for each in kills))
        for kill in kills:
            most = CHUNK[kill.operation] if kill.strict else LARGEST
            assert len(kill.again) <= most, f'{kill.operation}: {len(kill.again)} rows'
        assert max(again.values(), default=0) <= 1 + sum(kill.hit for kill in kills)


def _of(key: str, words: dict) -> dict:
    return {place: word for (owner, place), word in words.items() if owner == key}


def kill(world: World, operations: list[str]) -> list[Kill]:
    """Measure each operation once, then a kill for each of the list; equal neighbours are killed in a row."""
    made: list[Kill] = []
    counts: Counter[str] = Counter()
    for operation, same in groupby(operations):
        strict = counts[operation] % 2 == 0
        counts[operation] += 1
        if (operation, strict) not in world.lasts:
            world.round(operation, kills=0, strict=strict)
        made += world.round(operation, kills=len(list(same)), strict=strict)
    return made


def make(directory: str, tmp_path: Path, forker: Forker, *, rows: int, seed: int, thorough: bool) -> World:
    (tmp_path / 'source').mkdir()
    world = World(
        directory=directory, source=Source(tmp_path / 'source'), root=tmp_path / 'shards', runs=tmp_path / 'runs',
        forker=forker, draw=random.Random(seed), thorough=thorough,
    )  # fmt: skip
    world.begin(rows)
    return world


def test_after_a_kill_nothing_is_lost_or_there_twice_and_a_chunk_at_most_is_made_again(
    directory: str, tmp_path: Path, forker: Forker
) -> None:
    world = make(directory, tmp_path, forker, rows=120, seed=1, thorough=False)
    ingest, apply = [
        *world.round('ingest', kills=1, strict=True, at=60),
        *world.round('apply', kills=1, strict=False, at=310),  # in its third chunk, of 24 rows
    ]
    world.freeze()
    world.clean()
    assert ingest.hit
    assert apply.hit
    assert 0 < len(apply.again) <= 24


@pytest.mark.hardening
@pytest.mark.timeout(1800)
def test_fifty_kills(directory: str, tmp_path: Path, forker: Forker) -> None:
    started = time.monotonic()
    world = make(directory, tmp_path, forker, rows=160, seed=2, thorough=True)
    operations = [OPERATIONS[i % 4] for i in range(50)]
    world.draw.shuffle(operations)
    kills = kill(world, operations)
    world.clean()
    print(f'\n{len(kills)} kills in {time.monotonic() - started:.0f} s; each operation alone takes', end=' ')
    print(', '.join(f'{name} {seconds:.2f} s' for (name, strict), seconds in world.lasts.items() if not strict))
    for name, strict in product(OPERATIONS, (True, False)):
        mine = [each for each in kills if (each.operation, each.strict) == (name, strict)]
        again = [len(each.again) for each in mine if each.hit]
        how = 'in small chunks' if strict else 'as by default'
        print(f'{name:<9} {how:<26} {len(mine):>2} kills, {len(again):>2} at work; rows made again: {again}')
    assert len(kills) == 50
    assert sum(each.hit for each in kills) >= 30

"""SIGKILLs at random moments of ingest, apply, snapshot and collection: what is lost, and what is done again."""

from __future__ import annotations

import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
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
STRICT_CHUNK = {'ingest': 8, 'apply': 16, 'snapshot': 0, 'gc': 0}  # rows
PAUSE_S = 0.003  # per call of a function


@dataclass
class Kill:
    """What one kill did.

    Args:
        operation: of which.
        strict: whether the ledger was stored after every chunk, as it is with slow work.
        hit: the process was still working.
        after: moment of the kill, in seconds.
        again: rows of which anything was computed a second time.
        calls: calls that were made a second time.
    """

    operation: str
    strict: bool
    hit: bool
    after: float
    again: int
    calls: int


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

    def round(self, operation: str, *, kill: bool, strict: bool) -> Kill:
        """Something to do, a process that is killed at it, a look at what there is; then the rest, and another look."""
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
        after = self.draw.uniform(0, self.lasts[operation, strict]) if kill else None
        ended = self.child(operation, strict, after)
        assert not ended.error, f'{ended.error}: {ended.message}'
        if not kill:
            self.lasts[operation, strict] = ended.seconds
        done = calls.noted(self.calls)
        logged.set_factor(self.factor)
        self.check_rows(before, factor)
        self.check_shards(pointer, held)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(calls.FILE, str(self.calls))
            self.finish()
            if self.thorough:
                self.freeze()
        return self.account(operation, strict, after, ended, done)

    def child(self, operation: str, strict: bool, after: float | None) -> Ended:
        work: dict[str, dict[str, Any]] = {
            'ingest': {'directory': self.directory, 'manifest': str(self.source.manifest)},
            'apply': {'directory': self.directory},
            'snapshot': {'directory': self.directory, 'root': str(self.root)},
            'gc': {'root': str(self.root), 'runs': str(self.runs)},
        }
        name = {'ingest': 'ingesting', 'apply': 'applying', 'snapshot': 'snapshotting', 'gc': 'collecting'}[operation]
        job = Job(
            work=f'logged:{name}', args={**work[operation], 'factor': self.factor, 'strict': strict},
            env={calls.FILE: str(self.calls), calls.PAUSE: str(PAUSE_S)}, kill_after=after,
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

    def account(self, operation: str, strict: bool, after: float | None, ended: Ended, done: list[tuple]) -> Kill:
        """See what was computed twice: only rows whose making had not been recorded when the process died."""
        all_calls = Counter(call for call in calls.noted(self.calls) if call[0] != 'recorded')
        twice = {call: count - 1 for call, count in all_calls.items() if count > 1}
        rows = {call[1] for call in twice}
        recorded = max((place for place, call in enumerate(done) if call[0] == 'recorded'), default=-1)
        assert rows <= {call[1] for call in done[recorded + 1 :] if call[0] != 'recorded'}
        if strict:
            assert len(rows) <= STRICT_CHUNK[operation], f'{operation}: {len(rows)} rows were made again'
            assert set(twice.values()) <= {1}
        if not ended.killed:
            assert not twice
        return Kill(operation, strict, ended.killed, after or 0.0, len(rows), sum(twice.values()))


def _of(key: str, words: dict) -> dict:
    return {place: word for (owner, place), word in words.items() if owner == key}


def kill(world: World, operations: list[str]) -> list[Kill]:
    """Measure each operation once, then a kill for each of the list."""
    chosen = [(name, operations[:place].count(name) % 2 == 0) for place, name in enumerate(operations)]
    for operation, strict in dict.fromkeys(chosen):
        if (operation, strict) not in world.lasts:
            world.round(operation, kill=False, strict=strict)
    return [world.round(name, kill=True, strict=strict) for name, strict in chosen]


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
    world = make(directory, tmp_path, forker, rows=40, seed=1, thorough=False)
    world.lasts = {('ingest', True): 0.8, ('apply', True): 0.5}  # about
    kills = kill(world, ['ingest', 'apply'])
    world.freeze()
    world.clean()
    assert [each.operation for each in kills] == ['ingest', 'apply']


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
    for name in OPERATIONS:
        mine = [each for each in kills if each.operation == name]
        for strict in (True, False):
            some = [each for each in mine if each.strict == strict]
            made = [each.again for each in some if each.hit]
            print(
                f'{name:<9} {"recorded after each chunk" if strict else "as by default":<26} {len(some):>2} kills, '
                f'{len(made):>2} found it working; rows made again: {made}, {mean(made or [0]):.1f} on average; '
                f'calls: {[each.calls for each in some if each.hit]}'
            )
    assert len(kills) == 50
    assert sum(each.hit for each in kills) >= 30

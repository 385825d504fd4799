"""Two processes at work on one catalog at once: one waits for the other or is refused, and the end is as one by one."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import calls
import logged
import pixeltable as pxt
import pytest
from forked import Ended, Forker, Job
from logged import Source
from schemas import write_csv
from snapshots import content, files

import mmpipe as mm
from mmpipe.shards import collect, open_snapshot

MOVED = 'changed since this plan was made. Make a new one'
REFUSALS = {
    'PlanError': MOVED,
    'BusyError': 'another process has been writing',
    'SnapshotError': 'attempts to read it. Pause the writer',
    'SourceChangedError': 'Ingest the changed files again',
}
CHUNK = 8


@dataclass
class Shop:
    """A catalog, its source and its snapshots, and what happened to it."""

    directory: str
    source: Source
    root: Path
    forker: Forker
    draw: random.Random
    factor: int = 2
    seen: Counter = field(default_factory=Counter)
    made: int = 0

    @property
    def things(self) -> str:
        return f'{self.directory}/things'

    def both(self, one: Job, two: Job, *, delay: float = 0.0) -> tuple[Ended, Ended]:
        """Run two jobs at once; each comes through or is refused in words that say what to do."""
        self.made += 1
        noted = self.root.parent / f'calls-{self.made}.jsonl'
        env = {calls.FILE: str(noted), calls.PAUSE: '0.002'}
        jobs = [
            replace(job, env=env, args={**job.args, 'factor': self.factor}, delay=each)
            for job, each in ((one, 0.0), (two, delay))
        ]
        ended = self.forker.run(*jobs)
        for each in ended:
            assert not each.killed
            assert each.error in ('', *REFUSALS), f'{each.error}: {each.message}'
            assert not each.error or REFUSALS[each.error] in each.message, each.message
            self.seen[each.error or 'done'] += 1
        logged.set_factor(self.factor)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(calls.FILE, str(noted))
            self.finish()
        begun = Counter(call for call in calls.noted(noted) if call[0] != 'recorded')
        assert not {call: count for call, count in begun.items() if count > 1}
        return ended[0], ended[1]

    def finish(self) -> None:
        """Do again what was refused; then all is as if it had been done one by one."""
        mm.ingest(self.things, mm.sources.rows(self.source.write()))
        Tables = logged.declared(self.directory)
        mm.apply(mm.plan(Tables, self.directory))
        assert not mm.plan(Tables, self.directory).pending
        assert logged.holds(self.directory) == logged.should_hold(self.source.rows, self.factor)
        assert mm.quarantined(self.things) == []

    def freeze(self) -> None:
        fields = logged.fields_of(self.directory)
        report = mm.snapshot(pxt.get_table(self.things), root=self.root, fields=fields)
        scratch = mm.snapshot(pxt.get_table(self.things), root=self.root.parent / f'scratch-{self.made}', fields=fields)
        assert content(report.snapshot) == content(scratch.snapshot)

    @property
    def apply(self) -> Job:
        return Job(work='logged:applying', args={'directory': self.directory})

    @property
    def snapshot(self) -> Job:
        return Job(work='logged:snapshotting', args={'directory': self.directory, 'root': str(self.root)})

    def ingest(self, manifest: Path | None = None) -> Job:
        args = {'directory': self.directory, 'manifest': str(manifest or self.source.manifest), 'prune': False}
        return Job(work='logged:ingesting', args=args)


def two_applies(shop: Shop, delay: float) -> None:
    """The same plan twice: one makes the rows; the other is told that the catalog moved, or has nothing left to do."""
    shop.factor += 1
    one, two = shop.both(shop.apply, shop.apply, delay=delay)
    assert '' in (one.error, two.error)


def ingest_and_apply(shop: Shop, delay: float) -> None:
    """New rows are made by the new code whoever comes first, old ones once by the apply."""
    shop.factor += 1
    shop.source.add(16, shop.draw)
    shop.source.change(8, shop.draw)
    shop.source.write()
    one, _ = shop.both(shop.ingest(), shop.apply, delay=delay)
    assert not one.error


def two_ingests(shop: Shop, delay: float) -> None:
    """Rows that are in both manifests go in once."""
    before = len(shop.source.rows)
    shop.source.add(24, shop.draw)
    shop.source.change(8, shop.draw)
    shop.source.write()
    rows = manifest_rows(shop.source)
    first = write_csv(shop.source.folder / 'first.csv', rows[: before + 16])
    second = write_csv(shop.source.folder / 'second.csv', rows[8:])
    one, two = shop.both(shop.ingest(first), shop.ingest(second), delay=delay)
    inserted = [int(each.value.split(': ')[1].split(' new')[0]) for each in (one, two)]
    assert sum(inserted) == 24


def two_snapshots(shop: Shop, delay: float) -> None:
    """One of them writes; the other finds nothing left to write."""
    shop.source.add(8, shop.draw)
    shop.source.change(8, shop.draw)
    mm.ingest(shop.things, mm.sources.rows(shop.source.write()))
    one, two = shop.both(shop.snapshot, shop.snapshot, delay=delay)
    assert one.value['snapshot'] == two.value['snapshot']
    assert sorted([bool(one.value['written']), bool(two.value['written'])]) == [False, True]
    whole = collect(shop.root, keep=1000, grace_s=0, runs=shop.root.parent, dry_run=True)
    assert (whole.files, whole.removed) == ((), ())  # no file that nothing refers to
    before = files(shop.root)
    shop.freeze()
    assert files(shop.root) == before


def snapshot_and_ingest(shop: Shop, delay: float) -> None:
    """A snapshot holds the rows of one version of the table: whole chunks, as they were at one moment."""
    shop.source.add(3 * CHUNK, shop.draw)
    shop.source.write()
    one, two = shop.both(shop.snapshot, shop.ingest(), delay=delay)
    assert not two.error
    if not one.error:
        snapshot = open_snapshot(shop.root, one.value['snapshot'])
        assert content(snapshot).keys() == keys_at(shop.things, one.value['versions'][shop.things][0][1])
    shop.freeze()


def keys_at(path: str, version: int) -> set[str]:
    """Keys of a table as it was at a version."""
    table = pxt.get_table(f'{path}:{version}')
    return {row['key'] for row in table.select(table.key).collect()}


def manifest_rows(source: Source) -> list[dict[str, Any]]:
    """The rows of a source as its manifest has them."""
    return [
        {'key': key, 'x': x, 'kind': kind, 'text': text, 'photo': f'{key}.png'}
        for key, (x, kind, text, _) in source.rows.items()
    ]


PAIRS: tuple[Callable[[Shop, float], None], ...] = (
    two_applies, ingest_and_apply, two_ingests, two_snapshots, snapshot_and_ingest,
)  # fmt: skip


@pytest.fixture
def shop(directory: str, tmp_path: Path, forker: Forker) -> Shop:
    logged.set_factor(2)
    (tmp_path / 'source').mkdir()
    shop = Shop(directory, Source(tmp_path / 'source'), tmp_path / 'shards', forker, random.Random(3))
    mm.apply(mm.plan(logged.declared(directory), directory))
    shop.source.add(24, shop.draw)
    mm.ingest(shop.things, mm.sources.rows(shop.source.write()))
    mm.snapshot(pxt.get_table(shop.things), root=shop.root, fields=logged.fields_of(directory))
    return shop


@pytest.mark.slow
def test_two_at_once_end_as_one_after_the_other(shop: Shop) -> None:
    for pair in (two_applies, snapshot_and_ingest):  # the others below
        pair(shop, 0.0)


@pytest.mark.hardening
@pytest.mark.timeout(1200)
def test_forty_pairs_at_once_end_as_one_after_the_other(shop: Shop) -> None:
    shop.source.add(60, shop.draw)
    shop.finish()
    for pair in PAIRS:
        seen = shop.seen.copy()
        for _ in range(8):
            pair(shop, shop.draw.choice([0.0, shop.draw.uniform(0, 1)]))
        print(f'\n{pair.__name__}: {dict(shop.seen - seen)}')


@pytest.mark.hardening
@pytest.mark.parametrize('attempt', range(5))
def test_two_that_come_first_to_a_new_catalog_both_keep_their_records(
    pixeltable_home: Path, tmp_path: Path, attempt: int
) -> None:
    """Both want to make the tables of the ledger and the quarantine."""
    rows = [{'key': f'k{i}', 'x': i, 'kind': 'cup', 'text': 'a b', 'photo': None} for i in range(1, 9)]
    bad = [{'key': 'bad', 'x': 'no number', 'kind': 'cup', 'text': '', 'photo': None}]
    manifest = write_csv(tmp_path / 'things.csv', [*rows, *bad])
    with Forker(PIXELTABLE_DB=f'first{attempt}') as forker:
        for name in 'ab':
            made = forker.run(Job(work='logged:making', args={'directory': name}))[0]
            assert not made.error, made.message
        jobs = [
            Job(
                work='logged:ingesting',
                args={'directory': name, 'manifest': str(manifest), 'factor': 2, 'prune': False},
            )
            for name in 'ab'
        ]
        ended = forker.run(*jobs)
        assert [(each.error, each.message) for each in ended] == [('', ''), ('', '')]
        found = [forker.run(Job(work='logged:looking', args={'directory': name}))[0].value for name in 'ab']
    assert found == [{'rows': 8, 'pending': False, 'quarantined': 1}] * 2

"""What the oracle takes for a new process is one: a real one, started after the edit, plans and computes the same."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pixeltable as pxt
import pytest
from edited_project import PACKAGE, Code, Project, project
from schemas import write_csv

import mmpipe as mm

pytestmark = pytest.mark.slow
PLAN = f"""
import json, sys
sys.dont_write_bytecode = True
sys.path[:0] = json.loads(sys.argv[1])
import mmpipe as mm
from mmpipe.functions import counts
from {PACKAGE}.schema import declared
planned = mm.plan(declared(), sys.argv[2])
if sys.argv[3] == 'apply':
    mm.apply(planned, allow_destructive=True)
print(json.dumps([planned.to_json()['changes'], counts()]))
"""


def elsewhere(edited: Project, directory: str, action: str) -> list:
    """The plan of a new process, and the calls it made."""
    path = json.dumps([str(edited.folder.parent), str(Path(mm.__file__).parents[1])])
    command = [sys.executable, '-c', PLAN, path, directory, action]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=edited.folder.parent)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    'after',
    [
        Code(looks=2),
        Code(deep=1, looks=1),
        Code(default=2, by=2, weigh=1),
        Code(pieces=1, plus=1, step=2),
    ],
)
def test_a_new_process_plans_and_computes_what_the_oracle_does(directory: str, tmp_path: Path, after: Code) -> None:
    with project(tmp_path) as edited:
        mm.apply(mm.plan(edited.declared(), directory))
        rows = [{'key': f'k{x}', 'x': x, 'y': 1, 'split': 'train'} for x in range(6)]
        mm.ingest(f'{directory}/things', mm.sources.rows(write_csv(tmp_path / 'a.csv', rows)))
        before = edited.code
        edited.edit(after)
        here = mm.plan(edited.declared(), directory).to_json()['changes']
        there, _ = elsewhere(edited, directory, 'plan')
        assert there == here
        assert bool(here) == (replace(after, looks=before.looks) != before)
        _, calls = elsewhere(edited, directory, 'apply')
        assert bool(calls) == bool(here)
        edited.edit(replace(after, looks=0))  # and what it recorded is what this one finds
        assert not mm.plan(edited.declared(), directory).pending
        pxt.drop_table(f'{directory}/things', force=True)  # while its functions can be found

"""Multimodal data pipelines: Pixeltable tables in, trained PyTorch models out, at a cost proportional to the change.

    declare ──► plan/apply ──► ingest ──► snapshot ──► load ──► train ──► transfer
    pixeltable                            shards       torch    runs

The store side (`plan`, `apply`, `sources`, `ingest`, `functions`, `field`, `snapshot`) never imports torch, the torch
side (`open_snapshot`, `DataLoader`, `MultitaskModel`, `Trainer`, ...) never imports Pixeltable; they share shards and
runs on disk.
Every name is imported on first use, so that `import mmpipe` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = '0.1.0'

# Public name to the module that has it; None where the name is itself a submodule.
_WHERE: dict[str, str | None] = {
    # store side
    'Plan': 'mmpipe.plans',
    'plan': 'mmpipe.plans',
    'apply': 'mmpipe.plans',
    'RayEngine': 'mmpipe.plans',
    'retry': 'mmpipe.plans',
    'sources': None,
    'ingest': 'mmpipe.sources',
    'IngestReport': 'mmpipe.sources',
    'quarantined': 'mmpipe.sources',
    'functions': None,
    'field': 'mmpipe.snapshots',
    'snapshot': 'mmpipe.snapshots',
    'SnapshotReport': 'mmpipe.snapshots',
    'stratify': 'mmpipe.splits',
    'StratifyReport': 'mmpipe.splits',
    'status': 'mmpipe.overview',
    # shared
    'Fingerprint': 'mmpipe.fingerprints',
    'fingerprint': 'mmpipe.fingerprints',
    'loads': 'mmpipe.fingerprints',
    'Snapshot': 'mmpipe.shards',
    'Rows': 'mmpipe.shards',
    'open_snapshot': 'mmpipe.shards',
    'log': 'mmpipe.shards',
    'SnapshotDiff': 'mmpipe.shards',
    'LeakReport': 'mmpipe.leaks',
    'check_leaks': 'mmpipe.leaks',
    'Run': 'mmpipe.runs',
    'runs': None,
    'open_run': 'mmpipe.runs',
    'lineage': 'mmpipe.runs',
    'MmpipeError': 'mmpipe.errors',
    # torch side
    'ShardDataset': 'mmpipe.data',
    'DataLoader': 'mmpipe.data',
    'collate': 'mmpipe.data.collate',
    'epoch_order': 'mmpipe.data',
    'transforms': 'mmpipe.data',
    'sampling': 'mmpipe.data',
    'decode': None,
    'doctor': 'mmpipe.diagnosis',
    'encoders': 'mmpipe.models',
    'initialise': 'mmpipe.models',
    'MultitaskModel': 'mmpipe.models',
    'Lora': 'mmpipe.models',
    'merge_lora': 'mmpipe.models',
    'BareModel': 'mmpipe.models',
    'classification': 'mmpipe.train',
    'multilabel': 'mmpipe.train',
    'regression': 'mmpipe.train',
    'Parallel': 'mmpipe.train',
    'Trainer': 'mmpipe.train',
    'process_group': 'mmpipe.train',
    'evaluate': 'mmpipe.train',
    'find_max_batch': 'mmpipe.train',
    'predict': 'mmpipe.train',
    'report': 'mmpipe.evaluation',
    'Report': 'mmpipe.evaluation',
    'calibrate': 'mmpipe.evaluation',
    'load_model': 'mmpipe.train',
    'resume_run': 'mmpipe.train',
    'transfer': 'mmpipe.train',
    'embed': 'mmpipe.train',
    'finetune': 'mmpipe.train',
    'linear_probe': 'mmpipe.train',
    'continue_training': 'mmpipe.train',
    'tune': 'mmpipe.tuning',
    'federated': None,
}

__all__ = [*_WHERE, '__version__']

if TYPE_CHECKING:
    from mmpipe import decode as decode
    from mmpipe import federated as federated
    from mmpipe import functions as functions
    from mmpipe import runs as runs
    from mmpipe import sources as sources
    from mmpipe.data import DataLoader as DataLoader
    from mmpipe.data import ShardDataset as ShardDataset
    from mmpipe.data import epoch_order as epoch_order
    from mmpipe.data import sampling as sampling
    from mmpipe.data import transforms as transforms
    from mmpipe.data.collate import collate as collate
    from mmpipe.diagnosis import doctor as doctor
    from mmpipe.errors import MmpipeError as MmpipeError
    from mmpipe.evaluation import Report as Report
    from mmpipe.evaluation import calibrate as calibrate
    from mmpipe.evaluation import report as report
    from mmpipe.fingerprints import Fingerprint as Fingerprint
    from mmpipe.fingerprints import fingerprint as fingerprint
    from mmpipe.fingerprints import loads as loads
    from mmpipe.leaks import LeakReport as LeakReport
    from mmpipe.leaks import check_leaks as check_leaks
    from mmpipe.models import BareModel as BareModel
    from mmpipe.models import Lora as Lora
    from mmpipe.models import MultitaskModel as MultitaskModel
    from mmpipe.models import encoders as encoders
    from mmpipe.models import initialise as initialise
    from mmpipe.models import merge_lora as merge_lora
    from mmpipe.overview import status as status
    from mmpipe.plans import Plan as Plan
    from mmpipe.plans import RayEngine as RayEngine
    from mmpipe.plans import apply as apply
    from mmpipe.plans import plan as plan
    from mmpipe.plans import retry as retry
    from mmpipe.runs import Run as Run
    from mmpipe.runs import lineage as lineage
    from mmpipe.runs import open_run as open_run
    from mmpipe.shards import Rows as Rows
    from mmpipe.shards import Snapshot as Snapshot
    from mmpipe.shards import SnapshotDiff as SnapshotDiff
    from mmpipe.shards import log as log
    from mmpipe.shards import open_snapshot as open_snapshot
    from mmpipe.snapshots import SnapshotReport as SnapshotReport
    from mmpipe.snapshots import field as field
    from mmpipe.snapshots import snapshot as snapshot
    from mmpipe.sources import IngestReport as IngestReport
    from mmpipe.sources import ingest as ingest
    from mmpipe.sources import quarantined as quarantined
    from mmpipe.splits import StratifyReport as StratifyReport
    from mmpipe.splits import stratify as stratify
    from mmpipe.train import Parallel as Parallel
    from mmpipe.train import Trainer as Trainer
    from mmpipe.train import classification as classification
    from mmpipe.train import continue_training as continue_training
    from mmpipe.train import finetune as finetune
    from mmpipe.train import linear_probe as linear_probe
    from mmpipe.train import load_model as load_model
    from mmpipe.train import multilabel as multilabel
    from mmpipe.train import predict as predict
    from mmpipe.train import process_group as process_group
    from mmpipe.train import regression as regression
    from mmpipe.train import resume_run as resume_run
    from mmpipe.train import transfer as transfer
    from mmpipe.train.embed import embed as embed
    from mmpipe.train.evaluate import evaluate as evaluate
    from mmpipe.train.max_batch import find_max_batch as find_max_batch
    from mmpipe.tuning.tune import tune as tune


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f'module mmpipe has no attribute {name!r}')
    where = _WHERE[name]
    value = (
        importlib.import_module(f'mmpipe.{name}') if where is None else getattr(importlib.import_module(where), name)
    )
    globals()[name] = value  # also over a submodule of the same name, which importing it has just put here
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

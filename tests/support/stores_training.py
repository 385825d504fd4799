"""A training node: knows the URL of a root, and nothing of tables. Run by `stores_catalog.py`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

TABLES = ('pixeltable', 'psycopg', 'sqlalchemy')


class _NotInstalled:
    """Refuses to find what a training node does not have."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name.partition('.')[0] in TABLES:
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)


def build(kinds: int) -> Any:
    """Two tasks over photos and grey levels."""
    import mmpipe as mm

    encoders = {'grey': mm.encoders.vector(1, 8), 'x': mm.encoders.vector(1, 8)}
    return mm.MultitaskModel(
        encoders=encoders, tasks=[mm.classification('kind', kinds), mm.regression('made')], hidden=8
    )


def training(root: str, runs: str, *, epochs: int = 3, name: str = 'shop', snapshot: str | None = None,
             pause: float = 0.0) -> Callable[[], dict[str, Any]]:  # fmt: skip
    """Open the current snapshot, or the one given; train on it when the work is called, and say what was read."""
    sys.meta_path.insert(0, _NotInstalled())  # type: ignore[arg-type]
    import time

    import torch

    import mmpipe as mm
    from mmpipe.train import Callback

    ranks = int(os.environ.get('WORLD_SIZE', '1'))
    if ranks > 1:
        torch.distributed.init_process_group('gloo')
    frozen = mm.open_snapshot(root, snapshot)

    class Slow(Callback):
        def on_losses(self, run: Any, step: int, losses: Any) -> None:
            time.sleep(pause)

    def work() -> dict[str, Any]:
        train = mm.DataLoader(frozen.split('train'), batch_size=16 // ranks, seed=0, device='cpu')
        val = mm.DataLoader(frozen.split('val'), batch_size=8, device='cpu')
        trainer = mm.Trainer(epochs=epochs, runs=runs, callbacks=[Slow()], log_every=1)
        run = trainer.fit(
            build, train, val, args={'kinds': len(frozen.fields['kind'].vocabulary)}, name=name, resume='auto'
        )
        keys = [key for split in frozen.splits for key in frozen.split(split).keys.tolist()]
        if ranks > 1:
            torch.distributed.destroy_process_group()
        return {
            'status': run.status, 'run': run.id, 'snapshot': run.snapshot, 'keys': keys,
            'train_rows': len(run.train_rows()), 'steps': max(line['step'] for line in run.history()),
            'imported': [module for module in TABLES if module in sys.modules], 'path': str(run.path),
        }  # fmt: skip

    return work

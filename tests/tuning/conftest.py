from __future__ import annotations

import sys
from pathlib import Path

import torch

SUPPORT = str(Path(__file__).parents[1] / 'support')
if SUPPORT not in sys.path:  # test folders are no packages, so what they share is put on the path
    sys.path.insert(0, SUPPORT)

torch.set_num_threads(1)

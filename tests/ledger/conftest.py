from __future__ import annotations

import sys
from pathlib import Path

for folder in ('support', 'functions'):  # test folders are no packages, so what they share is put on the path
    if str(Path(__file__).parents[1] / folder) not in sys.path:
        sys.path.insert(0, str(Path(__file__).parents[1] / folder))

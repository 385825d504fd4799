"""Tuning: a search for settings with Optuna, whose trials are runs.

tune ── space     what is searched, checked against the trainer and the function before the first trial
     ── goals     what is optimised: metrics of the validation rows, seconds
     ── studies   where trials are kept, and which of them a killed process left
     ── pruning   what a trial is told while its run trains
"""

from mmpipe.tuning.space import Choice, Float, Int
from mmpipe.tuning.tune import tune

__all__ = ['Choice', 'Float', 'Int', 'tune']

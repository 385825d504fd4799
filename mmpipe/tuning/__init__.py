"""Tuning: a search for settings with Optuna, whose trials are runs.

tune ── space      what is searched, checked against the trainer and the function before the first trial
     ── goals      what is optimised: metrics of the validation rows, seconds, memory
     ── studies    where trials are kept, and which of them a killed process left
     ── search     which trial comes next, with which values, and how each ended
     ── trials     one trial: its training, and what came of it
     ── pruning    what a trial is told while its run trains
     ── memory     the most that a trial took
     ── processes  several trials at once           ── worker    the process of one after another
     ── plots      history and importances as pictures
     ── pipeline   what mmpipe tune does
"""

from mmpipe.tuning.space import Choice, Float, Int
from mmpipe.tuning.tune import tune

__all__ = ['Choice', 'Float', 'Int', 'tune']

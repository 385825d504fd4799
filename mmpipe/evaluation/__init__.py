"""How well a model does on some rows, how sure that is, where it fails, and on which rows.

report ── outputs       what the model makes of labelled rows, from all ranks
       ── weighted      metrics when rows count several times  ── bootstrap    intervals
       ── calibration   are probabilities frequencies?         ── temperature  mm.calibrate
       ── slices        parts of the rows, and which differ
       ── mistakes      what is taken for what, and the worst rows
       ── results       the frozen report                      ── text, plots
"""

from mmpipe.evaluation.bootstrap import Estimate
from mmpipe.evaluation.reporting import report
from mmpipe.evaluation.results import Report, TaskReport
from mmpipe.evaluation.slices import Slice
from mmpipe.evaluation.temperature import calibrate

__all__ = ['Estimate', 'Report', 'Slice', 'TaskReport', 'calibrate', 'report']

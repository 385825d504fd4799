"""What a training waits for: the stages of loading and of a step measured apart, and what to set, tried.

doctor ── stages     read, decode, transform, collate | transfer | device transforms, compute: each by itself
       ── rates      what they come to together, with so many workers and cores
       ── advice     what else could be set, and what that should gain
       ── trials     each of it run beside the present setting, in turns
       ── report     what is printed, and its JSON
"""

from mmpipe.diagnosis.examine import doctor
from mmpipe.diagnosis.report import Advice, Diagnosis, Stage
from mmpipe.diagnosis.training import doctor_training

__all__ = ['Advice', 'Diagnosis', 'Stage', 'doctor', 'doctor_training']

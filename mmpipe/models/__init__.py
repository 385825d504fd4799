"""Models: encoders, fusion, heads, their initial weights, the multitask model, transfer, the way back from a run."""

from mmpipe.models import encoders
from mmpipe.models.bare import BareModel
from mmpipe.models.init import initialise
from mmpipe.models.lora import Lora, merge_lora
from mmpipe.models.multitask import MultitaskModel
from mmpipe.models.rebuild import load_model
from mmpipe.models.transfer import transfer

__all__ = ['BareModel', 'Lora', 'MultitaskModel', 'encoders', 'initialise', 'load_model', 'merge_lora', 'transfer']

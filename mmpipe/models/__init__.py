"""Models: encoders, fusion, heads, the multitask model, transfer, and the way back from a run."""

from mmpipe.models import encoders
from mmpipe.models.bare import BareModel
from mmpipe.models.multitask import MultitaskModel
from mmpipe.models.rebuild import load_model
from mmpipe.models.transfer import transfer

__all__ = ['BareModel', 'MultitaskModel', 'encoders', 'load_model', 'transfer']

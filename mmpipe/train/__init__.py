"""Training: tasks, masked losses, metrics, the trainer, evaluation."""

from mmpipe.train.tasks import classification, multilabel, regression, task_from_json  # isort: skip
from mmpipe.models.rebuild import load_model
from mmpipe.models.transfer import transfer
from mmpipe.train.balancing import Balancing, Uncertainty
from mmpipe.train.callbacks import Callback, StopTraining
from mmpipe.train.classes import UnseenClassWarning
from mmpipe.train.embed import embed
from mmpipe.train.evaluate import evaluate, predict
from mmpipe.train.from_record import resume_run
from mmpipe.train.group import process_group
from mmpipe.train.inputs import InputWarning
from mmpipe.train.max_batch import MaxBatch, find_max_batch
from mmpipe.train.parallel import Parallel
from mmpipe.train.recipes import continue_training, finetune, linear_probe
from mmpipe.train.tracking import TensorBoard
from mmpipe.train.trainer import Trainer

__all__ = [
    'Balancing',
    'Callback',
    'InputWarning',
    'MaxBatch',
    'StopTraining',
    'TensorBoard',
    'Parallel',
    'Trainer',
    'Uncertainty',
    'UnseenClassWarning',
    'classification',
    'continue_training',
    'embed',
    'evaluate',
    'find_max_batch',
    'finetune',
    'linear_probe',
    'load_model',
    'multilabel',
    'predict',
    'process_group',
    'regression',
    'resume_run',
    'task_from_json',
    'transfer',
]

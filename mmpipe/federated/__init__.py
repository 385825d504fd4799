"""Federated learning with Flower: clients train on snapshots of their own, and only weights travel.

client_app ── client       a ClientApp around Trainer.fit
           ── proximal     FedProx's part of the loss
server_app ── server       a ServerApp around any strategy of Flower's; its result is a run
           ── exchange     what a message holds, and nothing else
simulate   ── inprocess    both in one process
           ── privacy      Flower's differential privacy, with its epsilon
           ── partition    rows split unevenly, for experiments
           ── engine       Flower, found and checked
"""

from mmpipe.federated.client import client_app
from mmpipe.federated.inprocess import in_process_grid, simulate
from mmpipe.federated.partition import split_dirichlet, write_parts
from mmpipe.federated.privacy import PrivacySpent, central_dp, gaussian_epsilon, local_dp
from mmpipe.federated.server import server_app

__all__ = [
    'PrivacySpent',
    'central_dp',
    'client_app',
    'gaussian_epsilon',
    'in_process_grid',
    'local_dp',
    'server_app',
    'simulate',
    'split_dirichlet',
    'write_parts',
]

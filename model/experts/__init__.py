"""Sparse mixture of experts: MLPs of which each token is read by a few.

Each token's scores choose its experts, no token is dropped, and a bias per expert keeps the loads even.
"""

from .activation import activate
from .balance import balance_loss, max_violation, z_loss
from .routing import Router, Routing
from .sparse_mlp import Experts, SparseMLP, sparse_layers
from .upcycling import upcycled, upcycling_problem

__all__ = [
    "Experts",
    "Router",
    "Routing",
    "SparseMLP",
    "activate",
    "balance_loss",
    "max_violation",
    "sparse_layers",
    "upcycled",
    "upcycling_problem",
    "z_loss",
]

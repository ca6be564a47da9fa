"""Fused kernels for training dense neural networks, with layers on top.

``dlcore.Sequential`` and ``dlcore.layers`` build and train networks, ``dlcore.kernels`` are the kernels on plain
arrays, and ``@dlcore.activation``, ``@dlcore.loss``, ``@dlcore.optimizer`` make rules of your own that run fused.
"""

from . import (
    callbacks,
    constraints,
    initializers,
    kernels,
    layers,
    losses,
    metrics,
    optimizers,
    regularizers,
    schedules,
)
from ._version import __version__
from .averages import effective_window, ewa
from .checkpoint import load
from .gradient_free import random_local_search, random_search
from .gradients import check_gradients
from .kernels import (
    activation,
    get_matmul_precision,
    get_num_threads,
    loss,
    optimizer,
    set_matmul_precision,
    set_num_threads,
)
from .many import fit_many
from .model import Sequential
from .random import set_seed
from .training import History

__all__ = [
    "History",
    "Sequential",
    "__version__",
    "activation",
    "callbacks",
    "check_gradients",
    "constraints",
    "effective_window",
    "ewa",
    "fit_many",
    "get_matmul_precision",
    "get_num_threads",
    "initializers",
    "kernels",
    "layers",
    "load",
    "loss",
    "losses",
    "metrics",
    "optimizer",
    "optimizers",
    "random_local_search",
    "random_search",
    "regularizers",
    "schedules",
    "set_matmul_precision",
    "set_num_threads",
    "set_seed",
]

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
from .checkpoint import load
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
    "constraints",
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
    "regularizers",
    "schedules",
    "set_matmul_precision",
    "set_num_threads",
    "set_seed",
]

"""Fused kernels on plain arrays, and the rules they are fused with: no layers, no models.

>>> import numpy as np
>>> from dlcore import kernels
>>> x, w, b = np.ones((2, 3), np.float32), np.ones((3, 4), np.float32), np.full(4, -1, np.float32)
>>> kernels.dense_forward(x, w, b, "relu")
array([[2., 2., 2., 2.],
       [2., 2., 2., 2.]], dtype=float32)
"""

if __name__ != "dlcore.kernels":
    raise ImportError(f"this package is dlcore.kernels and was imported as {__name__!r}; use 'import dlcore.kernels'")

# the built-in rules register themselves
from . import activations, check, losses, optimizers, piecewise, schedules  # noqa: F401
from .check import check_rule
from .cpu.threads import get_num_threads, set_num_threads
from .device import DeviceError, resolve, why_no_gpu
from .instructions import ROWS, Instruction, ShapeError
from .loss_ops import (
    categorical_hinge,
    cosine_similarity,
    elementwise_loss,
    hellinger_distance,
    softmax_cross_entropy,
)
from .norms import (
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_inference,
    group_norm_backward,
    group_norm_forward,
    layer_norm_backward,
    layer_norm_forward,
)
from .ops import (
    activation_backward,
    activation_forward,
    binary_accuracy,
    categorical_accuracy,
    dense_backward,
    dense_forward,
    dropout,
    gather,
    log_softmax,
    log_softmax_backward,
    prelu_backward,
    prelu_forward,
    softmax,
    softmax_backward,
)
from .optimizer_rule import Optimizer as OptimizerRule
from .optimizer_rule import optimizer
from .precision import get_matmul_precision, set_matmul_precision
from .products import dot, hadamard, khatri_rao, kronecker
from .program import Buffer, Builder, Program
from .rule import Activation as ActivationRule
from .rule import Loss as LossRule
from .rule import RuleError, activation, find, loss
from .schedules import Schedule as ScheduleRule
from .schedules import schedule
from .updates import optimizer_slots, optimizer_update

__all__ = [
    "ROWS",
    "ActivationRule",
    "Buffer",
    "Builder",
    "DeviceError",
    "Instruction",
    "LossRule",
    "OptimizerRule",
    "Program",
    "RuleError",
    "ScheduleRule",
    "ShapeError",
    "activation",
    "activation_backward",
    "activation_forward",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_inference",
    "binary_accuracy",
    "categorical_accuracy",
    "categorical_hinge",
    "check_rule",
    "cosine_similarity",
    "dense_backward",
    "dense_forward",
    "dot",
    "dropout",
    "elementwise_loss",
    "find",
    "gather",
    "get_matmul_precision",
    "get_num_threads",
    "group_norm_backward",
    "group_norm_forward",
    "hadamard",
    "hellinger_distance",
    "khatri_rao",
    "kronecker",
    "layer_norm_backward",
    "layer_norm_forward",
    "log_softmax",
    "log_softmax_backward",
    "loss",
    "optimizer",
    "optimizer_slots",
    "optimizer_update",
    "prelu_backward",
    "prelu_forward",
    "resolve",
    "schedule",
    "set_matmul_precision",
    "set_num_threads",
    "softmax",
    "softmax_backward",
    "softmax_cross_entropy",
    "why_no_gpu",
]

"""PReLU on CUDA: ``y = z`` for ``z > 0``, else ``alpha z`` with a slope for each feature.

Memory contract: ``y``, ``dz`` and ``dalpha`` are overwritten; ``dz`` may be ``dy``.
"""

from __future__ import annotations

from typing import Any

from .column_sums import column_sums, partials, sum_partials
from .columns import column_pass
from .launch import CHUNK, Launch, ceil_div


def prelu_forward(z: Any, alpha: Any, y: Any) -> list[Launch]:
    """``y = z if z > 0 else alpha * z``."""
    value = "z{k} if z{k} > zero else alpha{k} * z{k}"
    return [column_pass("prelu_forward", {"z": z}, {"alpha": alpha}, ("y", y), value)]


def prelu_backward(dy: Any, z: Any, alpha: Any, dz: Any, dalpha: Any) -> list[Launch]:
    """``dz = dy`` where ``z > 0``, else ``alpha * dy``; ``dalpha`` = sums of ``z * dy`` over the others."""
    partial = partials(dalpha, ceil_div(z.shape[0], CHUNK))
    launch = column_sums(
        "prelu_backward",
        {"dy": dy, "z": z},
        {"dalpha": partial},
        ["dalpha{k} += zero if z{k} > zero else z{k} * dy{k}"],
        ("dz", dz, "dy{k} if z{k} > zero else alpha{k} * dy{k}"),
        {"alpha": alpha},
    )
    return [launch, *sum_partials(partial, dalpha)]

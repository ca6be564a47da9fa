"""PReLU on the CPU: ``y = z`` for ``z > 0``, else ``alpha z`` with a slope for each feature.

Memory contract: ``y``, ``dz`` and ``dalpha`` are overwritten; ``dz`` may be ``dy``. The sums over the rows are taken
chunk by chunk.
"""

from __future__ import annotations


def prelu_forward(z, alpha, y):
    """``y = z if z > 0 else alpha * z``."""
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            v = z[i, j]
            y[i, j] = v if v > 0 else alpha[j] * v


def prelu_gradient(dy, z, alpha, dz, dalpha):
    """``dz = dy`` where ``z > 0``, else ``alpha * dy``; ``dalpha`` = sums of ``z * dy`` over the others."""
    dalpha[:] = 0
    for i in range(z.shape[0]):
        for j in range(z.shape[1]):
            d = dy[i, j]
            v = z[i, j]
            dalpha[j] += dalpha.dtype.type(0) if v > 0 else v * d
            dz[i, j] = d if v > 0 else alpha[j] * d

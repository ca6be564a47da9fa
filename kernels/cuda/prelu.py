"""PReLU on CUDA: ``y = z`` for ``z > 0``, else ``alpha z`` with a slope for each feature.

Memory contract: ``y``, ``dz`` and ``dalpha`` are overwritten; ``dz`` may be ``dy``. The sums over the rows are taken as
those of the bias in dense.py: 32 columns and 256 rows a block, in a fixed order.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cuda

from .dense import partials, sum_partials
from .launch import CHUNK, DEPTH, WIDTH, Launch, ceil_div, element, kernel, tiled


@kernel
def _forward(dtype: Any) -> Any:
    zero = np.dtype(dtype).type(0)

    def prelu_forward(z, alpha, y):  # type: ignore[no-untyped-def]
        row = cuda.blockIdx.x * cuda.blockDim.y + cuda.threadIdx.y
        column = cuda.blockIdx.y * cuda.blockDim.x + cuda.threadIdx.x
        if row < z.shape[0] and column < z.shape[1]:
            v = z[row, column]
            y[row, column] = v if v > zero else alpha[column] * v

    return prelu_forward


def prelu_forward(z: Any, alpha: Any, y: Any) -> list[Launch]:
    """``y = z if z > 0 else alpha * z``."""
    return [Launch(_forward(z.dtype), *tiled(*z.shape), (z, alpha, y))]


@kernel
def _backward(dtype: Any) -> Any:
    zero = np.dtype(dtype).type(0)
    kind = element(dtype)

    def prelu_backward(dy, z, alpha, dz, partial):  # type: ignore[no-untyped-def]
        """A block takes 32 columns of 256 rows; thread (c, d) rows d, d + 8, ...; the 8 sums are added in order."""
        shared = cuda.shared.array((DEPTH, WIDTH), kind)
        rows, columns = z.shape
        lane = cuda.threadIdx.x
        depth = cuda.threadIdx.y
        column = cuda.blockIdx.y * WIDTH + lane
        total = zero
        if column < columns:
            slope = alpha[column]
            last = min(rows, (cuda.blockIdx.x + 1) * CHUNK)
            for row in range(cuda.blockIdx.x * CHUNK + depth, last, DEPTH):
                d = dy[row, column]
                v = z[row, column]
                if not v > zero:
                    total += v * d
                    d *= slope
                dz[row, column] = d
        shared[depth, lane] = total
        cuda.syncthreads()
        if depth == 0 and column < columns:
            for k in range(1, DEPTH):
                total += shared[k, lane]
            partial[cuda.blockIdx.x, column] = total

    return prelu_backward


def prelu_backward(dy: Any, z: Any, alpha: Any, dz: Any, dalpha: Any) -> list[Launch]:
    """``dz = dy`` where ``z > 0``, else ``alpha * dy``; ``dalpha`` = sums of ``z * dy`` over the others."""
    partial = partials(dalpha, ceil_div(z.shape[0], CHUNK))
    launch = Launch(_backward(z.dtype), *tiled(*z.shape, depth=CHUNK), (dy, z, alpha, dz, partial))
    return [launch, *sum_partials(partial, dalpha)]

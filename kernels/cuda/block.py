"""What the threads of a block find out together, through shared memory."""

from __future__ import annotations

from numba import cuda

from .launch import BLOCK, CUDA


@CUDA.inline
def block_sum(v, sums):
    """Add what each of the BLOCK threads of a flat block brings, in a tree; all of them find the sum in ``sums[0]``.

    ``sums`` is a shared array of BLOCK elements.
    """
    t = cuda.threadIdx.x
    sums[t] = v
    cuda.syncthreads()
    half = BLOCK // 2
    while half > 0:
        if t < half:
            sums[t] += sums[t + half]
        cuda.syncthreads()
        half //= 2

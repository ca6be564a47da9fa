"""Kernels for many models at once: the text of a kernel as it is, with its arrays moved to the model of the block.

What K models of one architecture hold lies in equal parts of one memory, so that every array of model ``k`` lies ``k``
strides behind that of model 0. A kernel is planned for model 0. Its batched form has a third grid dimension, which no
kernel uses otherwise: the number of the model. It moves each array by that many strides, and does what the kernel does.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from numba import cuda

from ..program import padded
from .arrays import room
from .driver import address
from .launch import SCRATCH, SIMULATED, Launch, generated
from .machine_code import Kernel
from .vector import mover

MOST_MODELS = 65535  # the third extent of a grid


class Stack:
    """Memory of ``models`` models in equal parts, and memory that they share: where an array lies, and how it moves."""

    def __init__(self, models: int) -> None:
        self.models = models
        self._ranges: list[tuple[int, int, int]] = []  # address and bytes of part 0, and bytes from part to part

    def add(self, parts: Any) -> Any:
        """The first of ``parts``, which has a row for each model; rows lie one behind another."""
        size = parts.nbytes // self.models
        self._ranges.append((address(parts), size, size))
        return parts[0]

    def share(self, array: Any) -> None:
        """An array that is the same for all models."""
        self._ranges.append((address(array), array.nbytes, 0))

    def stride(self, array: Any) -> int:
        """How many elements the array of one model lies behind that of the model before it."""
        if not array.size:
            return 0
        at = address(array)
        for first, size, step in self._ranges:
            if first <= at and at + array.nbytes <= first + size:
                return step // array.dtype.itemsize
        raise LookupError(f"an array of shape {array.shape} lies in no memory of the models")

    @contextmanager
    def planning(self) -> Iterator[None]:
        """What kernels hand to each other has a part for each model meanwhile."""
        token = SCRATCH.set(self._scratch)
        try:
            yield
        finally:
            SCRATCH.reset(token)

    def _scratch(self, empty: Callable[..., Any], shape: tuple[int, ...], dtype: np.dtype) -> Any:
        count = math.prod(shape)
        extent = self.models, padded(count, dtype)
        with room(
            math.prod(extent) * dtype.itemsize, f"{self.models} models need for partial sums", "fewer models at once"
        ):
            parts = empty(extent, dtype)
        return self.add(parts)[:count].reshape(shape)


_TEXT = """
def {name}({arguments}):
    model = cuda.blockIdx.z
    body({moved})
"""


@functools.cache
def _batched(kernel: Kernel, moves: tuple[bool, ...]) -> Kernel:
    """``kernel`` with its arrays that ``moves`` marks at those of the block's model; their strides come last."""
    name = f"batched_{kernel.name}"
    text = _TEXT.format(
        name=name,
        arguments=", ".join([f"a{k}" for k in range(len(moves))] + [f"s{k}" for k, move in enumerate(moves) if move]),
        moved=", ".join(f"moved(a{k}, model * s{k})" if move else f"a{k}" for k, move in enumerate(moves)),
    )
    options = {} if SIMULATED else {"forceinline": True}  # a call would cost registers, and spill the sums of a product
    scope = {"cuda": cuda, "body": cuda.jit(device=True, **options)(kernel.py_func), "moved": mover()}
    return generated(text, name, scope, kernel.meaning, **kernel.options)


def batched(launches: Sequence[Launch], stack: Stack) -> list[Launch]:
    """The launches of model 0 as launches of all models; one that works on shared memory alone stays what it is."""
    found = []
    for launch in launches:
        strides = [stack.stride(a) if getattr(a, "ndim", 0) else 0 for a in launch.arguments]
        if not any(strides):
            found.append(launch)
            continue
        made = _batched(launch.kernel, tuple(map(bool, strides)))
        arguments = *launch.arguments, *(np.int64(stride) for stride in strides if stride)
        found.append(Launch(made, (*(*launch.grid, 1)[:2], stack.models), launch.block, arguments))
    return found

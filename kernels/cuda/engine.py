"""The CUDA engine: a program as a list of kernel launches, in one arena of device memory.

The launches of a list are planned once for each number of rows and then repeated; the host loops over mini-batches
and instructions. On the simulator the same kernels run on NumPy arrays.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..instructions import ROWS
from ..program import Buffer, Program
from .arrays import memory, prepare
from .launch import Launch, plan, run


class Engine:
    """Runs a :class:`~dlcore.kernels.program.Program` on the GPU.

    ``rows`` is the largest mini-batch there is room for; :meth:`reserve` makes more room.
    """

    device = "cuda"

    def __init__(self, program: Program, rows: int) -> None:
        self.program = program
        self.rows = 0
        self._memory: Any = None
        self._views: dict[Buffer, Any] = {}
        self._externs: dict[str, Any] = {}
        self._launches: dict[tuple[str, int], list[Launch]] = {}
        self.reserve(rows)

    def reserve(self, rows: int) -> None:
        """Make room for mini-batches of ``rows`` rows; parameters, optimizer state and statistics keep their values."""
        if rows <= self.rows:
            return
        _, work, total = self.program.layout(rows)
        arena = memory.zeros(total, np.uint8)
        if self.rows:
            arena[:work] = self._memory[:work]
        self._memory, self.rows = arena, rows
        self._views = self.program.views(arena, rows)
        self._launches.clear()

    @property
    def nbytes(self) -> int:
        """The size of the arena."""
        return int(self._memory.nbytes)

    def array(self, buffer: Buffer) -> Any:
        """The memory of ``buffer`` as an array of the device; it is the engine's, not a copy."""
        return self._views[buffer]

    def read(self, buffer: Buffer) -> np.ndarray:
        """A copy of ``buffer`` as a NumPy array."""
        return memory.to_host(self._views[buffer])

    def write(self, buffer: Buffer, value: Any) -> None:
        """Set ``buffer`` to ``value``."""
        view = self._views[buffer]
        view[...] = memory.to_device(np.asarray(value, buffer.dtype))

    def bind(self, **arrays: Any) -> None:
        """Copy the arrays of externs to the device."""
        for name, array in arrays.items():
            self.program.check_binding(name, array)
            self._externs[name] = memory.to_device(array)
        self._launches.clear()

    def fetch(self, name: str) -> np.ndarray:
        """A copy of what is bound to ``name``, with what was written into it."""
        return memory.to_host(self._externs[name])

    def _array(self, operand: Any, rows: int) -> Any:
        if operand is None:
            return None
        if operand.region == "extern":
            return self._externs[operand.name]
        view = self._views[operand]
        return view[:rows] if operand.shape and operand.shape[0] == ROWS else view

    def _plan(self, name: str, rows: int) -> list[Launch]:
        if (name, rows) not in self._launches:
            launches = [
                launch
                for instruction in self.program.lists[name]
                for launch in plan(instruction, [self._array(o, rows) for o in instruction.operands])
            ]
            self._launches[name, rows] = prepare(launches)
        return self._launches[name, rows]

    def run(self, name: str, steps: int, batch: int, samples: int, first: int = 0) -> None:
        """Run list ``name`` for mini-batches ``first`` to ``first + steps - 1`` of ``samples`` samples.

        Mini-batch ``i`` takes ``order[i * batch : (i + 1) * batch]``; the last may be smaller.
        """
        self.program.check_run(steps, batch, samples, first, self.rows)
        stream = memory.stream()
        for index in range(first, first + steps):
            start = index * batch
            run(self._plan(name, min(batch, samples - start)), start, index, stream)

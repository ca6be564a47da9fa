"""The CUDA engine: a program as graphs of kernel launches, in one arena of device memory.

The launches of a list are planned once for each number of rows and replayed as one graph for each mini-batch. Which
mini-batch it is stands in a cursor on the device, that the last kernel of the graph moves: nothing changes from one
replay to the next. The engine has a stream of its own, ordered behind the caller's without waiting on the host. On the
simulator the same kernels run on NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..device import DeviceError
from ..program import Buffer, Program
from .arrays import memory
from .launch import launches


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
        self._replays: dict[tuple[str, int], Callable[[], None]] = {}
        self._stream = memory.stream()
        with memory.on(self._stream):
            self._cursor = memory.zeros(2, np.int64)
        self.reserve(rows)

    def reserve(self, rows: int) -> None:
        """Make room for mini-batches of ``rows`` rows; parameters, optimizer state and statistics keep their values."""
        if rows <= self.rows:
            return
        _, work, total = self.program.layout(rows)
        with memory.on(self._stream):
            try:
                arena = memory.zeros(total, np.uint8)
            except MemoryError as error:
                raise DeviceError(
                    f"the GPU has no {total / 2**20:,.0f} MiB free, which this model needs for mini-batches of "
                    f"{rows:,} samples; take a smaller batch_size, or device='cpu'"
                ) from error
            if self.rows:
                arena[:work] = self._memory[:work]
        self._memory, self.rows = arena, rows
        self._views = self.program.views(arena, rows)
        self._replays.clear()

    @property
    def nbytes(self) -> int:
        """The size of the arena."""
        return int(self._memory.nbytes)

    def array(self, buffer: Buffer) -> Any:
        """The memory of ``buffer`` as an array of the device; it is the engine's, not a copy."""
        return self._views[buffer]

    def read(self, buffer: Buffer) -> np.ndarray:
        """A copy of ``buffer`` as a NumPy array."""
        with memory.on(self._stream):
            return memory.to_host(self._views[buffer])

    def write(self, buffer: Buffer, value: Any) -> None:
        """Set ``buffer`` to ``value``."""
        with memory.on(self._stream):
            self._views[buffer][...] = memory.to_device(np.asarray(value, buffer.dtype))

    def bind(self, **arrays: Any) -> None:
        """Copy the arrays of externs to the device: into what was there before, if shape and dtype are the same."""
        with memory.on(self._stream):
            for name, array in arrays.items():
                self.program.check_binding(name, array)
                before = self._externs.get(name)
                if before is not None and before.shape == array.shape and before.dtype == array.dtype:
                    before[...] = memory.to_device(array)
                else:
                    self._externs[name] = memory.to_device(array)
                    self._replays.clear()

    def fetch(self, name: str) -> np.ndarray:
        """A copy of what is bound to ``name``, with what was written into it."""
        with memory.on(self._stream):
            return memory.to_host(self._externs[name])

    def _array(self, operand: Any) -> Any:
        return self._externs[operand.name] if operand.region == "extern" else self._views[operand]

    def _replay(self, name: str, rows: int) -> Callable[[], None]:
        if (name, rows) not in self._replays:
            planned = launches(self.program, name, self._array, self._cursor, rows)
            self._replays[name, rows] = memory.ready(planned, self._stream)
        return self._replays[name, rows]

    def run(self, name: str, steps: int, batch: int, samples: int, first: int = 0) -> None:
        """Run list ``name`` for mini-batches ``first`` to ``first + steps - 1`` of ``samples`` samples.

        Mini-batch ``i`` takes ``order[i * batch : (i + 1) * batch]``; the last may be smaller. The host does not wait.
        """
        self.program.check_run(steps, batch, samples, first, self.rows)
        with memory.on(self._stream):
            self._cursor[...] = memory.to_device(np.array([first * batch, first]))
            for index in range(first, first + steps):
                self._replay(name, min(batch, samples - index * batch))()

"""Many engines as one: K models of one architecture, a kernel launch for all of them, a graph for a mini-batch.

The arenas of the engines become equal parts of one arena, and stay so: each engine goes on in its part by itself,
before and after. That memory is in use as long as one of the engines is. What an engine computes is, bit for bit, what
it computes alone, but for products that it leaves to cuBLASLt then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..precision import get_matmul_precision
from .arrays import memory, room
from .batched import MOST_MODELS, Stack, batched
from .engine import Engine, replay
from .launch import launches


class Fleet:
    """Runs the programs of many engines of a GPU at once, on ``shared`` externs, which are copied to it here."""

    def __init__(self, ordinal: int = 0, /, **shared: Any) -> None:
        self._engines: list[Engine] = []
        self._arena: Any = None
        self._bound: dict[str, Any] = {}  # an array with a row for each engine, by extern
        self._replays: dict[Any, Callable[[], None]] = {}
        self._stream = memory.stream(ordinal)
        with memory.on(self._stream):
            self._cursor = memory.zeros(2, np.int64)
            with room(sum(array.nbytes for array in shared.values()), f"{' and '.join(shared)} need", "fewer samples"):
                self._shared = {name: memory.to_device(array) for name, array in shared.items()}

    @contextmanager
    def taking(self, engines: Sequence[Engine]) -> Iterator[None]:
        """The engines, of one architecture, are the fleet's meanwhile, and must not be used by themselves.

        Raises :class:`~dlcore.kernels.device.DeviceError` where memory is too small; the engines are as they were then.
        """
        if len(engines) > MOST_MODELS:
            raise ValueError(f"CUDA runs at most {MOST_MODELS:,} models at once, got {len(engines):,}")
        self._gather(engines)
        for engine in engines:
            engine.before(self._stream)
        try:
            yield
        finally:
            memory.wait(self._stream)  # after an exception too: the fleet's memory may be free next

    def _gather(self, engines: Sequence[Engine]) -> None:
        """Make the arenas parts of one, in order, where they are not yet."""
        rows = max(engine.rows for engine in engines)
        layouts = [engine.program.layout(rows) for engine in engines]
        total = layouts[0][2]
        if any([*layout[0].values(), total] != [*layouts[0][0].values(), total] for layout in layouts):
            raise ValueError("the engines are not of one architecture: their buffers lie at different places")
        arena = engines[0].whole
        together = all(
            engine.rows == rows and engine.whole is arena and engine.offset == k * total
            for k, engine in enumerate(engines)
        )
        if arena is None or not together or arena.size != total * len(engines):
            with memory.on(self._stream):
                whose = f"{len(engines)} models need for mini-batches of {rows:,} samples"
                with room(total * len(engines), whose, "fewer models at once, a smaller batch_size"):
                    arena = memory.zeros(total * len(engines), np.uint8)
                for k, engine in enumerate(engines):
                    engine.move(arena, k * total, rows)
        if arena is not self._arena or len(engines) != len(self._engines):
            self._arena = arena
            self._bound.clear()
            self._replays.clear()
        self._engines, self.rows = list(engines), rows

    def _parts(self, dtype: Any) -> Any:
        """The arena as a matrix with a row for each engine."""
        return self._arena.view(dtype).reshape(len(self._engines), -1)

    def write(self, buffer: Any, values: Any) -> None:
        """Set ``buffer`` of the first engine to the first row of ``values``, that of the second to the second, ..."""
        first = self._engines[0].program.layout(self.rows)[0][buffer] // buffer.dtype.itemsize
        with memory.on(self._stream):
            there = self._parts(buffer.dtype)[:, first : first + buffer.elements(self.rows)]
            there[...] = memory.to_device(np.asarray(values, buffer.dtype))

    def bind(self, **arrays: np.ndarray) -> None:
        """Give an extern of each engine its row of an array."""
        with memory.on(self._stream):
            for name, array in arrays.items():
                self._engines[0].program.check_binding(name, array[0])
                known = self._bound.get(name)
                if known is not None and known.shape == array.shape:
                    known[...] = memory.to_device(array)
                    continue
                whose = f"{len(array)} models need for {name!r} of {array.shape[1]:,} elements each"
                with room(array.nbytes, whose, "fewer models at once"):
                    self._bound[name] = memory.to_device(array)
                self._replays.clear()

    def fetch(self, name: str) -> np.ndarray:
        """A copy of what is bound to ``name``, a row for each engine."""
        with memory.on(self._stream):
            return memory.to_host(self._bound[name])

    def _replay(self, name: str, rows: int) -> Callable[[], None]:
        key = name, rows, get_matmul_precision()
        if key not in self._replays:
            self._replays[key] = memory.ready(self._launches(name, rows), self._stream)
        return self._replays[key]

    def _launches(self, name: str, rows: int) -> list[Any]:
        # the programs differ at most in clipping, which scales by 1 where an engine's hyper-parameters ask for none
        program = max((engine.program for engine in self._engines), key=lambda p: len(p.lists[name]))
        stack = Stack(len(self._engines))
        views = program.views(stack.add(self._parts(np.uint8)), self.rows)
        externs = self._shared | {extern: stack.add(rows_) for extern, rows_ in self._bound.items()}
        for array in (self._cursor, *self._shared.values()):
            stack.share(array)

        def array_of(operand: Any) -> Any:
            return externs[operand.name] if operand.region == "extern" else views[operand]

        with stack.planning():
            planned = launches(program, name, array_of, self._cursor, rows)
        return batched(planned, stack)

    def run(self, name: str, steps: int, batch: int, samples: int, first: int = 0) -> None:
        """:meth:`Engine.run` for every engine."""
        self._engines[0].program.check_run(steps, batch, samples, first, self.rows)
        with memory.on(self._stream):
            replay(lambda rows: self._replay(name, rows), self._cursor, steps, batch, samples, first)

"""The CUDA engine: a program as graphs of kernel launches, in one arena of device memory.

The launches of a list are planned once for each number of rows and replayed as one graph for each mini-batch. Which
mini-batch it is stands in a cursor on the device, that the last kernel of the graph moves: nothing changes from one
replay to the next. The engine has a stream of its own, ordered behind the caller's without waiting on the host. On the
simulator the same kernels run on NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..precision import get_matmul_precision
from ..program import Buffer, Program
from .arrays import memory, room
from .launch import launches


class Engine:
    """Runs a :class:`~dlcore.kernels.program.Program` on GPU number ``ordinal``.

    ``rows`` is the largest mini-batch there is room for; :meth:`reserve` makes more room.
    """

    device = "cuda"

    def __init__(self, program: Program, rows: int, ordinal: int = 0) -> None:
        self.program = program
        self.ordinal = ordinal
        self.rows = 0
        self._memory: Any = None
        self.whole: Any = None  # the memory of a fleet, where the arena is a part of that
        self.offset = 0  # of that part, in bytes
        self._views: dict[Buffer, Any] = {}
        self._externs: dict[str, Any] = {}
        self._copies: dict[str, Any] = {}  # of arrays that were bound, by extern
        self._held: dict[int, tuple[Any, Any]] = {}  # arrays by identity, and their copies, or themselves on the GPU
        self._history: Any = None
        self._histories: dict[str, Any] = {}  # its rows, by extern
        self._replays: dict[Any, Callable[[], None]] = {}
        self._stream = memory.stream(ordinal)
        with memory.on(self._stream):
            self._cursor = memory.zeros(2, np.int64)
        self._at: tuple[int, int] | None = None  # where the cursor stands
        self.reserve(rows)
        for buffer, value in program.constants.items():
            self.write(buffer, value)

    def reserve(self, rows: int) -> None:
        """Make room for mini-batches of ``rows`` rows; parameters, optimizer state and statistics keep their values."""
        if rows <= self.rows:
            return
        _, _, total = self.program.layout(rows)
        need = f"this model needs for mini-batches of {rows:,} samples"
        with memory.on(self._stream), room(total, need, "a smaller batch_size"):
            arena = memory.zeros(total, np.uint8)
        self.move(arena, 0, rows)
        self.whole = None

    def move(self, whole: Any, offset: int, rows: int) -> None:
        """Go on in other memory, which is zero, from ``offset`` on; what outlives a step keeps its values."""
        _, work, total = self.program.layout(rows)
        arena = whole[offset : offset + total]
        if self.rows:
            with memory.on(self._stream):
                arena[:work] = self._memory[:work]
        self._memory, self.rows, self.whole, self.offset = arena, rows, whole, offset
        self._views = self.program.views(arena, rows)
        self._replays.clear()

    def before(self, stream: Any) -> None:
        """What follows on ``stream`` waits for what the engine has to do."""
        with memory.on(self._stream), memory.on(stream):
            pass

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

    def hold(self, *arrays: Any) -> None:
        """Take arrays that will be bound again and again, and do not change until :meth:`release`.

        They are copied to the device, where they are not on it.
        """
        with memory.on(self._stream):
            for array in arrays:
                if id(array) not in self._held:
                    self._held[id(array)] = array, array if memory.there(array) else self._copied(array)

    @staticmethod
    def _copied(array: Any) -> Any:
        with room(array.nbytes, f"data of shape {array.shape} needs", "fewer samples at once"):
            return memory.to_device(array)

    def holds(self, array: Any) -> bool:
        """Whether :meth:`hold` has taken ``array``."""
        return id(array) in self._held

    def release(self, *arrays: Any) -> None:
        """Forget arrays that were held, all where none are named; what they were bound to is to be bound again."""
        found = [
            self._held.pop(id(a)) for a in arrays or [held for held, _ in self._held.values()] if id(a) in self._held
        ]
        gone = {id(copy) for _, copy in found}
        self._externs = {name: array for name, array in self._externs.items() if id(array) not in gone}
        self._replays = {key: graph for key, graph in self._replays.items() if gone.isdisjoint(key[2])}

    def bind(self, **arrays: Any) -> None:
        """Give externs their arrays: a copy that is held, or one made now, where the last of the same shape was."""
        with memory.on(self._stream):
            for name, array in arrays.items():
                self.program.check_binding(name, array)
                if id(array) in self._held:
                    self._externs[name] = self._held[id(array)][1]
                    continue
                copy = self._copies.get(name)
                if copy is not None and copy.shape == array.shape and copy.dtype == array.dtype:
                    memory.copy(copy, array)
                else:
                    copy = self._copies[name] = self._copied(array)
                    self._replays.clear()
                self._externs[name] = copy

    def bind_histories(self, names: Sequence[str], batches: int) -> None:
        """Give externs empty histories of ``batches`` mini-batches each, to be fetched together."""
        with memory.on(self._stream):
            if [*self._histories] == [*names] and all(row.shape == (batches,) for row in self._histories.values()):
                self._history.fill(0)
            else:
                self._history = memory.zeros((len(names), batches), np.float64)
                self._histories = dict(zip(names, self._history, strict=True))
                self._replays.clear()
            self._externs |= self._histories

    def fetch_histories(self) -> dict[str, np.ndarray]:
        """Copies of what :meth:`bind_histories` gave, with what was written into it: one transfer."""
        with memory.on(self._stream):
            matrix = memory.to_host(self._history)
        return dict(zip(self._histories, matrix, strict=True))

    def fetch(self, name: str) -> np.ndarray:
        """A copy of what is bound to ``name``, with what was written into it."""
        with memory.on(self._stream):
            return memory.to_host(self._externs[name])

    def _array(self, operand: Any) -> Any:
        return self._externs[operand.name] if operand.region == "extern" else self._views[operand]

    def _replay(self, name: str, rows: int) -> Callable[[], None]:
        bound = tuple(part for extern, array in self._externs.items() for part in (extern, id(array)))
        key = name, rows, bound, get_matmul_precision()  # a graph knows the addresses of what is bound
        if key not in self._replays:
            with room(None, f"mini-batches of {rows:,} samples need for partial sums", "a smaller batch_size"):
                planned = launches(self.program, name, self._array, self._cursor, rows)
                self._replays[key] = memory.ready(planned, self._stream)
        return self._replays[key]

    def run(self, name: str, steps: int, batch: int, samples: int, first: int = 0) -> None:
        """Run list ``name`` for mini-batches ``first`` to ``first + steps - 1`` of ``samples`` samples.

        Mini-batch ``i`` takes ``order[i * batch : (i + 1) * batch]``; the last may be smaller. The host does not wait.
        """
        self.program.check_run(steps, batch, samples, first, self.rows)
        with memory.on(self._stream):
            self._at = replay(
                lambda rows: self._replay(name, rows), self._cursor, steps, batch, samples, first, self._at
            )

    def outputs(self, name: str, buffer: Buffer, batch: int, samples: int) -> np.ndarray:
        """Run list ``name`` for all mini-batches; what each leaves in the first rows of ``buffer``, one transfer."""
        shape = samples, *buffer.shape[1:]
        with memory.on(self._stream):
            with room(
                samples * buffer.elements(1) * buffer.dtype.itemsize, f"{samples:,} outputs need", "fewer samples"
            ):
                result = memory.zeros(shape, buffer.dtype)
            for index in range(-(-samples // batch)):
                self.run(name, 1, batch, samples, index)
                part = result[index * batch : (index + 1) * batch]
                part[...] = self._views[buffer][: len(part)]
            return memory.to_host(result)


def replay(
    ready: Callable[[int], Callable[[], None]],
    cursor: Any,
    steps: int,
    batch: int,
    samples: int,
    first: int,
    at: tuple[int, int] | None = None,
) -> tuple[int, int]:
    """Mini-batches ``first`` to ``first + steps - 1``; ``ready`` gives the graph for a number of rows.

    ``at`` is where the cursor stands, if it is known; where it stands in the end is returned.
    """
    if not first:
        cursor.fill(0)
    elif at != (first * batch, first):
        cursor[...] = memory.to_device(np.array([first * batch, first]))
    whole = min(steps, samples // batch - first)
    if whole > 0:
        once = ready(batch)
        for _ in range(whole):
            once()
    if steps > whole:
        ready(samples % batch)()
    return min((first + steps) * batch, samples), first + steps

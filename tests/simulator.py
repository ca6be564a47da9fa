"""A fast, deterministic thread core for Numba's CUDA simulator.

The simulator runs each CUDA thread in a thread of the operating system and polls. Here each is a greenlet, which runs
until it meets a barrier or a warp function; then the next one runs. That gives what tests need:

* an order of the threads, ``forward``, ``reverse`` or ``random``, in which a missing barrier becomes a wrong number;
* ``syncwarp``, shuffles and votes;
* errors for a barrier that not all threads of a block reach, or that they reach on different lines, and for negative
  indices, which NumPy would take;
* shared and local memory full of NaN, and one array for each call of ``shared.array``, also for two on a line.

It serves numba-cuda and the ``numba.cuda`` of Numba itself.
"""

from __future__ import annotations

import contextvars
import inspect
import random
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import greenlet
import numpy as np
from numba import cuda
from numba.cuda.simulator import api, kernel, kernelapi

ORDERS = ("forward", "reverse", "random")
WARP = 32


class SimulationError(RuntimeError):
    """What a GPU would leave undefined."""


class _Settings:
    order = "forward"
    generator = random.Random(0)


@contextmanager
def thread_order(order: str, seed: int = 0) -> Iterator[None]:
    """Run the threads of a block in ``order`` meanwhile."""
    before = _Settings.order, _Settings.generator
    _set(order, seed)
    try:
        yield
    finally:
        _Settings.order, _Settings.generator = before


def _set(order: str, seed: int) -> None:
    if order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}, got {order!r}")
    _Settings.order, _Settings.generator = order, random.Random(seed)


def _ordered(threads: list[_Thread]) -> list[_Thread]:
    threads = sorted(threads, key=lambda thread: thread.number)
    if _Settings.order == "reverse":
        threads.reverse()
    elif _Settings.order == "random":
        _Settings.generator.shuffle(threads)
    return threads


# --------------------------------------------------------------------------------------------------- memory


class _Memory:
    """An array as a kernel sees it: a negative index is an error, as is one beyond the end."""

    __slots__ = ("array", "dtype", "ndim", "shape", "size")

    def __init__(self, array: np.ndarray) -> None:
        self.array, self.dtype, self.ndim = array, array.dtype, array.ndim
        self.shape, self.size = array.shape, array.size

    def _check(self, index: Any) -> None:
        for i in index if type(index) is tuple else (index,):
            if type(i) is not slice and i < 0:
                raise IndexError(f"index {index} is negative; shape {self.shape}")

    def __getitem__(self, index: Any) -> Any:
        self._check(index)
        value = self.array[index]
        return _Memory(value) if type(value) is np.ndarray else value

    def __setitem__(self, index: Any, value: Any) -> None:
        self._check(index)
        self.array[index] = value.array if type(value) is _Memory else value

    def __len__(self) -> int:
        return len(self.array)

    def __array__(self, *arguments: Any, **keywords: Any) -> np.ndarray:
        return np.asarray(self.array, *arguments, **keywords)


def _plain(argument: Any) -> Any:
    """An argument of a kernel without the simulator's own wrappers, which cost more than the access."""
    while type(argument).__name__ in ("FakeWithinKernelCUDAArray", "FakeCUDAArray"):
        fields = argument.__dict__
        argument = fields["_item"] if "_item" in fields else fields["_ary"]
    return _Memory(argument) if type(argument) is np.ndarray else argument


def _filled(shape: Any, dtype: Any) -> _Memory:
    """Memory as a kernel finds it: all bits set, which is NaN."""
    if not isinstance(dtype, (np.dtype, type)):
        dtype = str(dtype)  # a Numba type, of one package or the other
    kind = np.dtype(dtype)
    shape = (int(shape),) if np.ndim(shape) == 0 else tuple(map(int, shape))
    bits = np.full(int(np.prod(shape)) * kind.itemsize, 0xFF, np.uint8)
    return _Memory(bits.view(kind).reshape(shape))


class _Shared:
    def __init__(self, dynamic: int) -> None:
        self.dynamic = np.full(dynamic, 0xFF, np.uint8)
        self.arrays: dict[Any, _Memory] = {}
        self.block: Any = None

    def array(self, shape: Any, dtype: Any, alignment: int | None = None) -> _Memory:
        block = _current().block
        if block is not self.block:
            self.block, self.arrays = block, {}
        if isinstance(shape, (int, np.integer)) and shape == 0:
            size = _filled(1, dtype).array
            return _Memory(self.dynamic[: self.dynamic.size // size.itemsize * size.itemsize].view(size.dtype))
        frame = sys._getframe(1)
        key = frame.f_code, frame.f_lasti  # the call, not its line
        if key not in self.arrays:
            self.arrays[key] = _filled(shape, dtype)
        return self.arrays[key]


class _Local:
    @staticmethod
    def array(shape: Any, dtype: Any, alignment: int | None = None) -> _Memory:
        return _filled(shape, dtype)


# -------------------------------------------------------------------------------------------------- threads


class _Wait:
    """What a thread waits for: ``scope`` block or warp, the function, its line, and how the answer is made."""

    __slots__ = ("answer", "line", "mask", "name", "scope", "value")

    def __init__(self, scope: str, name: str, line: int, value: Any, answer: Callable[..., Any], mask: int = 0) -> None:
        self.scope, self.name, self.line = scope, name, line
        self.value, self.answer, self.mask = value, answer, mask


class _Thread(greenlet.greenlet):
    def __init__(self, block: Block, number: int, scheduler: Any) -> None:
        super().__init__(block.function, scheduler)
        width, height, _ = block.shape
        self.block, self.number, self.lane = block, number, number % WARP
        self.threadIdx = kernelapi.Dim3(number % width, number // width % height, number // (width * height))
        self.blockIdx = block.place
        self.wait: _Wait | None = None
        self.gr_context = contextvars.copy_context()  # NumPy keeps its error state there

    def step(self, *arguments: Any) -> None:
        self.wait = None
        try:
            self.switch(*arguments)
        except Exception as error:
            where = f"thread {tuple(self.threadIdx)} of block {tuple(self.blockIdx)}"
            raise type(error)(f"{where}: {error}").with_traceback(error.__traceback__) from error


def _current() -> Any:
    return greenlet.getcurrent()


def _pause(wait: _Wait) -> Any:
    thread = _current()
    thread.wait = wait
    return thread.parent.switch()


class Block:
    """Runs the threads of one block after another; takes the place of the simulator's ``BlockManager``."""

    def __init__(self, function: Any, grid: Any, shape: Any, debug: bool) -> None:
        self.function, self.shape = function, tuple(shape)
        self.place: Any = None
        self.threads: list[_Thread] = []

    def run(self, place: Any, *arguments: Any) -> None:
        self.place = kernelapi.Dim3(*place)
        count = int(np.prod(self.shape))
        self.threads = [_Thread(self, number, _current()) for number in range(count)]
        arguments = tuple(map(_plain, arguments))
        for thread in _ordered(self.threads):
            thread.step(*arguments)
        while waiting := [thread for thread in self.threads if not thread.dead]:
            if not self._meet_in_warps(waiting):
                self._meet_in_block(waiting)

    def _meet_in_block(self, waiting: list[_Thread]) -> None:
        lines = sorted({f"{t.wait.name} on line {t.wait.line}" for t in waiting if t.wait})
        place = f"block {tuple(self.place)}"
        if any(thread.wait is None or thread.wait.scope == "warp" for thread in waiting):
            raise SimulationError(f"{place}: threads wait for each other for ever: {', '.join(lines)}")
        if len(lines) > 1:
            raise SimulationError(f"{place}: its threads meet different barriers: {', '.join(lines)}")
        if len(waiting) != len(self.threads):
            counts = f"{len(waiting)} of {len(self.threads)} threads"
            raise SimulationError(f"{place}: {lines[0]} is reached by {counts}; the others have left")
        values = [thread.wait.value for thread in waiting if thread.wait]
        answer = waiting[0].wait.answer(values) if waiting[0].wait else None
        for thread in _ordered(waiting):
            thread.step(answer)

    def _meet_in_warps(self, waiting: list[_Thread]) -> bool:
        """Let the threads go on whose whole mask has come; whether there were any.

        All warps together, or in the other orders one warp as far ahead of the others as it gets.
        """
        warps: dict[int, dict[int, _Thread]] = {}
        for thread in waiting:
            if thread.wait is not None and thread.wait.scope == "warp":
                warps.setdefault(thread.number // WARP, {})[thread.lane] = thread
        moved = False
        numbers = sorted(warps, reverse=_Settings.order == "reverse")
        if _Settings.order == "random":
            _Settings.generator.shuffle(numbers)
        for number in numbers:
            if moved and _Settings.order != "forward":
                break
            lanes = warps[number]
            size = min(WARP, len(self.threads) - number * WARP)
            for mask in {thread.wait.mask for thread in lanes.values() if thread.wait}:
                needed = [lane for lane in range(size) if mask >> lane & 1]
                group = {lane: lanes[lane] for lane in needed if lane in lanes}
                group = {lane: t for lane, t in group.items() if t.wait and t.wait.mask == mask}
                for lane, thread in lanes.items():
                    if thread.wait and thread.wait.mask == mask and not mask >> lane & 1:
                        raise SimulationError(f"line {thread.wait.line}: lane {lane} is not in its own mask {mask:#x}")
                if len(group) < len(needed):
                    continue
                waits = {lane: thread.wait for lane, thread in group.items()}
                calls = sorted({f"{w.name} on line {w.line}" for w in waits.values() if w})
                if len(calls) > 1:
                    raise SimulationError(f"lanes of one warp meet different functions: {', '.join(calls)}")
                values = {lane: wait.value for lane, wait in waits.items() if wait}
                answers = {lane: wait.answer(values, lane) for lane, wait in waits.items() if wait}
                for thread in _ordered(list(group.values())):
                    thread.step(answers[thread.lane])
                moved = True
        return moved


def _source(kind: str, argument: int) -> Callable[[dict[int, Any], int], Any]:
    """What a lane receives in a shuffle; its own value where the source lies outside the warp."""

    def answer(values: dict[int, Any], lane: int) -> Any:
        source = {
            "shfl_sync": argument % WARP,
            "shfl_up_sync": lane - argument,
            "shfl_down_sync": lane + argument,
            "shfl_xor_sync": lane ^ argument,
        }[kind]
        if not 0 <= source < WARP:
            return values[lane]
        if source not in values:  # a lane that does not take part: undefined
            return values[lane] * np.nan if isinstance(values[lane], (float, np.floating)) else values[lane]
        return values[source]

    return answer


class Module(kernelapi.FakeCUDAModule):
    """``cuda`` as a kernel sees it."""

    def __init__(self, grid: Any, block: Any, dynamic: int) -> None:
        super().__init__(grid, block, dynamic)
        self._shared, self._local = _Shared(dynamic), _Local()

    threadIdx = property(lambda self: _current().threadIdx)
    blockIdx = property(lambda self: _current().blockIdx)
    laneid = property(lambda self: _current().lane)

    def _barrier(self, name: str, value: Any, answer: Callable[..., Any]) -> Any:
        return _pause(_Wait("block", name, sys._getframe(2).f_lineno, value, answer))

    def syncthreads(self) -> None:
        self._barrier("syncthreads", None, lambda values: None)

    def syncthreads_count(self, value: Any) -> int:
        return self._barrier("syncthreads_count", value, lambda values: sum(map(bool, values)))

    def syncthreads_and(self, value: Any) -> int:
        return self._barrier("syncthreads_and", value, lambda values: int(all(values)))

    def syncthreads_or(self, value: Any) -> int:
        return self._barrier("syncthreads_or", value, lambda values: int(any(values)))

    def _warp(self, name: str, mask: int, value: Any, answer: Callable[..., Any]) -> Any:
        return _pause(_Wait("warp", name, sys._getframe(2).f_lineno, value, answer, int(mask) & 0xFFFFFFFF))

    def syncwarp(self, mask: int = 0xFFFFFFFF) -> None:
        self._warp("syncwarp", mask, None, lambda values, lane: None)

    def shfl_sync(self, mask: int, value: Any, lane: int) -> Any:
        return self._warp("shfl_sync", mask, value, _source("shfl_sync", lane))

    def shfl_up_sync(self, mask: int, value: Any, delta: int) -> Any:
        return self._warp("shfl_up_sync", mask, value, _source("shfl_up_sync", delta))

    def shfl_down_sync(self, mask: int, value: Any, delta: int) -> Any:
        return self._warp("shfl_down_sync", mask, value, _source("shfl_down_sync", delta))

    def shfl_xor_sync(self, mask: int, value: Any, lanes: int) -> Any:
        return self._warp("shfl_xor_sync", mask, value, _source("shfl_xor_sync", lanes))

    def ballot_sync(self, mask: int, value: Any) -> int:
        return self._warp("ballot_sync", mask, value, lambda values, lane: sum(1 << k for k in values if values[k]))

    def any_sync(self, mask: int, value: Any) -> bool:
        return self._warp("any_sync", mask, value, lambda values, lane: any(values.values()))

    def all_sync(self, mask: int, value: Any) -> bool:
        return self._warp("all_sync", mask, value, lambda values, lane: all(values.values()))


@contextmanager
def _swapped(function: Any, module: Any) -> Iterator[None]:
    """``cuda`` in the globals of ``function`` replaced by ``module``, until the last that entered has left.

    Threads leave device functions in any order here; Numba's own version restores what the last one found.
    """
    scope = function.__globals__
    depth, originals = _depths.get(id(scope), (0, {}))
    if not depth:
        originals = {name: value for name, value in scope.items() if value is cuda}
        scope.update(dict.fromkeys(originals, module))
    _depths[id(scope)] = depth + 1, originals
    try:
        yield
    finally:
        depth, originals = _depths.pop(id(scope))
        if depth > 1:
            _depths[id(scope)] = depth - 1, originals
        else:
            scope.update(originals)


_depths: dict[int, tuple[int, dict[str, Any]]] = {}


def install(order: str = "forward", seed: int = 0) -> None:
    """Put this core into the simulator of this process; ``NUMBA_ENABLE_CUDASIM=1`` came before Numba's import."""
    _set(order, seed)
    if kernel.BlockManager is Block:
        return
    kernel.BlockManager, kernel.FakeCUDAModule, kernel.swapped_cuda_module = Block, Module, _swapped
    known, original = set(inspect.signature(api.jit).parameters), cuda.jit

    def jit(*arguments: Any, **keywords: Any) -> Any:
        """``cuda.jit`` that drops keywords of the real compiler, such as ``launch_bounds``."""
        return original(*arguments, **{name: value for name, value in keywords.items() if name in known})

    cuda.jit = jit

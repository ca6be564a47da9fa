"""Where arrays live: CuPy on a GPU, NumPy behind the simulator; and the backend of the functions on arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from ..device import DeviceError
from ..instructions import Instruction, Op, ShapeError
from . import driver
from .launch import SIMULATED, Launch, plan

if SIMULATED:
    # one import for numba-cuda and for Numba's own target
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray


class _Simulated:
    """Memory of the simulator: NumPy arrays, handed to kernels without a copy."""

    zeros = staticmethod(np.zeros)
    on = staticmethod(nullcontext)

    @staticmethod
    def stream() -> Any:
        return None

    @staticmethod
    def wait(stream: Any) -> None:
        pass

    @staticmethod
    def to_device(array: Any) -> Any:
        return np.array(array)

    @staticmethod
    def to_host(array: Any) -> np.ndarray:
        return np.array(array)

    @staticmethod
    def ready(launches: Sequence[Launch], stream: Any) -> Callable[[], None]:
        calls = [(launch, [_simulated(a) for a in launch.arguments]) for launch in launches]

        def replay() -> None:
            with np.errstate(all="ignore"):  # scalars would warn where a GPU is silent
                for launch, arguments in calls:
                    launch.kernel[launch.grid, launch.block](*arguments)

        return replay

    @staticmethod
    def run(launches: Sequence[Launch]) -> None:
        _Simulated.ready(launches, None)()


def _simulated(value: Any) -> Any:
    return FakeCUDAArray(value) if isinstance(value, np.ndarray) else value


class _Device:
    """Memory of the GPU: CuPy arrays, on CuPy's current device."""

    @staticmethod
    def zeros(shape: Any, dtype: Any) -> Any:
        import cupy

        return cupy.zeros(shape, dtype)

    @staticmethod
    def stream() -> Any:
        import cupy

        return cupy.cuda.Stream(non_blocking=True)

    @staticmethod
    def wait(stream: Any) -> None:
        """Wait on the host until ``stream`` has done its work."""
        stream.synchronize()

    @staticmethod
    @contextmanager
    def on(stream: Any) -> Iterator[None]:
        """Work of CuPy goes to ``stream``, behind what the caller's stream holds; neither waits on the host."""
        import cupy

        stream.wait_event(cupy.cuda.get_current_stream().record())
        with stream:
            yield

    @staticmethod
    def to_device(array: Any) -> Any:
        import cupy

        return cupy.array(array)

    @staticmethod
    def to_host(array: Any) -> np.ndarray:
        import cupy

        return cupy.asnumpy(array)

    @staticmethod
    def ready(launches: Sequence[Launch], stream: Any) -> Callable[[], None]:
        """The launches as one graph, which ``stream`` replays."""
        calls = driver.prepare(launches)
        return functools.partial(_launch, driver.capture(calls, stream), stream, calls)

    @staticmethod
    def run(launches: Sequence[Launch]) -> None:
        """Launch on CuPy's current stream."""
        import cupy

        driver.run(driver.prepare(launches), cupy.cuda.get_current_stream())


def _launch(graph: Any, stream: Any, calls: Any) -> None:
    """Replay a graph; the ``calls`` hold the memory that it works on."""
    graph.launch(stream)


memory: Any = _Simulated if SIMULATED else _Device


@contextmanager
def room(nbytes: int, need: str, less: str) -> Iterator[None]:
    """Memory of the device that does not suffice meanwhile is a DeviceError that names its size and its ``need``."""
    try:
        yield
    except MemoryError as error:
        raise DeviceError(
            f"the GPU has no {nbytes / 2**20:,.0f} MiB free, which {need}; take {less}, or device='cpu'"
        ) from error


class _SimulatedBackend:
    """Arrays of the simulated ``numba.cuda``."""

    @staticmethod
    def empty(shape: Any, dtype: Any) -> Any:
        return FakeCUDAArray(np.empty(shape, dtype))

    @staticmethod
    def zeros(shape: Any, dtype: Any) -> Any:
        return FakeCUDAArray(np.zeros(shape, dtype))

    @staticmethod
    def contiguous(array: Any, dtype: Any = None) -> Any:
        return FakeCUDAArray(np.ascontiguousarray(getattr(array, "_ary", array), dtype))

    @staticmethod
    def run(op: str | Op, operands: Sequence[Any], rule: Any = None, scalars: tuple[float, ...] = ()) -> None:
        instruction = Instruction(op, operands, rule, scalars)
        arrays = [getattr(a, "_ary", a) for a in operands]
        _Simulated.run(plan(instruction, arrays, np.zeros(2, np.int64)))


class _DeviceBackend:
    """CuPy arrays; other arrays of the GPU are taken over without a copy."""

    @staticmethod
    def empty(shape: Any, dtype: Any) -> Any:
        import cupy

        return cupy.empty(shape, dtype)

    zeros = staticmethod(_Device.zeros)

    @staticmethod
    def contiguous(array: Any, dtype: Any = None) -> Any:
        import cupy

        return cupy.ascontiguousarray(cupy.asarray(array), dtype)

    @staticmethod
    def run(op: str | Op, operands: Sequence[Any], rule: Any = None, scalars: tuple[float, ...] = ()) -> None:
        instruction = Instruction(op, operands, rule, scalars)
        import cupy

        arrays = [None if a is None else cupy.asarray(a) for a in operands]
        _Device.run(plan(instruction, arrays, _start(cupy.cuda.Device().id)))


@functools.cache
def _start(device: int) -> Any:
    """A cursor at the first sample, which nobody moves."""
    return _Device.zeros(2, np.int64)


@functools.cache
def _is_device_type(kind: type) -> bool:
    return issubclass(kind, FakeCUDAArray) if SIMULATED else hasattr(kind, "__cuda_array_interface__")


def backend_of(arrays: Sequence[Any]) -> Any:
    """The backend of arrays that are not NumPy's: CuPy and other CUDA arrays, or those of the simulator."""
    for array in arrays:
        kind: Any = type(array)
        if not _is_device_type(kind):
            expected = "an array of numba.cuda" if SIMULATED else "a CuPy array or another CUDA array"
            raise ShapeError(f"got a {type(array).__name__}; expected a NumPy array or {expected}")
    return _SimulatedBackend if SIMULATED else _DeviceBackend

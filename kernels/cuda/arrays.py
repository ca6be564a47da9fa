"""Where arrays live: CuPy on a GPU, NumPy behind the simulator; and the backend of the functions on arrays."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np

from ..device import DeviceError
from ..exchange import check_writeable
from ..instructions import Instruction, Op, ShapeError
from . import driver, foreign
from .launch import SIMULATED, Launch, plan

if SIMULATED:
    # one import for numba-cuda and for Numba's own target
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray


class _Simulated:
    """Memory of the simulator: NumPy arrays, handed to kernels without a copy."""

    zeros = staticmethod(np.zeros)
    on = staticmethod(nullcontext)

    @staticmethod
    def stream(device: int = 0) -> Any:
        return None

    @staticmethod
    def wait(stream: Any) -> None:
        pass

    @staticmethod
    def to_device(array: Any) -> Any:
        return np.array(array)

    @staticmethod
    def copy(there: Any, array: Any) -> None:
        there[...] = array

    @staticmethod
    def there(array: Any) -> bool:
        return False

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
    """Memory of the GPU: CuPy arrays, on CuPy's current device, which is that of the stream within :meth:`on`."""

    @staticmethod
    def zeros(shape: Any, dtype: Any) -> Any:
        import cupy

        return cupy.zeros(shape, dtype)

    @staticmethod
    def stream(device: int = 0) -> Any:
        import cupy

        with cupy.cuda.Device(device):
            return cupy.cuda.Stream(non_blocking=True)

    @staticmethod
    def wait(stream: Any) -> None:
        """Wait on the host until ``stream`` has done its work."""
        stream.synchronize()

    @staticmethod
    @contextmanager
    def on(stream: Any) -> Iterator[None]:
        """Work of CuPy goes to ``stream`` and its device, behind what the caller's stream there holds.

        The host does not wait.
        """
        import cupy

        with cupy.cuda.Device(stream.device_id):  # first: each device has a current stream of its own
            stream.wait_event(cupy.cuda.get_current_stream().record())
            with stream:
                yield

    @staticmethod
    def to_device(array: Any) -> Any:
        import cupy

        return cupy.array(array)

    @staticmethod
    def copy(there: Any, array: Any) -> None:
        """Write ``array``, of the host or the device, into one of the same shape on the device."""
        there[...] = array if _Device.there(array) else _Device.to_device(array)

    @staticmethod
    def there(array: Any) -> bool:
        """Whether ``array`` lies on a GPU already; the caller has seen to it that it is the right one."""
        import cupy

        return isinstance(array, cupy.ndarray)

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
def room(nbytes: int | None, need: str, less: str) -> Iterator[None]:
    """Memory of the device that does not suffice meanwhile is a DeviceError that names its size and its ``need``."""
    try:
        yield
    except MemoryError as error:
        free = "too little memory" if nbytes is None else f"no {nbytes / 2**20:,.0f} MiB"
        raise DeviceError(f"the GPU has {free} free, which {need}; take {less}, or device='cpu'") from error


class _SimulatedBackend:
    """Arrays of the simulated ``numba.cuda``."""

    @staticmethod
    def array(name: str, array: Any) -> Any:
        return array

    @staticmethod
    def in_place(name: str, array: Any, contiguous: bool = True) -> Any:
        if contiguous and not array.flags.c_contiguous:
            raise ShapeError(f"{name} is updated in place; it must be C-contiguous and writeable")
        return array

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
    def limits(array: Any) -> tuple[int, int]:
        return int(array.min()), int(array.max())

    @staticmethod
    def current() -> Any:
        return nullcontext()

    @staticmethod
    def run(op: str | Op, operands: Sequence[Any], rule: Any = None, scalars: tuple[float, ...] = ()) -> None:
        instruction = Instruction(op, operands, rule, scalars)
        arrays = [getattr(a, "_ary", a) for a in operands]
        _Simulated.run(plan(instruction, arrays, np.zeros(2, np.int64)))


class _DeviceBackend:
    """CuPy arrays on one device, for one call of a function; other arrays of the GPU are taken over without a copy."""

    def __init__(self, device: int) -> None:
        self.device = device
        self._foreign: list[Any] = []

    @contextmanager
    def current(self) -> Iterator[None]:
        """CuPy's current device is that of the arrays meanwhile."""
        import cupy

        with cupy.cuda.Device(self.device):
            yield

    def array(self, name: str, array: Any) -> Any:
        """``array`` as one of CuPy, on the same memory."""
        import cupy

        if isinstance(array, cupy.ndarray):
            return array
        with self.current():
            found = foreign.taken(name, array)
        self._foreign.append(array)
        return found

    def in_place(self, name: str, array: Any, contiguous: bool = True) -> Any:
        """:meth:`array` for one that is written."""
        found = self.array(name, array)
        if found is not array and foreign.read_only(array):
            raise ShapeError(f"{name} is updated in place, and a {type(array).__name__} is read-only")
        check_writeable(name, found, contiguous)
        return found

    def empty(self, shape: Any, dtype: Any) -> Any:
        import cupy

        with self.current(), _room_for(shape, dtype):
            return cupy.empty(shape, dtype)

    def zeros(self, shape: Any, dtype: Any) -> Any:
        with self.current(), _room_for(shape, dtype):
            return _Device.zeros(shape, dtype)

    def contiguous(self, array: Any, dtype: Any = None) -> Any:
        import cupy

        with self.current(), _room_for(array.shape, dtype or array.dtype):
            return cupy.ascontiguousarray(array if _Device.there(array) else cupy.array(array), dtype)

    def limits(self, array: Any) -> tuple[int, int]:
        """The least and the greatest element, fetched at once: the one place where a function waits for the GPU."""
        import cupy

        with self.current():
            low, high = cupy.asnumpy(cupy.stack([array.min(), array.max()]))
        return int(low), int(high)

    def run(self, op: str | Op, operands: Sequence[Any], rule: Any = None, scalars: tuple[float, ...] = ()) -> None:
        instruction = Instruction(op, operands, rule, scalars)
        with self.current(), room(None, f"{instruction.op.name} needs for partial sums", "smaller arrays"):
            _Device.run(plan(instruction, operands, _start(self.device)))
            if self._foreign:
                foreign.used(self._foreign, self.device)


def _room_for(shape: Any, dtype: Any) -> Any:
    shape = tuple(shape)
    nbytes = math.prod(shape) * np.dtype(dtype).itemsize
    return room(nbytes, f"an array of {np.dtype(dtype)} {shape} needs", "smaller arrays")


@functools.cache
def _start(device: int) -> Any:
    """A cursor at the first sample, which nobody moves."""
    return _Device.zeros(2, np.int64)


backend: Any = (lambda device: _SimulatedBackend) if SIMULATED else _DeviceBackend


def backend_on(device: int) -> Any:
    """The backend of arrays on a device: those of CuPy and other libraries, or of the simulator."""
    return backend(device)

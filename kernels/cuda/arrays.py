"""Where arrays live: CuPy on a GPU, NumPy behind the simulator; and the backend of the functions on arrays."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..instructions import Instruction, ShapeError
from .launch import SIMULATED, Launch, plan, run

if SIMULATED:
    # one import for numba-cuda and for Numba's own target
    from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray


class _Simulated:
    """Memory of the simulator: NumPy arrays, handed to kernels without a copy."""

    zeros = staticmethod(np.zeros)

    @staticmethod
    def to_device(array: Any) -> Any:
        return np.array(array)

    @staticmethod
    def to_host(array: Any) -> np.ndarray:
        return np.array(array)

    @staticmethod
    def argument(value: Any) -> Any:
        return FakeCUDAArray(value) if isinstance(value, np.ndarray) else value

    @staticmethod
    def stream() -> Any:
        return 0


class _Device:
    """Memory of the GPU: CuPy arrays, on CuPy's current device and stream."""

    @staticmethod
    def zeros(shape: Any, dtype: Any) -> Any:
        import cupy

        return cupy.zeros(shape, dtype)

    @staticmethod
    def to_device(array: Any) -> Any:
        import cupy

        return cupy.array(array)

    @staticmethod
    def to_host(array: Any) -> np.ndarray:
        import cupy

        return cupy.asnumpy(array)

    @staticmethod
    def argument(value: Any) -> Any:
        from numba import cuda

        return cuda.as_cuda_array(value, sync=False) if hasattr(value, "__cuda_array_interface__") else value

    @staticmethod
    def stream() -> Any:
        import cupy
        from numba import cuda

        return cuda.external_stream(cupy.cuda.get_current_stream().ptr)


memory: Any = _Simulated if SIMULATED else _Device


def prepare(launches: Sequence[Launch]) -> list[Launch]:
    """``launches`` with their arrays as what a kernel takes, so that repeating them converts nothing."""
    return [launch._replace(arguments=tuple(map(memory.argument, launch.arguments))) for launch in launches]


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
    def run(op: str, operands: Sequence[Any], rule: Any = None, scalars: tuple[float, ...] = ()) -> None:
        instruction = Instruction(op, operands, rule, scalars)
        arrays = [getattr(a, "_ary", a) for a in operands]
        run(prepare(plan(instruction, arrays)), 0, 0)


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
    def run(op: str, operands: Sequence[Any], rule: Any = None, scalars: tuple[float, ...] = ()) -> None:
        instruction = Instruction(op, operands, rule, scalars)
        import cupy

        arrays = [None if a is None else cupy.asarray(a) for a in operands]
        run(prepare(plan(instruction, arrays)), 0, 0, memory.stream())


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

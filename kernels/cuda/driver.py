"""Launching kernels through the CUDA driver, and whole lists of them as one graph.

Numba's own launch converts every argument each time. Here the words of a launch are laid out once: a launch is then
one call of the driver with three addresses, and a graph of launches another one.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .launch import Launch
from .machine_code import Kernel, argument_types, cubin


class Call(NamedTuple):
    """A launch with everything in place; ``keeps`` holds what its addresses point to."""

    function: int
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    parameters: int
    keeps: Any


def words(arguments: Sequence[Any]) -> list[bytes]:
    """The parameters of a kernel as Numba passes them, of up to 8 bytes each.

    An array is two owners (none), the number and the size of its elements, its address, its shape and its strides.
    """
    parameters = []
    for a in arguments:
        if not getattr(a, "ndim", 0):
            parameters.append(np.asarray(a).tobytes())
            continue
        strides = [a.dtype.itemsize]
        for extent in reversed(a.shape[1:]):
            strides.insert(0, strides[0] * extent)
        numbers = [0, 0, a.size, a.dtype.itemsize, address(a), *a.shape, *strides]
        parameters += [int(number).to_bytes(8, "little") for number in numbers]
    return parameters


def address(array: Any) -> int:
    """Where the elements of an array begin."""
    if isinstance(array, np.ndarray):
        return array.ctypes.data
    return int(array.__cuda_array_interface__["data"][0])


def lay_out(parameters: Sequence[bytes]) -> tuple[int, np.ndarray]:
    """The address of an array of pointers to the parameters, and the memory in which both lie."""
    count = len(parameters)
    memory = np.zeros(2 * count, np.uint64)
    values = memory[:count].view(np.uint8).reshape(count, 8)
    for value, parameter in zip(values, parameters, strict=True):
        value[: len(parameter)] = np.frombuffer(parameter, np.uint8)
    base = memory.ctypes.data
    memory[count:] = base + 8 * np.arange(count, dtype=np.uint64)
    return base + 8 * count, memory


_functions: dict[Any, Any] = {}


def function(kernel: Kernel, kinds: tuple[Any, ...]) -> Any:
    """``kernel`` loaded on CuPy's current device, for arguments of these types."""
    import cupy

    device = cupy.cuda.Device()
    key = kernel, kinds, device.id
    if key not in _functions:
        name, code = cubin(kernel, kinds, int(device.compute_capability))
        module = cupy.cuda.function.Module()
        module.load(code)
        _functions[key] = module.get_function(name)
    return _functions[key]


def prepare(launches: Sequence[Any]) -> list[Any]:
    """Launches laid out and their kernels loaded; a product of a library is in place already."""
    calls: list[Any] = []
    for launch in launches:
        if not isinstance(launch, Launch):
            calls.append(launch)
            continue
        loaded = function(launch.kernel, argument_types(launch.arguments))
        parameters, memory = lay_out(words(launch.arguments))
        grid: Any = (*launch.grid, 1, 1)[:3]
        block: Any = (*launch.block, 1, 1)[:3]
        calls.append(Call(loaded.ptr, grid, block, parameters, (loaded, memory, launch.arguments)))
    return calls


def run(calls: Sequence[Any], stream: Any) -> None:
    """Launch in order on a CuPy stream."""
    from cupy.cuda.driver import launchKernel

    for call in calls:
        if isinstance(call, Call):
            launchKernel(call.function, *call.grid, *call.block, 0, stream.ptr, call.parameters, 0)
        else:
            call.enqueue(stream.ptr)


def capture(calls: Sequence[Any], stream: Any) -> Any:
    """The launches as a graph; ``stream`` must not be the default one."""
    stream.begin_capture()
    try:
        run(calls, stream)
    finally:
        graph = stream.end_capture()
    return graph


_SECONDS = 0.02  # of work in one burst
_BURSTS = 7


def seconds(call: Callable[[], Any]) -> float:
    """The median time of a call that launches on CuPy's current stream: between events, in bursts, warmed up before."""
    import cupy

    def burst(count: int) -> float:
        first, last = cupy.cuda.Event(), cupy.cuda.Event()
        first.record()
        for _ in range(count):
            call()
        last.record()
        last.synchronize()
        return float(cupy.cuda.get_elapsed_time(first, last)) / 1e3 / count

    call()  # what is done once is done here
    count = max(1, int(_SECONDS / max(burst(1), 1e-6)))
    return statistics.median(burst(count) for _ in range(_BURSTS))

"""A CuPy of NumPy arrays whose driver runs launches on the simulator, from the words of their parameters alone.

What the real driver sees of a launch is a function and addresses. Here the arrays are made again from those words, at
each replay of a graph from what was captured: a wrong word, a stale address or a host value inside a graph shows.
Events read a clock that goes on by what a test says that a kernel takes, ``Event.seconds``.
"""

import contextlib
import ctypes
import sys
import types

import numba
import numpy as np
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
from numba.np.numpy_support import as_dtype


def _aligned(shape, dtype):
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(count + 256, np.uint8)
    return memory[-memory.ctypes.data % 256 :][:count].view(dtype).reshape(shape)


def _copy(array):
    array = np.asarray(array)
    out = _aligned(array.shape, array.dtype)
    out[...] = array
    return out


class Stream:
    """A stream, that everything has passed already, or that captures."""

    current = None
    count = 0

    def __init__(self, non_blocking=False):
        Stream.count += 1
        self.ptr, self.graph = Stream.count, None
        Stream.all[self.ptr] = self

    all: dict = {}  # noqa: RUF012

    waits: list = []  # noqa: RUF012 - (stream, the one it waits for), "launch", and (stream, "host")

    def record(self):
        return self.ptr

    def wait_event(self, event):
        Stream.waits.append((self.ptr, event))

    def synchronize(self):
        Stream.waits.append((self.ptr, "host"))

    def begin_capture(self):
        assert self.graph is None
        self.graph = []

    def end_capture(self):
        graph, self.graph = Graph(self.graph), None
        return graph

    def __enter__(self):
        self.before, Stream.current = Stream.current, self

    def __exit__(self, *error):
        Stream.current = self.before


class Graph:
    """Launches that were captured: function, configuration and the bytes of the parameters at that time."""

    launched = 0

    def __init__(self, launches):
        self.launches = launches

    def launch(self, stream):
        Graph.launched += 1
        Stream.waits.append("launch")
        for launch in self.launches:
            _run(launch)


class Event:
    """A reading of the clock that launches move."""

    now = 0.0
    seconds = staticmethod(lambda kernel: 0.0)

    def record(self):
        self.time = Event.now

    def synchronize(self):
        pass


FUNCTIONS: list = []


def function(kernel, kinds):
    """What loading a kernel gives: an object whose ``ptr`` names it."""
    FUNCTIONS.append((kernel, kinds))
    return types.SimpleNamespace(ptr=len(FUNCTIONS) - 1)


def launchKernel(f, gx, gy, gz, bx, by, bz, shared, stream, parameters, extra):
    """Decode what the addresses point to; run it, or capture it."""
    kinds = FUNCTIONS[f][1]
    sizes = []
    for kind in kinds:
        sizes += [8] * (5 + 2 * kind.ndim) if isinstance(kind, numba.types.Array) else [as_dtype(kind).itemsize]
    pointers = (ctypes.c_uint64 * len(sizes)).from_address(parameters)
    values = [ctypes.string_at(pointer, size) for pointer, size in zip(pointers, sizes, strict=True)]
    launch = f, (gx, gy, gz), (bx, by, bz), values
    graph = Stream.all[stream].graph
    if graph is None:
        _run(launch)
    else:
        graph.append(launch)


def _run(launch):
    Event.now += Event.seconds(FUNCTIONS[launch[0]][0])
    _execute(*launch)


def _execute(f, grid, block, values):
    kernel, kinds = FUNCTIONS[f]
    values = list(values)
    arguments = []
    for kind in kinds:
        if not isinstance(kind, numba.types.Array):
            arguments.append(np.frombuffer(values.pop(0), as_dtype(kind))[0])
            continue
        dtype, axes = as_dtype(kind.dtype), kind.ndim
        numbers = [int.from_bytes(values.pop(0), "little") for _ in range(5 + 2 * axes)]
        _, _, size, itemsize, place, *rest = numbers
        shape, strides = rest[:axes], rest[axes:]
        assert itemsize == dtype.itemsize
        assert size == np.prod(shape)
        memory = (ctypes.c_uint8 * (size * itemsize)).from_address(place) if size else b""
        array = np.frombuffer(memory, dtype).reshape(shape)
        assert size == 0 or list(array.strides) == strides or 1 in shape
        arguments.append(FakeCUDAArray(array))
    with np.errstate(all="ignore"):
        kernel[grid, block](*arguments)


@contextlib.contextmanager
def installed(monkeypatch):
    """CuPy is this module, and the CUDA engine takes it for a GPU."""
    from dlcore.kernels.cuda import arrays, driver, engine, fleet

    Stream.current = Stream()
    Stream.waits.clear()
    Graph.launched = 0
    module = {name: types.ModuleType(name) for name in ("cupy", "cupy.cuda", "cupy.cuda.driver")}
    cupy, cuda = module["cupy"], module["cupy.cuda"]
    cupy.cuda, cuda.driver = cuda, module["cupy.cuda.driver"]
    cupy.zeros, cupy.array, cupy.asnumpy = _aligned, _copy, np.array
    cupy.empty = _aligned
    cuda.Stream, cuda.get_current_stream = Stream, lambda: Stream.current
    cuda.driver.launchKernel = launchKernel
    cuda.Event, cuda.get_elapsed_time = Event, lambda first, last: (last.time - first.time) * 1e3  # milliseconds
    cuda.Device = lambda: types.SimpleNamespace(id=0)
    cuda.runtime = types.SimpleNamespace(
        getDeviceProperties=lambda device: {"name": b"Fake GPU"}, driverGetVersion=lambda: 13000
    )
    for name, part in module.items():
        monkeypatch.setitem(sys.modules, name, part)
    monkeypatch.setattr(driver, "function", function)
    for user in (engine, fleet):
        monkeypatch.setattr(user, "memory", arrays._Device)
    yield Graph

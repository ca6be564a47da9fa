"""A CuPy of NumPy arrays whose driver runs launches on the simulator, from the words of their parameters alone.

What the real driver sees of a launch is a function and addresses. Here the arrays are made again from those words, at
each replay of a graph from what was captured: a wrong word, a stale address or a host value inside a graph shows.
Events read a clock that goes on by what a test says that a kernel takes, ``Event.seconds``.
"""

import contextlib
import ctypes
import importlib.machinery
import sys
import types

import numba
import numpy as np
from numba.cuda.simulator.cudadrv.devicearray import FakeCUDAArray
from numba.np.numpy_support import as_dtype


class Device:
    """A device by number, or the current one; current within ``with``."""

    now = 0
    count = 1
    capabilities = (90, 90)

    def __init__(self, number=None):
        self.id = Device.now if number is None else number
        if self.id >= Device.count:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")

    compute_capability = property(lambda self: str(Device.capabilities[self.id]))

    def __enter__(self):
        self.before, Device.now = Device.now, self.id
        return self

    def __exit__(self, *error):
        Device.now = self.before


_ALLOCATED: list = []  # (address, end, device) of memory of devices, the newest last
TRANSFERS: list = []  # ("up", "down", or "over" from device to device, shape)


def device_at(address):
    """The device whose memory lies at an address; None where it is the host's."""
    return next((device for first, end, device in reversed(_ALLOCATED) if first <= address < end), None)


class Array(np.ndarray):
    """An array of a device; ``empty``, ``zeros`` and copies lie in memory that is known to be that device's."""

    def __array_finalize__(self, other):
        self.number = getattr(other, "number", Device.now)

    device = property(lambda self: Device(self.number))
    __cuda_array_interface__ = property(
        lambda self: {"data": (self.ctypes.data, False), "shape": self.shape, "typestr": self.dtype.str, "version": 3}
    )

    def __dlpack_device__(self):
        return 2, self.number

    def astype(self, dtype):
        return _on_device(np.asarray(self).astype(dtype))

    def get(self):
        return _down(self)


def _aligned(shape, dtype):
    count = int(np.prod(shape)) * np.dtype(dtype).itemsize
    memory = np.zeros(count + 256, np.uint8)
    place = memory[-memory.ctypes.data % 256 :][:count]
    _ALLOCATED.append((place.ctypes.data, place.ctypes.data + count, Device.now))
    return place.view(dtype).reshape(shape).view(Array)


def _on_device(array):
    array = np.asarray(array)
    out = _aligned(array.shape, array.dtype)
    out[...] = array
    return out


def _copy(array):
    TRANSFERS.append(("over" if isinstance(array, Array) else "up", np.shape(array)))
    return _on_device(array)


def _down(array):
    TRANSFERS.append(("down", array.shape))
    return np.array(array)


def _asarray(array):
    if isinstance(array, Array):
        return array
    interface = array.__cuda_array_interface__
    assert interface.get("stream") is None, "CuPy would wait on the host for this stream"
    return _at(interface["data"][0], interface["shape"], np.dtype(interface["typestr"]))


def _at(address, shape, dtype):
    memory = (ctypes.c_uint8 * (int(np.prod(shape)) * dtype.itemsize)).from_address(address)
    found = np.frombuffer(memory, dtype).reshape(shape).view(Array)
    found.number = device_at(address)
    return found


def _from_dlpack(array):
    found = array.__dlpack__(stream=Stream.on_device().ptr).view(Array)
    found.number = array.__dlpack_device__()[1]
    return found


def _ascontiguousarray(array, dtype=None):
    if array.flags.c_contiguous and dtype in (None, array.dtype):
        return array
    return _on_device(np.ascontiguousarray(array, dtype))


def _function(name):
    def call(*arguments, **keywords):
        found = getattr(np, name)(*arguments, **keywords)
        return _on_device(found) if isinstance(found, np.ndarray) else found

    return call


class Stream:
    """A stream, that everything has passed already, or that captures."""

    current: dict = {}  # noqa: RUF012 - by device
    count = 0

    def __init__(self, non_blocking=False):
        Stream.count += 1
        self.ptr, self.graph, self.device_id = Stream.count, None, Device.now
        Stream.all[self.ptr] = self

    all: dict = {}  # noqa: RUF012

    waits: list = []  # noqa: RUF012 - (stream, the one it waits for), "launch", and (stream, "host")

    @classmethod
    def on_device(cls):
        """The current stream of the current device."""
        if Device.now not in cls.current:
            cls.current[Device.now] = cls()
        return cls.current[Device.now]

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
        assert self.device_id == Device.now, "a stream of another device"
        self.before = getattr(self, "before", [])
        self.before.append(Stream.on_device())
        Stream.current[Device.now] = self

    def __exit__(self, *error):
        Stream.current[Device.now] = self.before.pop()


class Graph:
    """Work that was captured, launches with their configuration and the bytes of the parameters at that time."""

    launched = 0

    def __init__(self, launches):
        self.launches = launches

    def launch(self, stream):
        Graph.launched += 1
        Stream.waits.append("launch")
        for work in self.launches:
            work()


class Event:
    """A reading of the clock that launches move."""

    now = 0.0
    seconds = staticmethod(lambda kernel: 0.0)

    all: list = []  # noqa: RUF012
    finished = True  # whether what an event was recorded behind is done

    def __init__(self, disable_timing=False):
        Event.all.append(self)
        self.ptr = len(Event.all) - 1
        self.stream = None

    done = property(lambda self: Event.finished)

    def record(self):
        self.time, self.stream = Event.now, Stream.on_device().ptr

    def synchronize(self):
        pass


def _event_record(event, stream):
    Event.all[event].stream = stream


def _stream_wait_event(stream, event, flags):
    Stream.waits.append((stream, Event.all[event].stream))


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
    launch = f, (gx, gy, gz), (bx, by, bz), values, Stream.all[stream].device_id
    enqueue(stream, lambda: _run(launch))


def enqueue(stream, work):
    """Do what a library puts onto a stream, or capture it."""
    graph = Stream.all[stream].graph
    if graph is None:
        work()
    else:
        graph.append(work)


def _run(launch):
    Event.now += Event.seconds(FUNCTIONS[launch[0]][0])
    _execute(*launch)


def _execute(f, grid, block, values, device):
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
        assert not size or device_at(place) == device, f"memory of {device_at(place)} in a launch on {device}"
        memory = (ctypes.c_uint8 * (size * itemsize)).from_address(place) if size else b""
        array = np.frombuffer(memory, dtype).reshape(shape)
        assert size == 0 or list(array.strides) == strides or 1 in shape
        arguments.append(FakeCUDAArray(array))
    with np.errstate(all="ignore"):
        kernel[grid, block](*arguments)


@contextlib.contextmanager
def installed(monkeypatch, devices=1):
    """CuPy is this module, with so many devices, and the CUDA engine takes them for GPUs."""
    from dlcore.kernels.cuda import arrays, driver, engine, fleet, foreign

    Stream.current.clear()
    for record in (Stream.waits, TRANSFERS, _ALLOCATED):
        record.clear()
    Graph.launched, Device.now, Device.count = 0, 0, devices
    module = {name: types.ModuleType(name) for name in ("cupy", "cupy.cuda", "cupy.cuda.driver")}
    for name, part in module.items():
        part.__spec__ = importlib.machinery.ModuleSpec(name, None)
    cupy, cuda = module["cupy"], module["cupy.cuda"]
    cupy.cuda, cuda.driver = cuda, module["cupy.cuda.driver"]
    cupy.ndarray, cupy.zeros, cupy.empty, cupy.array, cupy.asnumpy = Array, _aligned, _aligned, _copy, _down
    cupy.asarray, cupy.from_dlpack, cupy.ascontiguousarray = _asarray, _from_dlpack, _ascontiguousarray
    for name in ("stack", "eye", "unique", "where", "array_equal"):
        setattr(cupy, name, _function(name))
    cuda.Stream, cuda.get_current_stream = Stream, Stream.on_device
    cuda.driver.launchKernel = launchKernel
    cuda.Event, cuda.get_elapsed_time = Event, lambda first, last: (last.time - first.time) * 1e3  # milliseconds
    cuda.Device = Device
    cuda.runtime = types.SimpleNamespace(
        getDeviceProperties=lambda device: {"name": b"Fake GPU", "major": 9, "minor": 0},
        driverGetVersion=lambda: 13000,
        runtimeGetVersion=lambda: 13000,
        getDeviceCount=lambda: Device.count,
        eventRecord=_event_record,
        streamWaitEvent=_stream_wait_event,
        pointerGetAttributes=lambda pointer: types.SimpleNamespace(device=device_at(pointer)),
    )
    for name, part in module.items():
        monkeypatch.setitem(sys.modules, name, part)
    monkeypatch.setattr(driver, "function", function)
    monkeypatch.setattr(arrays, "backend", arrays._DeviceBackend)
    for user in (engine, fleet):
        monkeypatch.setattr(user, "memory", arrays._Device)
    arrays._start.cache_clear()
    yield Graph
    arrays._start.cache_clear()
    foreign._kept.clear()


@contextlib.contextmanager
def hardware(monkeypatch, devices=2):
    """:func:`installed`, and what asks for GPUs finds them, as if nothing were simulated."""
    from dlcore.kernels import device

    with installed(monkeypatch, devices) as graphs:
        monkeypatch.setattr(device, "simulated", lambda: False)
        monkeypatch.setattr(device, "_has_driver", lambda: True)
        device._found.cache_clear()
        yield graphs
    device._found.cache_clear()

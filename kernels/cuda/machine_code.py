"""Kernels as machine code: compiled by Numba, assembled by nvJitLink, and kept on the disk.

No GPU is needed for any of it. A cubin is filed under what its kernel means: the text it was made from, the rules in
it, the types of its arguments, the architecture, this package, and the versions of the tools.
"""

from __future__ import annotations

import functools
import importlib.metadata
import re
import threading
import time
import types as python_types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numba
import numpy as np
from numba import cuda, types

from .. import cache, compile
from ..device import DeviceError

_ENTRY = re.compile(r"\.visible \.entry (\w+)")
_TOOLS = ("numba-cuda", "cuda-bindings", "nvidia-nvjitlink", "nvidia-nvjitlink-cu12", "nvidia-cuda-nvcc")


class Kernel:
    """A kernel before it is compiled: its Python function, and in ``meanings`` all that it was made from.

    ``options`` go to Numba's compiler. An index is a configuration to launch it with by Numba itself, which is how it
    runs on the simulator.
    """

    def __init__(self, function: Callable[..., Any], *meanings: str, **options: Any) -> None:
        self.py_func = function
        self.name = function.__name__
        self.options = options
        self.meaning = "\0".join([self.name, *meanings, repr(sorted(options.items()))])

    @functools.cached_property
    def _dispatcher(self) -> Any:
        from ..device import simulated

        return cuda.jit(self.py_func) if simulated() else cuda.jit(**self.options)(self.py_func)

    def __getitem__(self, configuration: Any) -> Any:
        return self._dispatcher[configuration]


_texts: dict[int, str] = {}


def describe(function: Any, text: str) -> None:
    """Say what a device function means, where its name does not: one that was made from a rule."""
    _texts[id(function)] = text


def meaning(value: Any) -> str:
    """What a part of a kernel's key means, for its name on the disk."""
    if id(value) in _texts:
        return _texts[id(value)]
    if isinstance(value, type | np.dtype):
        return np.dtype(value).name
    function = getattr(value, "py_func", value)
    if isinstance(function, python_types.FunctionType):
        return f"{function.__module__}.{function.__qualname__}"
    return repr(value)


def argument_types(arguments: Sequence[Any]) -> tuple[Any, ...]:
    """The Numba types of arguments: C-contiguous arrays, and scalars of NumPy."""
    return tuple(
        types.Array(numba.from_dtype(a.dtype), a.ndim, "C") if getattr(a, "ndim", 0) else numba.from_dtype(a.dtype)
        for a in arguments
    )


@functools.cache
def versions() -> str:
    """Those of the tools that make machine code."""

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return ""

    return " ".join(map(version, _TOOLS))


@functools.cache
def cubin(kernel: Kernel, kinds: tuple[Any, ...], arch: int) -> tuple[str, bytes]:
    """Name and machine code of ``kernel`` for arguments of these types and ``sm_<arch>``, from the disk or compiled."""
    digest = cache.fingerprint(kernel.meaning, repr(kinds), f"sm_{arch}", versions())
    path = cache.cache_directory() / f"{kernel.name}.{digest[:24]}.sm_{arch}.cubin"
    start = time.perf_counter()
    try:
        name, _, code = path.read_bytes().partition(b"\0")
        compile.STATISTICS["loaded"] += 1
    except FileNotFoundError:
        for hook in compile.ON_COMPILE:
            hook(f"{kernel.name} (sm_{arch})")
        text = ptx(kernel, kinds, arch)
        found = _ENTRY.search(text)
        assert found is not None
        name, code = found[1].encode(), assemble(text, arch)
        cache.write_whole(path, name + b"\0" + code)
        compile.STATISTICS["compiled"] += 1
    compile.STATISTICS["seconds"] += time.perf_counter() - start
    return name.decode(), code


_pretending = threading.Lock()


@contextmanager
def pretended_device(arch: int) -> Iterator[None]:
    """Nested device functions ask the driver for the current device; this answers in its place."""
    from numba.cuda import dispatcher

    with _pretending:
        original = dispatcher.get_current_device
        device = python_types.SimpleNamespace(compute_capability=divmod(arch, 10))
        dispatcher.get_current_device = lambda: device
        try:
            yield
        finally:
            dispatcher.get_current_device = original


def ptx(kernel: Kernel, kinds: tuple[Any, ...], arch: int) -> str:
    """The assembly text of ``kernel``."""
    capability = divmod(arch, 10)
    with pretended_device(arch):
        text, _ = cuda.compile(
            kernel.py_func, kinds, cc=capability, device=False, abi="numba", output="ptx", **kernel.options
        )
    return text


def assemble(text: str, arch: int) -> bytes:
    """PTX to a cubin, by nvJitLink; by the driver where that is missing.

    Raises :class:`~dlcore.kernels.device.DeviceError` where there is neither.
    """
    try:
        from cuda.bindings import nvjitlink

        nvjitlink.version()
    except (ImportError, RuntimeError) as missing:  # the bindings, or the library
        return _assemble_by_driver(text, missing)
    try:
        handle = nvjitlink.create(1, [f"-arch=sm_{arch}"])
    except nvjitlink.nvJitLinkError as error:
        raise DeviceError(f"nvJitLink {'.'.join(map(str, nvjitlink.version()))} does not know sm_{arch}") from error
    try:
        code = text.encode()
        nvjitlink.add_data(handle, nvjitlink.InputType.PTX, code, len(code), "dlcore")
        nvjitlink.complete(handle)
        image = bytearray(nvjitlink.get_linked_cubin_size(handle))
        nvjitlink.get_linked_cubin(handle, image)
        return bytes(image)
    except nvjitlink.nvJitLinkError as error:
        log = bytearray(nvjitlink.get_error_log_size(handle))
        nvjitlink.get_error_log(handle, log)
        reason = log.decode(errors="replace").strip("\0\n ") or str(error)
        raise DeviceError(f"nvJitLink cannot assemble a kernel for sm_{arch}: {reason}") from error
    finally:
        nvjitlink.destroy(handle)


def _assemble_by_driver(text: str, missing: Exception) -> bytes:
    try:
        from cupy.cuda.function import LinkState

        state = LinkState()
        state.add_ptr_data(text, "dlcore.ptx")
        return bytes(state.complete())
    except Exception as error:  # CuPy is missing, or there is no driver: each says so in its own way
        raise DeviceError(
            f"kernels cannot be assembled: nvJitLink is missing ({missing}), and so is a driver ({error}); "
            "pip install 'dlcore[cuda13]' (or cuda12) brings nvJitLink"
        ) from error

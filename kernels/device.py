"""The one place that asks whether there is a GPU, and which engine a device name stands for."""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
from typing import Any, NamedTuple

DEVICES = ("auto", "cpu", "cuda")
_NUMBERED = re.compile(r"cuda:\d{1,4}")
OLDEST = 75  # compute capability: Turing
TENSOR_CORES = 80  # that take TF32, and two floats of 16 bits rounded at once: Ampere
_NO_DRIVER = "no CUDA device: no NVIDIA driver is installed"


class DeviceError(RuntimeError):
    """A device that was asked for and cannot be used; the message says why and what to do."""


def simulated() -> bool:
    """Whether ``numba.cuda`` is Numba's simulator (``NUMBA_ENABLE_CUDASIM=1``)."""
    from numba.core import config

    return bool(config.ENABLE_CUDASIM)  # type: ignore[attr-defined]


class _Found(NamedTuple):
    """The GPUs that CuPy sees, with their compute capabilities; or one sentence that says why there are none."""

    reason: str | None
    capabilities: tuple[int, ...] = ()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if any(map(str.isalpha, line))), type(error).__name__)


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _has_driver() -> bool:
    """Whether the NVIDIA driver's library can be loaded; to find that it cannot is 0.1 s less than to import CuPy."""
    try:
        ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return False
    return True


@functools.cache
def _found() -> _Found:
    for module, package in (("cupy", "CuPy"), ("numba_cuda", "numba-cuda")):
        if importlib.util.find_spec(module) is None:
            return _Found(f"{package} is not installed; pip install 'dlcore[cuda13]' (or cuda12) adds it")
    if not _has_driver():
        return _Found(_NO_DRIVER)
    try:
        import cupy

        runtime = cupy.cuda.runtime
    except Exception as error:  # libraries of CUDA that are missing, two CuPys at once: CuPy wraps the cause in a page
        return _Found(f"CuPy is installed and cannot be imported: {_first_line(error.__cause__ or error)}")
    try:
        return _Found(None, tuple(int(cupy.cuda.Device(k).compute_capability) for k in range(runtime.getDeviceCount())))
    except Exception as error:
        return _Found(_why_not(runtime, error))


def _why_not(runtime: Any, error: Exception) -> str:
    """Why the GPUs cannot be counted: there is no driver, or one that is older than CuPy needs."""
    driver, needed = int(runtime.driverGetVersion()), int(runtime.runtimeGetVersion())
    if not driver:
        return _NO_DRIVER
    if driver // 1000 < needed // 1000:  # within a major version, older drivers will do
        return (
            f"the NVIDIA driver is too old: it knows CUDA {_version(driver)}, and CuPy is made for {_version(needed)}; "
            f"update the driver, or install the CuPy for CUDA {driver // 1000}"
        )
    return f"no CUDA device: {_first_line(error)}"


def too_old(number: int) -> str | None:
    """Why GPU ``number`` cannot be used; None where it can."""
    found = _found().capabilities[number]
    if found >= OLDEST:
        return None
    return (
        f"the GPU has compute capability {found // 10}.{found % 10}; dlcore needs {OLDEST // 10}.{OLDEST % 10} or more"
    )


def why_no_gpu() -> str | None:
    """None where a CUDA GPU can be used, else one sentence that says what is missing. The simulator is no GPU."""
    if simulated():
        return "NUMBA_ENABLE_CUDASIM is set: CUDA kernels run on the simulator"
    reason, capabilities = _found()
    if reason is not None:
        return reason
    if not capabilities:
        return "no CUDA device was found"
    return None if _usable() else too_old(0)


def _usable() -> list[int]:
    """The numbers of the GPUs that are not too old."""
    return [k for k in range(len(_found().capabilities)) if too_old(k) is None]


def devices() -> int:
    """How many GPUs there are; the simulator is one."""
    return 1 if simulated() else len(_found().capabilities)


def capability() -> int | None:
    """The compute capability of CuPy's current GPU, 90 for 9.0; None where there is none."""
    if why_no_gpu() is not None:
        return None
    import cupy

    return int(cupy.cuda.Device().compute_capability)


def _current() -> int:
    """CuPy's current device, or the first GPU that can be used where that cannot."""
    import cupy

    current = int(cupy.cuda.Device().id)
    return current if too_old(current) is None else _usable()[0]


def ordinal(device: str) -> int:
    """The number of a CUDA device: 1 for ``"cuda:1"``, 0 for ``"cuda"``."""
    return int(device.partition(":")[2] or 0)


def check_name(device: str) -> str:
    """``device``, if it is the name of one. Raises :class:`DeviceError`."""
    if not isinstance(device, str) or (device not in DEVICES and not _NUMBERED.fullmatch(device)):
        raise DeviceError(f"device must be one of {', '.join(DEVICES)} or a GPU such as cuda:1, got {device!r}")
    return device


def resolve(device: str = "auto") -> str:
    """``"cpu"``, ``"cuda"`` (the first GPU) or ``"cuda:1"`` (another) for a device name.

    ``"auto"`` takes CuPy's current GPU where there is one that can be used, and the CPU otherwise: :func:`why_no_gpu`
    and ``dlcore info`` say why. ``"cuda"`` takes the current GPU too. Raises :class:`DeviceError` for ``"cuda"``
    without a usable GPU (the simulator counts where it was asked for), and for a number that no GPU has.
    """
    check_name(device)
    if device == "cpu" or (device == "auto" and why_no_gpu()):
        return "cpu"
    reason = None if simulated() else why_no_gpu()
    if reason is None and device not in ("auto", "cuda"):
        number, count = ordinal(device), devices()
        if number >= count:
            there = "only cuda:0" if count == 1 else f"cuda:0 to cuda:{count - 1}"
            raise DeviceError(f"device={device!r} does not exist; there is {there}")
        reason = None if simulated() else too_old(number)
    elif reason is None:
        number = 0 if simulated() else _current()
    if reason is not None:
        raise DeviceError(f"device={device!r} cannot be used: {reason}; device='cpu' works everywhere")
    return f"cuda:{number}" if number else "cuda"


def engine(device: str) -> Any:
    """What makes an engine of a resolved device from a program and a number of rows."""
    if device == "cpu":
        from .cpu.engine import Engine

        return Engine
    from .cuda.engine import Engine as CudaEngine

    return functools.partial(CudaEngine, ordinal=ordinal(device))

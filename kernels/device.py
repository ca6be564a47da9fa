"""The one place that asks whether there is a GPU, and which engine a device name stands for."""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

DEVICES = ("auto", "cpu", "cuda")
OLDEST = 75  # compute capability: Turing
TENSOR_CORES = 80  # that take TF32, and two floats of 16 bits rounded at once: Ampere


class DeviceError(RuntimeError):
    """A device that was asked for and cannot be used; the message says why and what to do."""


def simulated() -> bool:
    """Whether ``numba.cuda`` is Numba's simulator (``NUMBA_ENABLE_CUDASIM=1``)."""
    from numba.core import config

    return bool(config.ENABLE_CUDASIM)  # type: ignore[attr-defined]


@functools.cache
def why_no_gpu() -> str | None:
    """None where a CUDA GPU can be used, else one sentence that says what is missing. The simulator is no GPU."""
    if simulated():
        return "NUMBA_ENABLE_CUDASIM is set: CUDA kernels run on the simulator"
    for module, package in (("cupy", "CuPy"), ("numba_cuda", "numba-cuda")):
        if importlib.util.find_spec(module) is None:
            return f"{package} is not installed; pip install 'dlcore[cuda13]' (or cuda12) adds it"
    try:
        import cupy

        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # no driver, a driver that is too old: CuPy says which
        return f"no CUDA device: {str(error).strip().splitlines()[0]}"
    if not count:
        return "no CUDA device was found"
    found = int(cupy.cuda.Device().compute_capability)
    if found < OLDEST:
        return f"the GPU has compute capability {found // 10}.{found % 10}; dlcore needs {OLDEST // 10}.{OLDEST % 10}"
    return None


def capability() -> int | None:
    """The compute capability of the GPU, 90 for 9.0; None where there is none."""
    if why_no_gpu() is not None:
        return None
    import cupy

    return int(cupy.cuda.Device().compute_capability)


def resolve(device: str = "auto") -> str:
    """``"cpu"`` or ``"cuda"`` for a device name; ``"auto"`` takes the GPU where there is one.

    Raises :class:`DeviceError` for ``"cuda"`` without a usable GPU (the simulator counts where it was asked for).
    """
    if device not in DEVICES:
        raise DeviceError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    if device == "auto":
        return "cpu" if why_no_gpu() else "cuda"
    if device == "cuda" and not simulated():
        reason = why_no_gpu()
        if reason:
            raise DeviceError(f"device='cuda' cannot be used: {reason}; device='cpu' works everywhere")
    return device


def engine(device: str) -> Any:
    """The engine class of a resolved device."""
    if device == "cuda":
        from .cuda.engine import Engine as CudaEngine

        return CudaEngine
    from .cpu.engine import Engine

    return Engine

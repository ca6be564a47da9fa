"""Arrays of other libraries: on which device they lie, and as arrays of NumPy that share their memory.

What a library offers is asked for in this order: ``__dlpack_device__``, ``__cuda_array_interface__``, and for memory of
the host ``__array_interface__``, ``__array__`` and ``__dlpack__``. No library is imported for it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .device import simulated
from .instructions import ShapeError

_HOST = (1, 3, 11)  # types of DLPack: memory of the host, plain or pinned for CUDA or ROCm
_CUDA = (2, 13)  # memory of a CUDA device, and managed memory
_HOST_PROTOCOLS = ("__array_interface__", "__array__", "__dlpack__")


def device_of(name: str, array: Any) -> int | None:
    """The number of the CUDA device that ``array`` lies on; None for memory of the host.

    Raises :class:`ShapeError` for what is no array, and for other devices; ``name`` is that of the argument.
    """
    kind = type(array)
    if isinstance(array, np.ndarray) and not hasattr(kind, "__cuda_array_interface__"):
        return None
    if simulated() and kind.__name__ == "FakeCUDAArray":
        return 0
    if hasattr(kind, "__dlpack_device__"):
        try:
            place, number = array.__dlpack_device__()
        except (ValueError, BufferError) as error:  # PyTorch's "meta" and what else has no memory
            raise ShapeError(f"{name} is a {kind.__name__} without memory of its own: {error}") from None
        if place in _HOST:
            return None
        if place in _CUDA:
            return int(number)
        raise ShapeError(f"{name} lies on a device of DLPack type {int(place)}; expected the CPU (1) or CUDA (2)")
    if hasattr(array, "__cuda_array_interface__"):
        from .cuda.foreign import device_of_pointer

        return device_of_pointer(array.__cuda_array_interface__["data"][0])
    _check_protocol(name, array)
    return None


def _check_protocol(name: str, array: Any) -> None:
    """Raise where ``array`` is nothing that an array of NumPy can be made of."""
    kind = type(array)
    if isinstance(array, type) or not any(hasattr(kind, protocol) for protocol in _HOST_PROTOCOLS):
        raise ShapeError(
            f"got a {kind.__name__} for {name}; expected an array of NumPy, CuPy, or another library with DLPack or "
            "__cuda_array_interface__"
        )


def place(device: int | None) -> str:
    """A device in words."""
    return "the CPU" if device is None else f"cuda:{device}"


def to_numpy(name: str, array: Any) -> np.ndarray:
    """``array``, which lies in memory of the host, as an array of NumPy; not copied where its library can avoid it."""
    kind = type(array)
    readable = hasattr(kind, "__array__") or hasattr(kind, "__array_interface__")
    if not readable:
        _check_protocol(name, array)
    try:
        return np.asarray(array) if readable else np.from_dlpack(array)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise refused(name, array, error) from error


def refused(name: str, array: Any, error: Exception) -> ShapeError:
    """What to raise where a library does not hand out its memory, and says why."""
    reason = str(error).strip().splitlines()[0]
    return ShapeError(f"{name} is a {type(array).__name__} that cannot be taken as it is: {reason}")


def shared(name: str, array: Any) -> np.ndarray:
    """:func:`to_numpy` for an array that is written: its memory is that of ``array``, or ShapeError is raised."""
    found = to_numpy(name, array)
    if found is not array and not isinstance(array, np.ndarray) and found.size:
        again = to_numpy(name, array)  # while the first is alive: a copy lies elsewhere
        if again.ctypes.data != found.ctypes.data:
            raise ShapeError(f"{name} is updated in place; a {type(array).__name__} gives out copies of itself only")
    return found


def check_writeable(name: str, array: Any, contiguous: bool = True) -> None:
    """Raise where ``array``, of NumPy or CuPy, cannot be updated in place."""
    if not getattr(array.flags, "writeable", True):
        raise ShapeError(f"{name} is updated in place, and is read-only; it must be C-contiguous and writeable")
    if contiguous and not array.flags.c_contiguous:
        raise ShapeError(f"{name} is updated in place; it must be C-contiguous and writeable")


def module_of(array: Any) -> Any:
    """NumPy or CuPy: whose functions take ``array``, which is of one of them."""
    if not hasattr(type(array), "__cuda_array_interface__"):
        return np
    import cupy

    return cupy

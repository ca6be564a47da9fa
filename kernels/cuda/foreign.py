"""Arrays of other libraries on a GPU, as arrays of CuPy that share their memory; the host waits for nothing.

With DLPack, the other library lets CuPy's current stream wait for its own. With ``__cuda_array_interface__`` the array
says which stream fills it (version 3), and CuPy's waits for an event there. In the other direction, what reads the
array here may still be running when the function returns: the other library's stream waits for that where it is known,
which it is for ``__cuda_array_interface__`` and for PyTorch. Else the array is kept alive until the work is done.
"""

from __future__ import annotations

import sys
from collections import deque
from typing import Any

from ..exchange import refused


def device_of_pointer(pointer: int) -> int:
    """The device that memory lies on; the current one for an array without elements."""
    import cupy

    if not pointer:
        return int(cupy.cuda.Device().id)
    return int(cupy.cuda.runtime.pointerGetAttributes(pointer).device)


class _Ordered:
    """The memory of an array whose stream was waited for; CuPy would wait on the host for the stream it names."""

    def __init__(self, owner: Any, interface: dict[str, Any]) -> None:
        self.owner = owner
        self.__cuda_array_interface__ = {**interface, "stream": None}


def _wait(stream: int, other: int) -> Any:
    """What follows on ``stream`` waits for what ``other`` holds; both are handles."""
    import cupy

    event = cupy.cuda.Event(disable_timing=True)
    cupy.cuda.runtime.eventRecord(event.ptr, other)
    cupy.cuda.runtime.streamWaitEvent(stream, event.ptr, 0)
    return event


def _stream_of(array: Any, device: int) -> int | None:
    """The handle of the stream on which the library of ``array`` goes on with it, if it can be known."""
    if type(array).__module__.partition(".")[0] == "torch":
        return int(sys.modules["torch"].cuda.current_stream(device).cuda_stream)
    if not hasattr(type(array), "__dlpack__"):
        return array.__cuda_array_interface__.get("stream")
    return None


def read_only(array: Any) -> bool:
    """Whether the library of an array says that nobody may write into it."""
    if type(array).__module__.partition(".")[0] in ("jax", "jaxlib"):
        return True
    return not hasattr(type(array), "__dlpack__") and bool(array.__cuda_array_interface__["data"][1])


def taken(name: str, array: Any) -> Any:
    """An array of another library as one of CuPy, ordered on CuPy's current stream; the device is the current one."""
    import cupy

    try:
        if hasattr(type(array), "__dlpack__"):
            return cupy.from_dlpack(array)
        interface = array.__cuda_array_interface__
        stream = interface.get("stream")
        if stream is not None:
            _wait(cupy.cuda.get_current_stream().ptr, stream)
        return cupy.asarray(_Ordered(array, interface))
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        raise refused(name, array, error) from error


_kept: deque[tuple[Any, list[Any]]] = deque()  # events, and the arrays that are in use until then


def used(arrays: list[Any], device: int) -> None:
    """Order the libraries of ``arrays`` behind CuPy's current stream, or keep the arrays alive until that is done."""
    import cupy

    current = cupy.cuda.get_current_stream().ptr
    unknown = []
    for array in arrays:
        stream = _stream_of(array, device)
        if stream is None:
            unknown.append(array)
        elif stream != current:
            _wait(stream, current)
    while _kept and _kept[0][0].done:
        _kept.popleft()
    if unknown:
        event = cupy.cuda.Event(disable_timing=True)
        event.record()
        _kept.append((event, unknown))

"""How matrix products of float32 on a GPU round their operands: a choice for the whole process."""

from __future__ import annotations

from .device import TENSOR_CORES, DeviceError, capability

PRECISIONS = ("float32", "tf32", "bfloat16", "float16")

_chosen = "float32"


def set_matmul_precision(name: str) -> None:
    """Choose what matrix products of float32 models on a GPU are computed from; the CPU always takes float32.

    ``"float32"`` (the default) takes the numbers as they are. ``"tf32"`` (10 bits of fraction), ``"bfloat16"`` (7
    bits) and ``"float16"`` (10 bits) round both factors and use tensor cores; sums are of float32, and so is everything
    in memory. They need compute capability 8.0. Models that were trained before plan their next step anew. Raises
    :class:`~dlcore.kernels.DeviceError` where the GPU is too old.

    ``"float16"`` loses range, which the others keep: factors of 65520 and more become infinite, those below 6.1e-5 lose
    bits (their spacing is 6e-8) and those up to 3e-8 become 0. Gradients are often that small: multiply the loss by a
    scale that lifts them, and divide the gradients by it; where it is too large, infinities and NaN in them say so.

    >>> import dlcore
    >>> dlcore.set_matmul_precision("tf32")
    >>> dlcore.get_matmul_precision()
    'tf32'
    >>> dlcore.set_matmul_precision("float32")
    """
    check_precision(name)
    global _chosen
    _chosen = name


def check_precision(name: str) -> None:
    """Raise where there is no such precision, or the GPU has none."""
    if name not in PRECISIONS:
        raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {name!r}")
    found = None if name == "float32" else capability()
    if found is not None and found < TENSOR_CORES:
        raise DeviceError(f"{name} needs compute capability 8.0; the GPU has {found // 10}.{found % 10}")


def get_matmul_precision() -> str:
    """What :func:`set_matmul_precision` chose."""
    return _chosen

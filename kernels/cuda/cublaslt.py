"""Matrix products of NVIDIA's cuBLASLt, where that library is there: the few calls of it that a dense layer needs.

Nothing here decides by itself: ``dlcore tune`` measures what the library offers beside the plans of gemm.py and
gemm_tensor.py, and an algorithm is taken where it was faster (see choices.py and dense.py).

Arrays are row-major here and column-major there. The same memory read as column-major is the transpose, so that
``C = A B`` is ``C^T = B^T A^T``: the library's first factor is ours of the right, and no number is moved.

Results repeat bit for bit. An algorithm is kept by its configuration, not asked for again, and made anew from that;
parts of a long inner index go through scratch and are added in a step of their own, never in place. ReLU is not left to
the library: it is documented there as ``max(x, 0)``, with no word on NaN, which our rules keep.
"""

from __future__ import annotations

import ctypes
import functools
import itertools
import os
import warnings
import weakref
from ctypes import c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_uint16, c_uint32, c_uint64, c_void_p
from typing import Any, NamedTuple

from ..device import DeviceError
from ..rule import find
from . import choices
from .choices import Algorithm
from .driver import address
from .launch import SCRATCH, ceil_div, host_function, scratch
from .vector import BYTES, aligned

WORKSPACE = 32 << 20  # bytes of scratch that a product may take
MOST = 8  # algorithms that the library is asked for

_FILES = ("cublasLt64_13.dll", "cublasLt64_12.dll") if os.name == "nt" else ("libcublasLt.so.13", "libcublasLt.so.12")
_PACKAGES = "pip install nvidia-cublas (CUDA 13) or nvidia-cublas-cu12 adds it"

# arguments of the functions, which return a status
_MATRICES = (c_void_p,) * 6  # handle, product, and the layouts of A, B, C and D
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "cublasLtCreate": (c_void_p,),
    "cublasLtMatmulDescCreate": (c_void_p, c_int, c_int),
    "cublasLtMatrixLayoutCreate": (c_void_p, c_int, c_uint64, c_uint64, c_int64),
    "cublasLtMatmulPreferenceCreate": (c_void_p,),
    "cublasLtMatmulAlgoInit": (c_void_p, *(c_int,) * 7, c_void_p),
    "cublasLtMatmulAlgoCheck": (*_MATRICES, c_void_p, c_void_p),
    "cublasLtMatmulAlgoGetHeuristic": (*_MATRICES, c_void_p, c_int, c_void_p, c_void_p),
    "cublasLtMatmul": (c_void_p,) * 14 + (c_size_t, c_void_p),
}
for _kind in ("MatmulDesc", "MatrixLayout", "MatmulPreference"):
    FUNCTIONS[f"cublasLt{_kind}Destroy"] = (c_void_p,)
for _kind in ("MatmulDesc", "MatmulPreference", "MatmulAlgoConfig"):
    FUNCTIONS[f"cublasLt{_kind}SetAttribute"] = (c_void_p, c_int, c_void_p, c_size_t)
FUNCTIONS["cublasLtMatmulAlgoConfigGetAttribute"] = (c_void_p, c_int, c_void_p, c_size_t, c_void_p)

# number and type of the attributes, by what has them
ATTRIBUTES: dict[str, dict[str, tuple[int, Any]]] = {
    "MatmulDesc": {
        "TRANSA": (3, c_int32),
        "TRANSB": (4, c_int32),
        "EPILOGUE": (7, c_uint32),
        "BIAS_POINTER": (8, c_uint64),
    },
    "MatmulPreference": {
        "MAX_WORKSPACE_BYTES": (1, c_uint64),
        "REDUCTION_SCHEME_MASK": (3, c_uint32),
        "MIN_ALIGNMENT_A_BYTES": (5, c_uint32),
        "MIN_ALIGNMENT_B_BYTES": (6, c_uint32),
        "MIN_ALIGNMENT_C_BYTES": (7, c_uint32),
        "MIN_ALIGNMENT_D_BYTES": (8, c_uint32),
    },
    "MatmulAlgoConfig": {
        "ID": (0, c_int32),
        "TILE_ID": (1, c_uint32),
        "SPLITK_NUM": (2, c_int32),
        "REDUCTION_SCHEME": (3, c_uint32),
        "CTA_SWIZZLING": (4, c_uint32),
        "CUSTOM_OPTION": (5, c_uint32),
        "STAGES_ID": (6, c_uint32),
        "INNER_SHAPE_ID": (7, c_uint16),
        "CLUSTER_SHAPE_ID": (8, c_uint16),
    },
}
NONE, TRANSPOSED = 0, 1  # cublasOperation_t
DEFAULT, BIAS = 1, 4  # cublasLtEpilogue_t
IN_ONE, COMPUTE_TYPE = 0, 2  # cublasLtReductionScheme_t: parts that are added in a fixed order
_REPEATING = (IN_ONE, COMPUTE_TYPE)

_SINGLE, _DOUBLE = (0, c_float), (1, c_double)  # cudaDataType, and what alpha and beta are
TYPES = {  # cublasComputeType_t; the fast ones may round factors of float32 to that type, or to TF32
    "float32": (68, *_SINGLE),
    "tf32": (77, *_SINGLE),
    "bfloat16": (75, *_SINGLE),
    "float16": (74, *_SINGLE),
    "float64": (70, *_DOUBLE),
}


class Algo(ctypes.Structure):
    """cublasLtMatmulAlgo_t"""

    _fields_ = [("data", c_uint64 * 8)]


class Heuristic(ctypes.Structure):
    """cublasLtMatmulHeuristicResult_t"""

    _fields_ = [
        ("algo", Algo),
        ("workspace", c_size_t),
        ("state", c_int),
        ("waves", c_float),
        ("reserved", c_int * 4),
    ]


class LibraryError(DeviceError):
    """What the library cannot do, or not as it is needed here."""


# ------------------------------------------------------------------------------------------------ the library


class _Found(NamedTuple):
    reason: str | None
    library: Any = None


def _open() -> Any:
    """The library; raises OSError or RuntimeError where there is none."""
    try:
        from cuda.pathfinder import load_nvidia_dynamic_lib
    except ImportError:  # older CUDA tools come without it: what the system finds by itself
        for name in _FILES[:-1]:
            try:
                return ctypes.CDLL(name)
            except OSError:
                continue
        return ctypes.CDLL(_FILES[-1])
    return ctypes.CDLL(load_nvidia_dynamic_lib("cublasLt").abs_path)


@functools.cache
def _found() -> _Found:
    try:
        library = _open()
        for name, arguments in FUNCTIONS.items():
            function = getattr(library, name)
            function.argtypes, function.restype = arguments, c_int
        library.cublasLtGetVersion.restype = c_size_t
        library.cublasLtGetStatusName.restype = ctypes.c_char_p
    except (OSError, RuntimeError):
        return _Found(f"cuBLASLt is not installed; {_PACKAGES}")
    except AttributeError as error:
        return _Found(f"cuBLASLt is too old: {error}; {_PACKAGES}")
    return _Found(None, library)


def why_not() -> str | None:
    """None where the library can be loaded, else one sentence that says what is missing."""
    return _found().reason


def version() -> int:
    """That of the library: 130002 is 13.0.2."""
    return int(_found().library.cublasLtGetVersion())


def name_of(number: int) -> str:
    """A version as it is written.

    >>> name_of(130002)
    'cuBLASLt 13.0.2'
    """
    return f"cuBLASLt {number // 10000}.{number // 100 % 100}.{number % 100}"


def call(name: str, *arguments: Any) -> None:
    """Call a function; a status that is not 0 raises :class:`LibraryError`."""
    library = _found().library
    status = getattr(library, name)(*arguments)
    if status:
        raise LibraryError(f"{name} failed: {library.cublasLtGetStatusName(status).decode()} ({status})")


@functools.cache
def _handle(device: int) -> c_void_p:
    """The handle for CuPy's current device, whose number that is; it lives as long as the process."""
    handle = c_void_p()
    call("cublasLtCreate", ctypes.byref(handle))
    return handle


def set_attribute(kind: str, of: Any, attribute: str, value: int) -> None:
    """Set an attribute of a descriptor, a preference or the configuration of an algorithm."""
    number, ctype = ATTRIBUTES[kind][attribute]
    held = ctype(value)
    if held.value != value:
        raise LibraryError(f"{attribute} expects a number of type {ctype.__name__}, got {value}")
    call(f"cublasLt{kind}SetAttribute", of, number, ctypes.byref(held), ctypes.sizeof(held))


def _configuration(algo: Algo) -> Algorithm:
    values = []
    for number, ctype in ATTRIBUTES["MatmulAlgoConfig"].values():
        held, size = ctype(), c_size_t()
        of, there = ctypes.byref(algo), ctypes.byref(held)
        call("cublasLtMatmulAlgoConfigGetAttribute", of, number, there, ctypes.sizeof(held), ctypes.byref(size))
        values.append(held.value)
    return Algorithm(*values)


class Descriptor:
    """An object of the library, which is destroyed with this one."""

    def __init__(self, kind: str, *arguments: Any, **attributes: int) -> None:
        self.pointer = c_void_p()
        call(f"cublasLt{kind}Create", ctypes.byref(self.pointer), *arguments)
        weakref.finalize(self, getattr(_found().library, f"cublasLt{kind}Destroy"), self.pointer)
        for attribute, value in attributes.items():
            set_attribute(kind, self.pointer, attribute, value)


# -------------------------------------------------------------------------------------------------- products


class Product(NamedTuple):
    """A product with everything in place, which lies in lists of launches as they do; ``keeps`` as in driver.Call."""

    arguments: tuple[Any, ...]
    keeps: Any

    def enqueue(self, stream: int) -> None:
        """Put it onto a stream, of which this is the address."""
        call("cublasLtMatmul", *self.arguments, stream)


class Problem:
    """A product ``out = a b + bias`` as the library sees it; ``form`` is ``"ab"``, ``"a^Tb"`` or ``"ab^T"``.

    ``precision`` is one of set_matmul_precision's, or ``"float64"``; arrays are C-contiguous, on CuPy's current device,
    ``out`` and ``bias`` at addresses that are multiples of 16 bytes. ``out`` is overwritten.
    """

    def __init__(self, precision: str, a: Any, b: Any, out: Any, form: str, bias: Any = None) -> None:
        import cupy

        self._handle = _handle(cupy.cuda.Device().id)
        self._compute, self._kind, self._scalar = TYPES[precision]
        self._a, self._b, self._out, self._bias = a, b, out, bias
        attributes = {
            "TRANSA": TRANSPOSED if form == "ab^T" else NONE,
            "TRANSB": TRANSPOSED if form == "a^Tb" else NONE,
            "EPILOGUE": DEFAULT if bias is None else BIAS,
        }
        if bias is not None:
            attributes["BIAS_POINTER"] = address(bias)
        self._product = Descriptor("MatmulDesc", self._compute, self._kind, **attributes)
        left, right, result = (
            Descriptor("MatrixLayout", self._kind, x.shape[1], x.shape[0], x.shape[1]) for x in (b, a, out)
        )
        self._layouts = left, right, result
        pointers = [each.pointer for each in (self._product, left, right, result, result)]
        self._described = self._handle, *pointers

    def algorithms(self) -> list[Algorithm]:
        """Those the library expects to be fast, at most :data:`MOST`, of which results repeat.

        They do with every array that is filed under the same choice: no more alignment is promised than that says.
        """
        sizes = [BYTES if aligned(x) else x.dtype.itemsize for x in (self._b, self._a)] + [BYTES, BYTES]
        alignments = {f"MIN_ALIGNMENT_{matrix}_BYTES": size for matrix, size in zip("ABCD", sizes, strict=True)}
        limits = {"MAX_WORKSPACE_BYTES": WORKSPACE, "REDUCTION_SCHEME_MASK": COMPUTE_TYPE}
        preference = Descriptor("MatmulPreference", **limits, **alignments)
        found, count = (Heuristic * MOST)(), c_int()
        answer = MOST, found, ctypes.byref(count)
        call("cublasLtMatmulAlgoGetHeuristic", *self._described, preference.pointer, *answer)
        offered = (_configuration(each.algo) for each in itertools.islice(found, count.value) if not each.state)
        return [algorithm for algorithm in dict.fromkeys(offered) if algorithm.reduction in _REPEATING]

    def planned(self, algorithm: Algorithm) -> Product:
        """The product computed so; raises :class:`LibraryError` where library, GPU or product do not allow it."""
        if algorithm.reduction not in _REPEATING:
            raise LibraryError(f"reduction scheme {algorithm.reduction} adds parts in no fixed order")
        algo, checked = Algo(), Heuristic()
        kinds = (self._kind,) * 5
        call("cublasLtMatmulAlgoInit", self._handle, self._compute, *kinds, algorithm.number, ctypes.byref(algo))
        for attribute, value in list(zip(ATTRIBUTES["MatmulAlgoConfig"], algorithm, strict=True))[1:]:
            set_attribute("MatmulAlgoConfig", ctypes.byref(algo), attribute, value)
        call("cublasLtMatmulAlgoCheck", *self._described, ctypes.byref(algo), ctypes.byref(checked))
        if checked.workspace > WORKSPACE:
            raise LibraryError(f"it needs {checked.workspace:,} bytes of scratch; at most {WORKSPACE:,} are given")
        workspace = scratch(self._out, (max(1, ceil_div(checked.workspace, self._out.dtype.itemsize)),))
        handle, product, left, right, result, _ = self._described
        one, zero = self._scalar(1), self._scalar(0)
        y = address(self._out)
        arguments = (
            *(handle, product, ctypes.byref(one)),
            *(address(self._b), left, address(self._a), right),
            *(ctypes.byref(zero), y, result, y, result),
            *(ctypes.byref(algo), address(workspace), checked.workspace),
        )
        return Product(arguments, (self, workspace))


def multiply(
    algorithm: Algorithm, precision: str, a: Any, b: Any, out: Any, form: str, rule: Any = None, bias: Any = None,
    z: Any = None,
) -> list[Any]:  # fmt: skip
    """``z = a b + bias``, ``out = g(z)`` by the library, and the pass of the activation where there is one to do.

    Raises :class:`LibraryError` as :meth:`Problem.planned` does.
    """
    sums = out if z is None else z
    product = Problem(precision, a, b, sums, form, bias).planned(algorithm)
    if rule is None or (rule is find("activation", "linear") and sums is out):
        return [product]
    activation, _ = host_function("activation_forward")
    return [product, *activation(rule, sums, out)]


# --------------------------------------------------------------------------------------------------- choices


def chosen(wanted: choices.Product, out: Any, bias: Any = None) -> Algorithm | None:
    """The algorithm that was measured to be faster than our plans, where it can be taken; None where ours are.

    A library that is gone, or another version of it, is told once. Many models at once are launches of our kernels.
    """
    found = choices.library(wanted)
    if found is None or SCRATCH.get() is not None or not hasattr(type(out), "__cuda_array_interface__"):
        return None
    if any(address(x) % BYTES for x in (out, bias) if x is not None):
        return None
    reason = why_not()
    if reason is None and version() != found.version:
        reason = f"{name_of(version())} is installed"
    if reason is None:
        return found.algorithm
    refuse(f"{name_of(found.version)} was measured to be faster for some products, but {reason}")
    return None


@functools.cache
def refuse(reason: str) -> None:
    """Say once why a measured algorithm is not taken."""
    warnings.warn(f"{reason}; our own kernels are taken. 'dlcore tune' measures anew.", RuntimeWarning, stacklevel=2)

"""The mathematics that rules are written with: exp, log, tanh, erf and their kin, for every backend.

Three faces of each function:

* the plain one, ``mathfn.exp(x)``, for Python floats, NumPy scalars and arrays; rules run with it from Python;
* :func:`cpu`, a Numba function of float32 or float64 made of additions and products, so that LLVM turns a loop of it
  into vector instructions (``math.exp`` and ``math.tanh`` are calls, 12 and 64 times slower in a loop);
* :func:`cuda`, what a CUDA kernel calls (libdevice), or the plain function on the simulator.

Lowering replaces whatever :func:`name_of` knows (``math.exp``, ``numpy.exp``, ``mathfn.exp``) by the backend's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

# nsz, arcp, contract, afn: no assumption that NaN or infinity do not occur, and no reordering of sums
CPU_OPTIONS: dict[str, Any] = {"fastmath": {"nsz", "arcp", "contract", "afn"}, "error_model": "numpy", "nogil": True}


# ------------------------------------------------------------------------------------------------ plain Python


def _plain(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """``function`` without NumPy's warnings; a Python float gives a Python float, a dtype is kept."""

    def plain(x: Any) -> Any:
        with np.errstate(all="ignore"):
            result = function(x)
        return float(result) if isinstance(x, (int, float)) and not isinstance(x, np.floating) else result

    plain.__name__ = plain.__qualname__ = function.__name__.lstrip("_")
    own = not isinstance(function, np.ufunc)
    plain.__doc__ = function.__doc__ if own else f"NumPy's ``{plain.__name__}``, without its warnings."
    return plain


def _sigmoid(x: Any) -> Any:
    """``1 / (1 + exp(-x))``, without overflow."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1 / (1 + e), e / (1 + e)).astype(np.result_type(x))[()]


def _softplus(x: Any) -> Any:
    """``log(1 + exp(x))``, without overflow."""
    return np.where(x <= 0, np.result_type(x).type(0), x)[()] + np.log1p(np.exp(-np.abs(x)))


def _erf(x: Any) -> Any:
    """The error function ``2 / sqrt(pi) * integral of exp(-t^2) from 0 to x``."""
    values = np.asarray(x, np.float64)
    result = np.array([math.erf(v) for v in values.ravel()], np.float64).reshape(values.shape)
    return result.astype(np.result_type(x))[()]


exp = _plain(np.exp)
expm1 = _plain(np.expm1)
log = _plain(np.log)
log1p = _plain(np.log1p)
sqrt = _plain(np.sqrt)
tanh = _plain(np.tanh)
sin = _plain(np.sin)
cos = _plain(np.cos)
fabs = _plain(np.fabs)
floor = _plain(np.floor)
erf = _plain(_erf)
sigmoid = _plain(_sigmoid)
softplus = _plain(_softplus)

_PLAIN = {
    "exp": exp, "expm1": expm1, "log": log, "log1p": log1p, "sqrt": sqrt, "tanh": tanh, "sin": sin, "cos": cos,
    "fabs": fabs, "floor": floor, "erf": erf, "sigmoid": sigmoid, "softplus": softplus,
}  # fmt: skip
NAMES = tuple(_PLAIN)

_NAME_OF: dict[int, str] = {id(abs): "fabs", id(np.abs): "fabs"}
for _name, _function in _PLAIN.items():
    for _owner in (math, np):
        if hasattr(_owner, _name):
            _NAME_OF[id(getattr(_owner, _name))] = _name
    _NAME_OF[id(_function)] = _name


def name_of(value: Any) -> str | None:
    """The name of a mathematical function: of :mod:`math`, of NumPy or of this module; None for anything else."""
    return _NAME_OF.get(id(value))


def is_math_module(value: Any) -> bool:
    """Whether ``value`` is a module whose functions a rule may use: math, numpy, this one."""
    return value is math or value is np or getattr(value, "__name__", None) == __name__


def plain(name: str) -> Callable[[Any], Any]:
    """The plain function called ``name``."""
    return _PLAIN[name]


# --------------------------------------------------------------------------------------------------------- CPU


def ordering(dtype: np.dtype) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """``ordered``, which makes whole numbers of numbers in the same order, NaN at an end of it, and ``number_of``."""
    number: Any = np.dtype(dtype).type
    word: Any = np.int32 if dtype == np.float32 else np.int64
    size = int(np.iinfo(word).max)

    def ordered(x):
        bits = number(x).view(word)
        return bits if bits >= 0 else word(bits ^ size)

    def number_of(bits):
        return word(bits if bits >= 0 else word(bits ^ size)).view(number)

    return ordered, number_of


# erfcx(x) = exp(x^2) erfc(x) for x >= 1 as u * P(2u - 1), u = 4 / (3 + x): Chebyshev interpolation in 40-digit
# arithmetic, written in powers. Relative error of the float32 fit 3e-8, of the float64 fit 2e-16 for x <= 6.
_ERFCX = {
    np.dtype(np.float32): (
        0.22140927546613726, 0.11991536214537582, 0.05596813644765516, 0.021906403579167292, 0.006830125260948587,
        0.0014981891627774862, 0.00012549522812160057, -5.186530452160911e-05, -1.755125165183051e-05,
    ),
    np.dtype(np.float64): (
        0.22140927546613726, 0.11991536077108371, 0.055968183335641165, 0.021906429163231975, 0.00682949679813149,
        0.0014980253611725381, 0.00012778996891251888, -5.1414958406770124e-05, -2.0713414329184914e-05,
        -5.550319517844052e-07, 1.5568252978698673e-06, 2.7887867254468276e-07, -1.1114093785953247e-07,
        -3.8178288162148244e-08, 9.008413975805222e-09, 4.612579349598576e-09, -9.316145867429054e-10,
        -5.298301850120491e-10, 1.173062203759817e-10, 4.764104056857173e-11, -1.1585856616029448e-11,
        -1.4702605140703191e-12,
    ),
}  # fmt: skip


def _horner(coefficients: tuple[float, ...], number: Any, compile_: Any, name: str) -> Any:
    """A compiled ``c0 + x (c1 + x (c2 + ...))`` whose coefficients are constants of the dtype."""
    scope = {f"c{k}": number(c) for k, c in enumerate(coefficients)}
    expression = f"c{len(coefficients) - 1}"
    for k in range(len(coefficients) - 2, -1, -1):
        expression = f"(c{k} + x * {expression})"
    exec(f"def {name}(x):\n    return {expression}", scope | {"__name__": __name__}, scope)
    function = scope[name]
    function.__qualname__ = f"{name}_{np.dtype(number).name}"
    function.__globals__.update(scope)
    return compile_(function)


def _make_cpu(dtype: np.dtype) -> dict[str, Any]:
    """The functions of one dtype. Accuracy is that of tests/test_mathfn.py: a few units in the last place."""
    import numba
    from numba.extending import intrinsic

    def _select(typing_context, condition, a, b):
        """``a if condition else b`` without a branch: a branch would keep a loop from becoming vector code."""

        def codegen(context, builder, signature, arguments):
            return builder.select(*arguments)

        return (a(condition, a, b), codegen) if a == b else None

    select: Any = intrinsic(_select)
    single = dtype == np.float32
    number: Any = np.float32 if single else np.float64
    word: Any = np.int32 if single else np.int64
    terms = 8 if single else 14  # Taylor terms for |r| <= ln(2)/2: truncation 5e-9 and 4e-18
    mantissa = word(23 if single else 52)
    bias = word(127 if single else 1023)
    mask = word((1 << int(mantissa)) - 1)
    half_bits = word(np.array(math.sqrt(0.5), number).view(word))
    one_bits = word(np.array(1.0, number).view(word))
    # ln(2) in two parts, the first with trailing zeros so that n * high is exact
    high = number(0.693359375 if single else float.fromhex("0x1.62e42feep-1"))
    low = number(-2.1219444005469058e-4 if single else float.fromhex("0x1.a39ef35793c76p-33"))
    log2e = number(math.log2(math.e))
    magic = number(1.5 * 2.0 ** (23 if single else 52))  # adding it rounds to an integer
    zero, half, one, two = number(0), number(0.5), number(1), number(2)
    largest = number(np.log(np.finfo(number).max))
    smallest = number(-87.33 if single else -708.39)  # below, the result would be denormal: it is 0
    lowest = number(-60.0)  # expm1 is -1 from far above
    normal = number(np.finfo(number).tiny)
    lift, lifted = number(2.0 ** (24 if single else 54)), number(24 if single else 54)
    saturation = number(10.0 if single else 20.0)
    infinity = number(np.inf)
    nan = number(np.nan)
    erf_limit = number(4.0 if single else 6.0)
    two_over_sqrt_pi = number(2.0 / math.sqrt(math.pi))
    three, four = number(3), number(4)

    def compile_(function: Any) -> Any:
        function.__qualname__ = f"{function.__name__}_{dtype.name}"
        return numba.njit(forceinline=True, **CPU_OPTIONS)(function)

    taylor = tuple(1.0 / math.factorial(k) for k in range(2, terms + 1))
    tail = _horner(taylor, number, compile_, "exp_tail")  # (exp(r) - 1 - r) / r^2
    odd = tuple(2.0 / (2 * k + 1) for k in range(1, 5 if single else 12))
    atanh_tail = _horner(odd, number, compile_, "atanh_tail")  # (2 atanh(s) / s - 2) / s^2
    series = tuple((-1.0) ** k / (math.factorial(k) * (2 * k + 1)) for k in range(9 if single else 19))
    erf_small = _horner(series, number, compile_, "erf_small")
    erfcx = _horner(_ERFCX[dtype], number, compile_, "erfcx")

    @compile_
    def exp(x):
        a = select(x > largest, largest, select(x < smallest, smallest, x))
        n = (a * log2e + magic) - magic
        r = (a - n * high) - n * low
        p = one + (r + r * r * tail(r))
        k = word(n) >> word(1)  # in two factors: n may be one more than the largest exponent
        y = p * word((k + bias) << mantissa).view(number) * word((word(n) - k + bias) << mantissa).view(number)
        y = select(x > largest, infinity, select(x < smallest, zero, y))
        return select(x == x, y, x)

    @compile_
    def expm1(x):
        a = select(x > largest, largest, select(x < lowest, lowest, x))
        n = (a * log2e + magic) - magic
        r = (a - n * high) - n * low
        q = r + r * r * tail(r)
        s = word((word(n) - word(1) + bias) << mantissa).view(number)  # half of 2^n, which may overflow
        y = two * (s * q + (s - half))
        y = select(x > largest, infinity, y)
        return select(x == x, y, x)

    @compile_
    def log(x):
        small = x < normal
        bits = number(select(small, x * lift, x)).view(word)
        shifted = bits + (one_bits - half_bits)
        e = (shifted >> mantissa) - bias
        m = word((shifted & mask) + half_bits).view(number)
        f = m - one
        s = f / (two + f)
        z = s * s
        square = half * f * f
        n = number(e) - select(small, lifted, zero)
        y = n * high - ((square - (s * (square + z * atanh_tail(z)) + n * low)) - f)
        y = select(x == zero, -infinity, select(x == infinity, x, y))
        return select(x >= zero, y, nan)

    @compile_
    def log1p(x):
        u = one + x
        y = log(u)
        rest = (x - (u - one)) / u
        y = y + select((u == zero) | (u == infinity), zero, rest)
        return select(u == one, x, y)

    @compile_
    def tanh(x):
        a = math.fabs(x)
        t = expm1(-two * select(a > saturation, saturation, a))
        return math.copysign(t / (t + two), x)

    @compile_
    def sigmoid(x):
        e = exp(-math.fabs(x))
        return select(x < zero, e, one) / (one + e)

    @compile_
    def softplus(x):
        return select(x <= zero, zero, x) + log1p(exp(-math.fabs(x)))

    @compile_
    def erf(x):
        a = math.fabs(x)
        a = select(a > erf_limit, erf_limit, a)
        square = a * a
        u = four / (three + a)
        outer = one - exp(-square) * (u * erfcx(two * u - one))
        inner = two_over_sqrt_pi * a * erf_small(square)
        return math.copysign(select(a < one, inner, outer), x)

    @compile_
    def sqrt(x):
        return math.sqrt(x)

    @compile_
    def sin(x):
        return math.sin(x)

    @compile_
    def cos(x):
        return math.cos(x)

    @compile_
    def fabs(x):
        return math.fabs(x)

    @compile_
    def floor(x):
        return np.floor(x)

    found = locals()
    return {name: found[name] for name in NAMES}


_cpu: dict[np.dtype, dict[str, Any]] = {}


def cpu(name: str, dtype: Any) -> Any:
    """The Numba function ``name`` for scalars of ``dtype`` (float32 or float64)."""
    dtype = np.dtype(dtype)
    if dtype not in _cpu:
        _cpu[dtype] = _make_cpu(dtype)
    return _cpu[dtype][name]


# -------------------------------------------------------------------------------------------------------- CUDA


def cuda(name: str, dtype: Any) -> Any:
    """What a CUDA kernel calls for ``name`` on scalars of ``dtype``: libdevice, or plain when simulated."""
    from numba import cuda as numba_cuda

    from .device import simulated

    if simulated():
        return _PLAIN[name]
    if name not in ("sigmoid", "softplus"):
        return getattr(math, name)
    number = np.dtype(dtype).type
    zero, one = number(0), number(1)

    def sigmoid(x):
        e = math.exp(x if x < zero else -x)
        return (e if x < zero else one) / (one + e)

    def softplus(x):
        return (zero if x <= zero else x) + math.log1p(math.exp(x if x < zero else -x))

    return numba_cuda.jit(device=True)({"sigmoid": sigmoid, "softplus": softplus}[name])

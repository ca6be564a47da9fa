"""The functions that rules are written with: accuracy, edges, vector code."""

import math

import numba
import numpy as np
import pytest

from dlcore.kernels import mathfn, philox

DTYPES = [np.float32, np.float64]
# Largest relative error in units of eps (measured: 1.9 for erf in float32, at most 1.3 for the others).
BOUND = {"erf": 3.0}
DEFAULT_BOUND = 2.0

REFERENCE = {
    "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p, "sqrt": np.sqrt, "tanh": np.tanh,
    "sin": np.sin, "cos": np.cos, "fabs": np.fabs, "floor": np.floor,
    "erf": np.vectorize(math.erf, otypes=[np.float64]),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "softplus": lambda x: np.log1p(np.exp(x)),
}  # fmt: skip


def compiled(name, dtype):
    rule = mathfn.cpu(name, dtype)

    @numba.njit(**mathfn.CPU_OPTIONS)
    def loop(x, y):
        for i in range(x.size):
            y[i] = rule(x[i])

    loop.compile(numba.void(*[numba.types.Array(numba.from_dtype(np.dtype(dtype)), 1, "C")] * 2))
    return loop


def run(loop, values, dtype):
    x = np.asarray(values, dtype)
    y = np.empty_like(x)
    loop(x, y)
    return y


def samples(name, dtype):
    rng = np.random.default_rng(3)
    small = 10.0 ** rng.uniform(-12, 0, 400)
    x = np.concatenate([rng.standard_normal(2000) * 3, rng.uniform(-30, 30, 1000), small, -small])
    if name in ("log", "sqrt"):
        x = np.concatenate([np.abs(x), 10.0 ** rng.uniform(-37, 37, 500), rng.uniform(0.7, 1.4, 500)])
    if name == "log1p":
        x = np.concatenate([np.abs(x), -small * 0.999])
    return x.astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("name", mathfn.NAMES)
def test_accuracy(name, dtype):
    x = samples(name, dtype)
    wide = np.float64 if dtype == np.float32 else np.longdouble
    if name == "erf":
        wide = np.float64
    exact = REFERENCE[name](x.astype(wide))
    got = run(compiled(name, dtype), x, dtype)
    normal = np.abs(exact) > np.finfo(dtype).tiny
    error = np.abs(got[normal] - exact[normal]) / np.abs(exact[normal]) / np.finfo(dtype).eps
    assert error.max() <= BOUND.get(name, DEFAULT_BOUND), (x[normal][error.argmax()], error.max())


EDGES = {
    "exp": {0: 1, -np.inf: 0, np.inf: np.inf, 1e4: np.inf, -1e4: 0},
    "expm1": {0: 0, -np.inf: -1, np.inf: np.inf, 1e4: np.inf, -1e4: -1},
    "log": {1: 0, 0: -np.inf, -1: np.nan, -np.inf: np.nan, np.inf: np.inf},
    "log1p": {0: 0, -1: -np.inf, -2: np.nan, np.inf: np.inf},
    "sqrt": {0: 0, 4: 2, -1: np.nan, np.inf: np.inf},
    "tanh": {0: 0, np.inf: 1, -np.inf: -1, 1e4: 1, -1e4: -1},
    "erf": {0: 0, np.inf: 1, -np.inf: -1, 1e4: 1},
    "sigmoid": {0: 0.5, np.inf: 1, -np.inf: 0, 1e4: 1, -1e4: 0},
    "softplus": {np.inf: np.inf, -np.inf: 0, 1e4: 1e4, -1e4: 0},
}


@pytest.mark.parametrize("dtype", DTYPES, ids=["float32", "float64"])
@pytest.mark.parametrize("name", EDGES)
def test_edges(name, dtype):
    expected = {**EDGES[name], np.nan: np.nan}
    np.testing.assert_array_equal(
        run(compiled(name, dtype), list(expected), dtype), np.array(list(expected.values()), dtype)
    )
    np.testing.assert_array_equal(
        mathfn.plain(name)(np.array(list(expected), dtype)), np.array(list(expected.values()), dtype)
    )


def test_log_of_a_denormal():
    x = np.array([1e-45, 1e-40], np.float32)
    np.testing.assert_allclose(run(compiled("log", np.float32), x, np.float32), np.log(x.astype(np.float64)), rtol=1e-6)


@pytest.mark.parametrize("name", mathfn.NAMES)
def test_plain_keeps_dtype_and_kind(name):
    function = mathfn.plain(name)
    assert type(function(0.5)) is float
    assert function(np.float32(0.5)).dtype == np.float32
    assert function(np.full(3, 0.5, np.float32)).dtype == np.float32
    assert function(np.full((2, 2), 0.5)).shape == (2, 2)


@pytest.mark.parametrize("name", ["exp", "expm1", "log", "log1p", "tanh", "erf", "sigmoid", "softplus"])
def test_a_loop_becomes_vector_code(name):
    loop = compiled(name, np.float32)
    (assembly,) = loop.inspect_asm().values()
    packed = {"x86_64": ("mulps", "mul.4s"), "AMD64": ("mulps",)}.get(
        __import__("platform").machine(), ("fmul", "fmla")
    )
    assert any(word in assembly for word in packed)
    assert "call" not in [
        line.split()[0] for line in assembly.splitlines() if line.strip().startswith("call") and "exp" in line
    ]


def test_names_are_found_by_identity():
    assert mathfn.name_of(math.exp) == mathfn.name_of(np.exp) == mathfn.name_of(mathfn.exp) == "exp"
    assert mathfn.name_of(abs) == "fabs"
    assert mathfn.name_of(print) is None
    assert mathfn.name_of([]) is None


KNOWN = {  # the known-answer vectors of Random123
    (0, 0, 0, 0, 0, 0): (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8),
    (0xFFFFFFFF,) * 6: (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
    (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344, 0xA4093822, 0x299F31D0): (
        0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
}  # fmt: skip


@pytest.mark.parametrize(("counter", "words"), KNOWN.items(), ids=["zeros", "ones", "pi"])
def test_philox_known_answers(counter, words):
    arguments = [np.uint32(v) for v in counter]
    assert tuple(int(w) for w in philox.philox4x32(*arguments)) == words
    assert tuple(int(w) for w in numba.njit(philox.philox4x32)(*arguments)) == words

"""cuBLASLt: what the real library says of descriptors where it is, and products by one of NumPy."""

import ctypes
import os
import pathlib
import re

import cublaslt_simulator
import driver_simulator
import numpy as np
import pytest
from cublaslt_simulator import PARTS, PLAIN, arrays, expected

from dlcore.kernels import find
from dlcore.kernels.cuda import cublaslt, driver
from dlcore.kernels.cuda.choices import Algorithm
from dlcore.kernels.device import simulated, why_no_gpu
from dlcore.kernels.precision import PRECISIONS

needs_library = pytest.mark.skipif(
    cublaslt.why_not() is not None and os.environ.get("DLCORE_REQUIRE_OFFLINE") != "1",
    reason=f"what the real library answers cannot be asked: {cublaslt.why_not()}",
)
needs_simulator = pytest.mark.skipif(not simulated(), reason="the driver and the library are made up here")
gpu, library = cublaslt_simulator.gpu, cublaslt_simulator.library

# ------------------------------------------------------------------------------------------ the real library

VALUES = {"BIAS_POINTER": 0x7F0012345670, "MAX_WORKSPACE_BYTES": 3 << 33}  # others are small numbers


def _read(kind, of, number, ctype):
    """Value and size of an attribute as the library has it."""
    function = getattr(cublaslt._found().library, f"cublasLt{kind}GetAttribute")
    function.argtypes = ctypes.c_void_p, ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p
    held, size = ctype(), ctypes.c_size_t()
    assert function(of, number, None, 0, ctypes.byref(size)) == 0
    assert function(of, number, ctypes.byref(held), ctypes.sizeof(held), ctypes.byref(ctypes.c_size_t())) == 0
    return held.value, size.value


@needs_library
@pytest.mark.parametrize("kind", cublaslt.ATTRIBUTES)
def test_attributes_are_what_the_library_has(kind):
    made = {"MatmulDesc": (68, 0), "MatmulPreference": ()}
    held = cublaslt.Descriptor(kind, *made[kind]) if kind in made else cublaslt.Algo()
    of = held.pointer if kind in made else ctypes.byref(held)
    for place, (attribute, (number, ctype)) in enumerate(cublaslt.ATTRIBUTES[kind].items()):
        value = VALUES.get(attribute, place % 2 if attribute.startswith("TRANS") else 2 ** (place % 4))
        if (kind, attribute) == ("MatmulAlgoConfig", "ID"):
            continue  # that of an algorithm is given when it is made
        cublaslt.set_attribute(kind, of, attribute, value)
        assert _read(kind, of, number, ctype) == (value, ctypes.sizeof(ctype)), attribute


@needs_library
@pytest.mark.parametrize("precision", cublaslt.TYPES)
def test_descriptors_of_a_product(monkeypatch, precision):
    """Compute type, scale, operations, epilogue and layouts, as the library reads them back; no GPU is asked."""
    pytest.importorskip("cupy")
    monkeypatch.setattr("cupy.cuda.Device", lambda: type("Device", (), {"id": 0}))
    monkeypatch.setattr(cublaslt, "_handle", lambda device: ctypes.c_void_p())
    dtype = np.float64 if precision == "float64" else np.float32
    a, b, out, bias = np.ones((20, 3), dtype), np.ones((20, 5), dtype), np.ones((3, 5), dtype), np.ones(5, dtype)
    problem = cublaslt.Problem(precision, a, b, out, "a^Tb", bias)
    compute, kind, _ = cublaslt.TYPES[precision]
    expected = {0: compute, 1: kind, 2: 0, 3: 0, 4: 1, 7: cublaslt.BIAS}
    for number, value in expected.items():
        assert _read("MatmulDesc", problem._product.pointer, number, ctypes.c_int32) == (value, 4)
    assert _read("MatmulDesc", problem._product.pointer, 8, ctypes.c_uint64) == (bias.ctypes.data, 8)
    for layout, shape in zip(problem._layouts, ((5, 20), (3, 20), (5, 3)), strict=True):
        assert _read("MatrixLayout", layout.pointer, 0, ctypes.c_uint32) == (kind, 4)
        assert _read("MatrixLayout", layout.pointer, 1, ctypes.c_int32) == (0, 4)  # column-major
        for number, value in zip((2, 3, 4), (*shape, shape[0]), strict=True):
            assert _read("MatrixLayout", layout.pointer, number, ctypes.c_int64) == (value, 8)


def _headers():
    """The text of cublasLt.h and those it includes, as far as they lie near the library."""
    library = pathlib.Path(cublaslt._found().library._name).resolve()
    for folder in (library.parents[1], library.parents[2]):
        if (folder / "include" / "cublasLt.h").is_file():
            names = "cublasLt.h", "cublas_api.h", "library_types.h"
            found = [folder / "include" / name for name in names]
            return "\n".join(path.read_text() for path in found if path.is_file())
    pytest.skip(f"no headers lie beside {library}")


@needs_library
def test_numbers_are_those_of_the_headers():
    text = _headers()
    # an enumerator behind its comment, the last type in which is that of the attribute
    found = dict(re.findall(r"^\s*(CUBLAS\w+|CUDA_R_\w+)\s*=\s*(\d+)\b", text, re.M))
    prefixes = {
        "MatmulDesc": "CUBLASLT_MATMUL_DESC_",
        "MatmulPreference": "CUBLASLT_MATMUL_PREF_",
        "MatmulAlgoConfig": "CUBLASLT_ALGO_CONFIG_",
    }
    types = {"int32_t": 4, "uint32_t": 4, "uint16_t": 2, "uint64_t": 8, "const void *": 8}
    for kind, attributes in cublaslt.ATTRIBUTES.items():
        for attribute, (number, ctype) in attributes.items():
            name = prefixes[kind] + attribute
            assert int(found[name]) == number, name
            comment = text[: re.search(rf"^\s*{name}\s*=", text, re.M).start()].rpartition("/**")[2]
            (declared, *_) = re.findall(
                r"(u?int\d+_t|const void \*), (?:default|see)|\* (u?int\d+_t)\s*$", comment, re.M
            )
            assert types["".join(declared)] == ctypes.sizeof(ctype), name
    compute = {
        "float32": "32F", "tf32": "32F_FAST_TF32", "bfloat16": "32F_FAST_16BF", "float16": "32F_FAST_16F", "float64": "64F",
    }  # fmt: skip
    assert {p: int(found[f"CUBLAS_COMPUTE_{name}"]) for p, name in compute.items()} == {
        p: row[0] for p, row in cublaslt.TYPES.items()
    }
    assert (int(found["CUBLAS_OP_N"]), int(found["CUBLAS_OP_T"])) == (cublaslt.NONE, cublaslt.TRANSPOSED)
    epilogues = (int(found[f"CUBLASLT_EPILOGUE_{name}"]) for name in ("DEFAULT", "BIAS"))
    assert tuple(epilogues) == (cublaslt.DEFAULT, cublaslt.BIAS)
    schemes = (int(found[f"CUBLASLT_REDUCTION_SCHEME_{name}"]) for name in ("NONE", "COMPUTE_TYPE"))
    assert tuple(schemes) == (cublaslt.IN_ONE, cublaslt.COMPUTE_TYPE)
    if "CUDA_R_32F" in found:
        assert (int(found["CUDA_R_32F"]), int(found["CUDA_R_64F"])) == (0, 1)


@needs_library
def test_arguments_are_those_of_the_headers():
    """Each parameter of a prototype as ctypes passes it."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", _headers(), flags=re.S)
    words = {"uint64_t": ctypes.c_uint64, "int64_t": ctypes.c_int64, "size_t": ctypes.c_size_t}
    integers = r"int|cudaDataType(_t)?|cublasComputeType_t|cublasLt\w+(Attributes?_t)"
    for name, arguments in cublaslt.FUNCTIONS.items():
        declared = re.search(rf"\bCUBLASWINAPI {name}\((.*?)\);", text, re.S)[1]
        kinds = []
        for parameter in declared.split(","):
            kind = parameter.strip().rpartition(" ")[0]
            pointer = "*" in parameter or "[]" in parameter
            found = words.get(kind, ctypes.c_int if re.fullmatch(integers, kind) else ctypes.c_void_p)
            kinds.append(ctypes.c_void_p if pointer else found)
        assert tuple(kinds) == arguments, name


# --------------------------------------------------------------------------------------------- the library of NumPy


def _run(launches):
    stream = driver_simulator.Stream()
    driver.run(driver.prepare(launches), stream)


COMPUTE = {"float32": 68, "tf32": 77, "bfloat16": 75, "float16": 74, "float64": 70}  # cublasComputeType_t
SHAPES = [(3, 5, 7), (8, 4, 16), (1, 1, 1), (1, 13, 2), (17, 1, 6)]


@needs_simulator
@pytest.mark.parametrize("form", ["ab", "a^Tb", "ab^T"])
@pytest.mark.parametrize("precision", [*PRECISIONS, "float64"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_product_is_that_of_row_major_matrices(library, form, precision, shape):
    made = library(offers=[PLAIN, PARTS])
    dtype = np.float64 if precision == "float64" else np.float32
    a, b, out, bias, z = arrays(form, *shape, dtype, offset=1)
    tolerance = {"rtol": 1e-6, "atol": 1e-6} if dtype == np.float32 else {"rtol": 1e-13, "atol": 1e-13}
    for algorithm in (PLAIN, PARTS):
        out.fill(np.nan)
        _run(cublaslt.multiply(Algorithm(*algorithm), precision, a, b, out, form))
        np.testing.assert_allclose(np.asarray(out), expected(a, b, form), **tolerance)
    assert [each for _, each in made.products] == [PLAIN, PARTS]
    assert {compute for compute, _ in made.products} == {COMPUTE[precision]}
    for rule in (find("activation", name) for name in ("linear", "relu", "tanh")):
        for offsets, kept in ((bias, None), (bias, z), (None, z)):
            out.fill(np.nan)
            z.fill(np.nan)
            launches = cublaslt.multiply(Algorithm(*PLAIN), precision, a, b, out, form, rule, offsets, kept)
            assert len(launches) == 1 + (rule.name != "linear" or kept is not None)
            _run(launches)
            before = expected(a, b, form, offsets)
            value = {"linear": lambda v: v, "relu": lambda v: np.maximum(v, 0), "tanh": np.tanh}[rule.name]
            np.testing.assert_allclose(np.asarray(out), value(before), **tolerance)
            if kept is not None:
                np.testing.assert_allclose(np.asarray(z), before, **tolerance)


@pytest.fixture
def any_library(request):
    """The real library on a GPU, or that of NumPy."""
    if simulated():
        return request.getfixturevalue("library")(offers=[PLAIN, PARTS])
    reason = why_no_gpu() or cublaslt.why_not()
    if reason is not None:
        pytest.skip(reason)
    return cublaslt._found().library


@pytest.mark.parametrize("form", ["ab", "a^Tb", "ab^T"])
@pytest.mark.parametrize("precision", cublaslt.TYPES)
def test_every_algorithm_in_a_graph_repeats(any_library, form, precision):
    """What hardware has to show: products captured and replayed, the same bits each time, within their precision."""
    import cupy

    rows, columns, inner = 24, 40, 16 if simulated() else 1000
    dtype = np.dtype(np.float64 if precision == "float64" else np.float32)
    rng = np.random.default_rng(0)
    left = (inner, rows) if form == "a^Tb" else (rows, inner)
    right = (columns, inner) if form == "ab^T" else (inner, columns)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        a, b, bias = (cupy.array(rng.standard_normal(shape).astype(dtype)) for shape in (left, right, (columns,)))
        out = cupy.zeros((rows, columns), dtype)
        product = expected(*map(cupy.asnumpy, (a, b)), form, cupy.asnumpy(bias))
        offered = cublaslt.Problem(precision, a, b, out, form, bias).algorithms()
        assert offered
        for algorithm in offered:
            calls = driver.prepare(cublaslt.multiply(algorithm, precision, a, b, out, form, bias=bias))
            graph = driver.capture(calls, stream)
            results = []
            for _ in range(3):
                out.fill(np.nan)
                graph.launch(stream)
                results.append(cupy.asnumpy(out))
            assert len({result.tobytes() for result in results}) == 1
            bits = {"float64": 44, "float32": 16}.get(precision, 6)
            assert np.abs(results[0] - product).max() < 2.0**-bits * np.abs(product).max()


@needs_simulator
def test_relu_keeps_nan(library):
    """Which is why it is our own pass."""
    library()
    a, b, out, bias, _ = arrays("ab", 4, 4, 4, np.float32)
    a[1, 2] = np.nan
    _run(cublaslt.multiply(Algorithm(*PLAIN), "float32", a, b, out, "ab", find("activation", "relu"), bias))
    assert np.isnan(np.asarray(out)).tolist() == [[row == 1] * 4 for row in range(4)]


@needs_simulator
def test_what_is_asked_of_heuristics(library):
    """Scratch and parts are bounded, and no more alignment is promised than the choice is filed under."""
    in_place, large = (21, 20, 2, 1, 0, 0, 4, 0, 0), (21, 20, 2**20, 2, 0, 0, 4, 0, 0)
    made = library(offers=[PARTS, in_place, large, PLAIN, PLAIN])
    a, b, out, bias, _ = arrays("ab", 8, 12, 20, np.float32)
    assert cublaslt.Problem("float32", a, b, out, "ab", bias).algorithms() == [PARTS, PLAIN]
    assert made.preferred == {1: 32 << 20, 3: 2, 5: 16, 6: 16, 7: 16, 8: 16}
    a, b, out, bias, _ = arrays("ab", 8, 12, 21, np.float64, offset=2)
    cublaslt.Problem("float64", a, b, out, "ab", bias).algorithms()
    assert made.preferred == {1: 32 << 20, 3: 2, 5: 16, 6: 8, 7: 16, 8: 16}  # rows of 12 and of 21 doubles
    made.offers = [in_place]
    with pytest.raises(
        cublaslt.LibraryError, match=r"cublasLtMatmulAlgoGetHeuristic failed: CUBLAS_STATUS_NOT_SUPPORTED \(15\)"
    ):
        cublaslt.Problem("float64", a, b, out, "ab", bias).algorithms()


@needs_simulator
def test_descriptors_are_destroyed(library):
    made = library()
    a, b, out, _, _ = arrays("ab", 4, 4, 4, np.float32)
    problem = cublaslt.Problem("float32", a, b, out, "ab")
    problem.algorithms()
    product = problem.planned(Algorithm(*PLAIN))
    del problem
    assert len(made.objects) == 1 + 4, "a handle, and what the product holds"
    del product
    assert len(made.objects) == 1


@needs_simulator
@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        ((*PLAIN[:3], 1, *PLAIN[4:]), "reduction scheme 1 adds parts in no fixed order"),
        ((*PLAIN[:7], 70000, 0), "INNER_SHAPE_ID expects a number of type c_ushort, got 70000"),
        (PARTS, r"cublasLtMatmulAlgoCheck failed: CUBLAS_STATUS_NOT_SUPPORTED \(15\)"),
        ((21, 15, 2**14, 2, 0, 0, 4, 0, 0), "needs 67,108,864 bytes of scratch; at most 33,554,432 are given"),
    ],
)
def test_an_algorithm_that_cannot_be_taken(library, algorithm, message):
    made = library(offers=[PLAIN, (21, 15, 2**14, 2, 0, 0, 4, 0, 0)])
    a, b, out, _, _ = arrays("ab", 4, 4, 4, np.float32)
    with pytest.raises(cublaslt.LibraryError, match=message):
        cublaslt.Problem("float32", a, b, out, "ab").planned(Algorithm(*algorithm))
    assert not made.products


def test_a_library_that_is_too_old_is_named(monkeypatch):
    monkeypatch.setattr(cublaslt, "_open", object)
    cublaslt._found.cache_clear()
    try:
        assert cublaslt.why_not().startswith("cuBLASLt is too old: ")
    finally:
        cublaslt._found.cache_clear()

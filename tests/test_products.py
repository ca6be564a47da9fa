"""Hadamard, dot, Kronecker and row-wise Khatri-Rao products: the textbook's symbols, and NumPy, on both engines."""

import numpy as np
import pytest
from numba import cuda
from tolerance import assert_close

from dlcore import kernels
from dlcore.kernels.device import simulated, why_no_gpu

HERE = ["cpu", *(["cuda"] if simulated() or not why_no_gpu() else [])]
A, B = [["a", "b", "c"], ["d", "e", "f"]], [["g", "h", "i"], ["j", "k", "l"]]
VALUES = dict(zip("abcdefghijkl", (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37), strict=True))  # primes: no two alike
EXPECTED = {
    "hadamard": [["ag", "bh", "ci"], ["dj", "ek", "fl"]],
    "dot": [["ag+bh+ci", "aj+bk+cl"], ["dg+eh+fi", "dj+ek+fl"]],
    "kronecker": [
        ["ag", "ah", "ai", "bg", "bh", "bi", "cg", "ch", "ci"],
        ["aj", "ak", "al", "bj", "bk", "bl", "cj", "ck", "cl"],
        ["dg", "dh", "di", "eg", "eh", "ei", "fg", "fh", "fi"],
        ["dj", "dk", "dl", "ej", "ek", "el", "fj", "fk", "fl"],
    ],
    "khatri_rao": [
        ["ag", "ah", "ai", "bg", "bh", "bi", "cg", "ch", "ci"],
        ["dj", "dk", "dl", "ej", "ek", "el", "fj", "fk", "fl"],
    ],
}


def call(name, device, *arrays):
    if device == "cpu":
        return getattr(kernels, name)(*arrays)
    return getattr(kernels, name)(*map(cuda.to_device, arrays)).copy_to_host()


def numbers(words, dtype):
    sums = [["+".join("*".join(t) for t in word.split("+")) for word in row] for row in words]
    return np.array([[eval(word, {}, VALUES) for word in row] for row in sums], dtype)


@pytest.mark.parametrize("device", HERE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", EXPECTED)
def test_products_of_two_matrices_of_symbols(name, dtype, device):
    """Of ``[[a, b, c], [d, e, f]]`` and ``[[g, h, i], [j, k, l]]``."""
    got = call(name, device, numbers(A, dtype), numbers(B, dtype))
    np.testing.assert_array_equal(got, numbers(EXPECTED[name], dtype), strict=True)


REFERENCE = {
    "hadamard": lambda a, b: a * b,
    "dot": lambda a, b: a @ b.T,
    "kronecker": np.kron,
    "khatri_rao": lambda a, b: (a[:, :, None] * b[:, None, :]).reshape(len(a), a.shape[1] * b.shape[1]),
}
# the shapes of a and of b; one row, one column, vectors of 128 bits and what is none
SHAPES = {
    "hadamard": [
        ((5,), (5,)),
        ((3, 4, 5), (3, 4, 5)),
        ((37, 64), (37, 64)),
        ((), ()),
        ((0, 3), (0, 3)),
        ((3, 0), (3, 0)),
    ],
    "dot": [((1, 7), (4, 7)), ((33, 20), (17, 20)), ((3, 0), (2, 0)), ((0, 3), (2, 3))],
    "kronecker": [((1, 7), (4, 1)), ((5, 3), (7, 8)), ((11, 2), (3, 33)), ((0, 3), (2, 3)), ((2, 3), (2, 0))],
    "khatri_rao": [((1, 7), (1, 4)), ((70, 3), (70, 8)), ((33, 5), (33, 13)), ((0, 3), (0, 2)), ((4, 0), (4, 2))],
}


@pytest.mark.parametrize("device", HERE)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("name", "shapes"), [(name, pair) for name in SHAPES for pair in SHAPES[name]], ids=str)
def test_products_against_numpy(name, shapes, dtype, device):
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    if device == "cuda" and (a.ndim == 0 or not min(a.size, b.size)):
        pytest.skip("the simulator's arrays have axes and elements")
    got = call(name, device, a, b)
    exact = REFERENCE[name](a.astype(np.longdouble), b.astype(np.longdouble))
    plain = REFERENCE[name](a, b)
    assert got.dtype == dtype
    assert_close(name, got, exact, plain, terms=float(np.abs(plain).max(initial=0.0)))


@pytest.mark.parametrize("name", EXPECTED)
def test_other_layouts_are_taken_as_they_are(name):
    rng = np.random.default_rng(4)
    a, b = rng.standard_normal((2, 6, 8))
    strided = kernels.__dict__[name](np.asfortranarray(a)[:, ::2], b[:, ::2])
    np.testing.assert_array_equal(strided, kernels.__dict__[name](a[:, ::2].copy(), b[:, ::2].copy()))


BAD = {
    "hadamard": (np.ones((2, 3)), np.ones((3, 2)), r"b has shape \(3, 2\); expected \(2, 3\), that of a"),
    "dot": (np.ones((2, 3)), np.ones((3, 2)), r"b has shape \(3, 2\); expected \(n, 3\), the columns of a"),
    "khatri_rao": (np.ones((2, 3)), np.ones((3, 2)), r"b has shape \(3, 2\); expected \(2, n\), the rows of a"),
    "kronecker": (np.ones(3), np.ones((3, 2)), r"a has shape \(3,\); expected a matrix"),
}


@pytest.mark.parametrize("name", BAD)
def test_operands_that_do_not_fit(name):
    a, b, message = BAD[name]
    function = getattr(kernels, name)
    with pytest.raises(kernels.ShapeError, match=message):
        function(a, b)
    with pytest.raises(kernels.ShapeError, match="b is float32; expected float64, the dtype of a"):
        function(np.ones((2, 2)), np.ones((2, 2), np.float32))
    with pytest.raises(kernels.ShapeError, match="a is int64; expected float32 or float64"):
        function(np.ones((2, 2), int), np.ones((2, 2)))


@pytest.mark.skipif(not simulated(), reason="arrays of NumPy run on the simulator only")
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", ["hadamard", "kronecker", "khatri_rao"])
def test_the_same_bits_wherever_arrays_begin_in_memory(name, dtype):
    """128-bit access and access to one element after another."""
    from dlcore.kernels.cuda.arrays import memory
    from dlcore.kernels.cuda.launch import host_function

    rng = np.random.default_rng(5)
    a, b = rng.standard_normal((2, 6, 8)).astype(dtype)
    results, kernels_used = [], []
    for offset in (0, 1):
        placed = []
        for value in (a, b, np.empty(REFERENCE[name](a, b).shape, dtype)):
            room = np.empty(value.size + 16, dtype)
            first = -room.ctypes.data % 16 // room.itemsize + offset
            placed.append(room[first : first + value.size].reshape(value.shape))
            placed[-1][...] = value
        launches = host_function(name)[0](*placed)
        memory.run(launches)
        results.append(placed[-1])
        kernels_used.append(launches[0].kernel)
    assert kernels_used[0] is not kernels_used[1]
    np.testing.assert_array_equal(*results)

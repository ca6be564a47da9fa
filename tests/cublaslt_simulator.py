"""A cuBLASLt of NumPy behind C functions: it multiplies what descriptors and pointers say, column by column.

Nothing is known here of the product that was meant. Descriptors are what was set by number and size, as the headers
have them; what a call reads of the host is copied then, what lies on the device is read when the stream gets to it.
"""

import ctypes
from ctypes import c_int, c_int64, c_size_t, c_uint64, c_void_p

import driver_simulator
import numpy as np
import pytest
from driver_simulator import Device, Event, Stream

from dlcore.kernels import cache
from dlcore.kernels.cuda import choices, cublaslt, driver, tune

VERSION = 130002
SUCCESS, INVALID, NOT_SUPPORTED, INTERNAL = 0, 7, 15, 14
PLAIN = (21, 15, 1, 0, 0, 0, 4, 0, 0)  # an algorithm
PARTS = (21, 18, 4, 2, 1, 0, 4, 0, 2)  # one that adds four parts

NAMES = {
    status: ctypes.create_string_buffer(f"CUBLAS_STATUS_{name}".encode())
    for status, name in ((INVALID, "INVALID_VALUE"), (INTERNAL, "INTERNAL_ERROR"), (NOT_SUPPORTED, "NOT_SUPPORTED"))
}
DTYPES = {0: np.dtype(np.float32), 1: np.dtype(np.float64)}  # cudaDataType
SCALES = {68: 0, 74: 0, 75: 0, 77: 0, 70: 1}  # by compute type, what alpha and beta are
SIZES = {  # of attributes, by their number
    "MatmulDesc": {3: 4, 4: 4, 7: 4, 8: 8},
    "MatmulPreference": {1: 8, 3: 4, 5: 4, 6: 4, 7: 4, 8: 4},
    "MatmulAlgoConfig": {0: 4, 1: 4, 2: 4, 3: 4, 4: 4, 5: 4, 6: 4, 7: 2, 8: 2},
}
SCRATCH = 4096  # bytes of workspace that a part takes


def _number(address, size):
    return int.from_bytes(ctypes.string_at(address, size), "little")


class Library:
    """What ctypes.CDLL gives; ``offers`` are the algorithms of heuristics, ``allowed`` those that can be taken.

    An algorithm is its attributes in the order of their numbers.
    """

    def __init__(self, offers=(), version=VERSION, seconds=lambda algorithm: 1e-3):
        self.offers, self.allowed, self.seconds, self.shift = list(offers), set(offers), seconds, 0.0
        self.objects, self.products, self.errors, self.last = {}, [], [], 0x1000
        self.cublasLtGetVersion = ctypes.CFUNCTYPE(c_size_t)(lambda: version)
        self.cublasLtGetStatusName = ctypes.CFUNCTYPE(c_void_p, c_int)(lambda status: ctypes.addressof(NAMES[status]))
        matrices = (c_void_p,) * 6
        setter = c_void_p, c_int, c_void_p, c_size_t
        for name, function, *arguments in (
            ("Create", self._create, c_void_p),
            ("MatmulDescCreate", self._desc, c_void_p, c_int, c_int),
            ("MatrixLayoutCreate", self._layout, c_void_p, c_int, c_uint64, c_uint64, c_int64),
            ("MatmulPreferenceCreate", self._new, c_void_p),
            *(
                (f"{kind}Destroy", self._destroy, c_void_p)
                for kind in ("MatmulDesc", "MatrixLayout", "MatmulPreference")
            ),
            ("MatmulDescSetAttribute", self._setter("MatmulDesc"), *setter),
            ("MatmulPreferenceSetAttribute", self._setter("MatmulPreference"), *setter),
            ("MatmulAlgoConfigSetAttribute", self._configure, *setter),
            ("MatmulAlgoConfigGetAttribute", self._configured, *setter, c_void_p),
            ("MatmulAlgoInit", self._init, c_void_p, *(c_int,) * 7, c_void_p),
            ("MatmulAlgoCheck", self._check, *matrices, c_void_p, c_void_p),
            ("MatmulAlgoGetHeuristic", self._heuristic, *matrices, c_void_p, c_int, c_void_p, c_void_p),
            ("Matmul", self._matmul, *(c_void_p,) * 14, c_size_t, c_void_p),
        ):
            setattr(self, f"cublasLt{name}", ctypes.CFUNCTYPE(c_int, *arguments)(self._guarded(function)))

    def _guarded(self, function):
        def call(*arguments):
            try:
                return function(*arguments) or SUCCESS
            except Exception as error:  # ctypes would lose it
                self.errors.append(error)
                return INTERNAL

        return call

    def _new(self, there, **fields):
        self.last += 16
        self.objects[self.last] = fields
        c_uint64.from_address(there).value = self.last

    def _create(self, there):
        self._new(there, device=Device.now, handle=True)

    def _desc(self, there, compute, scale):
        self._new(there, compute=compute, scale=scale)

    def _layout(self, there, kind, rows, columns, leading):
        assert leading >= rows
        self._new(there, dtype=DTYPES[kind], rows=rows, columns=columns, leading=leading)

    def _destroy(self, of):
        del self.objects[of]

    def _setter(self, kind):
        def set_attribute(of, number, value, size):
            if SIZES[kind].get(number) != size:
                return INVALID
            self.objects[of][number] = _number(value, size)

        return set_attribute

    def _configure(self, algo, number, value, size):
        if SIZES["MatmulAlgoConfig"].get(number) != size:
            return INVALID
        (c_int * 16).from_address(algo)[number] = _number(value, size)

    def _configured(self, algo, number, value, size, written):
        if SIZES["MatmulAlgoConfig"].get(number) != size:
            return INVALID
        ctypes.memmove(value, algo + 4 * number, size)
        c_size_t.from_address(written).value = size

    def _init(self, handle, compute, scale, a, b, c, d, number, algo):
        assert self.objects[handle]["handle"]
        assert a == b == c == d == scale == SCALES[compute]
        ctypes.memset(algo, 0, 64)
        c_int.from_address(algo).value = number

    def _consistent(self, handle, desc, a, b, c, d):
        """Rows, columns and inner size; None where the matrices do not fit."""
        assert self.objects[handle]["device"] == Device.now
        product, (left, right, third, result) = self.objects[desc], (self.objects[each] for each in (a, b, c, d))
        sizes = [
            (m["columns"], m["rows"]) if product.get(number) else (m["rows"], m["columns"])
            for m, number in ((left, 3), (right, 4))
        ]
        (rows, inner), (depth, columns) = sizes
        fits = depth == inner and all((m["rows"], m["columns"]) == (rows, columns) for m in (third, result))
        return (rows, columns, inner) if fits else None

    def _result(self, there, algorithm):
        ctypes.memset(there, 0, 96)
        (c_int * 16).from_address(there)[:9] = algorithm
        c_uint64.from_address(there + 64).value = SCRATCH * algorithm[2] if algorithm[2] > 1 else 0

    def _check(self, handle, desc, a, b, c, d, algo, result):
        if self._consistent(handle, desc, a, b, c, d) is None:
            return INVALID
        algorithm = tuple((c_int * 9).from_address(algo))
        if algorithm not in self.allowed:
            return NOT_SUPPORTED
        self._result(result, algorithm)

    def _heuristic(self, handle, desc, a, b, c, d, preference, most, results, count):
        if self._consistent(handle, desc, a, b, c, d) is None:
            return INVALID
        self.preferred = preferred = self.objects[preference]
        found = [o for o in self.offers if o[3] & ~preferred.get(3, 7) == 0 and SCRATCH * o[2] <= preferred.get(1, 0)]
        for k, algorithm in enumerate(found[:most]):
            self._result(results + 96 * k, algorithm)
        c_int.from_address(count).value = len(found[:most])
        return SUCCESS if found else NOT_SUPPORTED

    def _matmul(self, handle, desc, alpha, a, left, b, right, beta, c, third, d, result, algo, workspace, size, stream):
        if self._consistent(handle, desc, left, right, third, result) is None:
            return INVALID
        algorithm = tuple((c_int * 9).from_address(algo))
        assert algorithm in self.allowed
        assert self.objects[handle]["device"] == Stream.all[stream].device_id
        needed = SCRATCH * algorithm[2] if algorithm[2] > 1 else 0
        assert size >= needed
        assert not needed or workspace % 16 == 0
        assert not needed or any(
            first <= workspace and workspace + needed <= end and device == Device.now
            for first, end, device in driver_simulator._ALLOCATED
        )
        product = dict(self.objects[desc])
        matrices = [dict(self.objects[each]) for each in (left, right, third, result)]
        scalar = ctypes.c_double if product["scale"] else ctypes.c_float
        factor, old = (scalar.from_address(each).value for each in (alpha, beta))
        epilogue, bias = product.get(7, 1), product.get(8, 0)
        assert epilogue in (1, 2, 4, 6)
        assert not epilogue & 4 or (bias and bias % 16 == 0)

        def work():
            Event.now += self.seconds(algorithm)
            self.products.append((product["compute"], algorithm))
            if needed:
                ctypes.memset(workspace, 0xFF, needed)
            x, y, z, out = (_matrix(place, layout) for place, layout in zip((a, b, c, d), matrices, strict=True))
            total = factor * (
                (x.T if product.get(3) else x).astype(float) @ (y.T if product.get(4) else y).astype(float)
            )
            if old:
                total += old * z
            if epilogue & 4:
                total += _matrix(bias, {**matrices[3], "columns": 1})
            out[...] = (np.fmax(total, 0) if epilogue & 2 else total) + self.shift

        driver_simulator.enqueue(stream, work)


def _matrix(address, layout):
    """A column-major matrix in memory."""
    dtype, rows, columns, leading = (layout[key] for key in ("dtype", "rows", "columns", "leading"))
    memory = (ctypes.c_uint8 * (dtype.itemsize * (leading * (columns - 1) + rows))).from_address(address)
    return np.ndarray((rows, columns), dtype, memory, strides=(dtype.itemsize, dtype.itemsize * leading))


# ---------------------------------------------------------------------------------- fixtures and matrices of tests


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU with a file of choices; products take 2 ms, 1 ms with the tile that is the fastest, activations 0.1 ms."""
    times = {"activation": 1e-4, "_32x32": 1e-3}
    monkeypatch.setattr(cache, "cache_directory", lambda: tmp_path)
    monkeypatch.setattr(choices, "why_no_gpu", lambda: None)
    monkeypatch.setattr(
        Event,
        "seconds",
        staticmethod(lambda kernel: next((t for name, t in times.items() if name in kernel.name), 2e-3)),
    )
    monkeypatch.setattr(tune, "REPEATS", 1)
    monkeypatch.setattr(tune, "WORTH", 1.0)  # the plans of the model alone: the simulator takes its time
    monkeypatch.setattr(driver, "_BURSTS", 1)
    monkeypatch.setattr(driver, "_SECONDS", 1e-3)
    caches = choices._described, choices._read, cublaslt._found, cublaslt._handle, cublaslt.refuse
    for each in caches:
        each.cache_clear()
    with driver_simulator.installed(monkeypatch):
        yield tmp_path / "products.json"
    for each in caches:
        each.cache_clear()


@pytest.fixture
def library(gpu, monkeypatch):
    """Makes the library one of NumPy, or leaves none: ``library(offers=[...])``, ``library(None)``."""
    made = []

    def use(*none, offers=(PLAIN,), **keywords):
        def missing():
            raise OSError("libcublasLt.so.13: cannot open shared object file")

        found = None if none else Library(offers, **keywords)
        made.append(found)
        monkeypatch.setattr(cublaslt, "_open", missing if none else lambda: found)
        cublaslt._found.cache_clear()
        cublaslt._handle.cache_clear()
        return found

    yield use
    assert [error for each in made if each is not None for error in each.errors] == []


def arrays(form, rows, columns, inner, dtype, offset=0):
    """Factors, result, bias and z on the device, of which only the factors may begin at odd addresses."""
    rng = np.random.default_rng(rows + 7 * columns + 31 * inner)
    left = (inner, rows) if form == "a^Tb" else (rows, inner)
    right = (columns, inner) if form == "ab^T" else (inner, columns)
    made = []
    for shape, shift in ((left, offset), (right, offset), ((rows, columns), 0), ((columns,), 0), ((rows, columns), 0)):
        count = int(np.prod(shape))
        made.append(driver_simulator._aligned((count + shift,), dtype)[shift:].reshape(shape))
        made[-1][...] = rng.standard_normal(shape)
    return made


def expected(a, b, form, bias=None):
    a, b = (np.asarray(each, np.float64) for each in (a, b))
    product = (a.T if form == "a^Tb" else a) @ (b.T if form == "ab^T" else b)
    return product if bias is None else product + np.asarray(bias, np.float64)

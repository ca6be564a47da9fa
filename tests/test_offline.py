"""Every CUDA kernel compiles for every architecture and keeps to its budget, and what breaks one is reported.

``DLCORE_REQUIRE_OFFLINE=1`` makes a missing tool a failure. ``python -m bench sass`` compiles more than a test can.
"""

import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest

_ROOT = pathlib.Path(__file__).parent.parent
_ENVIRONMENT = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}


def _python(*arguments, **changes):
    """Another process: this one has the simulator, which compiles nothing."""
    environment = {**_ENVIRONMENT, **changes}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=_ROOT)


@functools.cache
def _missing():
    done = _python("-c", "from bench.machine import why_not; print(why_not() or '')")
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(scope="module")
def tools():
    if _missing():
        assert os.environ.get("DLCORE_REQUIRE_OFFLINE") != "1", _missing()
        pytest.skip(_missing())


@pytest.mark.slow
def test_every_kernel(tools):
    """On the oldest architecture; .ci/run takes them all."""
    done = _python("-m", "bench", "sass", "--arch", "75", "--rules", "tanh,binary_crossentropy,adam,lamb")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stderr.startswith("[1/")


def test_a_table_of_one_kernel(tools, tmp_path):
    file = tmp_path / "sass.json"
    done = _python("-m", "bench", "sass", "add_partials", "--arch", "80,90", "--rules", "relu", "--json", str(file))
    assert done.returncode == 0, done.stdout + done.stderr
    written = json.loads(file.read_text())
    assert {(row["name"], row["arch"]) for row in written["kernels"]} == {
        (f"dense_backward_z[relu]/add_partials/{dtype}", arch) for dtype in ("float32", "float64") for arch in (80, 90)
    }
    assert all(row["registers"] > 8 and row["accesses"]["LDG"] and not row["breaches"] for row in written["kernels"])
    assert "4 kernels, 0 breaches" in done.stdout


# ------------------------------------------------------------------------------------------------ bad kernels

_BAD = r"""
import json, numba, numpy as np
from numba import cuda
from bench.machine import assemble, codes, ptx_of
from bench.sass import Budgets, Failure, breaches, compile_all
from dlcore.kernels.cuda.launch import Entry
from dlcore.kernels.cuda.vector import access

kind = numba.typeof(np.ones(1, np.float32))
load, store = access(np.float32)[1:]
sums = range(100)
lines = [
    "def spilling(x):", "    t = cuda.grid(1)",  # of the thread: values all threads share go to uniform registers
    *(f"    c{k} = x[t + {k}]" for k in sums),
    "    for i in range(x.size):", "        v = x[i]", *(f"        c{k} = c{k} * v + v" for k in sums),
    *(f"    x[t + {k}] = c{k}" for k in sums),
]
scope = {"cuda": cuda}
exec("\n".join(lines), scope)

def promoting(x):
    i = cuda.grid(1)
    x[i] = x[i] * 0.1

def wide(x, y):
    i = cuda.grid(1) * 4
    store(y, i, load(x, i))

def narrow(x, y):
    i = cuda.grid(1) * 4
    for k in range(4):
        y[i + k] = x[i + k]

def indexed(x):
    room = cuda.local.array(64, numba.float32)
    for k in range(64):
        room[k] = x[k]
    for i in range(x.size):
        room[i % 64] += x[i]
    for k in range(64):
        x[k] = room[k]

budget = Budgets().defaults
vector = budget._replace(vector=("LDG", "STG"))
told, binaries = {}, []
for function in (scope["spilling"], promoting, indexed, wide, narrow):
    options = {"launch_bounds": 1024} if function.__name__ == "spilling" else {}  # 64 registers
    signature = (kind,) * function.__code__.co_argcount
    name = f"op/{function.__name__}/float32"
    binaries.append(assemble(name, ptx_of(Entry(name, function, signature, options, False), 90), 90))
for function, code in zip((scope["spilling"], promoting, indexed, wide, narrow), codes(binaries), strict=True):
    told[function.__name__] = breaches(code, vector if function in (wide, narrow) else budget, False)
    if function is promoting:
        told["promoting, allowed"] = breaches(code, budget, True)

def untyped(x):
    x[0] = x.no_such_attribute

pair = [Entry(f"op/{f.__name__}/float32", f, (kind,), {}, False) for f in (untyped, promoting)]
failure, beside = compile_all(pair, [90])
told["untyped"] = [isinstance(failure, Failure), failure.name, failure.arch, len(failure.message.splitlines())]
told["beside"] = beside.name
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def told(tools):
    done = _python("-c", _BAD)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


_APART = r"""
from bench import sass
from bench.kernels import entries
from bench.machine import ptx_of

chosen = [e for e in entries(["relu", "adam"]) if "optimizer_update[adam]=" in e.name or "slope_and_sum" in e.name][:4]
chosen += [e for e in entries(["relu", "adam"]) if "tensor_bfloat16" in e.name][:1]  # not for the oldest
together = sass.compile_all(chosen, [75, 90, 120])
sass.ptx_for = lambda entry, architectures: [ptx_of(entry, arch) for arch in architectures]
print([e.oldest for e in chosen][-1], len(together), together == sass.compile_all(chosen, [75, 90, 120]))
"""


def test_architectures_that_share_a_pass_of_numba_get_the_same_code(tools):
    """As each of them would by itself."""
    done = _python("-c", _APART)
    assert (done.returncode, done.stdout) == (0, "80 14 True\n"), done.stderr


def test_a_spill_is_reported(told):
    assert any(what.startswith("spills ") for what in told["spilling"]), told
    assert any(what.endswith("bytes of local memory") for what in told["spilling"]), told


def test_local_memory_is_reported(told):
    assert told["indexed"] == ["256 bytes of local memory"]


def test_float64_is_reported(told):
    """A bare constant in a float32 kernel is what the check is for."""
    assert len(told["promoting"]) == 1
    assert told["promoting"][0].endswith("float64 instructions")
    assert told["promoting, allowed"] == []


def test_lost_128_bit_access_is_reported(told):
    assert told["narrow"] == ["no 128-bit LDG", "no 128-bit STG"]
    assert told["wide"] == []


def test_a_kernel_that_does_not_compile_is_reported(told):
    assert told["untyped"] == [True, "op/untyped/float32", 90, 1]
    assert told["beside"] == "op/promoting/float32"  # is looked at all the same


def test_a_filter_that_matches_nothing(tools):
    done = _python("-m", "bench", "sass", "no such kernel", "--rules", "relu")
    assert (done.returncode, done.stderr) == (2, "no kernel has a name with no such kernel in it\n")


_ON_THE_CPU = """
import numba, numpy as np
import numba.cuda.extending
numba.cuda.extending.intrinsic = numba.extending.intrinsic
import ml_dtypes
from dlcore.kernels.cuda.vector import access, half_access, mover, outer_sum

for dtype in (np.float32, np.float64):
    for wanted in (0, 1):
        lanes, load, store = access(dtype, wanted)

        @numba.njit
        def reverse_groups(a, out):
            for group in range(a.size // lanes):
                store(out, out.size - (group + 1) * lanes, load(a, group * lanes))

        memory = np.arange(40, dtype=dtype)
        first = next(i for i in range(4) if memory[i:].ctypes.data % 16 == 0)
        a = memory[first : first + 8 * lanes]
        out = np.zeros(40, dtype)[first:][: a.size]
        reverse_groups(a, out)
        print(np.array_equal(out, a.reshape(8, lanes)[::-1].ravel()))
    outer = outer_sum(dtype, 2, 3)

    @numba.njit
    def product(sums, a, b):
        return outer(sums, a, b)

    sums, a, b = (tuple(np.array(v, dtype)) for v in ([1, 2, 3, 4, 5, 6], [10, 20], [3, 5, 7]))
    print(product(sums, a, b) == (31, 52, 73, 64, 105, 146))
    moved = mover()

    @numba.njit
    def second_half(a, out):
        there = moved(a[:3], 3)
        for i in range(there.shape[0]):
            for j in range(there.shape[1]):
                out[i, j] = there[i, j]

    a, out = np.arange(12, dtype=dtype).reshape(6, 2), np.zeros((3, 2), dtype)
    second_half(a, out)
    print(np.array_equal(out.ravel(), a.ravel()[3:9]))

words = np.arange(2**16, dtype=np.uint16)
for name, short in (("float16", np.float16), ("bfloat16", ml_dtypes.bfloat16)):
    exact = words.view(short).astype(np.float32)
    finite = np.sort(exact[np.isfinite(exact)])
    ties = finite[:-1] + (finite[1:] - finite[:-1]) / 2
    strange = np.uint32([0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800001]).view(np.float32)  # all NaN
    ends = np.float32([7e4, -3.4e38, 1e-45, 0])
    numbers = np.concatenate([strange, ends, exact, ties, np.nextafter(ties, np.float32(9))])
    numbers = numbers[: numbers.size // 4 * 4]
    for lanes in (1, 4):
        _, load, store = half_access(name, lanes)

        @numba.njit
        def widened(a, out):
            for i in range(0, a.size, lanes):
                values = load(a, i)
                for k in range(lanes):
                    out[i + k] = values[k]

        @numba.njit
        def narrowed(a, out):
            for i in range(0, a.size, 4):
                values = a[i], a[i + 1], a[i + 2], a[i + 3]
                if lanes == 4:
                    store(out, i, values)
                else:
                    for k in range(4):
                        store(out, i + k, (values[k],))

        wide, out = np.zeros(words.size, np.float32), np.zeros(numbers.size, np.uint16)
        widened(words, wide)
        narrowed(numbers, out)
        with np.errstate(all="ignore"):
            expected = numbers.astype(short)
        same = (out == expected.view(np.uint16)) | np.isnan(expected) & np.isnan(out.view(short))
        print(np.array_equal(wide, exact, equal_nan=True) and same.all())
"""


def test_wide_access_computes_what_the_simulator_does(tools):
    """The simulator has plain functions in its place; here the instructions themselves run, on the CPU."""
    pytest.importorskip("ml_dtypes")
    done = _python("-c", _ON_THE_CPU)
    assert done.stdout.split() == ["True"] * 12, done.stdout + done.stderr


_HALVES = r"""
import re
from bench import kernels
from bench.machine import ptx_of

for entry in kernels.entries(["sgd"]):
    if "norm_blocks_mixed/" in entry.name or "optimizer_update_mixed/" in entry.name:
        text = ptx_of(entry, 75)
        loads = re.findall(r"ld\.global\.(?:[ub]64|v4\.[ub]16|v2\.[ub]32)\s", text)
        stores = re.findall(r"st\.global\.(?:[ub]64|v4\.[ub]16|v2\.[ub]32)\s", text)
        print(bool(loads), bool(stores) or "norm" in entry.name)
"""


def test_four_numbers_of_16_bits_are_one_access(tools):
    """NVVM splits a vector of half in two; the gradient is read and the weights are written 64 bits at a time."""
    done = _python("-c", _HALVES)
    assert done.stdout.split() == ["True"] * 16, done.stdout + done.stderr

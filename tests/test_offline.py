"""Every CUDA kernel compiles for every architecture, spills nothing, and keeps float64 out of float32 kernels.

``DLCORE_REQUIRE_OFFLINE=1`` makes a missing tool a failure.
"""

import json
import os
import subprocess
import sys

import pytest

_ENVIRONMENT = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0"}


def _offline(*arguments):
    command = [sys.executable, "-m", "bench.offline", *arguments]
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return subprocess.run(command, capture_output=True, text=True, env=_ENVIRONMENT, cwd=root)


@pytest.fixture(scope="module", autouse=True)
def _tools():
    code = "from bench.offline import why_not; print(why_not() or '')"
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    reason = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_ENVIRONMENT, cwd=root)
    assert reason.returncode == 0, reason.stderr
    if reason.stdout.strip():
        assert os.environ.get("DLCORE_REQUIRE_OFFLINE") != "1", reason.stdout
        pytest.skip(reason.stdout.strip())


_FEW = "tanh,binary_crossentropy,adam"  # a kernel takes 0.5 s; `python -m bench.offline` compiles them all


@pytest.mark.slow
@pytest.mark.parametrize("arch", [75, 80, 90, 100, 120])
def test_every_kernel(arch):
    done = _offline("--arch", str(arch), "--rules", _FEW)
    wrong = [line for line in done.stdout.splitlines() if line.rstrip().endswith(("spills", "float64", "found"))]
    assert done.returncode == 0, "\n".join([*wrong, done.stdout[-300:], done.stderr[-3000:]])


def test_float64_is_found():
    """A bare constant in a float32 kernel is what the check is for."""
    code = (
        "import numba, numpy as np\n"
        "from numba import cuda\n"
        "from bench.offline import _ptx, inspect_ptx\n"
        "from dlcore.kernels.cuda.launch import Entry\n"
        "def careless(x):\n"
        "    i = cuda.grid(1)\n"
        "    x[i] = x[i] * 0.1\n"
        "kind = numba.typeof(np.ones(1, np.float32))\n"
        "entry = Entry('careless', careless, (kind,), {}, False)\n"
        "print(inspect_ptx('careless', _ptx(entry, 90), 90, False).wrong)\n"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_ENVIRONMENT, cwd=root)
    assert done.stdout.strip() == "float64", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("arch", [75, 80, 86, 89, 90, 100, 120])
def test_matrix_products(arch):
    """Sums in registers, 128 bits a load and a store, and a hot loop that is nearly all multiply-adds."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    environment = {**_ENVIRONMENT, "PYTHONPATH": root}
    command = [sys.executable, os.path.join(root, "tests", "product_code.py"), str(arch)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=root)
    assert done.returncode == 0, done.stderr
    kernels = {fact.pop("kernel"): fact for fact in map(json.loads, done.stdout.splitlines())}
    for name, fact in kernels.items():
        assert fact["spills"] == fact["local"] == 0, (name, fact)
        assert (fact["float64"] == 0) == name.startswith("float32"), (name, fact)
        wide = fact["wide"]
        assert all((wide[kind] > 0) == name.endswith("wide") for kind in ("LDG", "STG")), (name, fact)
        assert (wide["LDS"] > 0) == ("merge" not in name), (name, fact)
    assert len(kernels) == 4
    large = kernels["float32 128x128 wide"]
    assert (large["threads"], large["blocks"]) == (256, 2)
    assert large["registers"] <= 128  # two such blocks on a multiprocessor of 65,536 registers
    assert large["multiply_adds"] == 8 * 8 * 8, "the loop over slices is not what was found"
    assert large["multiply_adds"] >= 0.85 * large["loop"], large


_ON_THE_CPU = """
import numba, numpy as np
import numba.cuda.extending
numba.cuda.extending.intrinsic = numba.extending.intrinsic
from dlcore.kernels.cuda.vector import access, outer_sum

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
"""


def test_wide_access_computes_what_the_simulator_does():
    """The simulator has plain functions in its place; here the instructions themselves run, on the CPU."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    done = subprocess.run(
        [sys.executable, "-c", _ON_THE_CPU], capture_output=True, text=True, env=_ENVIRONMENT, cwd=root
    )
    assert done.stdout.split() == ["True"] * 6, done.stdout + done.stderr

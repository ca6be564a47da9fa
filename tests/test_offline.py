"""Every CUDA kernel compiles for every architecture, spills nothing, and keeps float64 out of float32 kernels.

``DLCORE_REQUIRE_OFFLINE=1`` makes a missing tool a failure.
"""

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

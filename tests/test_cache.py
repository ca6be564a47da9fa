"""The disk cache, each case in processes of its own."""

import os
import pathlib
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).parent.parent

RULES = """
import math
def helper(z):
    return {helper}
"""

PROGRAM = """
import numpy as np
from dlcore import kernels
from dlcore.kernels import compile
from helpers import helper

@kernels.activation
def own(z):
    return helper(z) + {constant}

@own.derivative
def _(z, y):
    return {slope}

@kernels.optimizer(lr=0.1)
def step(w, g, v, h):
    v = 0.5 * v + g
    return w - h.lr * v, v

w = np.ones(2, np.float32)
kernels.optimizer_update("step", w, w.copy(), [np.zeros(2, np.float32)], step=1)
y = kernels.activation_forward(np.ones(3, np.float32), "own")
print(float(y[0]), compile.STATISTICS["compiled"], compile.STATISTICS["loaded"])
"""


@pytest.fixture
def run(tmp_path):
    def run(helper="2 * z", constant="1", slope="2.0"):
        (tmp_path / "helpers.py").write_text(RULES.format(helper=helper))
        (tmp_path / "program.py").write_text(PROGRAM.format(constant=constant, slope=slope))
        environment = {**os.environ, "DLCORE_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
        environment.pop("NUMBA_ENABLE_CUDASIM", None)
        result = subprocess.run(
            [sys.executable, "program.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, result.stderr
        value, compiled, loaded = result.stdout.split()
        return float(value), int(compiled), int(loaded)

    return run


def test_second_process_compiles_nothing_and_an_edit_is_noticed(run):
    value, compiled, loaded = run()
    assert (value, loaded) == (3.0, 0)
    assert run() == (3.0, 0, compiled)  # built-in kernels and rules of the user, all from the disk
    assert run(constant="5")[:2] == (7.0, 2)  # the rule was edited: its value, in place and not
    assert run(helper="4 * z", slope="4.0")[:2] == (5.0, 3)  # what it calls was edited, and the derivative
    assert run()[:2] == (3.0, 0)  # and back


def test_importing_compiles_nothing_and_asks_no_gpu():
    code = textwrap.dedent("""
        import sys, dlcore
        from dlcore.kernels import compile
        assert compile.STATISTICS["compiled"] == compile.STATISTICS["loaded"] == 0
        assert "cupy" not in sys.modules and "numba.cuda" not in sys.modules and "matplotlib" not in sys.modules
    """)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("NUMBA_ENABLE_CUDASIM", None)
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)


def test_a_folder_that_cannot_be_written_is_said_once(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    code = "from dlcore.kernels import cache; cache.cache_directory(); cache.cache_directory()"
    environment = {**os.environ, "DLCORE_CACHE_DIR": str(blocked / "cache"), "PYTHONPATH": str(ROOT)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stderr.count("cannot be written") == 1
    assert "DLCORE_CACHE_DIR" in result.stderr

"""The launch path as far as it goes without a GPU: parameters as kernels declare them, machine code on the disk."""

import ctypes
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from dlcore import Sequential, layers, optimizers, random
from dlcore.kernels import Builder
from dlcore.kernels.device import DeviceError, simulated, why_no_gpu

if not simulated() and why_no_gpu():
    pytest.skip(why_no_gpu(), allow_module_level=True)

from dlcore.kernels.cuda import driver
from dlcore.kernels.cuda import engine as engine_module
from dlcore.kernels.cuda.engine import Engine

if simulated():
    import driver_simulator

ROOT = pathlib.Path(__file__).parent.parent


def _compiling(code, tmp_path):
    """The output of a process in which Numba compiles instead of simulating; skips where the tools are missing."""
    probe = "from bench.machine import why_not; print(why_not() or '', end='')"
    environment = {**os.environ, "NUMBA_ENABLE_CUDASIM": "0", "DLCORE_CACHE_DIR": str(tmp_path)}
    outputs = []
    for text in (probe, code):
        done = subprocess.run([sys.executable, "-c", text], cwd=ROOT, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
        if text is probe and done.stdout:
            assert os.environ.get("DLCORE_REQUIRE_OFFLINE") != "1", done.stdout
            pytest.skip(done.stdout)
    return outputs[1]


def test_parameters_lie_where_their_pointers_say():
    matrix = np.arange(6, dtype=np.float32).reshape(2, 3)
    parameters = driver.words([matrix, np.float32(0.5), np.int64(-7), np.uint32(9)])
    pointers, memory = driver.lay_out(parameters)
    addresses = (ctypes.c_uint64 * len(parameters)).from_address(pointers)
    base = memory.ctypes.data
    assert all(base <= place < base + memory.nbytes // 2 for place in addresses)
    numbers = [ctypes.c_int64.from_address(place).value for place in addresses[:9]]
    assert numbers == [0, 0, 6, 4, matrix.ctypes.data, 2, 3, 12, 4]
    assert ctypes.c_float.from_address(addresses[9]).value == 0.5
    assert ctypes.c_int64.from_address(addresses[10]).value == -7
    assert ctypes.c_uint32.from_address(addresses[11]).value == 9


_DECLARED = """
import re
import numpy as np
from bench.kernels import _for_many
from dlcore.kernels.cuda import driver, launch, machine_code
from dlcore.kernels.instructions import OPS

SIZE = {"u64": 8, "u32": 4, "f32": 4, "f64": 8}
checked = 0
for name in ("gather_rows", "dropout", "batch_norm_forward", "softmax_cross_entropy", "record"):
    for _, instruction in launch._variants(OPS[name], np.dtype(np.float32), ()):
        planned = launch.plan(instruction, instruction.operands, np.zeros(2, np.int64))
        for one in [*planned, *map(_for_many, planned)]:
            text = machine_code.ptx(one.kernel, machine_code.argument_types(one.arguments), 90)
            declared = re.findall(r"\\.param \\.(\\w+) ", text[text.index(".entry"):text.index("{")])
            assert [SIZE[d] for d in declared] == [len(w) for w in driver.words(one.arguments)], (name, declared)
            checked += 1
print(checked)
"""


def test_parameters_are_those_that_kernels_declare(tmp_path):
    assert int(_compiling(_DECLARED, tmp_path)) >= 16


_STORED = """
import numpy as np
from dlcore.kernels import compile
from dlcore.kernels.cuda import launch
from dlcore.kernels.cuda.machine_code import argument_types, assemble, cubin
from dlcore.kernels.device import DeviceError
from dlcore.kernels.instructions import Instruction
from dlcore.kernels.rule import activation

def code(rule, dtype=np.float32, arch=90):
    arrays = [np.zeros((4, 4), dtype) for _ in range(2)]
    one = launch.plan(Instruction("activation_forward", arrays, rule), arrays, None)[0]
    return cubin(one.kernel, argument_types(one.arguments), arch)

def compiled():
    return compile.STATISTICS["compiled"]

@activation
def scaled(z):
    return 2 * z

@scaled.derivative
def _(z, y):
    return 2

twice = scaled
before = compiled()
name, image = code(twice)
assert image.startswith(b"\\x7fELF") and name
assert compiled() == before + 1
cubin.cache_clear()
assert code(twice) == (name, image)
assert compiled() == before + 1, "a kernel that is on the disk was compiled"
others = [code(twice, np.float64), code(twice, arch=80)]
assert compiled() == before + 3

@activation
def scaled(z):
    return 3 * z

@scaled.derivative
def _(z, y):
    return 3

cpu = compiled() - before - 3  # a rule is tried on the CPU when it is made
others.append(code(scaled))
assert compiled() == before + cpu + 4
assert len({image, *(o[1] for o in others)}) == 4
for arch in (90, 777):
    try:
        assemble("nonsense", arch)
    except DeviceError as error:
        print(error)
"""


def test_machine_code_is_filed_under_what_it_means(tmp_path):
    source = tmp_path / "stored.py"  # a rule needs a file
    source.write_text(_STORED)
    first, second = _compiling(f"import runpy; runpy.run_path({str(source)!r})", tmp_path).splitlines()
    assert first.startswith("nvJitLink cannot assemble a kernel for sm_90")
    assert second.endswith("does not know sm_777")


_AHEAD = """
from dlcore import Sequential, layers
from dlcore.kernels import compile
from dlcore.kernels.cuda.ahead import compile_ahead

model = Sequential([layers.Input((3,)), layers.Dense(2)], device="cpu")
model.compile("sgd", "mse")
before = compile.STATISTICS["compiled"]
compile_ahead(model.program, 80, MANY)
print(compile.STATISTICS["compiled"] - before)
"""


def test_a_program_is_compiled_for_a_gpu_that_is_not_here(tmp_path):
    counts = [int(_compiling(_AHEAD.replace("MANY", many), tmp_path)) for many in ("False", "False", "True", "True")]
    assert counts[0] >= 8
    assert counts[1] == 0, "what is on the disk was compiled again"
    found = {path.name.split(".")[0] for path in tmp_path.rglob("*.sm_80.cubin")}
    assert {"optimizer_update", "elementwise_loss_loop_scalar", "advance"} <= found
    assert counts[2] >= 8, "the forms for many models"
    assert counts[3] == 0
    many = "optimizer_update", "elementwise_loss_loop_scalar", "record", "gather_rows_scalar"
    assert {f"batched_{name}" for name in many} <= found


def _gathering():
    b = Builder(np.float32)
    source, order = b.extern("source", (0, 2)), b.extern("order", (0,), np.int64)
    x = b.rows("x", 2)
    b.emit("gather_rows", source, order, x)
    b.finish("list")
    return Engine(b.program, 3), x


def test_a_cursor_on_the_device_says_which_mini_batch_it_is():
    engine, x = _gathering()
    source = np.arange(16, dtype=np.float32).reshape(8, 2)
    order = np.arange(8)[::-1].copy()
    engine.bind(source=source, order=order)
    for first, steps, last in ((0, 1, slice(0, 3)), (0, 2, slice(3, 6)), (1, 1, slice(3, 6)), (2, 1, slice(6, 8))):
        engine.run("list", steps, 3, 8, first)
        rows = order[last]
        assert np.array_equal(engine.read(x)[: len(rows)], source[rows])
    assert len(engine._replays) == 2  # of 3 rows and of 2, whatever the mini-batch


def test_arrays_of_the_same_shape_are_bound_in_place():
    engine, x = _gathering()
    order = np.arange(3)
    for value in (1, 2):
        engine.bind(source=np.full((3, 2), value, np.float32), order=order)
        engine.run("list", 1, 3, 3)
        assert (engine.read(x) == value).all()
        assert len(engine._replays) == 1
    engine.bind(source=np.full((4, 2), 3, np.float32))
    assert not engine._replays
    engine.run("list", 1, 3, 3)
    assert (engine.read(x) == 3).all()


def test_arrays_that_are_held_are_copied_once():
    engine, x = _gathering()
    order = np.arange(3)
    first, second = (np.full((3, 2), value, np.float32) for value in (1, 2))
    engine.hold(first, second)
    for array, expected in ((first, 1), (second, 2), (first, 1), (second, 2)):
        array[:] = 9  # what is on the device stays as it was
        engine.bind(source=array, order=order)
        engine.run("list", 1, 3, 3)
        assert (engine.read(x) == expected).all()
        assert len(engine._replays) <= 2
    engine.release()
    assert not engine._replays
    assert "source" not in engine._externs  # or its memory would stay in use
    engine.bind(source=first, order=order)
    engine.run("list", 1, 3, 3)
    assert (engine.read(x) == 9).all()


def test_too_little_memory_is_one_message(monkeypatch):
    engine, _ = _gathering()

    def none(shape, dtype):
        raise MemoryError

    monkeypatch.setattr(engine_module.memory, "zeros", none)
    with pytest.raises(DeviceError, match=r"the GPU has no 8 MiB free, .* mini-batches of 1,000,000 samples"):
        engine.reserve(1_000_000)
    assert engine.rows == 3


@pytest.mark.skipif(not simulated(), reason="the GPU itself is tested in test_cuda.py")
@pytest.mark.parametrize("epochs", [1, 3])
def test_training_through_the_driver_agrees_with_the_cpu(monkeypatch, epochs):
    """Everything but the hardware: words, graphs, cursor, streams; the last mini-batch of an epoch is smaller."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((13, 4)), rng.integers(0, 3, 13)

    def trained(device):
        random.set_seed(3)
        inner = [layers.Dense(5, use_bias=False), layers.BatchNormalization(), layers.Activation("relu")]
        model = Sequential(
            [layers.Input((4,), dtype="float64"), *inner, layers.Dropout(0.2), layers.Dense(3, "softmax")],
            device=device,
        )
        model.compile(optimizers.Adam(global_clipnorm=0.5), "sparse_categorical_crossentropy", ["accuracy"])
        history = model.fit(x, y, batch_size=5, epochs=epochs, verbose=0, validation_data=(x, y))
        loss = model.train_on_batch(x[:5], y[:5])
        return [*model.get_weights(), history.history["loss"], history.history["val_accuracy"], loss, model.predict(x)]

    expected = trained("cpu")
    with driver_simulator.installed(monkeypatch) as graphs:
        copied = []
        monkeypatch.setattr(sys.modules["cupy"], "array", lambda a: copied.append(a) or driver_simulator._copy(a))
        got = trained("cuda")
        assert sum(a.shape == x.shape for a in copied) == 3  # fit, its validation, predict; whatever the epochs
        assert graphs.launched == epochs * (3 + 1) + 1 + 1  # training and validation in each epoch
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)

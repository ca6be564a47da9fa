"""When ``dlcore tune`` takes cuBLASLt: a library of NumPy that takes as long as a test says."""

import json
import re
import warnings

import numpy as np
import pytest

import dlcore
from dlcore import layers, tuning
from dlcore.cli import main
from dlcore.kernels import device
from dlcore.kernels.cuda import choices, cublaslt, dense, gemm, tune
from dlcore.kernels.cuda.batched import Stack
from dlcore.kernels.cuda.choices import Algorithm
from dlcore.kernels.device import simulated

if not simulated():
    pytest.skip("the driver and the library are made up here", allow_module_level=True)

import cublaslt_simulator
import driver_simulator
from cublaslt_simulator import PARTS, PLAIN, arrays

gpu, library = cublaslt_simulator.gpu, cublaslt_simulator.library
SHAPE = (8, 12, 20)


def _tuned(library, seconds, **keywords):
    """The library, after it was measured for a product, which takes it so many ms."""
    made = library(seconds=lambda algorithm: seconds / 1e3, **keywords)
    found = tune.measure("float32", "ab", *SHAPE)
    tune.keep([found])
    made.products.clear()
    return made, found


def _planned(offset=0, shape=SHAPE):
    """What a product is computed by."""
    a, b, out, _, _ = arrays("ab", *shape, np.float32, offset)
    return ["library" if isinstance(each, cublaslt.Product) else each.kernel.name for each in dense.multiply(a, b, out)]


def test_the_faster_library_is_taken_from_then_on(library, gpu):
    library()
    before = _planned()
    made, found = _tuned(library, 0.95, offers=[PARTS, PLAIN])
    assert (list(found.library), found.refused) == ([PARTS, PLAIN], None)
    assert found.library[PLAIN] == pytest.approx(1.05e-3)
    assert found.best.seconds == pytest.approx(1e-3)
    assert _planned() == before, "it is slower with the pass of the activation"
    made, found = _tuned(library, 0.4, offers=[PARTS, PLAIN])
    assert _planned() == ["library"]
    choices.forget()  # as in another process
    assert _planned() == ["library"]
    ((entry,),) = (products.values() for products in json.loads(gpu.read_text()).values())
    assert entry["library"] == {
        "version": 130002, "algorithm": list(PARTS), "seconds": pytest.approx(5e-4)
    }  # fmt: skip
    assert entry["seconds"] == pytest.approx(1e-3)
    assert made.offers
    made.offers.clear()  # heuristics are not asked again
    assert _planned() == ["library"]
    assert "library" not in _planned(shape=(8, 12, 24)) + _planned(offset=1)


@pytest.mark.parametrize(("seconds", "taken"), [(0.86, True), (0.88, False), (0.92, False)])
def test_it_must_be_faster_than_times_vary(library, seconds, taken):
    _tuned(library, seconds)
    assert (_planned() == ["library"]) is taken


@pytest.mark.parametrize(
    ("later", "message"),
    [
        ({"version": 130100}, r"cuBLASLt 13\.0\.2 was measured .* but cuBLASLt 13\.1\.0 is installed; our own kernels"),
        (None, r"cuBLASLt 13\.0\.2 was measured .* but cuBLASLt is not installed; pip install nvidia-cublas"),
        ({"offers": []}, r"float32 ab === 8x12x20, but cublasLtMatmulAlgoCheck failed: CUBLAS_STATUS_NOT_SUPPORTED"),
    ],
    ids=["version", "absent", "check"],
)
def test_a_library_that_cannot_be_taken_is_told_once(library, later, message):
    library(None)
    tune.keep([tune.measure("float32", "ab", *SHAPE)])
    ours = _planned()
    _tuned(library, 0.4)
    assert _planned() == ["library"]
    if later is None:
        library(None)
    else:
        library(**later)
    with pytest.warns(RuntimeWarning, match=message):
        assert _planned() == ours
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _planned() == ours


def test_a_result_that_is_not_ours_is_refused(library):
    made = library(seconds=lambda algorithm: 4e-4)
    made.shift = 2.0
    found = tune.measure("float32", "ab^T", *SHAPE)
    assert not found.library
    assert re.fullmatch(r"its result is 2(\.\d+)? from ours", found.refused)
    tune.keep([found])
    assert "library" not in _planned()


def test_what_is_no_algorithm_is_not_read(library, gpu):
    _tuned(library, 0.4)
    content = json.loads(gpu.read_text())
    ((entry,),) = (products.values() for products in content.values())
    good = entry["library"]
    for wrong in (3, {}, {"algorithm": [1, 2]}, {"algorithm": list("123456789")}, {"version": 1.5}, {"seconds": None}):
        entry["library"] = {**good, **wrong} if wrong and wrong != 3 else wrong
        gpu.write_text(json.dumps(content))
        choices.forget()
        with pytest.warns(RuntimeWarning, match="cannot be read"):
            assert "library" not in _planned()


def test_host_arrays_and_odd_results_are_ours(library):
    """Kernels that are compiled ahead have NumPy arrays; the library wants 16 bytes at result and bias."""
    _tuned(library, 0.4)
    a, b, out, bias, _ = arrays("ab", *SHAPE, np.float32)
    odd = driver_simulator._aligned((out.size + 1,), np.float32)[1:]
    wanted = choices.product("float32", "ab", a, b, out)
    assert cublaslt.chosen(wanted, out, bias) == PLAIN
    assert cublaslt.chosen(wanted, np.asarray(out), bias) is None
    assert cublaslt.chosen(wanted, odd.reshape(out.shape), bias) is None
    assert cublaslt.chosen(wanted, out, odd[: len(bias)]) is None


def test_models_train_through_it_and_many_of_them_do_not(library, monkeypatch):
    """A step is a graph with calls of the library in it; many models at once have the bits of our kernels."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((16, 6)).astype(np.float32), rng.integers(0, 3, 16)

    def model():
        dlcore.set_seed(3)
        made = dlcore.Sequential(
            [layers.Input((6,)), layers.Dense(5, "tanh"), layers.Dense(3, "softmax")], device="cuda"
        )
        made.compile("adam", "sparse_categorical_crossentropy")
        return made

    def trained():
        made = model()
        made.fit(x, y, batch_size=8, epochs=2, verbose=0)
        return made.get_weights()

    def many():
        models = [model(), model()]
        dlcore.fit_many(models, x, y, batch_size=8, epochs=2)
        return [weights.tobytes() for each in models for weights in each.get_weights()]

    library(None)
    ours, alike = trained(), many()
    made = library(seconds=lambda algorithm: 4e-4)
    for product in dict.fromkeys(tune.products([6, 5, 3], 8)):
        tune.keep([tune.measure("float32", *product)])
    made.products.clear()
    got = trained()
    assert len(made.products) == 2 * 2 * 5, "epochs, mini-batches, products"
    for a, b in zip(got, ours, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    made.products.clear()
    assert many() == alike
    assert not made.products


def test_many_models_take_the_best_of_our_plans(library):
    library()
    a, b, out, _, _ = arrays("ab", *SHAPE, np.float32)
    wanted = choices.product("float32", "ab", a, b, out)
    *_, last = gemm.candidates(out.dtype, *SHAPE, gemm.multiprocessors())
    ours = [f"product_ab_{last.tile.rows}x{last.tile.columns}"]
    assert _planned() != ours
    algorithm = choices.Library(cublaslt_simulator.VERSION, Algorithm(*PLAIN), 1e-3)
    choices.keep({wanted: choices.Fastest(last, 2e-3, algorithm)})
    assert _planned() == ["library"]
    with Stack(2).planning():
        assert _planned() == ours


def test_the_command(library, gpu, monkeypatch, capsys):
    monkeypatch.setattr(device, "why_no_gpu", lambda: None)
    monkeypatch.setattr(tuning, "check_precision", lambda name: None)
    made = library(seconds=lambda algorithm: 4e-4, offers=[PLAIN, PARTS])
    assert main(["tune", "16", "8", "--batch", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2] == "cuBLASLt 13.0.2 is measured too; * where it is faster by more than 3%"
    assert lines[3].split()[-2:] == ["cuBLASLt", "us"]
    assert lines[4].split()[-4:] == ["of", "2", "500.0", "*"]
    made.seconds = lambda algorithm: 1.0
    assert main(["tune", "16", "8", "--batch", "8"]) == 0
    assert capsys.readouterr().out.splitlines()[4].split()[-3:] == ["of", "2", "1000100.0"]
    made.offers = []
    assert main(["tune", "16", "8", "--batch", "8"]) == 0
    assert "none: cublasLtMatmulAlgoGetHeuristic failed: CUBLAS_STATUS_NOT_SUPPORTED (15)" in capsys.readouterr().out
    library(None)
    assert main(["tune", "16", "8", "--batch", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("cuBLASLt is not measured: cuBLASLt is not installed; pip install ")
    assert lines[3].split()[-1] == "us"
    assert "cuBLASLt" not in lines[4]

"""Measured plans of matrix products: the fastest by a clock of the test's own is taken, and only where it was measured."""

import json
import sys
import warnings

import numpy as np
import pytest

from dlcore.cli import main
from dlcore.kernels.device import simulated, why_no_gpu

if not simulated():
    pytest.skip("the driver and its clock are made up here", allow_module_level=True)

import driver_simulator
from driver_simulator import Event

from bench import gpu_sections
from dlcore import tuning
from dlcore.kernels import cache, device
from dlcore.kernels.cuda import choices, cublaslt, driver, gemm, gemm_tensor, tune

SINGLE = np.dtype(np.float32)
SHAPE = (64, 128, 4096)  # rows, columns, inner


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU that computes nothing, without cuBLASLt; the file of choices lies in a folder of its own."""
    monkeypatch.setattr(cache, "cache_directory", lambda: tmp_path)
    monkeypatch.setattr(choices, "why_no_gpu", lambda: None)
    monkeypatch.setattr(cublaslt, "_found", lambda: cublaslt._Found("it is not here"))
    monkeypatch.setattr(driver_simulator, "_execute", lambda *launch: None)
    monkeypatch.setattr(Event, "seconds", staticmethod(lambda kernel: 1e-3))
    with driver_simulator.installed(monkeypatch):
        choices._described.cache_clear()
        choices.forget()
        yield tmp_path / "products.json"
    choices._described.cache_clear()
    choices.forget()


def _seconds(**by_text):
    """A clock on which kernels whose names hold a text take as long as is said, in ms; others take 1 ms."""
    return staticmethod(lambda kernel: next((t for text, t in by_text.items() if text in kernel.name), 1.0) / 1e3)


def _taken(dtype=SINGLE, form="ab", shape=SHAPE, offset=0):
    """The names of the kernels that a product takes, and the parts."""
    rows, columns, inner = shape
    left = (inner, rows) if form == "a^Tb" else (rows, inner)
    a, b, out = (
        driver_simulator._aligned((shape[0] * shape[1] + offset,), dtype)[offset:].reshape(shape)
        for shape in (left, (columns, inner) if form == "ab^T" else (inner, columns), (rows, columns))
    )
    launches = gemm.multiply(a, b, out, form)
    return [*(launch.kernel.name for launch in launches), launches[0].grid[1]]


def test_the_fastest_is_taken_from_then_on(gpu, monkeypatch):
    before = _taken()
    assert before[0] == "product_ab_64x64"
    monkeypatch.setattr(Event, "seconds", _seconds(_128x64=0.2))
    found = tune.measure("float32", "ab", *SHAPE)
    assert found.fastest.tile[:2] == (128, 64)
    assert found.seconds[found.fastest] == pytest.approx(1.2e-3)  # with the kernel that adds the parts
    assert found.modelled == gemm.choose(SINGLE, *SHAPE, gemm.MULTIPROCESSORS)
    assert found.seconds[found.modelled] == pytest.approx(2e-3)
    assert driver_simulator.Graph.launched > 0, "a graph replays it, as in a model"
    assert _taken() == before, "nothing was kept yet"
    tune.keep([found])
    for _ in range(2):
        assert _taken() == ["product_ab_128x64", "product_merge", found.fastest.parts]
        choices.forget()  # as in another process
    # other forms, sizes, dtypes and alignments are as they were
    text = gpu.read_text()
    gpu.unlink()
    others = [{"form": "a^Tb"}, {"shape": (64, 128, 4100)}, {"dtype": np.dtype(np.float64)}, {"offset": 1}]
    choices.forget()
    expected = [_taken(**other) for other in others]
    gpu.write_text(text)
    choices.forget()
    assert [_taken(**other) for other in others] == expected
    assert not any("128x64" in names[0] for names in expected[:2])


def test_what_is_kept_is_added_to(gpu):
    first, second = (tune.measure("float32", "ab", 8, 8, inner) for inner in (8, 16))
    tune.keep([first])
    tune.keep([second])
    (products,) = json.loads(gpu.read_text()).values()
    assert sorted(products) == ["float32 ab === 8x8x16", "float32 ab === 8x8x8"]
    assert products["float32 ab === 8x8x8"]["seconds"] == pytest.approx(1e-3)
    assert [p.name for p in gpu.parent.iterdir()] == [gpu.name]  # no draft is left


def test_choices_of_another_gpu_driver_or_tool_are_not_taken(gpu, monkeypatch):
    before = _taken()
    monkeypatch.setattr(Event, "seconds", _seconds(_128x64=0.2))
    tune.keep([tune.measure("float32", "ab", *SHAPE)])
    assert _taken() != before
    runtime = sys.modules["cupy"].cuda.runtime
    for name, value in (
        ("getDeviceProperties", lambda device: {"name": b"Another GPU"}),
        ("driverGetVersion", lambda: 13010),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(runtime, name, value)
            choices._described.cache_clear()
            assert _taken() == before
    monkeypatch.setattr(choices, "versions", lambda: "newer")
    choices._described.cache_clear()
    assert _taken() == before


def test_what_is_no_plan_is_not_taken(gpu, monkeypatch):
    """A share that leaves out inner indices would be a wrong result."""
    before = _taken()
    monkeypatch.setattr(Event, "seconds", _seconds(_128x64=0.2))
    tune.keep([tune.measure("float32", "ab", *SHAPE)])
    content = json.loads(gpu.read_text())
    for plan in ([[128, 64, 8, 8, 8, 3], 1, 8], [[128, 64], 1, 4096], "fast", None):
        for products in content.values():
            for entry in products.values():
                entry["plan"] = plan
        gpu.write_text(json.dumps(content))
        choices.forget()
        assert _taken() == before


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "\xff", '{"Fake": 3}', '{"Fake": {"p": 3}}', '{"Fake": {"p": {"plan": 1, "seconds": null}}}'],
)
def test_a_file_that_cannot_be_read_is_ignored_with_one_warning(gpu, text):
    gpu.write_bytes(text.encode("latin-1"))
    choices.forget()
    with pytest.warns(RuntimeWarning, match=r"products\.json cannot be read"):
        first = _taken()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _taken() == first
    with pytest.warns(RuntimeWarning, match="cannot be read"):
        tune.keep([tune.measure("float32", "ab", 8, 8, 8)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert _taken() == first
    assert len(json.loads(gpu.read_text())) == 1


def test_tensor_cores_have_two_tiles(gpu, monkeypatch):
    a = driver_simulator._aligned((100, 100), np.float32)

    def taken(precision="float16"):
        return [launch.kernel.name for launch in gemm_tensor.multiply(precision, a, a, a)]

    assert taken() == ["tensor_float16_ab_128x128"]
    monkeypatch.setattr(Event, "seconds", _seconds(_64x64=0.5))
    found = tune.measure("float16", "ab", 100, 100, 100)
    assert list(found.seconds) == [gemm_tensor.LARGE, gemm_tensor.SMALL]
    tune.keep([found])
    assert taken() == ["tensor_float16_ab_64x64"]
    assert taken("tf32") == ["tensor_tf32_ab_128x128"]


def test_plans_far_beyond_the_least_cost_are_left_out():
    for shape in (SHAPE, (4096, 4096, 64), (8, 8, 8)):
        every = gemm.candidates(SINGLE, *shape, gemm.MULTIPROCESSORS)
        costs = {plan: gemm.cost(plan, 4, *shape[:2], gemm.MULTIPROCESSORS) for plan in every}
        worth = tune.plans("float32", *shape)
        assert worth[0] == gemm.choose(SINGLE, *shape, gemm.MULTIPROCESSORS)
        assert set(worth) == {plan for plan, cost in costs.items() if cost <= 4 * min(costs.values())}
    assert 1 < len(tune.plans("float32", *SHAPE)) < len(gemm.candidates(SINGLE, *SHAPE, gemm.MULTIPROCESSORS))


def test_a_time_is_the_median_of_bursts_after_a_first_call(gpu):
    """Bursts of 20 ms, 6 calls of 3 ms; the first call takes a second, and so does one of the later ones."""
    calls = []

    def call():
        calls.append(1)
        Event.now += 1.0 if len(calls) in (1, 30) else 3e-3

    assert driver.seconds(call) == pytest.approx(3e-3)
    assert len(calls) == 1 + 1 + 7 * 6


def test_the_products_of_a_step():
    """The first layer has no use for the gradient of its input."""
    assert list(tune.products([784, 256, 10], 64)) == [
        ("ab", 64, 256, 784),
        ("a^Tb", 784, 256, 64),
        ("ab", 64, 10, 256),
        ("a^Tb", 256, 10, 64),
        ("ab^T", 64, 256, 10),
    ]


def test_the_command(gpu, monkeypatch, capsys):
    monkeypatch.setattr(device, "why_no_gpu", lambda: None)
    monkeypatch.setattr(tuning, "check_precision", lambda name: None)
    monkeypatch.setattr(Event, "seconds", _seconds(_64x64=0.25))
    assert main(["tune", "16", "8", "4", "--batch", "8"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("Fake GPU, driver 13000")
    assert lines[1:3] == ["mini-batches of 8, float32", "cuBLASLt is not measured: it is not here"]
    assert [line.split()[:6] for line in lines[4:9]] == [
        ["x", "W", "8", "x", "8", "16"],
        ["x^T", "dz", "16", "x", "8", "8"],
        ["x", "W", "8", "x", "4", "8"],
        ["x^T", "dz", "8", "x", "4", "8"],
        ["dz", "W^T", "8", "x", "8", "4"],
    ]
    assert lines[4].split()[-8:] == ["32", "x", "32", "1000.0", "64", "x", "64", "250.0"]
    assert str(gpu) in lines[9]
    (products,) = json.loads(gpu.read_text()).values()
    assert len(products) == 5

    def none(*arguments):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(tune, "measure", none)
        assert main(["tune", "16", "8"]) == 2
    assert "no room for 32 x 8 from 16" in capsys.readouterr().err
    assert main(["tune", "16"]) == 2
    assert "expects the sizes of at least two layers" in capsys.readouterr().err


def test_the_row_of_the_benchmark(gpu, monkeypatch):
    monkeypatch.setattr(Event, "seconds", _seconds(_128x64=0.2))
    row, library = gpu_sections.tuning()
    assert row["peer_seconds"] > row["seconds"] > 0
    assert library["note"] == "it is not here"
    assert not gpu.exists(), "a benchmark changes nothing for others"


@pytest.mark.skipif(why_no_gpu() is None, reason="there is a GPU")
def test_without_a_gpu_it_is_one_message(capsys):
    assert main(["tune", "8", "4"]) == 2
    assert capsys.readouterr().err.startswith("dlcore: error: dlcore tune needs a GPU: ")

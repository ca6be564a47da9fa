"""Which GPU is taken, what is said where none can be, and what goes over the bus; through the driver simulator."""

import importlib.util
import json
import os

import numpy as np
import pytest

import dlcore
from dlcore import kernels, layers
from dlcore.cli import main
from dlcore.kernels import device
from dlcore.kernels.device import DeviceError, simulated

if not simulated():
    pytest.skip("GPUs and drivers are made up here", allow_module_level=True)
if not os.environ.get("DLCORE_REQUIRE_OFFLINE") and importlib.util.find_spec("numba_cuda") is None:
    pytest.skip("numba-cuda is not installed; continuous integration has it", allow_module_level=True)

import cublaslt_simulator
import driver_simulator
from driver_simulator import TRANSFERS, Device, Stream

from dlcore.kernels.cuda import cublaslt


@pytest.fixture
def gpus(monkeypatch):
    with driver_simulator.hardware(monkeypatch) as graphs:
        yield graphs


def _model(name, metrics=("accuracy",)):
    dlcore.set_seed(1)
    inner = [layers.Dense(4, use_bias=False), layers.BatchNormalization(), layers.Activation("relu")]
    model = dlcore.Sequential([layers.Input((3,)), *inner, layers.Dense(3, "softmax")], device=name)
    model.compile("adam", "sparse_categorical_crossentropy", list(metrics))
    return model


X, Y = np.random.default_rng(2).standard_normal((14, 3)).astype(np.float32), np.arange(14) % 3


# --------------------------------------------------------------------------------------------------- which device


def test_names(gpus):
    assert [device.resolve(name) for name in ("cpu", "cuda", "cuda:0", "cuda:1", "auto")] == [
        "cpu", "cuda", "cuda", "cuda:1", "cuda"]  # fmt: skip
    with Device(1):
        assert device.resolve("cuda") == device.resolve("auto") == "cuda:1"
        assert device.resolve("cuda:0") == "cuda"
    with pytest.raises(DeviceError, match=r"device='cuda:7' does not exist; there is cuda:0 to cuda:1"):
        dlcore.Sequential(device="cuda:7")
    for wrong in ("gpu", "cuda:", "cuda:-1", "cuda:one", "cpu:0"):
        with pytest.raises(DeviceError, match=f"or a GPU such as cuda:1, got '{wrong}'"):
            device.resolve(wrong)


def test_a_gpu_that_is_too_old_is_not_taken(gpus, monkeypatch):
    monkeypatch.setattr(Device, "capabilities", (61, 90))
    assert device.resolve("auto") == "cuda:1"
    message = (
        r"device='cuda:0' cannot be used: the GPU has compute capability 6\.1; dlcore needs 7\.5 or more; device='cpu'"
    )
    with pytest.raises(DeviceError, match=message):
        device.resolve("cuda:0")


def test_models_on_two_devices_train_alike(gpus):
    """That no launch sees memory of the other device is checked by the simulator."""
    weights = []
    for number, name in ((1, "cuda:1"), (0, "cuda")):
        model = _model(name)
        model.fit(X, Y, batch_size=5, verbose=0)
        assert model._engine.array(model._network.output).device.id == number
        weights.append([*model.get_weights(), model.predict(X)])
    for a, b in zip(*weights, strict=True):
        assert np.array_equal(a, b)
    assert Device().id == 0


def test_many_models_on_the_second_device(gpus):
    models = [_model("cuda:1") for _ in range(2)]
    dlcore.fit_many(models, X, Y, batch_size=7)
    assert np.array_equal(models[0].predict(X), models[1].predict(X)) is False
    with pytest.raises(ValueError, match="model 0 and model 1 differ: device cuda:1 and cuda"):
        dlcore.fit_many([models[0], _model("cuda")], X, Y)


def test_info_lists_all_gpus(gpus, monkeypatch, capsys):
    monkeypatch.setattr(Device, "capabilities", (61, 90))
    assert main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["gpu 0"].endswith("(not used: the GPU has compute capability 6.1; dlcore needs 7.5 or more)")
    assert facts["gpu 1"].startswith("Fake GPU, compute capability")
    assert facts["device"] == "cuda:1"
    assert main(["predict", "nowhere", "x.csv", "--device", "cuda:x"]) == 2
    assert "must be one of auto, cpu, cuda or a GPU such as cuda:1, got 'cuda:x'" in capsys.readouterr().err


def test_info_names_the_library_of_products(gpus, monkeypatch, capsys):
    for reason, made, said in ((None, cublaslt_simulator.Library, "cuBLASLt 13.0.2"), ("it is not here", object, None)):
        monkeypatch.setattr(cublaslt, "_found", lambda reason=reason, made=made: cublaslt._Found(reason, made()))
        assert main(["info", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["library"] == (said or reason)


# ---------------------------------------------------------------------------------------------- why there is none


class _CudaError(RuntimeError):
    pass


def _broken(monkeypatch, message, driver, needed=13000):
    import cupy

    def count():
        raise _CudaError(message)

    for name, value in (
        ("getDeviceCount", count),
        ("driverGetVersion", lambda: driver),
        ("runtimeGetVersion", lambda: needed),
    ):
        monkeypatch.setattr(cupy.cuda.runtime, name, value)


_NONE = {
    "no driver": ("cudaErrorInsufficientDriver: too old", 0, "no CUDA device: no NVIDIA driver is installed"),
    "an old driver": (
        "cudaErrorInsufficientDriver: CUDA driver version is insufficient", 12020,
        "the NVIDIA driver is too old: it knows CUDA 12.2, and CuPy is made for 13.0; update the driver, or install "
        "the CuPy for CUDA 12"),
    "no device": ("cudaErrorNoDevice: no CUDA-capable device is detected\nmore", 13020,
                  "no CUDA device: cudaErrorNoDevice: no CUDA-capable device is detected"),
}  # fmt: skip


@pytest.mark.parametrize("name", _NONE)
def test_one_message_says_why(gpus, monkeypatch, capsys, name):
    message, driver, expected = _NONE[name]
    _broken(monkeypatch, message, driver)
    with pytest.raises(DeviceError) as raised:
        _model("cuda")
    assert str(raised.value) == f"device='cuda' cannot be used: {expected}; device='cpu' works everywhere"
    assert _model("auto").device == "cpu"
    assert main(["info"]) == 0
    assert f"cpu (no GPU: {expected})" in capsys.readouterr().out


@pytest.mark.parametrize("package", ["CuPy", "numba-cuda"])
def test_what_is_not_installed_is_named(gpus, monkeypatch, package):
    module = package.lower().replace("-", "_")
    original = device.importlib.util.find_spec
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None if name == module else original(name))
    with pytest.raises(DeviceError, match=rf"{package} is not installed; pip install 'dlcore\[cuda13\]' \(or cuda12\)"):
        device.resolve("cuda")


def test_a_cupy_that_cannot_be_imported(gpus, monkeypatch):
    import builtins

    original = builtins.__import__

    def refuse(name, *rest):
        if name == "cupy":
            raise ImportError("\n====\nFailed to import CuPy.\nmany lines") from OSError("libnvrtc.so: not found")
        return original(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(DeviceError, match=r"CuPy is installed and cannot be imported: libnvrtc\.so: not found; device"):
        device.resolve("cuda")


def test_where_there_is_no_driver_cupy_is_not_asked(gpus, monkeypatch):
    monkeypatch.setattr(device, "_has_driver", lambda: False)
    assert device.why_no_gpu() == "no CUDA device: no NVIDIA driver is installed"


def _full(*arguments):
    raise MemoryError("out of memory")


def test_too_little_memory_for_functions_and_models(gpus, monkeypatch):
    import cupy

    x = driver_simulator._on_device(X)
    model = _model("cuda")
    model.fit(X, Y, verbose=0)
    with monkeypatch.context() as m:
        m.setattr(cupy, "empty", _full)
        with pytest.raises(
            DeviceError, match=r"no 0 MiB free, which an array of float32 \(14, 3\) needs; take smaller"
        ):
            kernels.softmax(x)
    with monkeypatch.context() as m:
        m.setattr(cupy, "array", _full)
        with pytest.raises(
            DeviceError, match=r"no 0 MiB free, which data of shape \(14, 3\) needs; take fewer samples"
        ):
            model.fit(X, Y, verbose=0)
    with monkeypatch.context() as m:
        m.setattr(cupy, "empty", _full)
        with pytest.raises(
            DeviceError, match=r"too little memory free, which mini-batches of 7 samples need for partial"
        ):
            model.fit(X, Y, 7, verbose=0)
    model.predict(X)


# ------------------------------------------------------------------------------------------------- what is moved


def _moved(call):
    TRANSFERS.clear()
    Stream.waits.clear()
    call()
    assert not [wait for wait in Stream.waits if wait[1] == "host"]
    ways = ("up", "down")
    return tuple([shape for way, shape in TRANSFERS if way == one] for one in ways)


def test_an_epoch_is_one_transfer_of_its_history(gpus):
    model = _model("cuda")
    model.fit(X, Y, batch_size=4, verbose=0)  # what is planned once is planned now
    up, down = _moved(lambda: model.fit(X, Y, batch_size=4, epochs=3, verbose=0))
    assert down == [(2, 4)] * 3, "loss and accuracy of four mini-batches"
    hyper = tuple(model._network.hyper.shape)
    constants = [shape for shape in up if shape not in (X.shape, (14,), hyper)]
    assert up.count(X.shape) == 1
    assert up.count((14,)) == 1 + 3, "the labels, and an order in each epoch"
    assert up.count(hyper) == 3
    assert constants == []


def test_evaluation_and_prediction_are_one_transfer_each(gpus):
    model = _model("cuda")
    model.evaluate(X, Y, 4)
    up, down = _moved(lambda: model.evaluate(X, Y, 4))
    assert (sorted(up), down) == ([(14,), (14,), X.shape], [(2, 4)])
    up, down = _moved(lambda: model.predict(X, 4))
    assert (sorted(up), down) == ([(14,), X.shape], [(14, 3)])


def test_a_step_is_one_transfer_of_each_array(gpus):
    model = _model("cuda")
    model.train_on_batch(X, Y)
    up, down = _moved(lambda: model.train_on_batch(X, Y))
    assert sorted(up) == sorted([X.shape, (14,), (14,), tuple(model._network.hyper.shape)])
    assert down == [(2, 1)]

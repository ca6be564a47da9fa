"""Arrays of other libraries: PyTorch and JAX on the CPU as they are, on GPUs through the driver simulator.

There, the exporters are objects that hold a protocol and write down what stream they were asked for.
"""

import importlib.util
import os

import numpy as np
import pytest

import dlcore
from dlcore import kernels, layers
from dlcore.kernels.device import simulated

if os.environ.get("DLCORE_REQUIRE_TORCH"):
    import torch
else:
    torch = pytest.importorskip("torch", reason="PyTorch's tensors are what most people bring")

needs_simulator = pytest.mark.skipif(not simulated(), reason="the driver and the exporters are made up here")
if simulated():
    import driver_simulator
    from driver_simulator import Device, Event, Stream


class Exporter:
    """An array with ``__dlpack__`` alone."""

    def __init__(self, array):
        self.array, self.asked = array, []

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()

    def __dlpack__(self, stream=None, **keywords):
        self.asked.append(stream)
        return self.array.__dlpack__(**keywords) if stream is None else self.array


class Interface:
    """An array with ``__cuda_array_interface__`` alone, like Numba's, filled on a stream."""

    def __init__(self, array, stream=None, read_only=False):
        self.array, self.stream, self.read_only = array, stream, read_only

    @property
    def __cuda_array_interface__(self):
        data = self.array.ctypes.data, self.read_only
        return self.array.__cuda_array_interface__ | {"data": data, "stream": self.stream}


def _matrices():
    rng = np.random.default_rng(4)
    return [rng.standard_normal(shape).astype(np.float32) for shape in ((5, 3), (3, 4), (4,))]


# ------------------------------------------------------------------------------------------------------- the CPU


@pytest.mark.parametrize(
    "taken", [torch.from_numpy, Exporter, lambda a: torch.from_numpy(a.copy()).t().contiguous().t()]
)
def test_functions_take_arrays_of_the_cpu(taken):
    x, w, b = _matrices()
    expected = kernels.dense_forward(x, w, b, "tanh")
    got = kernels.dense_forward(taken(x), taken(w), b if taken is not torch.from_numpy else taken(b), "tanh")
    assert type(got) is np.ndarray
    assert np.array_equal(got, expected)
    labels = np.array([0, 1, 3, 2, 1])
    for a, e in zip(
        kernels.softmax_cross_entropy(taken(expected), torch.from_numpy(labels)),
        kernels.softmax_cross_entropy(expected, labels),
        strict=True,
    ):
        assert np.array_equal(a, e)


def test_nothing_is_copied_on_the_way():
    from dlcore.kernels import exchange

    x = torch.ones(3, 2)
    assert exchange.to_numpy("x", x).ctypes.data == x.data_ptr()
    assert exchange.device_of("x", x) is None


def test_optimizer_update_writes_into_tensors_of_torch():
    x, _, _ = _matrices()
    expected = x.copy(), [np.zeros_like(x) for _ in range(2)]
    w, slots = torch.from_numpy(x.copy()), [torch.zeros(5, 3) for _ in range(2)]
    for slot in kernels.optimizer_slots("adam", w):
        assert type(slot) is np.ndarray
        np.testing.assert_array_equal(slot, np.zeros((5, 3), np.float32))
    for step in (1, 2):
        kernels.optimizer_update("adam", expected[0], x, expected[1], step=step)
        kernels.optimizer_update("adam", w, torch.from_numpy(x), slots, step=step)
    assert np.array_equal(w.numpy(), expected[0])
    assert not np.array_equal(w.numpy(), x)
    for a, e in zip(slots, expected[1], strict=True):
        assert np.array_equal(a.numpy(), e)


def test_batch_norm_writes_running_statistics_into_tensors_of_torch():
    x = torch.from_numpy(_matrices()[0])
    mean, var = torch.zeros(3), torch.ones(3)
    reference = torch.nn.BatchNorm1d(3, momentum=0.25)
    y, _, _ = kernels.batch_norm_forward(x, torch.ones(3), torch.zeros(3), mean, var, momentum=0.75)
    np.testing.assert_allclose(y, reference(x).detach().numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mean.numpy(), reference.running_mean.numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(var.numpy(), reference.running_var.numpy(), rtol=1e-5, atol=1e-6)


class _Copies:
    """An array that hands out copies."""

    def __array__(self, dtype=None, copy=None):
        return np.ones(3, np.float32)


class _Device:
    """What lies on the CPU, and has nothing to be read by."""

    def __dlpack_device__(self):
        return 1, 0


_REFUSED = {
    "a tensor that requires gradients": (
        lambda k: k.softmax(torch.ones(2, 2, requires_grad=True)),
        r"z is a Tensor that cannot be taken as it is: .*detach",
    ),
    "a tensor without memory": (lambda k: k.softmax(torch.ones(2, 2, device="meta")), "z is a Tensor without memory"),
    "a dtype NumPy has not": (
        lambda k: k.softmax(torch.ones(2, 2, dtype=torch.bfloat16)),
        "cannot be taken .*BFloat16",
    ),
    "a dtype kernels have not": (
        lambda k: k.softmax(torch.ones(2, 2, dtype=torch.int32)),
        "z is int32; expected float",
    ),
    "a list": (lambda k: k.softmax([[1.0]]), "got a list for z; expected an array of NumPy, CuPy, or another"),
    "a device alone": (lambda k: k.softmax(_Device()), "got a _Device for z; expected an array of NumPy, CuPy, or an"),
    "copies": (
        lambda k: k.optimizer_update("sgd", _Copies(), np.ones(3, "f"), [], step=1),
        "gives out copies of itself",
    ),
}


@pytest.mark.parametrize("name", _REFUSED)
def test_refused(name):
    call, message = _REFUSED[name]
    with pytest.raises(kernels.ShapeError, match=message):
        call(kernels)


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="JAX is not installed")
def test_arrays_of_jax_are_read_and_never_written():
    import jax.numpy as jnp

    x, w, b = _matrices()
    assert np.array_equal(kernels.dense_forward(*map(jnp.asarray, (x, w, b))), kernels.dense_forward(x, w, b))
    with pytest.raises(kernels.ShapeError, match="w is updated in place, and is read-only"):
        kernels.optimizer_update("sgd", jnp.asarray(x), jnp.asarray(x), [], step=1)


@pytest.mark.parametrize("taken", [torch.from_numpy, Exporter])
def test_models_take_arrays_of_the_cpu(taken):
    x, y = np.random.default_rng(2).standard_normal((12, 3)).astype(np.float32), np.arange(12) % 3

    def trained(of):
        dlcore.set_seed(1)
        model = dlcore.Sequential([layers.Dense(3, "softmax")], device="cpu")
        model.compile("sgd", "sparse_categorical_crossentropy")
        history = model.fit(of(x), of(y), batch_size=4, epochs=2, verbose=0)
        return [*history.history["loss"], model.evaluate(of(x), of(y)), *model.predict(of(x)).ravel()]

    assert trained(taken) == trained(np.asarray)


@pytest.mark.parametrize("taken", [torch.from_numpy, Exporter])
@pytest.mark.parametrize("labels", ["int64", "uint8", "float32"])
def test_mini_batches_of_the_cpu_take_the_short_way(monkeypatch, taken, labels):
    x, y = np.random.default_rng(2).standard_normal((12, 3)).astype(np.float32), (np.arange(12) % 3).astype(labels)
    weight = np.linspace(0, 1, 12)

    def trained(of):
        dlcore.set_seed(1)
        model = dlcore.Sequential([layers.Dense(3, "softmax")], device="cpu")
        model.compile("sgd", "sparse_categorical_crossentropy")

        def step(rows):
            samples, targets, weights = of(x[:rows]), of(y[:rows]), of(weight[:rows])
            losses = model.train_on_batch(samples, targets, weights), model.test_on_batch(samples, targets, weights)
            return [*losses, *model.predict(samples).ravel()]

        results = step(12)
        with monkeypatch.context() as patched:
            patched.setattr(dlcore.Sequential, "_data", lambda *_: pytest.fail("the long way"))
            return results + step(12) + step(7)

    assert trained(taken) == trained(np.asarray)


# ----------------------------------------------------------------------------------------------------------- GPUs


def _put(array, device=0):
    with Device(device):
        return driver_simulator._on_device(array)


@pytest.fixture
def gpus(monkeypatch):
    with driver_simulator.hardware(monkeypatch) as graphs:
        yield graphs


def _host_waited():
    return [wait for wait in Stream.waits if wait[1] == "host"] + driver_simulator.TRANSFERS


@needs_simulator
@pytest.mark.parametrize("device", [0, 1])
def test_dlpack_is_asked_for_the_stream_that_reads(gpus, device):
    x, w, b = _matrices()
    given = [Exporter(_put(a, device)) for a in (x, w, b)]
    got = kernels.dense_forward(*given, "relu")
    with Device(device):
        current = Stream.on_device().ptr
    assert [exporter.asked for exporter in given] == [[current]] * 3
    assert got.device.id == device
    assert Device().id == 0
    assert not _host_waited()
    np.testing.assert_allclose(np.asarray(got), kernels.dense_forward(x, w, b, "relu"), rtol=1e-5, atol=1e-6)


@needs_simulator
def test_streams_of_the_interface_are_waited_for_on_the_device(gpus):
    x, w, _ = _matrices()
    with Device(1):
        theirs, ours = Stream().ptr, Stream.on_device().ptr
    kernels.dense_forward(Interface(_put(x, 1), theirs), _put(w, 1))
    assert Stream.waits.index((ours, theirs)) < Stream.waits.index((theirs, ours))
    assert not _host_waited()


@needs_simulator
def test_torch_goes_on_behind_what_reads_and_writes_its_tensors(gpus, monkeypatch):
    _, w, _ = _matrices()
    stream = Stream()
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: type("S", (), {"cuda_stream": stream.ptr})())
    tensor = type("Tensor", (Exporter,), {"__module__": "torch"})
    weights = _put(w)
    kernels.optimizer_update("sgd", tensor(weights), tensor(_put(w)), [], step=1)
    assert Stream.waits[-1] == (stream.ptr, Stream.on_device().ptr)
    assert not np.array_equal(np.asarray(weights), w), "written through"


@needs_simulator
def test_arrays_whose_stream_is_unknown_live_until_they_were_read(gpus, monkeypatch):
    from dlcore.kernels.cuda import foreign

    monkeypatch.setattr(Event, "finished", False)
    exporters = [Exporter(_put(_matrices()[1])) for _ in range(3)]
    for exporter in exporters:
        kernels.softmax(exporter)
    assert [kept for _, kept in foreign._kept] == [[exporter] for exporter in exporters]
    monkeypatch.setattr(Event, "finished", True)
    kernels.softmax(exporters[0])
    assert len(foreign._kept) == 1


@needs_simulator
def test_read_only_arrays_of_a_gpu_are_not_written(gpus):
    w = _put(_matrices()[0])
    with pytest.raises(kernels.ShapeError, match="w is updated in place, and a Interface is read-only"):
        kernels.optimizer_update("sgd", Interface(w, read_only=True), w, [], step=1)


@needs_simulator
def test_arrays_of_two_devices_are_refused(gpus):
    x, w, b = _matrices()
    with pytest.raises(kernels.ShapeError, match="arrays are on two GPUs: x is on cuda:0, w on cuda:1"):
        kernels.dense_forward(_put(x), Exporter(_put(w, 1)))
    with pytest.raises(kernels.ShapeError, match="and some are not: x is on cuda:1, w on the CPU"):
        kernels.dense_forward(_put(x, 1), w, b)


@needs_simulator
def test_models_train_where_their_arrays_lie(gpus):
    """A model on the second GPU, with samples there: they are read where they are, and nobody else's memory is."""
    x, y = np.random.default_rng(2).standard_normal((12, 3)), np.arange(12) % 3

    def trained(device, of, labels):
        dlcore.set_seed(1)
        model = dlcore.Sequential([layers.Dense(3, "softmax", dtype="float64")], device=device)
        model.compile("adam", "sparse_categorical_crossentropy")
        history = model.fit(of(x), labels(y), batch_size=5, epochs=2, verbose=0)
        return [*history.history["loss"], model.evaluate(of(x), labels(y)), *model.predict(of(x), 5).ravel()]

    expected = trained("cpu", np.asarray, np.asarray)
    driver_simulator.TRANSFERS.clear()
    got = trained("cuda:1", lambda a: Exporter(_put(a, 1)), lambda a: _put(a, 1))
    np.testing.assert_allclose(got, expected, rtol=1e-11)
    assert not [shape for way, shape in driver_simulator.TRANSFERS if way != "down" and shape == x.shape]
    assert Device().id == 0
    with pytest.raises(ValueError, match="x is on cuda:0, the model on cuda:1"):
        trained("cuda:1", _put, np.asarray)
    np.testing.assert_allclose(trained("cpu", lambda a: _put(a, 1), lambda a: _put(a, 1)), expected, rtol=1e-11)

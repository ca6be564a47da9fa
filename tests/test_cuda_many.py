"""``fit_many`` on CUDA: the same bits as one model after the other on the same device, and what it refuses."""

import sys

import numpy as np
import pytest

import dlcore
from dlcore import layers, optimizers
from dlcore.kernels.device import DeviceError, simulated, why_no_gpu

if not simulated() and why_no_gpu():
    pytest.skip(why_no_gpu(), allow_module_level=True)

from dlcore.kernels.cuda import ahead, batched, fleet, gemm_tensor
from dlcore.kernels.cuda.arrays import memory
from dlcore.kernels.cuda.batched import Stack
from dlcore.kernels.cuda.launch import Launch
from dlcore.kernels.cuda.machine_code import Kernel

if simulated():
    import driver_simulator
    from simulator import thread_order

LOSS = "sparse_categorical_crossentropy"
needs_simulator = pytest.mark.skipif(not simulated(), reason="changes what stands for a GPU")


def data(rows=8, features=4, classes=3):
    rng = np.random.default_rng(1)
    return rng.standard_normal((rows, features)), rng.integers(0, classes, rows)


def deep(count, dtype):
    """Every region of the arena and scratch in use; one model without clipping among others."""
    models = []
    for k in range(count):
        inner = [layers.Dense(5, use_bias=False), layers.BatchNormalization(), layers.Activation("tanh")]
        inner += [layers.Dropout(0.3), layers.LayerNormalization(), layers.Dense(3, "softmax")]
        model = dlcore.Sequential([layers.Input((4,), dtype=dtype), *inner], device="cuda")
        adam = optimizers.Adam(1e-2 * (k + 1), beta_1=1 - 0.5 ** (k + 1), global_clipnorm=(None, 0.1, 0.5)[k])
        model.compile(adam, LOSS, ["accuracy"])
        models.append(model)
    return models


def shallow(count, loss=LOSS, rate=0.1):
    models = [dlcore.Sequential([layers.Input((4,)), layers.Dense(3, "softmax")], device="cuda") for _ in range(count)]
    for k, model in enumerate(models):
        model.compile(optimizers.Adam(rate * (k + 1)), loss)
    return models


def one_after_the_other(models, x, y, **options):
    return [model.fit(x, y, verbose=0, **options) for model in models]


def state(models):
    return [{name: value.tobytes() for name, value in model._state().items()} for model in models]


def outcome(models, histories):
    """Everything a fit leaves behind: weights, optimizer state, statistics, step; histories; the random numbers."""
    return state(models), [(h.history, h.epoch) for h in histories], dlcore.random.draw_seed()


def both(make, do):
    """What ``do(models, fit)`` gives where models are fitted one after the other, and where they are at once."""
    results = []
    for fit in (one_after_the_other, dlcore.fit_many):
        dlcore.set_seed(5)
        results.append(do(make(), fit))
    return results


@pytest.mark.parametrize(
    ("count", "dtype", "order"), [(3, "float32", "reverse"), (3, "float64", "random"), (1, "float32", "forward")]
)
def test_the_bits_are_those_of_one_after_the_other(count, dtype, order):
    x, y = data()

    def do(models, fit):
        histories = fit(models, x, y, batch_size=5, epochs=2)  # 5 samples and 3
        return outcome(models, histories)

    if simulated():
        with thread_order(order):
            expected, got = both(lambda: deep(count, dtype), do)
    else:
        expected, got = both(lambda: deep(count, dtype), do)
    assert got == expected
    assert len({tuple(history["loss"]) for history, _ in got[1]}) == count
    assert set(got[1][0][0]) == {"loss", "accuracy", "learning_rate"}


def types_of(arguments):
    return [(np.dtype(type(a)) if np.isscalar(a) else a.dtype, np.ndim(a)) for a in arguments]


@needs_simulator
def test_what_is_compiled_ahead_is_what_models_at_once_ask_for(monkeypatch):
    asked, compiled = [], []
    monkeypatch.setattr(fleet, "batched", lambda *given: asked.append(batched.batched(*given)) or asked[-1])
    models = deep(2, "float32")
    dlcore.fit_many(models, *data(), batch_size=8, verbose=0)

    def cubin(kernel, arguments, arch):
        compiled.append((kernel.name, arguments))

    monkeypatch.setattr(ahead, "cubin", cubin)
    monkeypatch.setattr(ahead, "argument_types", types_of)
    monkeypatch.setattr(ahead, "BATCHES", (8,))
    ahead.compile_ahead(models[1].program, 90, many=True)
    (train,) = asked
    assert all(launch.kernel.name.startswith("batched_") for launch in train[:-1])  # the last moves the cursor
    assert [each for each in train if (each.kernel.name, types_of(each.arguments)) not in compiled] == []


def test_before_and_after_models_go_on_by_themselves():
    """Other steps and room before; then all at once, some by themselves, others at once in another order."""
    x, y = data()
    many, _ = data(270)

    def do(models, fit):
        models[1].fit(x, y, batch_size=8, verbose=0)
        models[2].predict(many, batch_size=260)  # has room for more rows than the others
        histories = fit(models, x, y, batch_size=5, shuffle=False)
        seen = [model.predict(x) for model in models]
        models[0].fit(x, y, batch_size=5, verbose=0)
        histories += fit(models[:2], x, y, batch_size=3)
        histories += fit([models[1], models[0]], x, y, batch_size=8)
        seen.append(models[1].predict(many, batch_size=270))  # leaves the memory of the others
        histories += fit(models[:2], x, y, batch_size=8, epochs=2)
        return outcome(models, histories), [p.tobytes() for p in seen]

    expected, got = both(lambda: shallow(3), do)
    assert got == expected


@pytest.mark.parametrize("name", ["adafactor", "sm3"])
def test_state_of_rows_and_columns(name):
    x, y = data()

    def make():
        models = shallow(2)
        for k, model in enumerate(models):
            model.compile(optimizers.Optimizer(name, learning_rate=0.01 * (k + 1)), LOSS)
        return models

    expected, got = both(make, lambda models, fit: outcome(models, fit(models, x, y, batch_size=8, epochs=2)))
    assert got == expected


def test_models_stay_in_one_memory_that_is_used_again(monkeypatch):
    x, y = data()
    models = shallow(3)
    many, _ = data(260)
    models[1].predict(many, batch_size=260)
    dlcore.fit_many(models, x, y)
    assert [model._engine.rows for model in models] == [260] * 3  # or that model would leave again
    assert len({id(model._engine.whole) for model in models}) == 1
    size = models[0]._engine.nbytes
    assert [model._engine.offset for model in models] == [0, size, 2 * size]
    monkeypatch.setattr(fleet.Engine, "move", None)  # would be called where they had to be brought together
    dlcore.fit_many(models, x, y, epochs=2)


def test_a_model_may_be_used_between_epochs(monkeypatch):
    x, y = data()
    many, _ = data(260)

    def do(models, fit):
        calls = []

        def next_order(*arguments):
            calls.append(arguments)
            if len(calls) == 3 and fit is dlcore.fit_many:  # for the second epoch
                models[1].predict(many, batch_size=260)  # needs more room: leaves the memory of the others
            return original(*arguments)

        original = dlcore.training.next_order
        with monkeypatch.context() as patch:
            patch.setattr(dlcore.training, "next_order", next_order)
            return outcome(models, fit(models, x, y, batch_size=4, epochs=2))

    expected, got = both(lambda: shallow(2), do)
    assert got == expected


def test_an_exception_leaves_all_models_usable(monkeypatch):
    x, y = data()
    original, calls = fleet.Fleet.run, []

    def run(self, *arguments):
        calls.append(arguments)
        if len(calls) == 2:  # the first slice is one mini-batch
            raise KeyboardInterrupt
        original(self, *arguments)

    def do(models, fit):
        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(fleet.Fleet, "run", run)
            with pytest.raises(KeyboardInterrupt):
                dlcore.fit_many(models, x, y, batch_size=3)
        assert [int(model._engine.read(model._network.step)[0]) for model in models] == [1] * 3
        return outcome(models, fit(models, x, y))

    expected, got = both(lambda: shallow(3), do)
    assert got == expected


def test_lines_and_losses_that_are_not_finite(capsys):
    x, _ = data()
    models = [dlcore.Sequential([layers.Dense(3, "relu"), layers.Dense(2)], device="cuda") for _ in range(3)]
    for model, rate in zip(models, (1e35, 0.1, 1e30), strict=True):
        model.compile(optimizers.SGD(rate), "mse")
    with pytest.warns(RuntimeWarning, match=r"the loss of model 0, 2 became NaN or infinite in epoch") as record:
        histories = dlcore.fit_many(models, x, x[:, :2], batch_size=4, epochs=2, verbose=2)
    assert len(record) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    first = [h.history["loss"][0] for h in histories]
    assert lines[0].startswith(f"epoch 1/2: loss {min(first):.4f} to ")


# --------------------------------------------------------------------------------------------- through the driver


@needs_simulator
def test_through_the_driver_a_graph_is_a_mini_batch_of_all_models(monkeypatch):
    x, y = data()
    dlcore.set_seed(5)
    models = deep(3, "float64")
    expected = outcome(models, one_after_the_other(models, x, y, batch_size=5, epochs=2))
    dlcore.set_seed(5)
    with driver_simulator.installed(monkeypatch) as graphs:
        copied = []
        monkeypatch.setattr(sys.modules["cupy"], "array", lambda a: copied.append(a) or driver_simulator._copy(a))
        models = deep(3, "float64")
        got = outcome(models, dlcore.fit_many(models, x, y, batch_size=5, epochs=2))
        assert graphs.launched == 2 * 2  # epochs, mini-batches; whatever the number of models
        assert sum(a.shape == x.shape for a in copied) == 1
    assert got == expected


@needs_simulator
def test_the_work_of_a_fleet_lies_behind_that_of_its_engines_and_is_done_in_the_end(monkeypatch):
    x, y = data()
    with driver_simulator.installed(monkeypatch):
        models = shallow(3)
        fleets = []
        original = fleet.Fleet.bind
        monkeypatch.setattr(fleet.Fleet, "bind", lambda self, **a: fleets.append(self._stream) or original(self, **a))
        dlcore.fit_many(models, x, y)
        waits = driver_simulator.Stream.waits
        ran = waits.index("launch")
        for model in models:
            assert (fleets[0].ptr, model._engine._stream.ptr) in waits[:ran]
        assert waits[-1] == (fleets[0].ptr, "host")


# ----------------------------------------------------------------------------------------------- batched launches


@needs_simulator
@pytest.mark.parametrize("precision", ["tf32", "bfloat16"])
def test_products_on_tensor_cores(precision):
    rng = np.random.default_rng(1)
    stack = Stack(2)
    a, b, out = (np.zeros((2, 64), np.float32) for _ in range(3))
    a[:], b[:] = rng.standard_normal((2, 2, 64))
    views = [stack.add(parts).reshape(8, 8) for parts in (a, b, out)]
    memory.run(batched.batched(gemm_tensor.multiply(precision, *views), stack))
    for k in range(2):
        alone = np.zeros((8, 8), np.float32)
        memory.run(gemm_tensor.multiply(precision, a[k].reshape(8, 8), b[k].reshape(8, 8), alone))
        assert np.array_equal(out[k].reshape(8, 8), alone)
        assert alone.any()


def _nothing(x, y):
    """A kernel that is not run."""


def test_a_batched_kernel_is_filed_under_the_kernel_and_what_moves():
    both, one = (True, True), (True, False)
    kernels = [Kernel(_nothing), Kernel(_nothing, "of another rule"), Kernel(_nothing, launch_bounds=64)]
    made = [batched._batched(kernel, moves) for kernel in kernels for moves in (both, one)]
    assert len({kernel.meaning for kernel in made} | {kernel.meaning for kernel in kernels}) == 9
    assert [kernel.options for kernel in made] == [{}] * 4 + [{"launch_bounds": 64}] * 2
    assert batched._batched(kernels[0], one) is made[1]


def test_a_launch_on_shared_memory_alone_is_done_once():
    stack = Stack(3)
    mine, shared = stack.add(memory.zeros((3, 8), np.float32)), memory.zeros(8, np.float32)
    stack.share(shared)
    kernel = Kernel(_nothing)
    launches = [Launch(kernel, (2,), (32,), (shared, np.float32(1))), Launch(kernel, (4, 2), (32,), (mine[:5], shared))]
    once, moved = batched.batched(launches, stack)
    assert once is launches[0]
    assert moved.grid == (4, 2, 3)
    assert moved.arguments[-1] == 8
    with pytest.raises(LookupError, match=r"shape \(4,\) lies in no memory of the models"):
        batched.batched([Launch(kernel, (1,), (1,), (memory.zeros(4, np.float32),))], stack)


# ------------------------------------------------------------------------------------------------------ refusals


def _without(monkeypatch, name, when):
    """Memory of the device that does not suffice for what ``when`` says of an argument."""
    original = getattr(memory, name)

    def given(first, *rest):
        if when(first):
            raise MemoryError
        return original(first, *rest)

    monkeypatch.setattr(memory, name, staticmethod(given))


def test_too_little_memory_names_its_size(monkeypatch):
    x, y = data()
    models = shallow(3)
    for model in models:
        model.evaluate(x, y)  # the program is for labels from then on
    before = state(models)
    size = models[0]._engine.nbytes
    with monkeypatch.context() as patch:
        _without(patch, "zeros", lambda shape: shape == 3 * size)
        expected = rf"no {3 * size / 2**20:,.0f} MiB free, which 3 models need for mini-batches of 256 samples"
        with pytest.raises(DeviceError, match=expected):
            dlcore.fit_many(models, x, y)
    assert state(models) == before
    with monkeypatch.context() as patch:
        _without(patch, "to_device", lambda array: array.shape == (3, 8))
        with pytest.raises(DeviceError, match="which 3 models need for 'order' of 8 elements each; take fewer models"):
            dlcore.fit_many(models, x, y)

    with monkeypatch.context() as patch:
        _without(patch, "to_device", lambda array: array.shape == x.shape)
        with pytest.raises(DeviceError, match="no 0 MiB free, which samples and targets need; take fewer samples"):
            dlcore.fit_many(models, x, y)

    def none(shape, dtype):
        raise MemoryError

    with pytest.raises(DeviceError, match="no 12 MiB free, which 3 models need for partial sums"):
        Stack(3)._scratch(none, (1024, 1024), np.dtype(np.float32))
    assert len(dlcore.fit_many(models, x, y)) == 3


def test_more_models_than_a_grid_has_room_for(monkeypatch):
    monkeypatch.setattr(fleet, "MOST_MODELS", 2)
    with pytest.raises(ValueError, match="CUDA runs at most 2 models at once, got 3"):
        dlcore.fit_many(shallow(3), *data())


def test_engines_of_other_architectures():
    models = [*shallow(1), *deep(1, "float32")]
    for model in models:
        model._ensure_built()
    with (
        pytest.raises(ValueError, match="the engines are not of one architecture"),
        fleet.Fleet().taking([model._engine for model in models]),
    ):
        pass

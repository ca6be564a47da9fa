"""Batch norm over places, group and instance norm: against the formulas, against PyTorch, and within models."""

import os

import numpy as np
import oracle
import pytest
from tolerance import GRADIENT, assert_close, both, wider

import dlcore
from dlcore import kernels, layers
from dlcore.kernels.cpu import eager, interpreter
from dlcore.kernels.cpu.norm import beside
from dlcore.kernels.program import PAGE

if os.environ.get("DLCORE_REQUIRE_TORCH"):
    import torch
else:
    torch = pytest.importorskip("torch", reason="PyTorch is the second oracle; continuous integration has it")

DTYPES = [np.float32, np.float64]
# shape, groups: one sample, one place, one channel, one group, instance norm; odd sizes; several chunks and slabs
SHAPES = [
    ((1, 1, 7), 1),
    ((2, 6), 3),
    ((70, 8, 1, 1), 4),
    ((3, 1, 5, 5), 1),
    ((5, 6, 4, 3), 3),
    ((9, 7, 11), 7),
    ((300, 6, 5), 2),
    ((3001, 3, 2), 3),  # several slabs in a chunk
    ((2, 4, 33, 31), 4),
]
FAR = [0.0, 1000.0]


def arrays(dtype, shape, offset=0.0, seed=0):
    rng = np.random.default_rng(seed)
    x, dy = rng.standard_normal((2, *shape))
    gamma, beta, mean = rng.standard_normal((3, shape[1]))
    return [a.astype(dtype) for a in (x + offset, dy, gamma, beta, mean, rng.uniform(0.5, 2, shape[1]))]


def check(names, got, exact, plain, factor=2.0, terms=0.0):
    for name, g, e, p in zip(names, got, exact, plain, strict=True):
        assert_close(name, g, e, p, factor, terms)


@pytest.mark.parametrize("offset", FAR, ids=["centred", "mean 1000 times the deviation"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "groups"), SHAPES, ids=str)
def test_group_norm(dtype, shape, groups, offset):
    x, dy, gamma, beta, *_ = arrays(dtype, shape, offset)
    got = kernels.group_norm_forward(x, gamma, beta, groups, epsilon=1e-3)
    exact = oracle.group_norm_forward(*(a.astype(wider(dtype)) for a in (x, gamma, beta)), groups, 1e-3)
    # roundings of the result and of deviations, which are about 1, however far from zero x is
    check(("y", "mean", "rstd"), got, exact, [e.astype(dtype) for e in exact], terms=1.0)
    _, mean, rstd = got
    exact, plain = both(oracle.group_norm_backward, (dy, x, gamma, mean, rstd), dtype)
    got = kernels.group_norm_backward(dy, x, gamma, mean, rstd)
    largest = float(np.abs(gamma).max() * np.abs(rstd).max() * np.abs(dy).max())
    check(("dx", "dgamma", "dbeta"), got, exact, plain, GRADIENT, largest)


@pytest.mark.parametrize("offset", FAR, ids=["centred", "mean 1000 times the deviation"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [shape for shape, _ in SHAPES], ids=str)
def test_batch_norm(dtype, shape, offset):
    x, dy, gamma, beta, mean_0, var_0 = arrays(dtype, shape, offset)
    running = mean_0.copy(), var_0.copy()
    y, mean, rstd = kernels.batch_norm_forward(x, gamma, beta, *running, momentum=0.9, epsilon=1e-3)
    given = x, gamma, beta, mean_0, var_0
    exact, plain = both(lambda *a: oracle.batch_norm_forward(*a, 0.9, 1e-3), given, dtype)
    check(("y", "mean", "rstd", "running_mean", "running_var"), (y, mean, rstd, *running), exact, plain)
    exact, plain = both(oracle.batch_norm_backward, (dy, x, gamma, mean, rstd), dtype)
    got = kernels.batch_norm_backward(dy, x, gamma, mean, rstd)
    largest = float(np.abs(gamma).max() * np.abs(rstd).max() * np.abs(dy).max())
    check(("dx", "dgamma", "dbeta"), got, exact, plain, GRADIENT, largest)
    exact, plain = both(lambda *a: (oracle.batch_norm_inference(*a, 1e-3),), given, dtype)
    check(["y"], [kernels.batch_norm_inference(*given, epsilon=1e-3)], exact, plain)


def _torch_gradients(function, x, gamma, beta, dy):
    tensors = [torch.tensor(a, requires_grad=True) for a in (x, gamma, beta)]
    y = function(*tensors)
    y.backward(torch.tensor(dy))
    return [y.detach().numpy(), *(t.grad.numpy() for t in tensors)]


def _as_torch(got, expected, terms):
    """Roundings of the largest ``terms``, of which sums of few elements with little deviation leave less."""
    for name, g, e in zip(("y", "dx", "dgamma", "dbeta"), got, expected, strict=True):
        assert_close(name, g, e, e, terms=terms)


@pytest.mark.parametrize(("shape", "groups"), [s for s in SHAPES if s[0] not in ((2, 6), (3001, 3, 2))], ids=str)
def test_as_torch_computes_them(shape, groups):
    """Two elements a group, as ``(2, 6), 3`` has, leave nothing of ``dx`` but rounding; sums of 6002 round more."""
    x, dy, gamma, beta, mean_0, var_0 = arrays(np.float64, shape)
    f = torch.nn.functional
    y, *figures = kernels.group_norm_forward(x, gamma, beta, groups)
    got = [y, *kernels.group_norm_backward(dy, x, gamma, *figures)]
    terms = float(np.abs(gamma).max() * np.abs(figures[1]).max() * max(np.abs(dy).max(), np.abs(x).max()))
    _as_torch(got, _torch_gradients(lambda x, g, b: f.group_norm(x, groups, g, b, 1e-5), x, gamma, beta, dy), terms)
    if groups == shape[1] and np.prod(shape[2:]) > 1:
        _as_torch(
            got, _torch_gradients(lambda x, g, b: f.instance_norm(x, weight=g, bias=b), x, gamma, beta, dy), terms
        )
    running = mean_0.copy(), var_0.copy()
    theirs = [torch.tensor(a) for a in (mean_0, var_0)]
    y, *figures = kernels.batch_norm_forward(x, gamma, beta, *running)
    got = [y, *kernels.batch_norm_backward(dy, x, gamma, *figures)]
    _as_torch(
        got, _torch_gradients(lambda x, g, b: f.batch_norm(x, *theirs, g, b, True, 0.1), x, gamma, beta, dy), terms
    )
    for name, a, e in zip(("running_mean", "running_var"), running, theirs, strict=True):
        assert_close(name, a, e.numpy(), e.numpy())


def test_one_group_of_a_matrix_is_layer_norm():
    x, dy, gamma, beta, *_ = arrays(np.float32, (13, 37))
    y, mean, rstd = kernels.group_norm_forward(x, gamma, beta, 1)
    for a, b in zip((y, mean[:, 0], rstd[:, 0]), kernels.layer_norm_forward(x, gamma, beta), strict=True):
        np.testing.assert_array_equal(a, b)
    got = kernels.group_norm_backward(dy, x, gamma, mean, rstd)
    for a, b in zip(got, kernels.layer_norm_backward(dy, x, gamma, mean[:, 0], rstd[:, 0]), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_bits_for_every_number_of_threads(monkeypatch, dtype):
    from dlcore.kernels.cpu import table

    monkeypatch.setattr(table, "_SECONDS_PER_THREAD", 1e-30)
    x, dy, gamma, beta, mean, var = arrays(dtype, (259, 6, 7))
    results, before = [], kernels.get_num_threads()
    try:
        for threads in (1, 2, 3):
            kernels.set_num_threads(threads)
            eager._local.instructions.clear()  # what was prepared before has chosen its number of threads
            y, *figures = kernels.group_norm_forward(x, gamma, beta, 3)
            result = [y, *figures, *kernels.group_norm_backward(dy, x, gamma, *figures)]
            running = mean.copy(), var.copy()
            y, *figures = kernels.batch_norm_forward(x, gamma, beta, *running)
            result += [y, *figures, *running, *kernels.batch_norm_backward(dy, x, gamma, *figures)]
            results.append([*result, kernels.batch_norm_inference(x, gamma, beta, *running)])
    finally:
        kernels.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_backward_in_place(groups):
    """As the layers run it: ``dx`` overwrites ``dy``."""
    x, dy, gamma, beta, *_ = arrays(np.float32, (50, 6, 5))
    _, mean, rstd = kernels.group_norm_forward(x, gamma, beta, groups)
    expected = kernels.group_norm_backward(dy, x, gamma, mean, rstd)
    flat, sums = dy.reshape(50, 30), [np.empty_like(gamma) for _ in range(2)]
    eager.execute("group_norm_backward", [flat, x.reshape(50, 30), gamma, mean, rstd, flat, *sums])
    for got, e in zip((dy, *sums), expected, strict=True):
        np.testing.assert_array_equal(got, e)


ERRORS = {
    "no channels": (lambda k, f: k.batch_norm_forward(f(3), f(3), f(3), f(3), f(3)), r"x has shape \(3,\); expected \(batch, channels\)"),
    "gamma": (lambda k, f: k.batch_norm_inference(f(2, 3, 4), *[f(12)] * 4), r"gamma has shape \(12,\); expected \(3,\), the channels"),
    "groups": (lambda k, f: k.group_norm_forward(f(2, 6, 4), f(6), f(6), 4), "groups is 4; expected a divisor of the 6 channels"),
    "no groups": (lambda k, f: k.group_norm_forward(f(2, 6, 4), f(6), f(6), 0), "groups is 0; expected a divisor"),
    "half groups": (lambda k, f: k.group_norm_forward(f(2, 6), f(6), f(6), 1.5), "groups is 1.5; expected a divisor"),
    "dy": (lambda k, f: k.group_norm_backward(f(2, 6, 3), f(2, 6, 4), f(6), f(2, 2), f(2, 2)), r"dy has shape \(2, 6, 3\)"),
    "mean": (lambda k, f: k.group_norm_backward(f(2, 6), f(2, 6), f(6), f(2, 4), f(2, 4)), "mean is of 4, gamma of 6; expected a divisor"),
    "rows of x": (lambda k, f: k.layer_norm_backward(f(2, 6), f(2, 6), f(6), f(2), f(3)), r"rstd has shape \(3,\); expected \(2,\)"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_bad_operands_are_refused_by_name(call, message):
    with pytest.raises(kernels.ShapeError, match=message):
        call(kernels, lambda *shape: np.ones(shape, np.float32))


def test_no_samples():
    x, gamma = np.zeros((0, 6, 4), np.float32), np.ones(6, np.float32)
    y, mean, rstd = kernels.group_norm_forward(x, gamma, gamma, 2)
    assert (y.shape, mean.shape) == (x.shape, (0, 2))
    dx, *sums = kernels.group_norm_backward(x, x, gamma, mean, rstd)
    assert dx.shape == x.shape
    assert not any(a.any() for a in sums)


# ------------------------------------------------------------------------------------------------------ layers

MODELS = {
    "batch norm": (lambda: layers.BatchNormalization(epsilon=1e-3), (6, 3, 2)),
    "layer norm": (lambda: layers.LayerNormalization(), (6, 3, 2)),
    "group norm": (lambda: layers.GroupNormalization(3), (6, 3, 2)),
    "group norm of features": (lambda: layers.GroupNormalization(3), (36,)),
    "instance norm": (lambda: layers.InstanceNormalization(), (6, 3, 2)),
    "as many groups as channels": (lambda: layers.GroupNormalization(-1), (6, 3, 2)),
}


def _normed(kind, x, gamma, beta, *running):
    """The layer in PyTorch, for inference."""
    f = torch.nn.functional
    if kind == "batch norm":
        return f.batch_norm(x, *running, gamma, beta, False, 0.1, 1e-3)
    if kind == "layer norm":
        return f.layer_norm(x, x.shape[1:], gamma.reshape(x.shape[1:]), beta.reshape(x.shape[1:]), 1e-3)
    return f.group_norm(x, 3 if kind.startswith("group norm") else 6, gamma, beta, 1e-3)


def _model(kind):
    layer, shape = MODELS[kind]
    stack = [layers.Input(shape, dtype="float64"), layer(), layers.Activation("tanh"), layers.Flatten()]
    model = dlcore.Sequential([*stack, layers.Dense(3, "softmax")], device="cpu")
    model.compile(dlcore.optimizers.SGD(0.1), "sparse_categorical_crossentropy")
    return model, shape


@pytest.mark.parametrize("kind", MODELS)
def test_a_model_predicts_and_learns_as_torch(tmp_path, kind):
    dlcore.set_seed(1)
    model, shape = _model(kind)
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((40, *shape)) * 3 + 2, rng.integers(0, 3, 40)
    model.build(shape)
    weights = [w + 0.1 * rng.standard_normal(w.shape) ** 2 for w in model.get_weights()]
    model.set_weights(weights)
    given = [torch.tensor(w, requires_grad=True) for w in weights]
    gamma, beta, *running, w, b = given
    t = torch.tensor(x)
    h = torch.tanh(_normed(kind, t, gamma, beta, *[r.detach() for r in running])).flatten(1)
    np.testing.assert_allclose(model.predict(x), torch.softmax(h @ w + b, 1).detach().numpy(), rtol=1e-12)
    if kind == "batch norm":
        h = torch.nn.functional.batch_norm(t, *[r.detach() for r in running], gamma, beta, True, 0.1, 1e-3)
        h = torch.tanh(h).flatten(1)
    torch.nn.functional.cross_entropy(h @ w + b, torch.tensor(y)).backward()
    model.train_on_batch(x, y)
    for got, before in zip(model.get_weights(), given, strict=True):
        step = 0.1 * before.grad.numpy() if before.grad is not None else 0.0  # PyTorch moved the running statistics
        np.testing.assert_allclose(got, before.detach().numpy() - step, rtol=1e-10, atol=1e-12)
    model.save(tmp_path / "model.safetensors")
    loaded = dlcore.load(tmp_path / "model.safetensors")
    assert [repr(layer) for layer in loaded.layers] == [repr(layer) for layer in model.layers]
    assert loaded.train_on_batch(x, y) == model.train_on_batch(x, y)


@pytest.mark.parametrize("kind", ["batch norm", "group norm"])
def test_models_at_once_have_the_bits_of_one_after_the_other(kind):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((70, *MODELS[kind][1])), rng.integers(0, 3, 70)
    results = []
    for at_once in (True, False):
        dlcore.set_seed(3)
        models = [_model(kind)[0] for _ in range(3)]
        if at_once:
            dlcore.fit_many(models, x, y, batch_size=32, epochs=2, verbose=0)
        else:
            for model in models:
                model.fit(x, y, batch_size=32, epochs=2, verbose=0)
        results.append([w.tobytes() for model in models for w in model.get_weights()])
    assert results[0] == results[1]


@pytest.mark.parametrize("row", [4096, 8192, 2048, 6144, 1024, 3 * 1024])
def test_sums_begin_away_from_rows_in_their_pages(row):
    """Rows begin at as many places of a page as ``row`` has them; what is kept beside them is not near one."""
    for first in range(0, 4096, 16):
        scratch = beside(1 << 20, first, first, row)
        assert 0 <= scratch - (1 << 20) < PAGE
        assert scratch % 64 == 0
        places = {(first + k * row) % PAGE for k in range(8)}
        nearest = min(min((scratch - p) % PAGE, (p - scratch) % PAGE) for p in places)
        assert nearest >= min(row & -row, PAGE) // 2 - 128


def test_sums_begin_away_from_rows_of_two_arrays():
    for first in range(0, 4096, 16):
        scratch = beside(1 << 20, first, first + 1024, 4096)
        nearest = min(min((scratch - p) % PAGE, (p - scratch) % PAGE) for p in (first, first + 1024))
        assert nearest >= 1536 - 128


def test_sums_stay_where_rows_begin_all_over_the_page():
    assert beside(1 << 20, 16, 32, 4 * 300) == 1 << 20


@pytest.mark.parametrize("shift", range(0, 4096, 256))
def test_sums_stay_in_their_memory_wherever_it_begins(shift, monkeypatch):
    fence = []

    def aligned(nbytes):
        memory = interpreter_aligned(nbytes + 2 * PAGE)[shift:]
        memory[nbytes:] = 171
        fence.append(memory[nbytes:])
        return memory[:nbytes]

    interpreter_aligned = interpreter.aligned
    monkeypatch.setattr(interpreter, "aligned", aligned)
    monkeypatch.setattr(eager, "_local", eager._Prepared())
    x, dy, gamma, beta, _, _ = arrays(np.float64, (9, 256, 4))
    y, mean, rstd = kernels.batch_norm_forward(x, gamma, beta, np.zeros(256), np.ones(256))
    dx, _, _ = kernels.batch_norm_backward(dy, x, gamma, mean, rstd)
    assert np.isfinite(y).all()
    assert np.isfinite(dx).all()
    assert len(fence) == 2
    assert all((after == 171).all() for after in fence)


LAYER_ERRORS = {
    "groups": (
        lambda: layers.GroupNormalization(4),
        (6, 3),
        r"groups=4; expected a divisor of the 6 channels of samples of \(6, 3\)",
    ),
    "more groups than channels": (
        lambda: layers.GroupNormalization(),
        (6, 3),
        "groups=32; expected a divisor of the 6",
    ),
    "groups of one": (lambda: layers.GroupNormalization(6), (6,), r"samples of \(6,\) have 6 groups of one"),
    "instances of one": (
        lambda: layers.InstanceNormalization(),
        (6,),
        "InstanceNormalization '.*' takes groups of two",
    ),
}


@pytest.mark.parametrize(("layer", "shape", "message"), LAYER_ERRORS.values(), ids=LAYER_ERRORS)
def test_samples_that_do_not_fit_are_refused(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        dlcore.Sequential([layers.Input(shape), layer(), layers.Flatten(), layers.Dense(2)]).build(shape)


def test_wrong_numbers_of_groups():
    for groups in (0, -2, 1.5, True):
        with pytest.raises(ValueError, match="groups must be a positive integer"):
            layers.GroupNormalization(groups)

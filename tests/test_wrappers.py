"""Wrappers of optimizers in the fused step: averages of weights and Lookahead around rules of every kind.

What a wrapper makes of the weights is compared with a run of the formulas in NumPy on gradients of our own, and, for
the averages, with PyTorch's and with the path that the inner optimizer takes alone.
"""

import json
import types

import numpy as np
import oracle_optimizers
import pytest
from numba import cuda
from test_update import data, model, parameters, trained
from tolerance import GRADIENT, assert_close, wider

import dlcore
from dlcore import kernels, optimizers, schedules
from dlcore.kernels.rule import RuleError, find
from dlcore.kernels.wrappers import ema, lookahead, swa, wrapped

DEVICES = ["cpu", *(["cuda"] if cuda.is_available() else [])]
DTYPES = (np.float32, np.float64)
STEPS = 13
W = np.random.default_rng(5).standard_normal(70)
GRADIENTS = np.random.default_rng(6).standard_normal((STEPS, 70))

# ------------------------------------------------------------------------------------------------- the formulas


def _lookahead(path, w0, h):
    """Called with what the inner optimizer made of the weights; a generator of the weights and the slow ones."""
    slow = w0
    for t in range(1, STEPS + 1):
        fast = yield
        if t % h["lookahead_k"] == 0:
            slow = fast = slow + h["lookahead_alpha"] * (fast - slow)
        path.append((fast, slow))


def _swa(path, w0, h):
    taken, mean = [], None
    for t in range(1, STEPS + 1):
        w = yield
        if t >= h["swa_start"] and (t - h["swa_start"]) % h["swa_every"] == 0:
            taken.append(w)
            mean = np.mean(taken, axis=0, dtype=w.dtype)
        path.append((w, w if mean is None else mean))


def _ema(path, w0, h):
    average = None
    for t in range(1, STEPS + 1):
        w = yield
        average = w if t == 1 else h["ema_momentum"] * average + (1 - h["ema_momentum"]) * w
        if h["ema_overwrite_frequency"] and t % h["ema_overwrite_frequency"] == 0:
            w = average
        path.append((w, average))


FORMULAS = {"lookahead": (lookahead, _lookahead), "swa": (swa, _swa), "ema": (ema, _ema)}
VALUES = {
    "lookahead": {"lookahead_k": 4, "lookahead_alpha": 0.3},
    "swa": {"swa_start": 5, "swa_every": 3},
    "ema": {"ema_momentum": 0.7, "ema_overwrite_frequency": 0},
    "ema, overwriting": {"ema_momentum": 0.7, "ema_overwrite_frequency": 5},
}
RULES = ["sgd", "adam", "lamb", "amsgrad"]


def by_the_formulas(name, rule, dtype):
    """Weights, slots and averages after the steps, all in ``dtype``."""
    inner = find("optimizer", rule)
    w, s, h = (
        W.astype(dtype),
        [np.zeros(W.shape, dtype) for _ in inner.slots],
        types.SimpleNamespace(**inner.parameters),
    )
    path = []
    follow = FORMULAS[name.split(",")[0]][1](path, w, {k: dtype(v) for k, v in VALUES[name].items()})
    next(follow)
    for t, g in enumerate(GRADIENTS, 1):
        w, s = oracle_optimizers.OPTIMIZERS[rule](w, g.astype(dtype), s, t, h)
        try:
            follow.send(w)
        except StopIteration:
            assert t == STEPS
        w, average = path[-1]
    return w, *s, average


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", VALUES)
def test_formulas(name, rule, device, dtype):
    made = wrapped(find("optimizer", rule), [FORMULAS[name.split(",")[0]][0]])
    convert = np.array if device == "cpu" else cuda.to_device
    w, slots = convert(W.astype(dtype)), [convert(np.zeros(W.shape, dtype)) for _ in made.slots]
    for t, g in enumerate(GRADIENTS, 1):
        kernels.optimizer_update(made, w, convert(g.astype(dtype)), slots, step=t, **VALUES[name])
    exact, plain = (by_the_formulas(name, rule, d) for d in (wider(dtype), dtype))
    for what, got, e, p in zip(("w", *made.slots), (w, *slots), exact, plain, strict=True):
        assert_close(what, got if device == "cpu" else got.copy_to_host(), e, p, GRADIENT)


def test_averages_are_those_of_pytorch():
    """Of the path that Adam takes alone, which averages do not change."""
    torch = pytest.importorskip("torch")
    net = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(70, dtype=torch.float64))])
    mean = torch.optim.swa_utils.AveragedModel(net)
    moving = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.7))
    made = wrapped(find("optimizer", "adam"), [swa, ema])
    w, slots = W.copy(), [np.zeros_like(W) for _ in made.slots]
    for t, g in enumerate(GRADIENTS, 1):
        kernels.optimizer_update(made, w, g, slots, step=t, **VALUES["swa"], **VALUES["ema"])
        net[0].data[:] = torch.tensor(w)
        moving.update_parameters(net)
        if t >= 5 and (t - 5) % 3 == 0:
            mean.update_parameters(net)
    np.testing.assert_allclose(slots[-2], mean.module[0].detach().numpy(), rtol=1e-13)
    np.testing.assert_allclose(slots[-1], moving.module[0].detach().numpy(), rtol=1e-13)


def test_slow_weights_begin_where_the_weights_were():
    """Before decay, which the inner optimizer takes from them on the way."""
    made = wrapped(find("optimizer", "adamw"), [lookahead])
    w, slots = W.copy(), [np.zeros_like(W) for _ in made.slots]
    kernels.optimizer_update(made, w, GRADIENTS[0], slots, step=1, learning_rate=0.5, weight_decay=0.5)
    np.testing.assert_array_equal(slots[-1], W)
    assert not np.allclose(w, W, rtol=0.1)


# ------------------------------------------------------------------------------------------------------- models

OPTIMIZERS = {
    "lookahead": lambda: optimizers.Lookahead(optimizers.AdamW(0.02, weight_decay=0.1), k=2, alpha=0.3),
    "swa": lambda: optimizers.SWA("adam", start=2, every=2),
    "ema": lambda: optimizers.SGD(0.1, momentum=0.9, use_ema=True, ema_momentum=0.6, ema_overwrite_frequency=4),
    "all, around sums": lambda: optimizers.SWA(
        optimizers.Lookahead(optimizers.Optimizer("lamb", learning_rate=0.02, use_ema=True), k=3), start=2),
    "with everything": lambda: optimizers.Lookahead(
        optimizers.Adam(schedules.CosineDecay(0.02, 6), clipnorm=0.2, weight_decay=0.01, loss_scale=64.0, use_ema=True)),
}  # fmt: skip


@pytest.mark.skipif(not cuda.is_available(), reason="needs the simulator or a GPU")
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_both_engines_agree(make):
    ours, theirs = (trained(make(), device, np.float64)._state() for device in ("cuda", "cpu"))
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert_close(name, ours[name].astype(np.float64), value.astype(np.float64), value.astype(np.float64), terms=6.0)


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_threads_give_the_same_bits(make):
    before, states = dlcore.get_num_threads(), []
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((96, 300)).astype(np.float32), rng.standard_normal((96, 5))
    try:
        for threads in (1, 3):
            dlcore.set_num_threads(threads)
            dlcore.set_seed(0)
            made = dlcore.Sequential([dlcore.layers.Dense(600, "relu"), dlcore.layers.Dense(5)], device="cpu")
            made.compile(make(), "mse")
            made.fit(x, y, verbose=0, epochs=2)
            states.append(made._state())
    finally:
        dlcore.set_num_threads(before)
    for name, value in states[0].items():
        assert value.tobytes() == states[1][name].tobytes(), name


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_config_makes_it_again(make):
    made = make()
    again = optimizers.from_config(json.loads(json.dumps(made.config())))
    assert again.rule is made.rule
    assert again.average == made.average
    assert again.config() == made.config()
    np.testing.assert_array_equal(again.hyper(), made.hyper())


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_saved_model_goes_on(make, tmp_path):
    whole, half = trained(make(), epochs=4), trained(make(), epochs=2)
    half.save(tmp_path / "model.safetensors")
    again = dlcore.load(tmp_path / "model.safetensors", device="cpu")
    again.fit(*data(), batch_size=8, epochs=2, shuffle=False, verbose=0)
    expected = whole._state()
    for name, value in again._state().items():
        if name != "hyper":
            assert value.tobytes() == expected[name].tobytes(), name


@pytest.mark.parametrize("device", DEVICES)
def test_the_model_with_its_averages(device, tmp_path):
    x, y = data()
    made = model(optimizers.SWA(optimizers.SGD(0.2), start=2, every=2), device)
    made.build(x.shape[1:])
    seen = []
    for _ in range(6):
        made.train_on_batch(x[:8], y[:8])
        seen.append(parameters(made))
    before = made.get_weights()
    with made.averaged_weights():
        for name, value in parameters(made).items():
            np.testing.assert_allclose(value, np.mean([seen[k][name] for k in (1, 3, 5)], axis=0), 1e-5, 1e-6)
        loss, outputs = made.evaluate(x, y), made.predict(x)
        made.save(tmp_path / "averaged.safetensors")
        for call in (lambda: made.train_on_batch(x, y), lambda: made.train_on_batch(x[:8], y[:8]),
                     lambda: made.fit(x, y), lambda: made.compile("sgd", "mse"),
                     lambda: dlcore.fit_many([made], x, y)):  # fmt: skip
            with pytest.raises(RuntimeError, match="the weights are averages now; train after"):
                call()
    for a, b in zip(before, made.get_weights(), strict=True):
        assert a.tobytes() == b.tobytes()
    assert made.evaluate(x, y) != loss
    again = dlcore.load(tmp_path / "averaged.safetensors", device=device)
    np.testing.assert_array_equal(again.predict(x), outputs)


def test_averages_before_the_first_update_are_the_weights():
    x, _ = data()
    made = model(optimizers.Adam(use_ema=True))
    made.build(x.shape[1:])
    before = made.get_weights()
    with made.averaged_weights():
        assert all((a == b).all() for a, b in zip(before, made.get_weights(), strict=True))
    made.compile("adam", "sparse_categorical_crossentropy")
    with pytest.raises(RuntimeError, match="keeps no averaged weights; use use_ema=True, SWA or Lookahead"):
        made.averaged_weights().__enter__()


def test_the_moving_average_is_of_the_weights_as_they_end():
    """Lookahead that goes back to its slow weights every step leaves them where they were, and the average too."""
    x, y = data()
    made = model(optimizers.Lookahead(optimizers.SGD(0.1, use_ema=True, ema_momentum=0.5), k=1, alpha=0.0))
    made.build(x.shape[1:])
    before = made._engine.read(made.program.parameters)
    for _ in range(3):
        made.train_on_batch(x, y)
    for slots in made._state()["slots"]:
        np.testing.assert_allclose(slots, before, rtol=1e-6)


def test_another_rule_begins_anew():
    """Slots of another rule mean something else: Lookahead would draw the weights towards them."""
    made = trained(optimizers.SGD(0.1, momentum=0.9))
    x, y = data()
    made.compile(optimizers.Lookahead(optimizers.SGD(0.1), k=1, alpha=0.0), "sparse_categorical_crossentropy")
    before = parameters(made)
    made.train_on_batch(x, y)
    for name, value in parameters(made).items():
        np.testing.assert_array_equal(value, before[name])
    slots = made._state()["slots"]
    made.compile(optimizers.Lookahead(optimizers.SGD(0.3), k=1, alpha=0.0), "sparse_categorical_crossentropy")
    np.testing.assert_array_equal(made._state()["slots"], slots)  # the same rule with other values goes on


BAD = {
    "k": (lambda: optimizers.Lookahead("sgd", k=0), "k must be an integer of at least 1, got 0"),
    "alpha": (lambda: optimizers.Lookahead("sgd", alpha=1.5), r"alpha must lie in \[0, 1\], got 1.5"),
    "every": (lambda: optimizers.SWA("sgd", 3, every=2.5), "every must be an integer of at least 1, got 2.5"),
    "twice": (lambda: optimizers.SWA(optimizers.SWA("sgd", 1), 1), "SWA is around this optimizer already"),
    "momentum": (lambda: optimizers.Adam(use_ema=True, ema_momentum=2), r"ema_momentum must lie in \[0, 1\], got 2"),
    "unused": (lambda: optimizers.Adam(ema_momentum=0.5), "need use_ema=True"),
    "a flag": (lambda: optimizers.Adam(use_ema=1), "use_ema must be True or False, got 1"),
    "frequency": (
        lambda: optimizers.Adam(use_ema=True, ema_overwrite_frequency=0),
        "ema_overwrite_frequency must be an integer of at least 1, got 0"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BAD.values(), ids=BAD)
def test_bad_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_rule_that_calls_its_parameters_something_else():
    """Also one that takes a name of the wrapper, and whose own parameter would be taken twice."""

    @kernels.optimizer(lr=0.5)
    def plain(w, g, slow):
        return w - slow.lr * g

    w, slow = np.ones(3), np.zeros(3)
    kernels.optimizer_update(wrapped(plain, [lookahead]), w, np.ones(3), [slow], step=1, lookahead_k=2)
    np.testing.assert_array_equal([w, slow], [[0.5] * 3, [1.0] * 3])

    @kernels.optimizer(lr=0.5, ema_momentum=0.5)
    def taken(w, g, h):
        return w - h.lr * h.ema_momentum * g

    with pytest.raises(RuleError, match="has a parameter 'ema_momentum' already"):
        optimizers.Optimizer(taken, use_ema=True)

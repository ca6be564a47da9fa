"""Every kernel of the functional API on the CPU, against the oracle."""

import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerance import GRADIENT, assert_close, both, wider

from dlcore import kernels
from dlcore.kernels.cpu.eager import execute

DTYPES = [np.float32, np.float64]
SHAPES = [(1, 1, 1), (7, 5, 3), (32, 64, 10), (129, 31, 67)]


@pytest.fixture
def rng():
    return np.random.default_rng(20)


def arrays(rng, dtype, *shapes, scale=1.0):
    return [(rng.standard_normal(s) * scale).astype(dtype) for s in shapes]


def check(names, got, exact, plain, factor=2.0):
    for name, g, e, p in zip(names, got, exact, plain, strict=True):
        assert_close(name, g, e, p, factor)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", sorted(oracle.ACTIVATIONS))
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_forward_and_backward(rng, dtype, activation, shape):
    m, k, n = shape
    x, w, b, dy = arrays(rng, dtype, (m, k), (k, n), (n,), (m, n))
    y, z = kernels.dense_forward(x, w, b, activation, return_z=True)
    exact, plain = both(lambda *a: oracle.dense_forward(*a, activation), (x, w, b), dtype)
    check("yz", (y, z), exact, plain)
    assert np.array_equal(y, kernels.dense_forward(x, w, b, activation))  # keeping z changes nothing
    got = kernels.dense_backward(dy, x, w, y, activation, z=z)
    exact, plain = both(lambda *a: oracle.dense_backward(*a, activation), (dy, x, w, z), dtype)
    check(("dx", "dw", "db"), got, exact, plain, GRADIENT)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 40), st.booleans())
@settings(max_examples=25, deadline=None, derandomize=True)
def test_dense_of_any_shape_with_and_without_bias(m, k, n, bias):
    x, w, b = arrays(np.random.default_rng(m * 1600 + k * 40 + n), np.float32, (m, k), (k, n), (n,))
    exact, plain = both(
        lambda x, w, b: (oracle.dense_forward(x, w, b if bias else 0 * b, "tanh")[0],), (x, w, b), np.float32
    )
    assert_close("y", kernels.dense_forward(x, w, b if bias else None, "tanh"), exact[0], plain[0])


@pytest.mark.parametrize("layout", ["fortran", "strided", "read-only", "reversed", "misaligned"])
def test_inputs_of_any_layout(rng, layout):
    x, w, b = arrays(rng, np.float32, (9, 6), (6, 4), (4,))
    expected = kernels.dense_forward(x, w, b, "relu")
    if layout == "fortran":
        given_x = np.asfortranarray(x)
    elif layout == "strided":
        wide = np.zeros((9, 12), np.float32)
        wide[:, ::2] = x
        given_x = wide[:, ::2]
    elif layout == "reversed":
        given_x = x[::-1].copy()[::-1]
    elif layout == "misaligned":
        raw = np.zeros(x.nbytes + 4, np.uint8)
        given_x = raw[4:].view(np.float32).reshape(x.shape)
        given_x[...] = x
    else:
        given_x = x.copy()
        given_x.flags.writeable = False
    assert np.array_equal(kernels.dense_forward(given_x, w, b, "relu"), expected)


def test_zero_rows():
    x, w, b = np.zeros((0, 6), np.float32), np.ones((6, 4), np.float32), np.ones(4, np.float32)
    y = kernels.dense_forward(x, w, b)
    assert y.shape == (0, 4)
    dx, dw, db = kernels.dense_backward(y, x, w, y)
    assert dx.shape == (0, 6)
    assert not dw.any()
    assert not db.any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 1), (5, 3), (64, 17), (1000, 8), (7000, 463)], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1000.0], ids=["centred", "mean 1000 times the deviation"])
def test_batch_norm(rng, dtype, shape, offset):
    m, n = shape
    x, dy, gamma, beta, mean0 = arrays(rng, dtype, (m, n), (m, n), (n,), (n,), (n,))
    x = (x + offset).astype(dtype)
    var0 = np.abs(rng.standard_normal(n)).astype(dtype)
    running_mean, running_var = mean0.copy(), var0.copy()
    y, mean, rstd = kernels.batch_norm_forward(x, gamma, beta, running_mean, running_var, momentum=0.9, epsilon=1e-3)
    exact, plain = both(lambda *a: oracle.batch_norm_forward(*a, 0.9, 1e-3), (x, gamma, beta, mean0, var0), dtype)
    names = ("y", "mean", "rstd", "running_mean", "running_var")
    check(names, (y, mean, rstd, running_mean, running_var), exact, plain)
    if offset == 0.0:
        exact, plain = both(oracle.batch_norm_backward, (dy, x, gamma, mean, rstd), dtype)
        got = kernels.batch_norm_backward(dy, x, gamma, mean, rstd)
        terms = (np.abs(gamma * rstd * dy).max(), 0.0, 0.0)
        for name, g, e, p, t in zip(("dx", "dgamma", "dbeta"), got, exact, plain, terms, strict=True):
            assert_close(name, g, e, p, GRADIENT, t)


def test_batch_norm_with_gamma_sqrt_var_and_beta_mean_is_the_identity(rng):
    x = rng.standard_normal((50, 4)) * 3 + 2
    gamma, beta = np.sqrt(x.var(axis=0) + 1e-5), x.mean(axis=0)
    y, _, _ = kernels.batch_norm_forward(x, gamma, beta, np.zeros(4), np.ones(4))
    np.testing.assert_allclose(y, x, rtol=1e-13, atol=1e-13)
    inference = kernels.batch_norm_inference(x, gamma, beta, x.mean(axis=0), x.var(axis=0))
    np.testing.assert_allclose(inference, x, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (6, 10), (33, 257), (70, 64), (5, 1000)], ids=str)
@pytest.mark.parametrize("offset", [0.0, 1000.0], ids=["centred", "mean 1000 times the deviation"])
def test_layer_norm(rng, dtype, shape, offset):
    m, n = shape
    x, dy, gamma, beta = arrays(rng, dtype, (m, n), (m, n), (n,), (n,))
    x = (x + offset).astype(dtype)
    y, mean, rstd = kernels.layer_norm_forward(x, gamma, beta, epsilon=1e-3)
    exact = oracle.layer_norm_forward(*(a.astype(wider(dtype)) for a in (x, gamma, beta)), 1e-3)
    for name, got, e in zip(("y", "mean", "rstd"), (y, mean, rstd), exact, strict=True):
        # roundings of the result and of deviations, which are about 1, however far from zero x is
        assert_close(name, got, e, e.astype(dtype), terms=1.0)
    exact, plain = both(oracle.layer_norm_backward, (dy, x, gamma, mean, rstd), dtype)
    got = kernels.layer_norm_backward(dy, x, gamma, mean, rstd)
    terms = (np.abs(gamma * rstd[:, None] * dy).max(), 0.0, 0.0)
    for name, g, e, p, t in zip(("dx", "dgamma", "dbeta"), got, exact, plain, terms, strict=True):
        assert_close(name, g, e, p, GRADIENT, t)


def test_layer_norm_of_the_textbook():
    """Mean 2, variance 2/3."""
    y, mean, rstd = kernels.layer_norm_forward(np.array([[1.0, 2.0, 3.0]]), np.ones(3), np.ones(3), epsilon=1e-15)
    assert mean.tolist() == [2.0]
    np.testing.assert_allclose(rstd, [1.5**0.5], rtol=1e-14)
    np.testing.assert_allclose(y, [[1 - 1.5**0.5, 1.0, 1 + 1.5**0.5]], rtol=1e-14)


def test_gradient_of_layer_norm_is_its_difference_quotient(rng):
    x, dy, gamma, beta = arrays(rng, np.float64, (3, 7), (3, 7), (7,), (7,))
    _, mean, rstd = kernels.layer_norm_forward(x, gamma, beta)
    for array, gradient in zip((x, gamma, beta), kernels.layer_norm_backward(dy, x, gamma, mean, rstd), strict=True):
        for place in np.ndindex(array.shape):
            value = array[place]
            sides = []
            for h in (1e-6, -1e-6):
                array[place] = value + h
                sides.append((kernels.layer_norm_forward(x, gamma, beta)[0] * dy).sum())
            array[place] = value
            assert gradient[place] == pytest.approx((sides[0] - sides[1]) / 2e-6, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_backward_in_place(rng, dtype):
    """As the layer runs it: ``dx`` overwrites ``dy``."""
    x, dy, gamma = arrays(rng, dtype, (50, 37), (50, 37), (37,))
    _, mean, rstd = kernels.layer_norm_forward(x, gamma, gamma)
    expected = kernels.layer_norm_backward(dy, x, gamma, mean, rstd)
    sums = np.empty_like(gamma), np.empty_like(gamma)
    execute("group_norm_backward", [dy, x, gamma, mean[:, None], rstd[:, None], dy, *sums])
    for got, e in zip((dy, *sums), expected, strict=True):
        np.testing.assert_array_equal(got, e)


@pytest.mark.parametrize("dtype", DTYPES)
def test_layer_norm_has_the_same_bits_for_any_number_of_threads(rng, dtype):
    x, dy, gamma, beta = arrays(rng, dtype, (3001, 129), (3001, 129), (129,), (129,))
    results = []
    before = kernels.get_num_threads()
    try:
        for threads in (1, 2, 3):
            kernels.set_num_threads(threads)
            y, mean, rstd = kernels.layer_norm_forward(x, gamma, beta)
            results.append((y, mean, rstd, *kernels.layer_norm_backward(dy, x, gamma, mean, rstd)))
    finally:
        kernels.set_num_threads(before)
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1, 1), (6, 10), (33, 257)], ids=str)
def test_softmax_and_its_cross_entropy(rng, dtype, shape):
    m, n = shape
    z, dy = arrays(rng, dtype, shape, shape, scale=4.0)
    weight = rng.random(m).astype(dtype)
    labels = rng.integers(0, n, m)
    onehot = np.eye(n, dtype=dtype)[labels]
    exact, plain = both(lambda z: (oracle.softmax(z),), (z,), dtype)
    y = kernels.softmax(z)
    check(["y"], [y], exact, plain)
    exact, plain = both(lambda dy, y: (oracle.softmax_backward(dy, y),), (dy, y), dtype)
    check(["dz"], [kernels.softmax_backward(dy, y)], exact, plain, GRADIENT)
    exact, plain = both(oracle.softmax_cross_entropy, (z, onehot, weight), dtype)
    for target in (labels, onehot):
        check(("loss", "dz"), kernels.softmax_cross_entropy(z, target, sample_weight=weight), exact, plain, GRADIENT)
    soft = oracle.softmax(rng.standard_normal(shape)).astype(dtype)
    exact, plain = both(oracle.softmax_cross_entropy, (z, soft, weight), dtype)
    check(("loss", "dz"), kernels.softmax_cross_entropy(z, soft, sample_weight=weight), exact, plain, GRADIENT)


def test_softmax_of_the_textbook():
    """softmax([5, 2, -1, 3]) = [0.842, 0.042, 0.002, 0.114]."""
    assert kernels.softmax(np.array([[5.0, 2.0, -1.0, 3.0]])).round(3).tolist() == [[0.842, 0.042, 0.002, 0.114]]


def test_softmax_cross_entropy_of_huge_logits():
    z = np.array([[1e4, -1e4], [-3e38, 3e38]], np.float32)
    loss, dz = kernels.softmax_cross_entropy(z, np.array([0, 1]))
    assert loss.tolist() == [0.0, 0.0]
    assert dz.tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", sorted(oracle.LOSSES))
def test_elementwise_losses(rng, dtype, loss):
    (p,) = arrays(rng, dtype, (9, 5), scale=2.0)
    y = rng.integers(0, 2, (9, 5)).astype(dtype)
    if kernels.find("loss", loss).domain != "real":
        p = (1 / (1 + np.exp(-p))).astype(dtype)
    weight = rng.random(9).astype(dtype)
    exact, plain = both(lambda p, y, w: oracle.elementwise_loss(p, y, loss, w), (p, y, weight), dtype)
    check(("loss", "dp"), kernels.elementwise_loss(p, y, loss, sample_weight=weight), exact, plain, GRADIENT)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("decay", [0.0, 0.1], ids=["no decay", "decay"])
@pytest.mark.parametrize("clip", [0.0, 0.5], ids=["no clipping", "clipped"])
@pytest.mark.parametrize("name", sorted(oracle.OPTIMIZERS))
def test_optimizer_over_several_steps(rng, dtype, decay, clip, name):
    rule = kernels.find("optimizer", name)
    (w,) = arrays(rng, dtype, (11, 7))
    gradients = arrays(rng, dtype, *[(11, 7)] * 6)
    slots = oracle.optimizer_state(rule, w.shape, dtype)

    def reference(dtype):
        v, s = w.astype(dtype), oracle.optimizer_state(rule, w.shape, dtype)
        for t, g in enumerate(gradients, 1):
            options = {"weight_decay": decay, "clip_norm": clip}
            v, s = oracle.optimizer_step(name, v, g.astype(dtype), s, t, rule.parameters, **options)
        return v, *s

    exact, plain = reference(wider(dtype)), reference(dtype)
    got = w.copy()
    for t, g in enumerate(gradients, 1):
        kernels.optimizer_update(rule, got, g, slots, step=t, weight_decay=decay, clip_norm=clip)
    check(("w", *rule.slots, *rule.factors), (got, *slots), exact, plain)


def test_dropout_is_the_mask_of_the_counter(rng):
    (x,) = arrays(rng, np.float32, (13, 10))
    seed = 0x1234567890ABCDE
    y = kernels.dropout(x, 0.3, seed=seed, step=5, layer=2)
    mask = oracle.dropout_mask(13, 10, 0.3, seed, 5, 2)
    assert 0.5 < mask.mean() < 0.9
    np.testing.assert_array_equal(y, np.where(mask, x * np.float32(1 / 0.7), 0))
    assert not np.array_equal(kernels.dropout(x, 0.3, seed=seed, step=6, layer=2) != 0, mask)
    assert not np.array_equal(kernels.dropout(x, 0.3, seed=seed, step=5, layer=3) != 0, mask)
    assert not np.array_equal(kernels.dropout(x, 0.3, seed=seed + 2**40, step=5, layer=2) != 0, mask)


def test_accuracies_and_gather(rng):
    score = np.array([[0.1, 0.9], [0.6, 0.4], [0.5, 0.5]])
    assert kernels.categorical_accuracy(score, np.array([1, 1, 0])).tolist() == [1, 0, 1]  # a tie: the first
    assert kernels.categorical_accuracy(score, np.eye(2)[[1, 1, 0]]).tolist() == [1, 0, 1]
    assert kernels.binary_accuracy(score, np.array([[0, 1], [0, 1], [1, 1.0]])).tolist() == [1, 0, 0]
    (x,) = arrays(rng, np.float64, (6, 3))
    order = rng.permutation(6)
    assert np.array_equal(kernels.gather(x, order), x[order])


ERRORS = {
    "w does not fit x": (lambda k, f: k.dense_forward(f(4, 3), f(2, 5)), r"w has shape \(2, 5\); expected \(3, n\)"),
    "b does not fit w": (lambda k, f: k.dense_forward(f(4, 3), f(3, 5), f(4)), r"z|b has shape"),
    "mixed dtypes": (lambda k, f: k.dense_forward(f(4, 3), f(3, 5).astype("f8")), "w is float64; expected float32"),
    "integers": (lambda k, f: k.dense_forward(f(4, 3).astype(int), f(3, 5)), "x is int64; expected float32 or float64"),
    "a vector for x": (lambda k, f: k.dense_forward(f(4), f(4, 5)), r"x has shape \(4,\); expected \(batch, features\)"),
    "unknown activation": (lambda k, f: k.dense_forward(f(4, 3), f(3, 5), None, "rleu"), "unknown activation 'rleu'; did you mean 'relu'?"),
    "label too large": (lambda k, f: k.softmax_cross_entropy(f(2, 3), np.array([0, 3])), "target holds 3; expected class numbers"),
    "label negative": (lambda k, f: k.softmax_cross_entropy(f(2, 3), np.array([0, -1])), "target holds -1"),
    "row out of range": (lambda k, f: k.gather(f(2, 3), np.array([2])), "order holds 2"),
    "gamma does not fit x": (lambda k, f: k.layer_norm_forward(f(2, 3), f(4), f(3)), r"gamma has shape \(4,\); expected \(3,\)"),
    "rows do not fit x": (lambda k, f: k.layer_norm_backward(f(2, 3), f(2, 3), f(3), f(3), f(2)), r"mean has shape \(3,\); expected \(2,\)"),
    "rate": (lambda k, f: k.dropout(f(2, 3), 1.0, seed=0), r"rate must lie in \[0, 1\)"),
    "slots missing": (lambda k, f: k.optimizer_update("adam", f(3), f(3), [f(3)], step=1), "slots holds 1 arrays; adam has 2"),
    "slots for integers": (lambda k, f: k.optimizer_slots("adam", f(3).astype(int)), "w is int64; expected float32 or float64"),
    "slots for a list": (lambda k, f: k.optimizer_slots("adam", [1.0]), "got a list for w"),
    "slots of an unknown rule": (lambda k, f: k.optimizer_slots("adma", f(3)), "unknown optimizer 'adma'; did you mean"),
    "gradient of another shape": (lambda k, f: k.optimizer_update("sgd", f(3), f(4), [], step=1), "g has shape"),
    "step zero": (lambda k, f: k.optimizer_update("sgd", f(3), f(3), [], step=0), "step must be at least 1"),
    "unknown parameter": (lambda k, f: k.optimizer_update("sgd", f(3), f(3), [], step=1, beta=1), "sgd has no parameter 'beta'"),
    "strided weights": (lambda k, f: k.optimizer_update("sgd", f(6)[::2], f(3), [], step=1), "w is updated in place"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), ERRORS.values(), ids=ERRORS)
def test_bad_operands_are_refused_by_name(call, message):
    with pytest.raises((ValueError, TypeError), match=message):
        call(kernels, lambda *shape: np.ones(shape, np.float32))


AFTER_A_GOOD_ONE = {
    "a slot less": (lambda k, w: k.optimizer_update("adam", w, w, [w], step=2), "slots holds 1 arrays; adam has 2"),
    "a slot more": (lambda k, w: k.optimizer_update("adam", w, w, [w] * 3, step=2), "slots holds 3 arrays; adam has 2"),
    "step zero": (lambda k, w: k.optimizer_update("adam", w, w, [w] * 2, step=0), "step must be at least 1"),
    "a wrong name": (lambda k, w: k.optimizer_update("adam", w, w, [w] * 2, step=2, bet=1), "no parameter 'bet'"),
    "float64": (lambda k, w: k.optimizer_update("adam", w, w.astype(float), [w] * 2, step=2), "g is float64; expected float32"),
    "short": (lambda k, w: k.optimizer_update("adam", w, w[:4], [w] * 2, step=2), r"g has shape \(4,\); expected \(5,\)"),
    "read-only": (lambda k, w: k.optimizer_update("adam", np.broadcast_to(w, 5), w, [w] * 2, step=2), "updated in place"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "message"), AFTER_A_GOOD_ONE.values(), ids=AFTER_A_GOOD_ONE)
def test_what_was_right_once_is_checked_again(call, message):
    w, g, m, v = (np.ones(5, np.float32) for _ in range(4))
    kernels.optimizer_update("adam", w, g, [m, v], step=1)
    before = w.copy()
    with pytest.raises((ValueError, TypeError), match=message):
        call(kernels, w)
    np.testing.assert_array_equal(w, before)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", sorted(oracle.ACTIVATIONS))
def test_activations_at_the_edges(dtype, activation):
    huge = np.finfo(dtype).max
    z = np.array([0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4, huge, -huge, np.inf, -np.inf, np.nan], dtype)
    y = kernels.activation_forward(z, activation)
    assert np.isnan(y[-1])  # NaN propagates
    with np.errstate(all="ignore"):
        expected = oracle.ACTIVATIONS[activation][0](z[:-3].astype(wider(dtype)))
    beyond = np.abs(expected) > huge  # the exponential of 1e4; SELU, whose slope is above 1
    assert np.isinf(y[:-3]).tolist() == beyond.tolist()  # no overflow for a finite input but where the value has it
    np.testing.assert_allclose(y[:-3][~beyond], expected[~beyond].astype(dtype), rtol=4e-6, atol=1e-37)
    slope = kernels.activation_backward(np.ones_like(z), z, activation)
    assert np.isfinite(slope[:-3][~beyond]).all()

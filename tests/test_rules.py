"""Rules: registration, its checks, lowering, and what a user's rule may be."""

import math
import types

import numpy as np
import pytest

from dlcore import kernels
from dlcore.kernels import activation, compile, loss, lowering, mathfn, optimizer
from dlcore.kernels.check import check
from dlcore.kernels.mathfn import exp, sqrt
from dlcore.kernels.rule import REGISTRY, RuleError, find

SLOPE = 0.25


@pytest.mark.parametrize("kind", ["activation", "loss", "optimizer"])
def test_every_built_in_rule_passes_the_check_at_registration(kind):
    for rule in REGISTRY[kind].values():
        check(rule)


def test_a_rule_of_the_user_runs_fused():
    @activation
    def squareplus(z):
        return 0.5 * (z + sqrt(z * z + 4.0))

    @squareplus.derivative
    def _(z, y):
        return 0.5 * (1.0 + z / sqrt(z * z + 4.0))

    x, w, b = np.ones((3, 2), np.float32), np.full((2, 4), 0.5, np.float32), np.zeros(4, np.float32)
    y = kernels.dense_forward(x, w, b, "squareplus")
    np.testing.assert_array_equal(kernels.dense_forward(x, w, b, squareplus), y)  # by name, or the rule itself
    np.testing.assert_allclose(y, 0.5 * (1 + math.sqrt(5)), rtol=1e-6)
    assert y.dtype == np.float32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_everything_a_rule_may_use(dtype):
    def helper(u, slope):
        return u if u > 0 else slope * u

    @activation(alpha=0.5)
    def kitchen_sink(z, h):
        """Docstrings are skipped."""
        a = math.exp(-z * z) + np.tanh(z) ** 3
        b = max(helper(z, SLOPE), -1, a)
        if z > 2 and not z > 3:
            b += abs(z) - 2
        for _ in range(2):
            b = b * h.alpha
        return b + min(z, 0.0) + z**2 / 8

    def reference(z):
        a = math.exp(-z * z) + math.tanh(z) ** 3
        b = max(z if z > 0 else SLOPE * z, -1, a)
        if 2 < z <= 3:
            b += abs(z) - 2
        return b * 0.25 + min(z, 0.0) + z**2 / 8

    z = np.linspace(-4, 4, 101).astype(dtype)
    lowered = lowering.lower(kitchen_sink, "value", dtype, compile.CPU)
    function = compile.CPU.inline(lowered.function)
    got = np.array([function(v) for v in z])
    assert [s.return_type.name for s in function.nopython_signatures] == [
        np.dtype(dtype).name
    ]  # no literal promoted it
    np.testing.assert_allclose(
        got, [reference(float(v)) for v in z], rtol=20 * np.finfo(dtype).eps, atol=20 * np.finfo(dtype).eps
    )


def test_a_wrong_derivative_is_refused():
    @activation
    def cube(z):
        return z * z * z

    with pytest.raises(RuleError, match=r"activation 'cube' \(.*test_rules.py:\d+\): the derivative at .* differences"):

        @cube.derivative
        def _(z, y):
            return 2.0 * z * z

    with pytest.raises(RuleError, match="unknown activation 'cube'"):
        find("activation", "cube")


def test_a_wrong_derivative_of_a_loss_is_refused():
    @loss
    def quartic(p, y):
        return (p - y) ** 4

    with pytest.raises(RuleError, match=r"loss 'quartic'.*the derivative at"):

        @quartic.derivative
        def _(p, y):
            return 4 * (y - p) ** 3


def test_a_rule_without_derivative_is_refused_where_it_is_used():
    @activation
    def half(z):
        return z / 2

    with pytest.raises(RuleError, match=r"has no derivative; add one with @half.derivative"):
        kernels.activation_forward(np.ones(3), half)


def _bad_name(w, g, h):
    return w - h.learning_rate * g * undefined_name  # noqa: F821


def _bad_list(w, g, h):
    return w - h.learning_rate * REGISTRY


def _bad_index(w, g, h):
    return w - h.learning_rate * g[0]


def _bad_parameter(w, g, h):
    return w - h.learning_rte * g


def _bare_h(w, g, h):
    return w - sqrt(h) * g


def _keyword(w, g, h):
    return w - h.learning_rate * exp(x=g)


BAD = {
    "an undefined name": (_bad_name, "name 'undefined_name' is not defined"),
    "a dict": (_bad_list, "'REGISTRY' is a dict; a rule may use numbers"),
    "indexing": (_bad_index, "indexing is not possible"),
    "a misspelt parameter": (_bad_parameter, "h has no parameter 'learning_rte'; it has: learning_rate"),
    "h itself": (_bare_h, "h is only read as h.name"),
    "keyword arguments": (_keyword, "positional arguments only"),
}


@pytest.mark.parametrize(("function", "message"), BAD.values(), ids=BAD)
def test_what_a_rule_may_not_do_is_said_with_its_line(function, message):
    line = function.__code__.co_firstlineno + 1
    rule = kernels.OptimizerRule("bad", {"learning_rate": 0.1}, update=function)
    with pytest.raises(RuleError, match=rf"test_rules.py:{line}: .*{message}"):
        lowering.lower(rule, "update", np.float32, compile.CPU)


SIGNATURES = {
    "an activation of two": (lambda: activation(lambda z, y: z), r"takes \(z, y\); expected \(z\)"),
    "an optimizer of two": (lambda: optimizer(learning_rate=0.1)(lambda w, g: w), r"expected \(w, g, \*slots, h\)"),
    "no learning rate": (lambda: optimizer(beta=0.1)(lambda w, g, h: w), "needs a learning_rate"),
    "slots that differ": (lambda: optimizer(slots=2, lr=0.1)(lambda w, g, v, h: (w, v)), "says slots=2 and takes 1: v"),
    "a parameter called t": (lambda: optimizer(lr=0.1, t=1.0)(lambda w, g, h: w), "t is given by the skeleton"),
    "a text for a number": (lambda: activation(alpha="1"), "parameter alpha must be a number, got '1'"),
    "a reduction": (lambda: loss(reduction="max"), "reduction must be 'mean' or 'sum'"),
    "defaults": (lambda: activation(lambda z=0: z), "plain positional arguments"),
    "a built-in name": (
        lambda: optimizer(lr=0.1)(types.FunctionType((lambda w, g, h: w - h.lr * g).__code__, globals(), "adam")),
        "built-in|def",
    ),
}


@pytest.mark.parametrize(("define", "message"), SIGNATURES.values(), ids=SIGNATURES)
def test_bad_definitions(define, message):
    with pytest.raises(RuleError, match=message):
        define()


def test_a_wrong_number_of_results_is_refused():
    with pytest.raises(RuleError, match=r"returns 1 values; expected \(w, v\)"):

        @optimizer(lr=0.1)
        def forgets_its_slot(w, g, v, h):
            return w - h.lr * g


def test_uniforms_are_taken_out_of_an_update():
    rule = find("optimizer", "adam")
    lowered = lowering.lower(rule, "update", np.float32, compile.CPU)
    assert "1.0 - h.beta_1 ** h.t" in lowered.uniforms
    out = np.zeros(len(lowered.uniforms))
    hyper = np.array(list(rule.parameters.values()))
    lowering.lower_uniforms(rule, lowered.uniforms, compile.CPU).function(hyper, 3.0, out)
    assert out[lowered.uniforms.index("1.0 - h.beta_2 ** h.t")] == 1.0 - 0.999**3.0


def test_a_local_name_of_h_alone_is_a_uniform_too():
    @optimizer(lr=0.1, decay=0.5)
    def decaying(w, g, h):
        rate = h.lr / (1.0 + h.decay * h.t)
        return w - rate * g

    lowered = lowering.lower(decaying, "update", np.float64, compile.CPU)
    assert lowered.uniforms == ["h.lr / (1.0 + h.decay * h.t)"]
    w = np.array([1.0, 2.0])
    kernels.optimizer_update(decaying, w, np.array([1.0, -1.0]), [], step=4)
    np.testing.assert_allclose(w, [1 - 0.1 / 3, 2 + 0.1 / 3], rtol=1e-15)


def _kept(beta, t):
    return 1.0 - beta**t


def test_a_function_of_h_alone_is_a_uniform_too():
    """In float32, ``1 - 0.9999`` would be wrong by 1e-4 of itself."""

    @optimizer(lr=1.0, beta=0.9999)
    def corrected(w, g, h):
        return w - h.lr * g / _kept(h.beta, h.t)

    assert lowering.lower(corrected, "update", np.float32, compile.CPU).uniforms == ["h.lr", "_kept(h.beta, h.t)"]
    w = np.zeros(1, np.float32)
    kernels.optimizer_update(corrected, w, np.ones(1, np.float32), [], step=1)
    np.testing.assert_allclose(w, -1 / (1.0 - 0.9999), rtol=1e-6)


def test_a_variant_has_other_values():
    steep = find("activation", "leaky_relu").variant(alpha=0.5)
    assert kernels.activation_forward(np.array([-2.0]), steep).tolist() == [-1.0]
    assert kernels.activation_forward(np.array([-2.0]), "leaky_relu").tolist() == [-0.02]
    with pytest.raises(RuleError, match="has no parameter 'slope'; it has: alpha"):
        find("activation", "leaky_relu").variant(slope=0.5)


def test_ties_and_kinks():
    zeros = np.array([0.0, -0.0])
    assert kernels.activation_backward(np.ones(2), zeros, "relu").tolist() == [0.0, 0.0]
    _, dp = kernels.elementwise_loss(zeros[:, None], zeros[:, None], "mean_absolute_error")
    assert dp.ravel().tolist() == [0.0, 0.0]


def test_an_own_rule_may_be_redefined():
    for factor in (2.0, 3.0):

        @activation
        def scaled(z):
            return factor * z  # noqa: B023  the rule is lowered at once

        @scaled.derivative
        def _(z, y):
            return factor  # noqa: B023

        assert kernels.activation_forward(np.ones(1), "scaled").tolist() == [factor]
    assert mathfn.name_of(scaled) is None

"""Optimizers that keep state of the rows and columns of tensors: Adafactor, SM3, and rules of the user."""

import numpy as np
import oracle
import pytest
from test_update import data, parameters, trained

import dlcore
from dlcore import kernels, optimizers
from dlcore.kernels.program import PANEL_COLUMNS, PANEL_ROWS, factors_of
from dlcore.kernels.rule import RuleError, find


def test_panels_cover_every_tensor():
    rows, columns = PANEL_ROWS, PANEL_COLUMNS
    whole = (rows + 3) * (columns + 5)
    starts = [0, whole + 11, whole + 27]
    found = factors_of([(rows + 3, columns + 5), (7,), (2, 3, 4)], starts)
    assert found.tensors.tolist() == [
        [starts[0], rows + 3, columns + 5, 0, 0],
        [starts[1], 1, 7, rows + columns + 9, 4],
        [starts[2], 6, 4, rows + columns + 18, 5],
    ]
    assert found.size == rows + columns + 29
    assert found.panels[:4, :5].tolist() == [
        [0, rows, 0, 0, columns], [0, rows, 0, columns, columns + 5],
        [rows, rows + 3, 0, 0, columns], [rows, rows + 3, 0, columns, columns + 5],
    ]  # fmt: skip
    assert found.panels[4:, :5].tolist() == [[0, 1, 1, 0, 7], [0, 6, 2, 0, 4]]
    heights, widths = found.panels[:, 1] - found.panels[:, 0], found.panels[:, 4] - found.panels[:, 3]
    assert found.panels[:, 5].tolist() == [0, *np.cumsum(heights + widths)[:-1]]
    assert found.sums == (heights + widths).sum()
    assert found.panels[:, 6].tolist() == [0, *np.cumsum(heights * widths)[:-1]]


def factored(name, shape, dtype, steps=3, **values):
    """Weights and state after some steps, of the kernel and of the paper in float64."""
    rng, defaults = np.random.default_rng(1), find("optimizer", name).parameters
    w = rng.standard_normal(shape).astype(dtype)
    state = oracle.optimizer_state(find("optimizer", name), shape, dtype)
    exact, exact_state = w.astype(np.float64), [a.astype(np.float64) for a in state]
    for step in range(1, steps + 1):
        g = (rng.standard_normal(shape) * np.logspace(-3, 0, shape[-1])).astype(dtype)
        kernels.optimizer_update(name, w, g, state, step=step, **values)
        g = g.astype(np.float64)
        exact, exact_state = oracle.optimizer_step(name, exact, g, exact_state, step, defaults)
    return [w, *state], [exact, *exact_state]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(1, 1), (5,), (3, 4), (PANEL_ROWS + 1, 9), (3, 2 * PANEL_COLUMNS + 1), (130, 1030)])
@pytest.mark.parametrize("name", ["adafactor", "sm3"])
def test_rows_and_columns_of_any_number(name, shape, dtype):
    for got, expected in zip(*factored(name, shape, dtype), strict=True):
        np.testing.assert_allclose(got, expected, rtol=30 * np.finfo(dtype).eps, atol=3 * np.finfo(dtype).eps)


@pytest.mark.parametrize("name", ["adafactor", "sm3"])
def test_factors_have_the_same_bits_for_every_number_of_threads(name):
    before = kernels.get_num_threads()
    try:
        runs = []
        for threads in (1, 2, 3):
            kernels.set_num_threads(threads)
            runs.append(factored(name, (300, 1100), np.float32)[0])
    finally:
        kernels.set_num_threads(before)
    for run in runs[1:]:
        for a, b in zip(run, runs[0], strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["adafactor", "sm3"])
def test_factors_outlive_saving_and_begin_anew_with_another_rule(name, tmp_path):
    x, y = data()
    made, other = (trained(optimizers.Optimizer(name)) for _ in range(2))
    made.save(tmp_path / "model.npz")
    again = dlcore.Sequential.load(tmp_path / "model.npz")
    for m in (again, other):
        for _ in range(3):
            m.train_on_batch(x, y)
    for key, w in parameters(other).items():
        np.testing.assert_array_equal(parameters(again)[key], w, err_msg=key)
    assert again._state()["factors"].any()
    other = {"adafactor": "sm3", "sm3": "adafactor"}[name]
    again.compile(optimizers.Optimizer(other), "sparse_categorical_crossentropy")
    assert not again._state()["factors"].any()


@pytest.mark.parametrize("name", ["adafactor", "sm3"])
def test_a_step_that_is_skipped_leaves_the_factors(name):
    x, y = data()
    made = trained(optimizers.Optimizer(name, loss_scale="dynamic"))
    before = made._state()["factors"]
    made.train_on_batch(np.full_like(x, np.nan), y)
    np.testing.assert_array_equal(made._state()["factors"], before)


def test_a_rule_of_the_user_with_factors():
    @kernels.optimizer(factors="row column", learning_rate=0.5)
    def by_rank_one(w, g, m, row, column, h):
        m = m + g
        return w - h.learning_rate * m / (row * column), m

    with pytest.raises(RuleError, match=r"has no tensor factors; add one with @by_rank_one\.tensor_factors"):
        optimizers.Optimizer(by_rank_one)

    @by_rank_one.tensor_factors
    def _(g, row, column, h):
        return abs(g), abs(g)

    w, g = np.zeros((2, 3)), np.array([[1.0, -2.0, 3.0], [4.0, -5.0, 6.0]])
    state = [np.zeros((2, 3)), np.zeros(2), np.zeros(3)]
    kernels.optimizer_update(by_rank_one, w, g, state, step=1)
    rows, columns = np.abs(g).mean(1), np.abs(g).mean(0)
    np.testing.assert_allclose(w, -0.5 * g / np.outer(rows / rows.mean(), columns), rtol=1e-15)
    for got, expected in zip(state, (g, rows, columns), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-15)


def _terms(g, r, c, h):
    return g * g, g * g


def _factored(**options):
    return kernels.optimizer(lambda w, g, r, c, h: w - h.lr * g * r * c, name="some", factors="r c", lr=0.5, **options)


BAD_FACTORS = {
    "one name": (lambda: kernels.optimizer(factors="r", lr=0.5), "factors must name two arguments, for the row and the column; got 'r'"),
    "names": (lambda: kernels.optimizer(lambda w, g, h: w, name="some", factors="r c", lr=0.5), r"expected \(w, g, \*slots, r, c, h\)"),
    "reduce": (lambda: _factored().tensor_factors(reduce="min"), "reduce must be 'mean' or 'max', got 'min'"),
    "terms": (lambda: _factored().tensor_factors(lambda w, g, h: (w, g)), r"expected \(g, r, c, h\)"),
    "sums": (lambda: kernels.optimizer(lambda w, g, r, c, total, h: w, name="some", factors="r c", sums="total", lr=0.5).tensor_factors(_terms, after=True), "takes sums over the tensor: its factors cannot change after the update"),
    "one value": (lambda: _factored().tensor_factors(lambda g, r, c, h: g), r"returns 1 values; expected \(r, c\)"),
}  # fmt: skip


@pytest.mark.parametrize(("make", "message"), BAD_FACTORS.values(), ids=BAD_FACTORS)
def test_bad_factors(make, message):
    with pytest.raises(RuleError, match=message):
        make()


BAD_STATE = {
    "too few": ([np.zeros(2)], r"slots holds 1 arrays; adafactor has 2: r, c"),
    "rows": ([np.zeros(3), np.zeros(3)], r"slots\[0\] is float64 \(3,\); expected float64 \(2,\), r of w"),
    "columns": ([np.zeros(2), np.zeros((2, 3))], r"slots\[1\] is float64 \(2, 3\); expected float64 \(3,\), c of w"),
}  # fmt: skip


@pytest.mark.parametrize(("state", "message"), BAD_STATE.values(), ids=BAD_STATE)
def test_bad_state_of_rows_and_columns(state, message):
    with pytest.raises(kernels.ShapeError, match=message):
        kernels.optimizer_update("adafactor", np.zeros((2, 3)), np.zeros((2, 3)), state, step=1)


def _total(w, g, r, c, h):
    return r * c


def test_sums_and_factors_in_either_order():
    """Sums of what the factors give, as in Adafactor; which of the two is attached first does not matter."""
    found = []
    for first in (0, 1):

        @kernels.optimizer(factors="r c", sums="total", lr=0.5)
        def scaled(w, g, r, c, total, h):
            return w - h.lr * g / total

        attach = [lambda rule: rule.tensor_factors(_terms), lambda rule: rule.tensor_sums(_total)]
        attach[first](scaled)
        rule = attach[1 - first](scaled)
        w, g = np.ones((2, 3)), np.arange(1.0, 7.0).reshape(2, 3)
        kernels.optimizer_update(rule, w, g, [np.zeros(2), np.zeros(3)], step=1)
        found.append(w)
        np.testing.assert_allclose(w, 1 - 0.5 * g / (g * g).sum(), rtol=1e-14)
    np.testing.assert_array_equal(*found)

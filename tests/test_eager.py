"""Functions on arrays called again: the second call, which looks at nothing in Python, does what the first one does."""

import numpy as np
import oracle
import pytest

from dlcore import kernels
from dlcore.kernels import ShapeError, norms
from dlcore.kernels.cpu import eager
from dlcore.kernels.cpu.prepared import checking
from dlcore.kernels.program import PAGE

ROWS, FEATURES, OUTPUTS = 9, 6, 4


@pytest.fixture
def rng():
    eager._local.instructions.clear()
    return np.random.default_rng(3)


def _normals(rng, *shapes, dtype=np.float32):
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def _norm(rng, dtype=np.float32):
    x, gamma, beta = _normals(rng, (ROWS, FEATURES), FEATURES, FEATURES, dtype=dtype)
    return [x, gamma, beta, np.zeros(FEATURES, dtype), np.ones(FEATURES, dtype)]


def _forward(arrays, **others):
    """Results and running statistics of batch norm on copies of the last two."""
    *given, mean, var = arrays
    mean, var = mean.copy(), var.copy()
    return [*kernels.batch_norm_forward(*given, mean, var, **others), mean, var]


def _same(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def known(monkeypatch):
    """Whether each call of a function on arrays was known."""
    found, lookup = [], eager.known

    def look(*arguments, **named):
        results = lookup(*arguments, **named)
        found.append(results is not None)
        return results

    monkeypatch.setattr(eager, "known", look)
    return found


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_second_call_gives_what_the_first_one_gave(rng, known, dtype):
    arrays = _norm(rng, dtype)
    first, second = _forward(arrays), _forward(arrays)
    _same(second, first)
    x, gamma, (_, mean, rstd, *_) = arrays[0], arrays[1], first
    (dy,) = _normals(rng, (ROWS, FEATURES), dtype=dtype)
    back = [kernels.batch_norm_backward(dy, x, gamma, mean, rstd) for _ in range(2)]
    _same(*back)
    w, b = _normals(rng, (FEATURES, OUTPUTS), OUTPUTS, dtype=dtype)
    for bias in (b, None):
        _same(*([kernels.dense_forward(x, w, bias, "tanh")] for _ in range(2)))
        both = [kernels.dense_forward(x, w, bias, "tanh", return_z=True) for _ in range(2)]
        _same(*both)
        np.testing.assert_array_equal(both[0][0], kernels.dense_forward(x, w, bias, "tanh"))
    kernels.dense_forward(x, w, b, "tanh")
    assert checking() or known == [False, True] * 2 + [False, True, False, True, True] * 2 + [True]


def test_results_are_arrays_of_their_own(rng):
    arrays = _norm(rng)
    results = [_forward(arrays)[:3] for _ in range(3)]
    kept = [a.copy() for a in results[1]]
    for a in results[2]:
        a[...] = 7
    _same(results[1], kept)


def test_each_call_moves_the_running_statistics_once(rng):
    x, gamma, beta, mean, var = _norm(rng)
    for _ in range(3):
        kernels.batch_norm_forward(x, gamma, beta, mean, var, momentum=0.5)
    np.testing.assert_allclose(mean, 0.875 * x.mean(0), rtol=1e-5)


def test_other_scalars_rules_and_groups_are_not_taken_for_known(rng):
    arrays = _norm(rng)
    first, other = _forward(arrays), _forward(arrays, epsilon=0.5)
    assert not np.array_equal(first[0], other[0])
    x, (w,) = arrays[0], _normals(rng, (FEATURES, OUTPUTS))
    assert (kernels.dense_forward(x, w, None, "relu") >= 0).all()
    assert (kernels.dense_forward(x, w, None, "linear") < 0).any()
    x, gamma, beta, *_ = _norm(rng, np.float64)
    for groups in (1, 2, 3, 2):
        _, mean, rstd = norms.group_norm_forward(x, gamma, beta, groups)
        assert mean.shape == (ROWS, groups)
        dx = norms.group_norm_backward(x, x, gamma, mean, rstd)[0]
        np.testing.assert_allclose(dx.reshape(ROWS, groups, -1).sum(2), 0, atol=1e-10)


def _strided(a):
    wide = np.zeros((*a.shape[:-1], 2 * a.shape[-1]), a.dtype)
    wide[..., ::2] = a
    return wide[..., ::2]


def _read_only(a):
    a = a.copy()
    a.flags.writeable = False
    return a


def test_arrays_that_are_not_like_the_first_go_the_long_way(rng):
    arrays = _norm(rng)
    expected = _forward(arrays)
    _same(_forward([_strided(arrays[0]), *arrays[1:]]), expected)
    _same(_forward([arrays[0], _strided(arrays[1]), *arrays[2:]]), expected)
    _same(_forward([np.asfortranarray(arrays[0]), *arrays[1:]]), expected)
    _same(_forward([_read_only(arrays[0]), *arrays[1:]]), expected)


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (1, lambda a: a[:-1], "gamma has shape"),
        (2, lambda a: a[:-1], "beta has shape"),
        (1, lambda a: a.astype(np.float64), "gamma is float64"),
        (1, list, "got a list for gamma"),
        (2, lambda a: None, "got a NoneType for beta"),
        (3, lambda a: a[:-1].copy(), "running_mean has shape"),
        (3, _read_only, "running_mean is updated in place"),
        (4, _strided, "running_var is updated in place"),
    ],
)
def test_what_does_not_fit_is_refused_as_in_a_first_call(rng, place, change, message):
    arrays = _norm(rng)
    _forward(arrays)
    kept = [a.copy() for a in arrays]
    wrong = [change(a) if k == place else a for k, a in enumerate(arrays)]
    with pytest.raises(ShapeError, match=message):
        kernels.batch_norm_forward(*wrong)
    _same(arrays, kept)


def test_channels_with_places_are_not_taken_for_columns(rng):
    x, gamma, beta, mean, var = _norm(rng)
    pictures = x.reshape(ROWS, 2, 3)
    few = gamma[:2], beta[:2], mean[:2], var[:2]
    for _ in range(2):
        _, of_channels, rstd = kernels.batch_norm_forward(pictures, *few)
        kernels.batch_norm_backward(pictures, pictures, few[0], of_channels, rstd)
    with pytest.raises(ShapeError, match="gamma has shape"):
        kernels.batch_norm_forward(x, *few)
    with pytest.raises(ShapeError, match="gamma has shape"):
        kernels.batch_norm_backward(x, x, few[0], of_channels, rstd)


def _adam(rng):
    w, g = _normals(rng, (ROWS, FEATURES), (ROWS, FEATURES))
    return [w, g, np.zeros_like(w), np.zeros_like(w)]


@pytest.mark.parametrize(
    ("place", "change", "message"),
    [
        (1, lambda a: a.astype(np.float64), "g is float64"),
        (1, lambda a: a[:-1], "g has shape"),
        (1, list, "got a list for g"),
        (2, lambda a: a[:-1].copy(), r"slots\[0\] is float32"),
        (3, _read_only, r"slots\[1\] is updated in place"),
    ],
)
def test_an_update_of_what_does_not_fit_changes_nothing(rng, place, change, message):
    arrays = _adam(rng)
    for _ in range(2):
        kernels.optimizer_update("adam", arrays[0], arrays[1], arrays[2:], step=1)
    kept = [a.copy() for a in arrays]
    w, g, *slots = (change(a) if k == place else a for k, a in enumerate(arrays))
    with pytest.raises(ShapeError, match=message):
        kernels.optimizer_update("adam", w, g, slots, step=2)
    with pytest.raises(ShapeError, match="slots holds 1 arrays"):
        kernels.optimizer_update("adam", arrays[0], arrays[1], arrays[2:3], step=2)
    _same(arrays, kept)


@pytest.mark.parametrize("change", [_strided, np.asfortranarray])
def test_a_gradient_in_another_order_is_copied(rng, change):
    arrays = _adam(rng)
    expected = [a.copy() for a in arrays]
    for w, g, *slots in (arrays, expected):
        kernels.optimizer_update("adam", w, g, slots, step=1)
    kernels.optimizer_update("adam", arrays[0], change(arrays[1]), arrays[2:], step=2)
    kernels.optimizer_update("adam", expected[0], expected[1], expected[2:], step=2)
    _same(arrays, expected)


def test_a_weight_without_axes_is_updated():
    w, g, m, v = (np.array(value, np.float32) for value in (1.0, 2.0, 0.0, 0.0))
    for step in (1, 2):
        kernels.optimizer_update("adam", w, g, [m, v], step=step, learning_rate=0.1)
    assert abs(float(w) - 0.8) < 1e-5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4, 2)], ids=str)
@pytest.mark.parametrize("name", ["sgd", "adam", "amsgrad", "adafactor"])
def test_slots_are_those_that_an_update_takes(rng, name, shape, dtype):
    w, g = (np.asarray(rng.standard_normal(shape), dtype) for _ in range(2))
    slots, other = kernels.optimizer_slots(name, w), w.copy()
    expected = oracle.optimizer_state(kernels.find("optimizer", name), shape, dtype)
    for slot, zeros in zip(slots, expected, strict=True):
        assert slot.dtype == dtype
        np.testing.assert_array_equal(slot, zeros.reshape(slot.shape))
    expected = [zeros.reshape(slot.shape) for slot, zeros in zip(slots, expected, strict=True)]
    for step in (1, 2):
        kernels.optimizer_update(name, w, g, slots, step=step)
        kernels.optimizer_update(name, other, g, expected, step=step)
    _same([w, *slots], [other, *expected])


@pytest.mark.parametrize("offset", [0, 16, 80, PAGE - 4])
@pytest.mark.parametrize("elements", [PAGE // 4, 40_000])
def test_slots_begin_where_the_weights_begin_in_a_page(elements, offset):
    memory = np.zeros(4 * elements + 2 * PAGE, np.uint8)
    start = -memory.ctypes.data % PAGE + offset
    w = memory[start : start + 4 * elements].view(np.float32).reshape(2, -1)
    for slot in kernels.optimizer_slots("adam", w):
        assert slot.ctypes.data % PAGE == w.ctypes.data % PAGE == offset
        assert slot.shape == w.shape
        assert slot.flags.carray
        assert not slot.any()


def test_slots_of_other_orders_and_of_small_weights(rng):
    (w,) = _normals(rng, (40, 60))
    for a in (w.T, w[::2], w[:2, :3]):
        for slot in kernels.optimizer_slots("adam", a):
            assert slot.shape == a.shape
            assert slot.flags.carray
    assert kernels.optimizer_slots("adam", w[:2])[0].base is None, "a page more for each would be much"

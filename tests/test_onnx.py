"""The node cases of ONNX, an independent reference, through the functions on arrays."""

import os
import pathlib

import numpy as np
import pytest

from dlcore import kernels

if os.environ.get("DLCORE_REQUIRE_ONNX"):
    import onnx
else:
    onnx = pytest.importorskip("onnx", reason="the cases are part of the package onnx")

from onnx import numpy_helper
from onnx.backend.test import loader


def _last(x, axis):
    """``x`` as a matrix of rows along ``axis``, and what puts such a matrix back into place."""
    moved = np.moveaxis(x, axis, -1)
    return np.ascontiguousarray(moved.reshape(-1, moved.shape[-1])), lambda y: np.moveaxis(
        y.reshape(moved.shape), -1, axis
    )


def _activation(name, **names):
    """An activation whose parameters are attributes: its own name to ONNX's name and default."""

    def call(a, z):
        values = {own: a.get(attribute, default) for own, (attribute, default) in names.items()}
        return [kernels.activation_forward(z, kernels.find("activation", name).variant(**values))]

    return call


def _gelu(a, z):
    name = "gelu_tanh" if a.get("approximate") == b"tanh" else "gelu"
    return [kernels.activation_forward(z, name)]


def _shrink(a, z):
    bias, threshold = a.get("bias", 0.0), a.get("lambd", 0.5)
    assert bias in (0.0, threshold)
    rule = kernels.find("activation", "soft_shrink" if bias else "hard_shrink")
    return [kernels.activation_forward(z, rule.variant(threshold=threshold))]


def _prelu(a, z, alpha):
    return [kernels.prelu_forward(z.reshape(-1, alpha.size), alpha.ravel()).reshape(z.shape)]


def _gemm(a, x, w, c=None):
    x = x.T if a.get("transA") else x
    w = (w.T if a.get("transB") else w) * np.float32(a.get("alpha", 1.0))
    if c is not None:
        c = np.broadcast_to(c, (1, w.shape[1])).ravel() * np.float32(a.get("beta", 1.0))
    return [kernels.dense_forward(x, w, c)]


def _softmax(function):
    def call(a, z):
        rows, back = _last(z, a.get("axis", -1))
        return [back(function(rows))]

    return call


def _layer_norm(a, x, gamma, beta):
    rows = x.reshape(-1, gamma.size)
    y, mean, rstd = kernels.layer_norm_forward(rows, gamma.ravel(), beta.ravel(), epsilon=a.get("epsilon", 1e-5))
    axis = a.get("axis", -1) % x.ndim
    kept = [*x.shape[:axis], *[1] * (x.ndim - axis)]
    return [y.reshape(x.shape), mean.reshape(kept), rstd.reshape(kept)]


def _batch_norm(a, x, gamma, beta, mean, var):
    rows, back = _last(x, 1)
    epsilon, momentum = a.get("epsilon", 1e-5), a.get("momentum", 0.9)
    if not a.get("training_mode"):
        return [back(kernels.batch_norm_inference(rows, gamma, beta, mean, var, epsilon=epsilon))]
    running_mean, running_var = mean.copy(), var.copy()
    y, _, _ = kernels.batch_norm_forward(
        rows, gamma, beta, running_mean, running_var, momentum=momentum, epsilon=epsilon
    )
    # ONNX keeps the biased variance, dlcore the unbiased one, as PyTorch does
    moved = (running_var - momentum * var) * (len(rows) - 1) / len(rows)
    return [back(y), running_mean, momentum * var + moved]


def _instance_norm(a, x, gamma, beta):
    return [kernels.group_norm_forward(x, gamma, beta, x.shape[1], epsilon=a.get("epsilon", 1e-5))[0]]


def _group_norm(a, x, gamma, beta):
    return [kernels.group_norm_forward(x, gamma, beta, a["num_groups"], epsilon=a.get("epsilon", 1e-5))[0]]


def _mean_variance(a, x):
    """Over all axes but that of the channels: batch norm that neither scales nor shifts."""
    assert "axes" not in a
    ones, zeros = np.ones(x.shape[1], x.dtype), np.zeros(x.shape[1], x.dtype)
    return [kernels.batch_norm_forward(x, ones, zeros, zeros.copy(), ones.copy(), epsilon=1e-9)[0]]


def _matmul(a, x, w):
    """The products of the last two axes, one by one; a vector is a row, or a column."""
    rows, columns = np.atleast_2d(x), w[:, None] if w.ndim == 1 else w
    batch = np.broadcast_shapes(rows.shape[:-2], columns.shape[:-2])
    left, right = (np.broadcast_to(m, (*batch, *m.shape[-2:])) for m in (rows, columns))
    y = np.empty((*batch, rows.shape[-2], columns.shape[-1]), x.dtype)
    for place in np.ndindex(batch):
        y[place] = kernels.dense_forward(left[place], right[place])
    y = y[..., 0, :] if x.ndim == 1 else y
    return [y[..., 0] if w.ndim == 1 else y]


def _gather(a, x, indices):
    moved = np.moveaxis(x, a["axis"], 0)
    rows = kernels.gather(moved.reshape(len(moved), -1), indices.ravel())
    back = rows.reshape(*indices.shape, *moved.shape[1:])
    return [np.moveaxis(back, range(indices.ndim), range(a["axis"], a["axis"] + indices.ndim))]


def _likelihood(loss_of):
    """A loss over classes in axis 1; ``loss_of`` takes rows, labels and weights of samples."""

    def call(a, scores, labels, weights=None):
        rows, _ = _last(scores, 1)
        flat = labels.ravel().astype(np.int64)
        kept = flat != a.get("ignore_index", -(1 << 40))
        safe = np.where(kept, flat, 0)
        weight = (np.ones(len(flat), np.float32) if weights is None else weights[safe]) * kept
        loss = loss_of(rows, safe, weight.astype(np.float32))
        reduction = a.get("reduction", b"mean")
        if reduction == b"none":
            return [loss.reshape(labels.shape)]
        return [loss.sum() if reduction == b"sum" else loss.sum() / weight.sum()]

    return call


_negative_log_likelihood = _likelihood(
    lambda rows, labels, weight: kernels.elementwise_loss(
        rows, np.eye(rows.shape[1], dtype=np.float32)[labels], "negative_log_likelihood", sample_weight=weight
    )[0]
)
_cross_entropy = _likelihood(
    lambda rows, labels, weight: kernels.softmax_cross_entropy(rows, labels, sample_weight=weight)[0]
)


def _softmax_cross_entropy(a, scores, *rest):
    rows, back = _last(scores, 1)
    return [*_cross_entropy(a, scores, *rest), back(kernels.log_softmax(rows))]


def _optimizer(update):
    """``update(attributes, rate, t, w, g, slots)`` in place, on each of several tensors."""

    def call(a, rate, t, *tensors):
        count = 4 if update is _adam else 3
        groups = [tensors[k :: len(tensors) // count] for k in range(len(tensors) // count)]
        groups = [[array.copy() for array in group] for group in groups]
        for w, g, *slots in groups:
            update(a, float(rate), int(t), w, g, slots)
        return [group[k] for k in (0, *range(2, count)) for group in groups]

    return call


def _adagrad(a, rate, t, w, g, slots):
    assert t == 0  # where the rate has not decayed; at step 1 the rule would set the accumulator, which is given here
    values = {"epsilon": a["epsilon"], "learning_rate": rate}
    kernels.optimizer_update("adagrad", w, g, slots, step=2, weight_decay=a["norm_coefficient"], **values)


_LATE = 10**6  # a step so late that nothing is left of the correction of the bias, which ONNX leaves out at T = 0


def _adam(a, rate, t, w, g, slots):
    assert t == 0
    values = {"beta_1": a["alpha"], "beta_2": a["beta"], "epsilon": a["epsilon"], "learning_rate": rate}
    kernels.optimizer_update("adam", w, g, slots, step=_LATE, weight_decay=a["norm_coefficient"], **values)


def _momentum(a, rate, t, w, g, slots):
    values = {"beta": a["alpha"], "learning_rate": rate}
    if a["mode"] == b"standard":
        values["dampening"] = 1.0 - (a["beta"] if t > 0 else 1.0)
    rule = "momentum" if a["mode"] == b"standard" else "nesterov"
    kernels.optimizer_update(rule, w, g, slots, step=t + 1, weight_decay=a["norm_coefficient"], **values)


_SELU = 1.67326319217681884765625, 1.05070102214813232421875  # ONNX's defaults, of float32

# op -> how it is called: the attributes and the inputs to the outputs.
CALLS = {
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Gather": _gather,
    "Mul": lambda a, x, y: [kernels.hadamard(x, y)],
    "BatchNormalization": _batch_norm,
    "InstanceNormalization": _instance_norm,
    "GroupNormalization": _group_norm,
    "MeanVarianceNormalization": _mean_variance,
    "LayerNormalization": _layer_norm,
    "Softmax": _softmax(kernels.softmax),
    "LogSoftmax": _softmax(kernels.log_softmax),
    "SoftmaxCrossEntropyLoss": _softmax_cross_entropy,
    "NegativeLogLikelihoodLoss": _negative_log_likelihood,
    "Adagrad": _optimizer(_adagrad),
    "Adam": _optimizer(_adam),
    "Momentum": _optimizer(_momentum),
    "Gelu": _gelu,
    "Elu": _activation("elu", alpha=("alpha", 1.0)),
    "Selu": _activation("selu", alpha=("alpha", _SELU[0]), scale=("gamma", _SELU[1])),
    "Celu": _activation("celu", alpha=("alpha", 1.0)),
    "Relu": _activation("relu"),
    "LeakyRelu": _activation("leaky_relu", alpha=("alpha", 0.01)),
    "PRelu": _prelu,
    "Sigmoid": _activation("sigmoid"),
    "Tanh": _activation("tanh"),
    "Softplus": _activation("softplus"),
    "Softsign": _activation("softsign"),
    "HardSwish": _activation("hard_silu"),
    "Mish": _activation("mish"),
    "Swish": _activation("silu"),
    "ThresholdedRelu": _activation("threshold", threshold=("alpha", 1.0)),
    "Shrink": _shrink,
    "Exp": _activation("exponential"),
}

# the cases of these ops, and of others that are close, which are left out, and why
LEFT_OUT = {
    "test_gemm_default_matrix_bias": "a bias of its own for each row; Dense has one for each column",
    "HardSigmoid": "the slope 1/5 of Keras 2; that of PyTorch and Keras 3 is 1/6",
    "test_mul_bcast": "factors of two shapes",
    **{f"test_mul_{kind}{size}": "integers" for kind in ("int", "uint") for size in (8, 16)},
    **{f"test_mul_uint{size}": "integers" for size in (32, 64)},
    "test_gather_negative_indices": "row numbers are from 0",
}


def _cases():
    """``(case, node)`` of every node case of one op of the two tables."""
    for case in loader.load_model_tests(kind="node"):
        nodes = onnx.load(pathlib.Path(case.model_dir) / "model.onnx").graph.node
        if len(nodes) == 1 and nodes[0].op_type in {*CALLS, *LEFT_OUT}:
            yield case, nodes[0]


CASES = {case.name: (case, node) for case, node in _cases()}


def _arrays(folder, kind):
    tensor = onnx.TensorProto()
    for k in range(len(list(folder.glob(f"{kind}_*.pb")))):
        tensor.ParseFromString((folder / f"{kind}_{k}.pb").read_bytes())
        yield numpy_helper.to_array(tensor)


RUN = [name for name, (_, node) in CASES.items() if not {name, node.op_type} & {*LEFT_OUT}]


@pytest.mark.parametrize("name", RUN)
def test_node(name):
    case, node = CASES[name]
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    folder = pathlib.Path(case.model_dir) / "test_data_set_0"
    got = CALLS[node.op_type](attributes, *_arrays(folder, "input"))
    expected = list(_arrays(folder, "output"))
    assert len(got) >= len(expected)
    for ours, theirs in zip(got, expected, strict=False):
        assert np.shape(ours) == theirs.shape
        np.testing.assert_allclose(ours, theirs, rtol=case.rtol, atol=case.atol)


def test_the_tables_name_what_there_is():
    assert (len(RUN), len(CASES) - len(RUN)) == (158, 12)
    ops = {node.op_type for _, node in CASES.values()}
    assert set(CALLS) <= ops
    assert set(LEFT_OUT) <= ops | set(CASES)
    assert not set(CALLS) & set(LEFT_OUT)

"""CUDA instructions on rows, groups and channels of any length, and on arrays that begin anywhere."""

import itertools

import numpy as np
import pytest
from cuda_instruction import DTYPES, SCALARS, compare, on_device, on_host, operands_of, rule_for
from tolerance import GRADIENT, assert_close, wider

from dlcore import kernels
from dlcore.kernels.cuda.arrays import memory
from dlcore.kernels.cuda.launch import plan
from dlcore.kernels.device import simulated
from dlcore.kernels.instructions import OPS, Instruction

_NORMS = ("group_norm_forward", "group_norm_backward")
_ROWS = ("softmax_forward", "softmax_backward", "softmax_cross_entropy", "softmax_cross_entropy_dense",
         "log_softmax_forward", "log_softmax_backward", "cosine_similarity", "categorical_hinge", "hellinger_distance",
         *_NORMS)  # fmt: skip
# rows that are read once anyway
_WALKS = ("elementwise_loss", "categorical_accuracy", "categorical_accuracy_dense", "binary_accuracy", "smooth_labels")
_BY_COLUMNS = ("batch_norm_forward", "batch_norm_inference", "batch_norm_backward", "dense_backward_z", "prelu_forward",
               "prelu_backward", "constrain_norm", "gather_rows")  # fmt: skip
_BY_ELEMENTS = ("activation_forward", "activation_backward", "hadamard", "dropout", "scale_loss", "smooth_targets",
                "ascend", "restore_weights", "weight_penalty", "weight_penalty_gradient",
                "constrain_non_negative")  # fmt: skip
# one vector and less, several, the last of them in part; single elements; the longest in registers; longer ones, of
# single elements and of vectors
_COLUMNS = {np.float32: (4, 132, 1021, 1024, 1030, 1036), np.float64: (2, 66, 511, 512, 513, 518)}


def _long():
    """Instructions, dtypes and columns."""
    for name, dtype in itertools.product((*_ROWS, *_WALKS), DTYPES):
        if (name, dtype) != ("cosine_similarity", np.float64):  # the oracle of the next test is wider
            for columns in _COLUMNS[dtype]:
                yield pytest.param(name, dtype, columns, id=f"{name}-{np.dtype(dtype).name}-{columns}")


@pytest.mark.parametrize(("name", "dtype", "columns"), list(_long()))
def test_rows_of_any_length(name, dtype, columns):
    compare(OPS[name], (3, columns, columns, 1), (), rule_for(OPS[name]), dtype)


@pytest.mark.parametrize(("dtype", "columns"), [(d, n) for d in DTYPES for n in _COLUMNS[d]])
def test_cosine_of_rows_of_any_length(dtype, columns):
    values = [v.astype(dtype) for v in np.random.default_rng(columns).standard_normal((2, 3, columns))]

    def cosine(kind):
        p, t = (v.astype(kind) for v in values)
        lengths = np.sqrt((p * p).sum(1, keepdims=True)), np.sqrt((t * t).sum(1, keepdims=True))
        value = (p * t).sum(1, keepdims=True) / (lengths[0] * lengths[1])
        return -value[:, 0], (value * p / lengths[0] ** 2 - t / (lengths[0] * lengths[1])) / 3

    got = kernels.cosine_similarity(*map(on_device, values))
    for name, g, exact, plain in zip(("loss", "gradient"), got, cosine(wider(dtype)), cosine(dtype), strict=True):
        assert_close(name, on_host(g), exact, plain, GRADIENT, 1.0 / 3)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [(3, 264, 4, 2), (2, 1032, 516, 1), (3, 2 * 261, 6, 2), (2, 2200, 4, 2)], ids=str)
@pytest.mark.parametrize("name", _NORMS)
def test_groups_of_any_length(name, size, dtype):
    """Channels of several columns that begin anywhere in a lane's vector; groups too long for registers."""
    compare(OPS[name], size, (), None, dtype)


@pytest.mark.parametrize("name", _BY_COLUMNS[:3:2])
def test_channels_of_several_parts(name):
    """A thread takes elements of several samples, and a channel is more than a block adds up."""
    compare(OPS[name], (31, 2 * 271, 2, 1), (), None, np.float64)


@pytest.mark.skipif(not simulated(), reason="arrays of NumPy run on the simulator only")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((name, (3, 132, 132, 1)) for name in (*_ROWS, *_WALKS, *_BY_COLUMNS, *_BY_ELEMENTS)),
        *((name, (2, 1036, 1036, 1)) for name in _ROWS),  # too long for registers
        *((name, (5, 3 * 8, 3, 1)) for name in (_BY_COLUMNS[0], _BY_COLUMNS[2])),  # eight columns a channel
    ],
    ids=lambda value: value if isinstance(value, str) else "x".join(map(str, value)),
)
def test_the_same_bits_wherever_arrays_begin(name, size, dtype):
    """128-bit access and access to one element after another take the same elements."""

    op = OPS[name]
    rule = rule_for(op)
    values = operands_of(op, size, rule, np.random.default_rng(5))
    results, kinds = [], []
    for offset in (0, 1):
        operands = []
        for spec in op.operands:
            value = np.asarray(values[spec.name], {"i": np.int64, "d": np.float64}.get(spec.dtype, dtype))
            room = np.empty(value.size + 16, value.dtype)
            first = -room.ctypes.data % 16 // room.itemsize + offset
            operands.append(room[first : first + value.size].reshape(value.shape))
            operands[-1][...] = value
        instruction = Instruction(name, operands, rule, [SCALARS[s] for s in op.scalars])
        launches = plan(instruction, operands, np.zeros(2, np.int64))
        memory.run(launches)
        kinds.append([launch.kernel.name.removesuffix("_scalar") for launch in launches])
        scalar = any(launch.kernel.name.endswith("_scalar") for launch in launches)
        assert scalar == (offset > 0)
        results.append([a for a, s in zip(operands, op.operands, strict=True) if s.access != "read"])
    assert kinds[0] == kinds[1]
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)

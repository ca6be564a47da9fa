"""Where the vectors of a model lie in its arena."""

import numpy as np
import pytest

import dlcore
from dlcore import layers
from dlcore.kernels.program import ALIGNMENT, PAGE, apart, padded

NEAR = 384


def distances(starts):
    """In bytes within a page, between any two."""
    found = [(b - a) % PAGE for k, a in enumerate(starts) for b in starts[k + 1 :]]
    return [min(d, PAGE - d) for d in found]


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("count", [2, 3, 4, 5, 7])
def test_vectors_begin_apart_in_their_pages_or_alike(dtype, count):
    dtype = np.dtype(dtype)
    for elements in [*range(1, 3000, 7), 9616, 536592, 1863696]:
        size = apart(elements, dtype, count)
        begin = [k * size * dtype.itemsize for k in range(count)]
        assert all(d == 0 or d >= NEAR for d in distances(begin)), elements
        assert size >= elements
        assert size * dtype.itemsize % ALIGNMENT == 0
        assert size - padded(elements, dtype) <= 512 // dtype.itemsize
    assert apart(1024, dtype, count) == 1024  # nothing is added where they begin alike already


def trained(features=784, units=(512, 256)):
    """A model whose parameters alone would begin 64 bytes apart, after two steps of Adam."""
    stack = [layers.Input((features,))]
    for n in units:
        stack += [layers.Dense(n, use_bias=False), layers.BatchNormalization(), layers.Activation("relu")]
    dlcore.set_seed(0)
    model = dlcore.Sequential([*stack, layers.Dense(10, "softmax")], device="cpu")
    model.compile("adam", "sparse_categorical_crossentropy")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((32, features)).astype(np.float32), rng.integers(0, 10, 32)
    for _ in range(2):
        model.train_on_batch(x, y)
    return model, x, y


def test_regions_follow_one_another():
    program = trained()[0]._engine.program
    offsets, work, total = program.layout(32)
    whole = [program.parameters, program.gradients, program.slots]
    ends = [offsets[b] + b.elements(32) * b.dtype.itemsize for b in whole]
    assert [offsets[b] for b in whole[1:]] == ends[:2]
    assert work == ends[2]
    assert total > work
    assert program.trained() * 4 % PAGE == 64
    slots = [offsets[program.slots] + k * program.slots.shape[1] * 4 for k in range(2)]
    assert min(distances([offsets[program.parameters], offsets[program.gradients], *slots])) >= NEAR


def test_what_lies_behind_the_last_parameter_stays_zero():
    model, _, _ = trained()
    program = model._engine.program
    behind = program.trained()
    assert program.parameters.shape[0] > behind
    for buffer in (program.parameters, program.gradients, program.slots):
        assert not model._engine.read(buffer)[..., behind:].any(), buffer.name


def test_a_file_does_not_tell_how_vectors_are_kept_apart(tmp_path):
    """Its state ends with the last parameter, as in files written before they were; it goes on bit for bit."""
    from safetensors.numpy import load_file

    model, x, y = trained()
    model.save(tmp_path / "model.safetensors")
    slots = load_file(tmp_path / "model.safetensors")["slots"]
    assert slots.shape == (2, model._engine.program.trained())
    loaded = dlcore.load(tmp_path / "model.safetensors", device="cpu")
    assert loaded.train_on_batch(x, y) == model.train_on_batch(x, y)
    for a, b in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)

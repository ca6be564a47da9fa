"""Training against PyTorch, from the same start, with the same dropout masks and the same order of samples."""

import os

import numpy as np
import oracle
import pytest
from tolerance import assert_close

import dlcore
from dlcore import layers
from dlcore.datasets import load_digits
from dlcore.kernels.device import simulated, why_no_gpu

if os.environ.get("DLCORE_REQUIRE_TORCH"):
    import torch
else:
    torch = pytest.importorskip("torch", reason="PyTorch is the second oracle; continuous integration has it")


NORMS = {
    "batch norm": lambda: layers.BatchNormalization(momentum=0.9, epsilon=1e-5),
    "layer norm": lambda: layers.LayerNormalization(epsilon=1e-5),
}


def _model(norm, units, features, classes, dtype, learning_rate, device):
    dlcore.set_seed(3)
    model = dlcore.Sequential(
        [
            layers.Input((features,), dtype=dtype),
            layers.Dense(units, use_bias=False),  # before batch norm a bias does nothing but drift with rounding
            NORMS[norm](),
            layers.Activation("relu"),
            layers.Dropout(0.25),
            layers.Dense(classes, "softmax"),
        ],
        device=device,
    )
    model.compile(dlcore.optimizers.Adam(learning_rate), "sparse_categorical_crossentropy")
    model._ensure_built()
    return model


class _Twin:
    """The same network in PyTorch, in any dtype."""

    def __init__(self, norm, model, dtype, learning_rate):
        w1, gamma, beta, *_, w2, b2 = [torch.tensor(w, dtype=dtype) for w in model.get_weights()]
        self.norm = norm
        self.parameters = [p.requires_grad_() for p in (w1, gamma, beta, w2, b2)]
        self.mean, self.var = torch.zeros(len(gamma), dtype=dtype), torch.ones(len(gamma), dtype=dtype)
        self.optimizer = torch.optim.Adam(self.parameters, lr=learning_rate)
        self.seed = int(model._engine.read(model._network.seed)[0])
        self.dtype, self.number = dtype, 4  # the number of the dropout layer

    def step(self, x, y, t):
        w1, gamma, beta, w2, b2 = self.parameters
        z = torch.tensor(x, dtype=self.dtype) @ w1
        if self.norm == "layer norm":
            z = torch.nn.functional.layer_norm(z, gamma.shape, gamma, beta, 1e-5)
        else:
            z = torch.nn.functional.batch_norm(z, self.mean, self.var, gamma, beta, True, 0.1, 1e-5)
        mask = oracle.dropout_mask(len(x), len(gamma), 0.25, self.seed, t, self.number)
        h = torch.relu(z) * torch.tensor(mask, dtype=self.dtype) / 0.75
        loss = torch.nn.functional.cross_entropy(h @ w2 + b2, torch.tensor(y))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def arrays(self):
        arrays = [p.detach().numpy() for p in self.parameters]
        state = [self.optimizer.state[p] for p in self.parameters]
        slots = {f"{name}/{slot}": s[key].numpy() for name, s in zip(_NAMES, state, strict=True)
                 for slot, key in (("m", "exp_avg"), ("v", "exp_avg_sq"))}  # fmt: skip
        weights = dict(zip(_NAMES, arrays, strict=True))
        if self.norm == "batch norm":
            weights |= {"moving_mean": self.mean.numpy(), "moving_variance": self.var.numpy()}
        return weights | slots


_NAMES = ("w1", "gamma", "beta", "w2", "b2")


def _ours(model):
    w1, gamma, beta, *running, w2, b2 = model.get_weights()
    arrays = dict(zip(_NAMES, (w1, gamma, beta, w2, b2), strict=True))
    if running:
        arrays |= dict(zip(("moving_mean", "moving_variance"), running, strict=True))
    program = model._network.program
    slots = model._engine.read(program.slots)
    offsets, _, _ = program.layout(1)
    start = offsets[program.parameters]
    for name, buffer in zip(_NAMES, program.buffers["parameter"], strict=True):
        at = (offsets[buffer] - start) // buffer.dtype.itemsize
        for slot, row in zip("mv", slots, strict=True):
            arrays[f"{name}/{slot}"] = row[at : at + buffer.elements(1)].reshape(buffer.shape)
    return arrays


CASES = [("cpu", d, s) for d in ("float64", "float32") for s in (20, 200)]
CASES += [("cuda", d, 20) for d in ("float64", "float32") if simulated() or not why_no_gpu()]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("device", "dtype", "steps"), CASES)
def test_norm_relu_dropout_adam_like_torch(device, dtype, steps, norm):
    digits, labels = load_digits()
    x, y = (digits / 16).astype(dtype), labels
    units = 128 if steps == 200 else 16
    batch = 32 if device == "cpu" else 16
    model = _model(norm, units, 64, 10, dtype, 1e-3, device)
    exact, plain = (_Twin(norm, model, kind, 1e-3) for kind in (torch.float64, getattr(torch, dtype)))
    for t in range(1, steps + 1):
        rows = np.arange(batch * (t - 1), batch * t) % len(x)
        model.train_on_batch(x[rows], y[rows])
        exact.step(x[rows], y[rows], t)
        plain.step(x[rows], y[rows], t)
    ours, reference, rounded = _ours(model), exact.arrays(), plain.arrays()
    assert set(ours) == set(reference)
    for name in ours:
        assert_close(name, ours[name], reference[name], rounded[name], 3.0, _terms(name, dtype, steps))


def _terms(name, dtype, steps):
    """Rounding grows with the steps; in float64 PyTorch cannot say how much, since it is the oracle itself."""
    return float(steps) if dtype == "float64" else 0.0

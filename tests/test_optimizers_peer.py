"""Optimizers that PyTorch lacks against those of pytorch_optimizer: 100 steps on the three problems, in float64."""

import os

import numpy as np
import pytest
from test_optimizers import PROBLEMS, SIZE, gradients_of, start, values

from dlcore import kernels
from dlcore.kernels.rule import find

if os.environ.get("DLCORE_REQUIRE_TORCH"):
    import pytorch_optimizer
    import torch
else:
    torch = pytest.importorskip("torch", reason="continuous integration has PyTorch")
    pytorch_optimizer = pytest.importorskip("pytorch_optimizer", reason="continuous integration has pytorch_optimizer")


def _moments(h, *more):
    return {"lr": h["learning_rate"], "betas": (h["beta_1"], h["beta_2"], *more), "eps": h["epsilon"]}


# rule -> the name there, its arguments for the rule's values, values that differ from those of the other comparison
PEERS = {
    "adabelief": ("adabelief", _moments, {}),
    "adabound": ("adabound", lambda h: {**_moments(h), "final_lr": h["final_rate"], "gamma": h["gamma"]}, {}),
    "adafactor": ("adafactor", lambda h: {
        "lr": h["learning_rate"], "betas": (None, 0.999), "decay_rate": -h["decay"], "clip_threshold": h["clip_threshold"],
        "eps1": h["epsilon_1"], "eps2": h["epsilon_2"]}, {}),
    "adan": ("adan", lambda h: _moments(h, h["beta_3"]), {}),
    "adapnm": ("adapnm", lambda h: _moments(h, h["negative"]), {"epsilon": 0.0}),  # inside the bias correction there
    "ademamix": ("ademamix", lambda h: {**_moments(h, h["beta_3"]), "alpha": h["alpha"]}, {}),
    "adopt": ("adopt", lambda h: {**_moments(h), "clip_lambda": None}, {}),
    "aggmo": ("aggmo", lambda h: {"lr": h["learning_rate"], "betas": (0.0, h["beta_1"], h["beta_2"])}, {}),
    "amsbound": (
        "adabound", lambda h: {**_moments(h), "final_lr": h["final_rate"], "gamma": h["gamma"], "ams_bound": True}, {}),
    "diffgrad": ("diffgrad", _moments, {"epsilon": 0.0}),  # as for AdaPNM
    "fromage": ("fromage", lambda h: {"lr": h["learning_rate"]}, {}),
    "ftrl": ("ftrl", lambda h: {
        "lr": h["learning_rate"], "beta": h["offset"], "lambda_1": h["l1"], "lambda_2": h["l2"]}, {}),
    "grams": ("grams", _moments, {}),
    "kate": ("kate", lambda h: {"lr": h["learning_rate"], "delta": h["eta"], "eps": h["epsilon"]}, {}),
    "laprop": ("laprop", lambda h: {**_moments(h), "foreach": False}, {"epsilon": 0.0}),  # as for AdaPNM
    "lars": ("lars", lambda h: {
        "lr": h["learning_rate"], "momentum": h["beta"], "trust_coefficient": h["trust"], "weight_decay": h["decay"]},
        {"epsilon": 0.0}),
    "lion": ("lion", lambda h: {"lr": h["learning_rate"], "betas": (h["beta_1"], h["beta_2"])}, {}),
    "madgrad": ("madgrad", lambda h: {"lr": h["learning_rate"], "momentum": h["momentum"], "eps": h["epsilon"]},
                {"epsilon": 0.0}),  # it is added to the rate there, too
    "msvag": ("msvag", lambda h: {"lr": h["learning_rate"], "beta": h["beta"]}, {}),
    "novograd": ("novograd", lambda h: {**_moments(h), "weight_decay": h["decay"]}, {}),
    "pnm": ("pnm", lambda h: {"lr": h["learning_rate"], "betas": (h["beta"], h["negative"])}, {}),
    "qhadam": ("qhadam", lambda h: {**_moments(h), "nus": (h["nu_1"], h["nu_2"])}, {}),
    "qhm": ("qhm", lambda h: {"lr": h["learning_rate"], "momentum": h["beta"], "nu": h["nu"]}, {}),
    "sgdw": ("sgdw", lambda h: {"lr": h["learning_rate"], "momentum": h["beta"], "dampening": h["dampening"]}, {}),
    "sign_sgd": ("signsgd", lambda h: {"lr": h["learning_rate"], "momentum": 0.0}, {}),
    "signum": ("signsgd", lambda h: {"lr": h["learning_rate"], "momentum": h["beta"]}, {}),
    "sm3": ("sm3", lambda h: {"lr": h["learning_rate"]}, {}),
    "tiger": ("tiger", lambda h: {"lr": h["learning_rate"], "beta": h["beta"], "weight_decay": 0.0}, {}),
}  # fmt: skip

# Those it has as well, and makes other steps with than their papers; they are compared with the papers' formulas alone.
OTHERS = {
    "adamod": "the bias correction of the first moment is part of what is averaged",
    "lamb": "the ratio of the norms is bounded",
    "padam": "without AMSGrad's largest second moment",
    "yogi": "with bias correction, and both moments begin with the accumulator",
}


@pytest.fixture
def _in_float64(monkeypatch):
    torch.set_default_dtype(torch.float64)
    for name in ("apply_ams_bound", "apply_ams_bound_foreach"):  # which add 1e-15 under the root
        monkeypatch.setattr(getattr(pytorch_optimizer.base.optimizer.BaseOptimizer, name), "__defaults__", (0.0,))
    yield
    torch.set_default_dtype(torch.float32)


def by_the_peer(name, h):
    theirs, arguments, _ = PEERS[name]
    w, _ = start(name, np.float64)
    p = torch.nn.Parameter(torch.tensor(w.reshape(len(PROBLEMS), SIZE)))  # LARS leaves vectors out
    optimizer = pytorch_optimizer.load_optimizer(theirs)([p], **arguments(h))
    for g in gradients_of(name, np.float64):
        p.grad = torch.tensor(g).reshape(p.shape)
        optimizer.step()
        for key, value in optimizer.state[p].items():
            if isinstance(value, torch.Tensor) and value.dtype == torch.float32:  # weights of QHAdam: 1 so far
                optimizer.state[p][key] = value.double()
    return p.detach().numpy().reshape(w.shape)


@pytest.mark.usefixtures("_in_float64")
@pytest.mark.parametrize("name", PEERS)
def test_a_hundred_steps(name):
    h = {**values(name), **PEERS[name][2]}
    w, slots = start(name, np.float64)
    for t, g in enumerate(gradients_of(name, np.float64), 1):
        kernels.optimizer_update(find("optimizer", name), w, g, slots, step=t, **h)
    np.testing.assert_allclose(w, by_the_peer(name, h), rtol=1e-11, atol=1e-13)


def test_what_it_has_is_compared_or_known_to_differ():
    from test_optimizers_torch import TORCH

    from dlcore.kernels.rule import REGISTRY, builtin

    theirs = set(pytorch_optimizer.get_supported_optimizers())
    ours = {rule.name for rule in REGISTRY["optimizer"].values() if builtin(rule)}
    assert theirs & ours - {*TORCH, *PEERS, *OTHERS} == {"adamw"}  # which is PyTorch's own there

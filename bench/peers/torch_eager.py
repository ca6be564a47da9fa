"""PyTorch: eager, or compiled where the way is ``compile``."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from ..cases import LEARNING_RATE, Adam, Case, Dense, Missing, Models, Norm, Predict, Step, Work
from . import THREADS

torch.set_num_threads(THREADS)


def build(case: Case, way: str) -> Work:
    """The work of ``case``; ``way`` is ``eager`` or ``compile``."""
    if way == "compile" and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        raise Missing("no C++ compiler")
    match case:
        case Step():
            return Work(_step(case, way))
        case Predict():
            return Work(_predict(case))
        case Models():
            return _one_by_one(case, way)
        case Adam():
            return Work(_adam(case))
        case Norm():
            return Work(_norm(case))
        case Dense():
            return Work(_dense(case))
    raise Missing(f"no row of kind {case.kind}")


def network(case: Step) -> nn.Sequential:
    """The layers of ``case``, which end in logits."""
    stack: list[nn.Module] = []
    for k, n in zip(case.widths[:-2], case.widths[1:-1], strict=True):
        stack.append(nn.Linear(k, n, bias=not case.norm))
        if case.norm:
            stack.append(nn.BatchNorm1d(n))
        stack.append(nn.ReLU())
        if case.dropout:
            stack.append(nn.Dropout(case.dropout))
    return nn.Sequential(*stack, nn.Linear(case.widths[-2], case.widths[-1]))


def _step(case: Step, way: str) -> Callable[[], Any]:
    torch.manual_seed(0)
    model = network(case)
    x, y = map(torch.from_numpy, case.data())
    if case.binary:
        y = y.float()[:, None]
    criterion = F.binary_cross_entropy_with_logits if case.binary else F.cross_entropy
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)

    def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return criterion(model(x), y)

    loss_of = torch.compile(forward) if way == "compile" else forward

    def step() -> None:
        optimizer.zero_grad()
        loss_of(x, y).backward()
        optimizer.step()

    return step


def _predict(case: Predict) -> Callable[[], Any]:
    model, x = network(case.step).eval(), torch.from_numpy(case.data())

    def call() -> None:
        with torch.inference_mode():
            F.softmax(model(x), 1)

    return call


def _one_by_one(case: Models, way: str) -> Work:
    steps = [_step(case.step, way) for _ in range(case.count)]

    def call() -> None:
        for step in steps:
            step()

    return Work(call, case.count)


def _adam(case: Adam) -> Callable[[], Any]:
    torch.manual_seed(0)
    parameters = [torch.randn(size).requires_grad_() for size in case.sizes]
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape)
    return torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=True).step


def _norm(case: Norm) -> Callable[[], Any]:
    x, dy = map(torch.from_numpy, case.data())
    x.requires_grad_()
    gamma, beta = (make(case.features).requires_grad_() for make in (torch.ones, torch.zeros))
    running_mean, running_var = torch.zeros(case.features), torch.ones(case.features)

    def call() -> None:
        x.grad = gamma.grad = beta.grad = None
        F.batch_norm(x, running_mean, running_var, gamma, beta, training=True).backward(dy)

    return call


def _dense(case: Dense) -> Callable[[], Any]:
    x, w, b = map(torch.from_numpy, case.data())
    weight = w.T.contiguous()  # as nn.Linear stores it

    def call() -> None:
        with torch.no_grad():
            torch.relu(F.linear(x, weight, b))

    return call

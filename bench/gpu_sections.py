"""What only a GPU can tell, by sections; each runs in a process of its own and prints its rows as JSON.

    python -m bench.gpu_sections kernels

Times are medians between events of the device, over inputs larger than its caches. Bytes are the least possible: every
operand read once and every result written once.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from .timing import ROOT

Row = dict[str, Any]
ELEMENTS = 1 << 26  # of the arrays that memory-bound kernels run over
_BURSTS = 7


def seconds(call: Callable[[], Any]) -> float:
    """The median time of a call on the device, without what the host does before the first."""
    from dlcore.kernels.cuda import driver

    return driver.seconds(call)


def host_seconds(call: Callable[[], Any], count: int = 1000) -> float:
    """The median time in which the host gets through a call, the device having nothing else to do."""
    import cupy

    call()
    bursts = []
    for _ in range(_BURSTS):
        cupy.cuda.Device().synchronize()
        start = time.perf_counter()
        for _ in range(count):
            call()
        bursts.append((time.perf_counter() - start) / count)
    cupy.cuda.Device().synchronize()
    return statistics.median(bursts)


def _random(*shape: int) -> Any:
    import cupy

    return cupy.random.default_rng(0).standard_normal(shape, dtype=np.float32)


# ------------------------------------------------------------------------------------------------- ceilings


def ceilings() -> Iterator[Row]:
    """The rates that this GPU reaches at best: copying, and products of the vendor's library."""
    import cupy

    yield {"what": "copy, 1 GiB", "seconds": _copy(1 << 28), "bytes": 2 << 30}
    a, b = _random(4096, 4096), _random(4096, 4096)
    flops = 2 * 4096**3
    yield {"what": "cuBLAS, 4096^3, float32", "seconds": seconds(lambda: cupy.matmul(a, b)), "flops": flops}
    try:
        import torch
    except ImportError:
        return
    rounded = ("tf32", torch.float32, True), ("bfloat16", torch.bfloat16, False), ("float16", torch.float16, False)
    for label, dtype, tf32 in rounded:
        torch.backends.cuda.matmul.allow_tf32 = tf32
        x, y = (torch.as_tensor(array, device="cuda").to(dtype) for array in (a, b))
        with _torch_stream():
            product = functools.partial(torch.matmul, x, y)
            yield {"what": f"torch, 4096^3, {label}", "seconds": seconds(product), "flops": flops}


def _copy(count: int) -> float:
    import cupy

    source, target = _random(count), cupy.empty(count, np.float32)
    return seconds(lambda: cupy.copyto(target, source))


@contextlib.contextmanager
def _torch_stream() -> Iterator[None]:
    """PyTorch's work on CuPy's current stream, where the events are."""
    import cupy
    import torch

    with torch.cuda.stream(torch.cuda.ExternalStream(cupy.cuda.get_current_stream().ptr)):
        yield


# -------------------------------------------------------------------------------------------------- launches


def launches() -> Iterator[Row]:
    """What the host spends on one launch, by the ways there are, and on replaying a graph of 30."""
    import cupy
    from numba import cuda

    from dlcore.kernels.cuda import driver
    from dlcore.kernels.cuda.launch import Launch, _advance

    cursor = cupy.zeros(2, np.int64)
    one = Launch(_advance(), (1,), (1,), (cursor, np.int64(1)))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        calls = driver.prepare([one])
        ours = host_seconds(lambda: driver.run(calls, stream))
        yield {"what": "a launch: dlcore", "seconds": ours}
        raw = cupy.RawKernel('extern "C" __global__ void k(long long* c, long long n) { c[0] += n; }', "k")
        yield {"what": "a launch: cupy.RawKernel", "seconds": host_seconds(lambda: raw((1,), (1,), (cursor, 1)))}
        external = cuda.external_stream(stream.ptr)
        configured = one.kernel[(1,), (1,), external]
        wrapped = cuda.as_cuda_array(cursor, sync=False)
        yield {"what": "a launch: numba", "seconds": host_seconds(lambda: configured(wrapped, np.int64(1)))}
        many = driver.prepare([one] * 30)
        graph = driver.capture(many, stream)
        yield {"what": "30 launches in order", "seconds": seconds(lambda: driver.run(many, stream))}
        yield {"what": "30 launches as a graph", "seconds": seconds(lambda: graph.launch(stream))}
        yield {"what": "replaying a graph, on the host", "seconds": host_seconds(lambda: graph.launch(stream), 200)}


# --------------------------------------------------------------------------------------------------- kernels


def _instruction(op: Any, arrays: Sequence[Any], rule: Any = None, scalars: Sequence[float] = ()) -> Row:
    """Time and least bytes of one instruction on arrays of the device."""
    import cupy

    from dlcore.kernels.cuda import driver, launch
    from dlcore.kernels.instructions import Instruction

    instruction = Instruction(op, arrays, rule, list(scalars))
    calls = driver.prepare(launch.plan(instruction, arrays, cupy.zeros(2, np.int64)))
    moved = 0
    for spec, array in zip(instruction.op.operands, arrays, strict=True):
        if array is not None:
            moved += array.nbytes * (2 if spec.access == "update" else 1)
    stream = cupy.cuda.get_current_stream()
    return {"what": instruction.op.name, "seconds": seconds(lambda: driver.run(calls, stream)), "bytes": moved}


def kernels() -> Iterator[Row]:
    """Memory-bound kernels over 64 Mi elements, and the same work by PyTorch."""
    import cupy

    from dlcore.kernels import find
    from dlcore.kernels.instructions import MIXED

    rows, columns = ELEMENTS // 1024, 1024
    empty = cupy.empty_like
    x, dy = _random(rows, columns), _random(rows, columns)
    gamma, beta = cupy.ones(columns, np.float32), cupy.zeros(columns, np.float32)
    mean, var, rstd = cupy.zeros_like(gamma), cupy.ones_like(gamma), cupy.ones_like(gamma)
    peers = dict(_torch_kernels())
    out = empty(x)
    w, g = _random(ELEMENTS), _random(ELEMENTS)
    for name in ("sgd", "momentum", "rmsprop", "adam"):
        rule = find("optimizer", name)
        slots, uniforms = cupy.zeros((len(rule.slots), ELEMENTS), np.float32), cupy.ones(16, np.float32)
        yield _instruction("optimizer_update", [w, g, slots, uniforms], rule) | {"what": name} | peers.get(name, {})
        if name == "adam":
            short, update = g.astype(np.float16), MIXED["optimizer_update_mixed"]
            row = _instruction(update, [w, short, slots, short.copy(), uniforms], rule)
            yield row | {"what": "adam, float16 beside float32"}
            del short
        del slots
    norm = _instruction(
        "batch_norm_forward", [x, gamma, beta, mean, var, empty(mean), empty(rstd), out], scalars=(0.9, 1e-5)
    )
    yield norm | peers.get("batch_norm_forward", {})
    sums = [empty(gamma), empty(beta)]
    back = _instruction("batch_norm_backward", [dy, x, gamma, mean, rstd, out, *sums])
    yield back | peers.get("batch_norm_backward", {})
    rows_mean, rows_rstd = cupy.zeros((rows, 1), np.float32), cupy.ones((rows, 1), np.float32)
    yield _instruction("group_norm_forward", [x, gamma, beta, rows_mean, rows_rstd, out], scalars=(1e-5,))
    yield _instruction("group_norm_backward", [dy, x, gamma, rows_mean, rows_rstd, out, *sums])
    yield _instruction("activation_forward", [x, out], find("activation", "relu")) | {"what": "relu"}
    yield _instruction("softmax_forward", [x, out])
    labels = cupy.zeros(rows, np.int64)
    yield _instruction("softmax_cross_entropy", [x, labels, None, cupy.empty(rows, np.float32), out])


def _torch_kernels() -> Iterator[tuple[str, Row]]:
    try:
        import torch
    except ImportError:
        return
    with _torch_stream():
        w = torch.randn(ELEMENTS, device="cuda", requires_grad=True)
        w.grad = torch.randn_like(w)
        for name, optimizer in (
            ("sgd", torch.optim.SGD([w], lr=1e-3, fused=True)),
            ("momentum", torch.optim.SGD([w], lr=1e-3, momentum=0.9, fused=True)),
            ("adam", torch.optim.Adam([w], fused=True)),
        ):
            yield name, {"peer": "torch fused", "peer_seconds": seconds(optimizer.step)}
        del w, optimizer
        x = torch.randn(ELEMENTS // 1024, 1024, device="cuda", requires_grad=True)
        dy = torch.randn_like(x)
        gamma, beta = (f(1024, device="cuda").requires_grad_() for f in (torch.ones, torch.zeros))
        statistic = torch.zeros(1024, device="cuda"), torch.ones(1024, device="cuda")

        def forward() -> Any:
            return torch.nn.functional.batch_norm(x, *statistic, gamma, beta, training=True)

        yield "batch_norm_forward", {"peer": "torch", "peer_seconds": seconds(forward)}
        y = forward()

        def backward() -> Any:
            return torch.autograd.grad(y, (x, gamma, beta), dy, retain_graph=True)

        yield "batch_norm_backward", {"peer": "torch", "peer_seconds": seconds(backward)}


# -------------------------------------------------------------------------------------------------- products


def products() -> Iterator[Row]:
    """Dense layers, forward and backward in strict float32, beside the product alone of cuBLAS.

    They are what a model would run here: after ``dlcore tune`` of a size, what was the fastest then.
    """
    import cupy

    from dlcore.kernels import find

    relu = find("activation", "relu")
    for m, k, n in (
        (4096, 4096, 4096),
        (1024, 1024, 1024),
        (512, 784, 512),
        (256, 784, 1024),
        (128, 4096, 128),
        (32, 64, 128),
    ):
        x, w, b, dz = _random(m, k), _random(k, n), _random(n), _random(m, n)
        y, dw, dx = cupy.empty((m, n), np.float32), cupy.empty((k, n), np.float32), cupy.empty((m, k), np.float32)
        flops = 2 * m * k * n
        shape = f"{m} x {k} x {n}"
        for what, row, peer in (
            (
                "relu(x W + b)",
                _instruction("dense_forward", [x, w, b, None, y], relu),
                lambda x=x, w=w: cupy.matmul(x, w),
            ),
            ("x^T dz", _instruction("dense_backward_w", [x, dz, dw]), lambda x=x, dz=dz: cupy.matmul(x.T, dz)),
            ("dz W^T", _instruction("dense_backward_x", [dz, w, dx]), lambda w=w, dz=dz: cupy.matmul(dz, w.T)),
        ):
            yield row | {
                "what": f"{what}, {shape}", "flops": flops, "peer": "cuBLAS product", "peer_seconds": seconds(peer),
            }  # fmt: skip


def tuning() -> Iterator[Row]:
    """One dense layer, forward: the fastest plan against the one that is chosen without measurements, and cuBLASLt."""
    from dlcore.kernels.cuda import tune

    m, k, n = 512, 784, 512
    found = tune.measure("float32", "ab", m, n, k)
    yield {
        "what": f"relu(x W + b), {m} x {k} x {n}", "seconds": found.seconds[found.fastest], "flops": 2 * m * k * n,
        "peer": f"model, of {len(found.seconds)} plans", "peer_seconds": found.seconds[found.modelled],
    }  # fmt: skip
    best = found.best
    if best.library is None:
        yield {"what": "the same by cuBLASLt", "note": found.refused}
        return
    yield {
        "what": "the same", "seconds": best.seconds, "flops": 2 * m * k * n,
        "peer": f"cuBLASLt, of {len(found.library)} algorithms", "peer_seconds": best.library.seconds,
    }  # fmt: skip


# ----------------------------------------------------------------------------------------------------- steps

_NETWORKS = {
    "64-128-10, b32": (64, (128,), 32),
    "784-256-128-10, b64": (784, (256, 128), 64),
    "784-1024-1024-10, b256": (784, (1024, 1024), 256),
    "784-4096-4096-10, b4096": (784, (4096, 4096), 4096),
}
_STEPS = 64


def steps() -> Iterator[Row]:
    """A whole training step inside ``fit``, against PyTorch: eager, compiled, and as a CUDA graph."""
    import cupy

    import dlcore
    from dlcore import layers

    for name, (inputs, hidden, batch) in _NETWORKS.items():
        rng = np.random.default_rng(0)
        x = rng.standard_normal((batch * _STEPS, inputs), dtype=np.float32)
        y = rng.integers(0, 10, batch * _STEPS)
        inner = [layers.Dense(size, "relu") for size in hidden]
        model = dlcore.Sequential([layers.Input((inputs,)), *inner, layers.Dense(10, "softmax")], device="cuda")
        model.compile("adam", "sparse_categorical_crossentropy")

        def fit(epochs: int, model: Any = model, x: Any = x, y: Any = y, batch: int = batch) -> float:
            start = time.perf_counter()
            model.fit(x, y, batch_size=batch, epochs=epochs, verbose=0)
            cupy.cuda.Device().synchronize()
            return time.perf_counter() - start

        fit(1)
        few, many = (statistics.median(fit(epochs) for _ in range(3)) for epochs in (1, 9))
        row = {"what": name, "seconds": (many - few) / (8 * _STEPS)}
        rows = [row | {"peer": peer, "peer_seconds": took} for peer, took in _torch_steps(inputs, hidden, batch)]
        yield from rows or [row]


def _torch_steps(inputs: int, hidden: Sequence[int], batch: int) -> Iterator[tuple[str, float]]:
    try:
        import torch
    except ImportError:
        return
    from torch import nn

    sizes = [inputs, *hidden, 10]
    parts: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        parts += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    network = nn.Sequential(*parts[:-1]).cuda()
    loss_of = nn.CrossEntropyLoss()
    optimizer = torch.optim.Adam(network.parameters(), fused=True, capturable=True)
    x = torch.randn(batch, inputs, device="cuda")
    y = torch.randint(0, 10, (batch,), device="cuda")

    def stepper(forward: Callable[[Any], Any]) -> Callable[[], None]:
        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            loss_of(forward(x), y).backward()
            optimizer.step()

        return step

    eager = stepper(network)
    with _torch_stream():
        yield "torch eager", seconds(eager)
        yield "torch.compile", seconds(stepper(torch.compile(network)))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):
            eager()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        eager()
    with _torch_stream():
        yield "torch CUDA graph", seconds(graph.replay)


# -------------------------------------------------------------------------------------------- tests, sanitizer


def tests() -> Iterator[Row]:
    """The test suite on the device."""
    environment = {**os.environ, "DLCORE_TEST_DEVICE": "cuda"}
    chosen = [*sorted(map(str, (ROOT / "tests").glob("test_cu*.py"))), "tests/test_model.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *chosen]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    lines = done.stdout.strip().splitlines()
    failed = [line for line in lines if line.startswith(("FAILED", "ERROR"))]
    yield {"what": "test suite", "note": lines[-1] if lines else done.stderr[-500:], "failed": failed}


_SMALL = """
import numpy as np, dlcore
from dlcore import layers
inner = [layers.Dense(33), layers.BatchNormalization(), layers.Activation("relu"), layers.Dropout(0.2)]
model = dlcore.Sequential([layers.Input((19,)), *inner, layers.Dense(7, "softmax")], device="cuda")
model.compile(dlcore.optimizers.Adam(global_clipnorm=1.0), "sparse_categorical_crossentropy", ["accuracy"])
rng = np.random.default_rng(0)
model.fit(rng.standard_normal((70, 19)).astype("float32"), rng.integers(0, 7, 70), batch_size=32, verbose=0)
"""


def sanitizer() -> Iterator[Row]:
    """compute-sanitizer over a small training run: memory, races, uninitialised reads, barriers."""
    tool = shutil.which("compute-sanitizer")
    if tool is None:
        yield {"what": "compute-sanitizer", "note": "not found"}
        return
    for check in ("memcheck", "racecheck", "initcheck", "synccheck"):
        command = [tool, "--tool", check, sys.executable, "-c", _SMALL]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        found = re.findall(r"(?:ERROR SUMMARY|RACECHECK SUMMARY): .*", done.stdout + done.stderr)
        yield {"what": f"compute-sanitizer {check}", "note": found[-1] if found else (done.stdout + done.stderr)[-300:]}


SECTIONS = {part.__name__: part for part in (ceilings, launches, kernels, products, tuning, steps, tests, sanitizer)}


def main(arguments: Sequence[str]) -> int:
    """Print each row of a section as a line of JSON as soon as it is there."""
    for row in SECTIONS[arguments[0]]():
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

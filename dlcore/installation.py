"""``dlcore info`` and ``dlcore warmup``: what is there, and compiling ahead."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from . import kernels, layers
from ._version import __version__
from .commands import CommandError
from .kernels import cache, compile, device, get_num_threads
from .kernels.cpu import compiling, microkernel
from .kernels.cpu.crowd import available
from .kernels.cpu.machine import HAS_FUTEX
from .model import Sequential


def _version(distribution: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> tuple[str, list[str]]:
    import llvmlite.binding as llvm

    features = llvm.get_host_cpu_features()
    wanted = ("sse4.2", "avx", "avx2", "fma", "avx512f", "avx512bf16", "amx-bf16", "neon", "sve")
    return llvm.get_host_cpu_name(), [name for name in wanted if features.get(name)]


def _gpus() -> dict[str, str]:
    """A fact for each GPU, or one that says why there is none."""
    reason = device.why_no_gpu()
    if not device.devices() or device.simulated():
        return {"gpu": f"none ({reason})"}
    import cupy

    facts = {}
    for number in range(device.devices()):
        properties = cupy.cuda.runtime.getDeviceProperties(number)
        found = f"{properties['name'].decode()}, compute capability {properties['major']}.{properties['minor']}"
        old = device.too_old(number)
        facts[f"gpu {number}"] = f"{found} (not used: {old})" if old else found
    from .kernels.cuda import cublaslt

    absent = cublaslt.why_not()
    facts["library"] = cublaslt.name_of(cublaslt.version()) if absent is None else absent
    return facts


def _chosen() -> str:
    found, reason = device.resolve("auto"), device.why_no_gpu()
    return f"{found} (no GPU: {reason})" if found == "cpu" else found


def info(arguments: argparse.Namespace) -> None:
    """``dlcore info``"""
    alone = compiling.why_alone()
    names = ("numpy", "numba", "llvmlite", "cupy-cuda13x", "cupy-cuda12x", "numba-cuda", "matplotlib", "torch")
    processor, features = _processor()
    folder = cache.cache_directory()
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    facts: dict[str, Any] = {
        "dlcore": __version__,
        "python": platform.python_version(),
        **{name: version for name in names if (version := _version(name)) is not None},
        "system": f"{platform.system()} {platform.machine()}",
        "processor": f"{processor}: {' '.join(features)}",
        "cores": len(available() or ()) or os.cpu_count(),
        "threads": f"{get_num_threads()}, waiting by {'futex' if HAS_FUTEX else 'mutex and condition'}",
        "vectors": f"{8 * microkernel.vector_bytes()} bits",
        "compilation": "2 processes" if alone is None else f"1 process ({alone})",
        **_gpus(),
        "device": _chosen(),
        "cache": str(folder),
        "cache size": f"{size / 1e6:.1f} MB",
    }
    if arguments.json:
        print(json.dumps(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


def warmup(arguments: argparse.Namespace) -> None:
    """``dlcore warmup``"""
    architectures = _architectures(arguments.cuda)
    if arguments.many and not architectures:
        raise CommandError("--many needs --cuda, or a GPU: on the CPU many models run the kernels of one")
    start = time.perf_counter()
    with compile.announcing(lambda name: print(f"compiling {name}", flush=True)):
        for dtype in ("float32", "float64") if arguments.float64 else ("float32",):
            for model in _exercise(dtype):
                if architectures:  # only then, because it imports the CUDA tools
                    from .kernels.cuda.ahead import compile_ahead

                    for arch in architectures:
                        compile_ahead(model.program, arch, arguments.many)
    statistics = compile.STATISTICS
    if not statistics["compiled"]:
        print(f"nothing to do: all {statistics['loaded']} kernels are in the cache, {cache.cache_directory()}")
        return
    seconds, elsewhere = time.perf_counter() - start, statistics["elsewhere"]
    beside = f", {elsewhere:.0f} of them in a second process," if elsewhere else ""
    print(f"compiled {statistics['compiled']:.0f} kernels in {seconds:.1f} s{beside} into {cache.cache_directory()}")


def _architectures(given: str | None) -> list[int]:
    """Those of ``--cuda``, such as ``90`` or ``80,sm_90``; that of the GPU, if there is one, where nothing is said."""
    if given is None:
        found = device.capability()
        return [] if found is None else [found]
    from .kernels.cuda.ahead import why_not

    reason = why_not()
    if reason is not None:
        raise CommandError(f"--cuda cannot be used: {reason}")
    names = [name.strip().removeprefix("sm_").replace(".", "") for name in given.split(",")]
    wrong = [name for name in names if not name.isdecimal() or int(name) < device.OLDEST]
    if wrong:
        raise CommandError(f"--cuda expects architectures from {device.OLDEST} on, such as 90 or 80,90; got {given!r}")
    return [int(name) for name in names]


def _exercise(dtype: str) -> Iterator[Sequential]:
    """Run every layer, loss and metric of the command line once; the models that did it."""
    x, y = np.zeros((4, 3), dtype), np.array([0, 1, 0, 1])
    inner = [
        layers.Dense(4, "relu"),
        layers.Dense(4, use_bias=False),
        layers.BatchNormalization(),
        layers.Activation("relu"),
        layers.Dropout(0.5),
    ]
    for stack, loss, metric in (
        (
            [layers.Input((3,), dtype=dtype), *inner, layers.Dense(2, "softmax")],
            "sparse_categorical_crossentropy",
            "accuracy",
        ),
        ([layers.Dense(1, dtype=dtype)], "mse", "mae"),
    ):
        model = Sequential(stack, device="cpu")
        model.compile("adamw", loss, [metric])
        model.fit(x, y, verbose=0, validation_data=(x, y))
        model.train_on_batch(x.copy(), y.copy())
        model.predict(x)
        yield model
    for vectors in range(1, microkernel.VECTORS + 1):  # every tile that products of some width need
        for missing in (0, 1):
            w = np.zeros((3, vectors * microkernel.lanes(dtype) - missing), dtype)
            kernels.dense_forward(x, w)

"""The peers: which module measures which column, in which way, and with which environment."""

from __future__ import annotations

from collections.abc import Mapping

from .. import cases
from ..timing import Column

THREADS = 2

_COUNT = str(THREADS)
# read when the libraries are imported; none may see a GPU
ENVIRONMENT = {
    "OMP_NUM_THREADS": _COUNT,
    "OPENBLAS_NUM_THREADS": _COUNT,
    "MKL_NUM_THREADS": _COUNT,
    "NUMBA_NUM_THREADS": _COUNT,
    "NPROC": _COUNT,  # the thread pool of XLA
    "JAX_PLATFORMS": "cpu",
    "CUDA_VISIBLE_DEVICES": "",
}

# distribution whose version the report names, module
_MODULES = {
    "dlcore": "bench.peers.ours",
    "torch": "bench.peers.torch_eager",
    "torch.compile": "bench.peers.torch_eager",
    "jax": "bench.peers.jax_jit",
    "scikit-learn": "bench.peers.sklearn_mlp",
}
MODULES: Mapping[str, tuple[str, Mapping[str, str]]] = {
    name: (module, ENVIRONMENT) for name, module in _MODULES.items()
}
DISTRIBUTIONS = ("numpy", "numba", "torch", "jax", "jaxlib", "scikit-learn")

COLUMNS = {
    column.label: column
    for column in (
        Column(cases.OURS, "dlcore", "step"),
        Column(cases.FIT, "dlcore", "fit"),
        Column(cases.SEQUENTIAL, "dlcore", "sequential"),
        Column(cases.TOGETHER, "dlcore", "together"),
        Column(cases.TORCH, "torch", "eager"),
        Column(cases.COMPILED, "torch.compile", "compile"),
        Column(cases.JAX, "jax", "jit"),
        Column(cases.SKLEARN, "scikit-learn", "partial_fit"),
    )
}

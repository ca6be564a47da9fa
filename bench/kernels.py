"""The CUDA kernels that `python -m bench sass` compiles: the catalogue, and with the arrays they are made for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

WRAPPED = "wrapped_"  # before the name of the kernel function, in the names of entries


def entries(rules: Sequence[str] = ()) -> list[Any]:
    """Every kernel with the named rules, or with all; the catalogue's arrays are small and never all aligned."""
    from dlcore.kernels.cuda.launch import catalogue

    parts = catalogue(rules=rules), _placed(rules), _wrapped(rules), _rows(rules), _products(), _means()
    return [entry for part in (*parts, _of_many_models(rules)) for entry in part]


def place(dtype: Any, offset: int, *shape: int) -> Any:
    """An array that begins ``offset`` elements after a multiple of 16 bytes."""
    import numpy as np

    memory = np.ones(int(np.prod(shape)) + 64, dtype)
    first = -memory.ctypes.data % 16 // memory.itemsize + offset
    return memory[first : first + int(np.prod(shape))].reshape(shape)


def _entry(label: str, launch: Any, dtype: Any, oldest: int = 0, kind: str = "") -> Any:
    from dlcore.kernels.cuda.launch import DELIBERATE_FLOAT64, Entry
    from dlcore.kernels.cuda.machine_code import argument_types

    function, kinds = launch.kernel.py_func, argument_types(launch.arguments)
    name = f"{label}/{kind}{function.__name__}/{dtype}"
    double = str(dtype) == "float64" or function.__name__ in DELIBERATE_FLOAT64
    return Entry(name, function, kinds, launch.kernel.options, double, oldest)


_ROWS = (
    "softmax",
    "log_softmax",
    "group_norm",
    "cosine_similarity",
    "categorical_hinge",
    "hellinger_distance",
)
_BY_COLUMNS = (
    "batch_norm",
    "dense_backward_z",
    "prelu",
    "constrain_norm",
    "gather_rows",
    "kronecker",
    "khatri_rao",
    "elementwise_loss",
    "categorical_accuracy",
    "binary_accuracy",
    "smooth_labels",
    "dropout",
)
_BY_ELEMENTS = (
    "activation",
    "hadamard",
    "scale_loss",
    "smooth_targets",
    "ascend",
    "restore_weights",
    "weight_penalty",
    "constrain_non_negative",
)


def _rows(rules: Sequence[str]) -> Iterator[Any]:
    """Kernels that keep rows in registers, with the longest there are and longer ones; others with rows of 128 bits."""
    import numpy as np

    from dlcore.kernels.cuda.launch import plan
    from dlcore.kernels.cuda.warp import KEPT, WIDTH
    from dlcore.kernels.instructions import OPS, Instruction
    from dlcore.kernels.rule import REGISTRY

    def planned(name: str, mark: str, dtype: str, offset: int, columns: int, groups: int) -> Iterator[Any]:
        op = OPS[name]
        sizes = {"m": 3, "n": groups * columns, "k": columns if groups == 1 else groups, "g": groups, "N": 3, "O": 3}
        sizes |= {"A": 3, "E": 1, "q": columns**2, "P": columns, "Q": 1, "L": 4, "U": 5}
        kinds = {"i": np.int64, "d": np.float64}
        operands = [place(kinds.get(spec.dtype, dtype), offset, *(sizes[d] for d in spec.dims)) for spec in op.operands]
        chosen = [rule for rule in REGISTRY[op.rule].values() if not rules or rule.name in rules] if op.rule else [None]
        for rule in chosen:
            for launch in plan(Instruction(name, operands, rule, [0.5] * len(op.scalars)), operands, np.zeros(2, int)):
                label = f"{name}{f'[{rule.name}]' if rule else ''}{mark}{' groups' * (groups > 1)}"
                yield _entry(label, launch, dtype)

    for dtype in ("float32", "float64"):
        longest = KEPT // np.dtype(dtype).itemsize * WIDTH
        for name in OPS:
            if name.startswith(_ROWS):
                for mark, offset, columns in (("=", 0, 0), ("~", 1, 0), (" odd", 0, -3), (" long", 0, 4)):
                    if dtype == "float32" or mark == "=":
                        yield from planned(name, mark, dtype, offset, longest + columns, 1)
                if name.startswith("group_norm"):
                    yield from planned(name, "=", dtype, 0, longest, 2)
            elif name.startswith(_BY_COLUMNS):
                yield from planned(name, "=", dtype, 0, 8, 1)
                if name.startswith("batch_norm"):
                    yield from planned(name, "=", dtype, 0, 8, 2)
            elif name.startswith(_BY_ELEMENTS):
                yield from planned(name, "~", dtype, 1, 8, 1)


def _for_many(launch: Any) -> Any:
    """The form of a launch for many models, all arrays of which move."""
    from numpy.lib.stride_tricks import as_strided

    from dlcore.kernels.cuda.batched import Stack, batched

    stack = Stack(2)
    for a in launch.arguments:
        if getattr(a, "ndim", 0):
            stack.add(as_strided(a, (2, a.size), (a.nbytes, a.itemsize)))  # nobody reads it
    (moved,) = batched([launch], stack)
    return moved


def _of_many_models(rules: Sequence[str]) -> Iterator[Any]:
    """Kernels of each kind in their form for many models: with barriers, shuffles, generated texts, wide access."""
    import numpy as np

    from dlcore.kernels.cuda.launch import _variants, plan
    from dlcore.kernels.instructions import OPS

    for dtype in map(np.dtype, ("float32", "float64")):
        for op in ("gather_rows", "dropout", "batch_norm_forward", "softmax_cross_entropy"):
            for label, instruction in _variants(OPS[op], dtype, rules):
                for launch in plan(instruction, instruction.operands, np.zeros(2, np.int64)):
                    yield _entry(label, _for_many(launch), dtype)


def _means() -> Iterator[Any]:
    """State of rows and columns that is a mean: the catalogue has that which is the largest."""
    import numpy as np

    from dlcore.kernels.cuda.launch import plan
    from dlcore.kernels.instructions import OPS, Instruction

    for dtype in ("float32", "float64"):
        operands = [
            np.ones([3] * len(spec.dims), np.int64 if spec.dtype == "i" else dtype)
            for spec in OPS["factor_update"].operands
        ]
        for launch in plan(Instruction("factor_update", operands, None, [0.0]), operands, np.zeros(2, np.int64)):
            yield _entry("factor_update mean", launch, dtype)


def _products() -> Iterator[Any]:
    """Matrix products with every tile, aligned and not, with the whole epilogue; on tensor cores too."""
    import numpy as np

    from dlcore.kernels import find
    from dlcore.kernels.cuda import gemm, gemm_tensor
    from dlcore.kernels.cuda.launch import device_function
    from dlcore.kernels.device import TENSOR_CORES
    from dlcore.kernels.precision import PRECISIONS

    relu = find("activation", "relu")
    for dtype, tiles in gemm.TILES.items():
        value = device_function(relu, "value", dtype)
        for offset, size in ((0, 8), (1, 9)):
            a, b, z, y = (place(dtype, offset, size, size) for _ in range(4))
            mark = "~" if offset else "="
            for tile in tiles:
                plan = gemm.Plan(tile, 1, tile.slice)
                (launch,) = gemm.multiply(a, b, y, "ab^T", value, y[0], z, plan)
                yield _entry(f"product{mark}", launch, dtype)
                if not offset:
                    yield _entry("product=", _for_many(launch), dtype)
            *_, launch = gemm.multiply(a, b, y, "ab", value, y[0], z, gemm.Plan(tiles[-1], 2, tiles[-1].slice))
            yield _entry(f"product{mark}", launch, dtype)
    value = device_function(relu, "value", np.float32)
    for precision in PRECISIONS[1:]:
        for block in (gemm_tensor.LARGE, gemm_tensor.SMALL):
            a, b, z, y = (place("float32", 0, 8, 8) for _ in range(4))
            (launch,) = gemm_tensor.multiply(precision, a, b, y, "ab", value, y[0], z, block)
            yield _entry("product=", launch, "float32", TENSOR_CORES)
            yield _entry("product=", _for_many(launch), "float32", TENSOR_CORES)


_INSIDE_WRAPPERS = ("sgd", "adam", "adan")  # rules of no, two and four arrays of state


def _wrapped(rules: Sequence[str]) -> Iterator[Any]:
    """Rules inside all wrappers at once, which add an array of state each."""
    import numpy as np

    from dlcore.kernels.cuda.launch import plan
    from dlcore.kernels.instructions import Instruction
    from dlcore.kernels.rule import find
    from dlcore.kernels.wrappers import WRAPPERS, wrapped

    for name in _INSIDE_WRAPPERS:
        if rules and name not in rules:
            continue
        rule = wrapped(find("optimizer", name), [*WRAPPERS.values()])
        for dtype in ("float32", "float64"):
            w, uniforms = place(dtype, 0, 8), np.ones(32, dtype)
            operands = [w, w, place(dtype, 0, len(rule.slots), 8), uniforms]
            (launch,) = plan(Instruction("optimizer_update", operands, rule), operands)
            label = f"optimizer_update[{name}, {', '.join(WRAPPERS)}]="
            yield _entry(label, launch, dtype, kind=WRAPPED)
            yield _entry(label, _for_many(launch), dtype, kind=WRAPPED)


def _placed(rules: Sequence[str]) -> Iterator[Any]:
    """The kernels that take whole arenas, with arrays that begin at a multiple of 16 bytes and with others."""
    import numpy as np

    from dlcore.kernels.cuda.launch import plan
    from dlcore.kernels.instructions import MIXED, Instruction
    from dlcore.kernels.rule import REGISTRY

    named = [rule for rule in REGISTRY["optimizer"].values() if not rules or rule.name in rules]
    chosen = [rule for rule in named if not rule.factors]  # theirs go by tensor, and need tables
    for offset, dtype in [(offset, dtype) for offset in (0, 1) for dtype in ("float32", "float64")]:
        w, hyper, uniforms = place(dtype, offset, 8), np.ones(3), np.ones(16, dtype)
        planned = [("clip_by_global_norm", plan(Instruction("clip_by_global_norm", o := [w, hyper, uniforms]), o)[:1])]
        for rule in chosen:
            o = [w, w, place(dtype, offset, len(rule.slots), 8), uniforms]
            planned.append((f"optimizer_update[{rule.name}]", plan(Instruction("optimizer_update", o, rule), o)))
        for half in ("float16", "uint16") if dtype == "float32" else ():  # which stands for bfloat16
            short = place(half, offset, 8)
            o = [short, hyper, uniforms]
            planned.append(
                (f"clip_by_global_norm[{half}]", plan(Instruction(MIXED["clip_by_global_norm_mixed"], o), o)[:1])
            )
            for rule in chosen:
                o = [w, short, place(dtype, offset, len(rule.slots), 8), short, uniforms]
                update = Instruction(MIXED["optimizer_update_mixed"], o, rule)
                planned.append((f"optimizer_update[{rule.name}, {half}]", plan(update, o)))
        for label, (launch,) in planned:
            yield _entry(f"{label}{'~' if offset else '='}", launch, dtype)
            if not offset:
                yield _entry(f"{label}=", _for_many(launch), dtype)

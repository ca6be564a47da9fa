"""The rules of the house: who may import whom, and how long a file may be."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
KERNELS = sorted((ROOT / "kernels").rglob("*.py"))
FILES = [*KERNELS, *(path for part in ("dlcore", "bench", "tests") for path in sorted((ROOT / part).rglob("*.py")))]
LONGEST = 420

# Floors of dlcore.kernels, from the ground up; a module imports from lower floors, or from its own package.
FLOORS = [
    {
        "mathfn",
        "names",
        "rule",
        "optimizer_rule",
        "device",
        "philox",
        "instructions",
        "precision",
        "loss_scale",
        "exchange",
    },
    {"check", "activations", "piecewise", "losses", "optimizers", "wrappers", "schedules", "program", "in_place"},
    {"native", "rewriting", "lowering", "step_text", "panel_text", "cache"},
    {"compile"},
    {"cpu", "cuda"},
    {"ops"},
    {"norms", "updates", "loss_ops", "products"},
]
FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}
# device.engine() hands out the engine of a device, exchange asks CuPy through cuda: they import upwards, when called.
EXCEPTIONS = {("device", "cpu"), ("device", "cuda"), ("exchange", "cuda")}


def relative_imports(path):
    """The modules of dlcore.kernels that a file of it imports, anywhere in it."""
    depth = len(path.relative_to(ROOT / "kernels").parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (name.split(".")[0] for name in names)


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.name)
def test_imports_go_down_only(path):
    parts = path.relative_to(ROOT / "kernels").parts
    if parts == ("__init__.py",):
        return
    here = parts[0].removesuffix(".py")
    assert here in FLOOR, f"{here} stands on no floor"
    for name in relative_imports(path):
        if (here, name) not in EXCEPTIONS:
            assert FLOOR[name] < FLOOR[here] or (FLOORS[FLOOR[here]] & {name} and FLOOR[here] <= 2), (
                f"{here} imports {name}"
            )


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.name)
def test_kernels_know_no_layers(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert "from dlcore" not in "\n".join(line for line in lines if line.startswith(("from", "import")))


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_stay_short(path):
    assert path.read_text(encoding="utf-8").count("\n") <= LONGEST


def test_both_engines_have_every_instruction():
    from dlcore.kernels.cpu import entries, steps
    from dlcore.kernels.cuda.launch import host_function
    from dlcore.kernels.instructions import OPS

    for op in OPS:
        assert host_function(op)[0].__doc__
    assert set(OPS) <= set(steps.STEPS) | set(steps.MADE_OF_STEPS)
    for step in steps.STEPS:
        if step != "optimizer_begin":  # generated for each rule
            assert entries.body_of(step).__doc__


def test_there_is_an_oracle_for_every_rule():
    import oracle

    from dlcore.kernels.rule import REGISTRY

    assert set(oracle.ACTIVATIONS) == set(REGISTRY["activation"])
    assert set(oracle.LOSSES) == set(REGISTRY["loss"])
    assert set(oracle.OPTIMIZERS) == set(REGISTRY["optimizer"])

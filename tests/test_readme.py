"""The examples of the README and of the docstrings run."""

import doctest
import importlib
import pathlib
import re
import runpy

import numpy as np
import pytest
from tolerance import assert_close

import dlcore
from dlcore.datasets import load_digits
from dlcore.kernels.device import simulated, why_no_gpu

ROOT = pathlib.Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.S)
MODULES = [
    *(f"dlcore.{p.stem}" for p in sorted((ROOT / "dlcore").glob("*.py")) if p.stem not in ("__init__", "__main__")),
    *(f"dlcore.kernels.{p.stem}" for p in sorted((ROOT / "kernels").glob("*.py")) if p.stem != "__init__"),
    "dlcore",
    "dlcore.kernels",
]


def test_the_readme_runs_from_top_to_bottom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "readme.py").write_text("\n".join(BLOCKS))
    scope = runpy.run_path(str(tmp_path / "readme.py"))
    assert scope["accuracy"] > 0.9
    assert len(BLOCKS) == 7


def test_a_rule_takes_at_most_six_lines():
    rules = [block for block in BLOCKS if "@dlcore." in block]
    assert len(rules) == 2
    for block in rules:
        lines = [line for line in block.splitlines() if line and not line.startswith(("import", "from"))]
        assert len(lines) <= 6, block


def test_the_rules_of_the_readme_on_cuda(tmp_path, monkeypatch):
    if not simulated() and why_no_gpu():
        pytest.skip(why_no_gpu())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rules.py").write_text("\n".join(block for block in BLOCKS if "@dlcore." in block))
    scope = runpy.run_path(str(tmp_path / "rules.py"))
    x, y = load_digits()
    results = []
    for device in ("cpu", "cuda"):
        dlcore.set_seed(0)
        stack = [dlcore.layers.Dense(8, "squareplus", dtype="float64"), dlcore.layers.Dense(10, "softmax")]
        model = dlcore.Sequential(stack, device=device)
        model.compile(scope["averaged"](lr=0.2), "sparse_categorical_crossentropy")
        model.fit(x[:40] / 16, y[:40], batch_size=20, epochs=2, verbose=0)
        results.append(model.get_weights())
    for cpu, cuda in zip(*results, strict=True):
        assert_close("weights", cuda, cpu, cpu, terms=4.0)


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name):
    module = importlib.import_module(name)
    result = doctest.testmod(module, extraglobs={"np": np}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0

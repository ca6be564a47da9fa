"""docs/catalogue.md and its pictures, from what is registered: ``python -m bench catalogue`` writes them."""

from __future__ import annotations

import csv
import inspect
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

from dlcore import constraints, initializers, layers, losses, metrics, optimizers, regularizers, schedules
from dlcore.kernels.rule import ALIASES, REGISTRY, builtin

from .pictures import Curve, Window, picture
from .timing import ROOT

DOCS = ROOT / "docs"
COMMAND = "python -m bench catalogue"
_VALUE = 'stroke="#1f5fa8"'
_SLOPE = 'stroke="#d9822b" stroke-dasharray="4 2"'
_ACTIVATION = Window(-4.0, 4.0, -1.5, 3.5, 129)
# values of schedules' parameters that make 40 steps of a picture; the others are as registered
_DRAWN = {"total": 40.0, "every": 10.0, "warmup": 10.0, "first": 10.0, "half": 10.0}
_STEPS = 40


# ------------------------------------------------------------------------------------------------------- words


def text(item: Any) -> str:
    """The docstring of ``item`` in one line of Markdown, without its examples."""
    lines = inspect.cleandoc(item.__doc__ or "").split(">>>")[0]
    words = " ".join(lines.split())
    words = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", words)
    return words.replace("``", "`")


def _cell(value: str) -> str:
    return value.replace("|", r"\|")


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table of Markdown."""
    lines = [header, ["---"] * len(header), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _source(item: Any) -> str:
    path = item.__module__.removeprefix("dlcore.").replace(".", "/") + ".py"
    if not path.startswith("kernels/"):
        path = f"dlcore/{path}"
    return f"[{path}](../{path})"


def _options(maker: Any) -> str:
    """The arguments of a class or function with their defaults, without those that all layers have."""
    shown = []
    for parameter in inspect.signature(maker).parameters.values():
        if parameter.name in ("name", "dtype") or parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        given = parameter.default is not parameter.empty
        shown.append(parameter.name + (f"={parameter.default!r}" if given else ""))
    return _code(shown)


# ------------------------------------------------------------------------------------------------------- rules


def rules(kind: str) -> list[Any]:
    """The built-in rules of a kind by name, without those that are made when they are asked for."""
    found = [rule for rule in REGISTRY[kind].values() if builtin(rule) and not rule.name.startswith("piecewise_")]
    return sorted(found, key=lambda rule: rule.name)


def _names(rule: Any, aliases: dict[str, str]) -> str:
    others = sorted(other for other, name in aliases.items() if name == rule.name)
    return f"`{rule.name}`" + (f" ({_code(others)})" if others else "")


def _parameters(rule: Any) -> str:
    return _code(f"{name}={_number(value)}" for name, value in rule.parameters.items())


def _activations() -> str:
    rows = [
        (
            _names(rule, ALIASES["activation"]), f"![{rule.name}](pictures/{rule.name}.svg)", text(rule.main),
            _parameters(rule), "`z`" if rule.uses_input else "`y`", _source(rule.main),
        )
        for rule in rules("activation")
    ]  # fmt: skip
    return table(("name", "value, derivative", "formula", "parameters", "kept for backward", "source"), rows)


def _losses() -> str:
    aliases: dict[str, list[str]] = {}
    for other, name in losses.ALIASES.items():
        aliases.setdefault(name, []).append(other)
    rows = []
    for name, maker in sorted(losses._MAKERS.items()):
        others = sorted(aliases.get(name, []))
        rows.append(
            (f"`{name}`" + (f" ({_code(others)})" if others else ""), text(maker), _options(maker), maker().kind)
        )
    return table(("name", "formula", "options", "targets"), rows)


def _loss_rules() -> str:
    rows = [
        (f"`{r.name}`", text(r.main), _parameters(r), r.reduction, r.domain, _source(r.main)) for r in rules("loss")
    ]
    return table(("name", "formula of one element", "parameters", "over a sample", "outputs", "source"), rows)


def _optimizers() -> str:
    rows = []
    for rule in rules("optimizer"):
        decay = "of the weights" if rule.decoupled else "in the gradient"
        state = ", ".join([*(f"`{s}`" for s in rule.slots), *(f"`{f}` (factor)" for f in rule.factors)]) or "none"
        rows.append(
            (
                _names(rule, ALIASES["optimizer"]), text(rule.main), _parameters(rule), state, decay,
                "tensor" if rule.by_tensor else "element", _source(rule.main),
            )
        )  # fmt: skip
    header = ("name", "formula", "parameters", "state", "weight decay", "by", "source")
    return table(header, rows)


def _schedules() -> str:
    rows = []
    for rule in rules("schedule"):
        drawn = f"![{rule.name}](pictures/schedule_{rule.name}.svg)"
        rows.append((_names(rule, ALIASES["schedule"]), drawn, text(rule.main), _parameters(rule), _source(rule.main)))
    return table(("name", "picture", "formula", "parameters", "source"), rows)


def _makers(header: str, makers: Iterable[tuple[str, Any]]) -> str:
    return table((header, "what it is", "options"), [(f"`{n}`", text(m), _options(m)) for n, m in makers])


def _initializers() -> str:
    rows = []
    known: dict[str, Any] = {**initializers._CLASSES, **initializers._FUNCTIONS}
    for name, item in sorted(known.items()):
        others = sorted(other for other, one in initializers._OTHER_NAMES.items() if one == name)
        options = _options(item) if isinstance(item, type) else ""
        rows.append((f"`{name}` ({_code(others)})", text(item), options))
    return table(("name", "what it is", "options"), rows)


def _methods() -> str:
    with (DOCS / "optimizers.csv").open(encoding="utf-8", newline="") as file:
        methods = list(csv.DictReader(file))
    rows = [(m["name"], m["reference"], _code(m["rules"].split()) or f"no: {m['reason']}") for m in methods]
    return table(("method", "reference", "rules"), rows)


def _subclasses(module: Any, base: type) -> list[tuple[str, Any]]:
    found = {n: c for n, c in vars(module).items() if isinstance(c, type) and issubclass(c, base) and c is not base}
    return sorted(found.items())


def _functions(names: dict[str, Any]) -> list[tuple[str, Any]]:
    return sorted({maker.__name__: maker for maker in names.values() if maker.__name__ != "<lambda>"}.items())


def page() -> str:
    """The text of docs/catalogue.md."""
    count = len(rules("optimizer"))
    sections = (
        ("Activations", "For `Dense(activation=...)`, the layer `Activation` and `dlcore.kernels`. Solid: the value, "
         "dashed: the derivative, for inputs from -4 to 4. `softmax` and `log_softmax`, which couple the units of a "
         "row, are instructions and go by their names as well.", _activations()),
        ("Losses", "For `compile(loss=...)`.", _losses()),
        ("Loss rules", "What `dlcore.kernels.elementwise_loss` takes: `p` is an output, `y` its target.",
         _loss_rules()),
        ("Optimizers", f"{count} rules, for `compile(optimizer=...)` and `dlcore.kernels.optimizer_update`: `w` is a "
         "weight, `g` its gradient. The state is one array of the weights' shape for each name, a factor one "
         "number for each row or column of a matrix. Every rule takes weight decay, clipping and a schedule.",
         _optimizers()),
        ("Optimizer classes", "With the names and the defaults of Keras and PyTorch.",
         _makers("class", _subclasses(optimizers, optimizers.Optimizer))),
        ("Methods of the literature", "The methods that Schmidt, Schneider & Hennig 2021 list, and the rules that are "
         "them.", _methods()),
        ("Schedules", "The rate at steps 1 to 40, from 1.", _schedules()),
        ("Schedule classes", "For `learning_rate=...`.",
         _makers("class", _subclasses(schedules, schedules.LearningRateSchedule))),
        ("Layers", "", _makers("layer", sorted(layers.LAYERS.items()))),
        ("Initialisers", "", _initializers()),
        ("Regularisers", "", _makers("name", _functions(regularizers._BY_NAME))),
        ("Constraints", "", _makers("name", _functions(constraints._BY_NAME))),
        ("Metrics", "`accuracy` follows the loss.", _makers("name", metrics._MAKERS.items())),
    )  # fmt: skip
    parts = [
        "# Catalogue",
        f"Made by `{COMMAND}` from what is registered. Everything here runs on the CPU and in CUDA.",
    ]
    for title, introduction, body in sections:
        parts += [f"## {title}", *([introduction] if introduction else []), body]
    return "\n\n".join(parts) + "\n"


# ---------------------------------------------------------------------------------------------------- pictures


def _of_activation(rule: Any) -> str:
    arguments = (rule.namespace,) if rule.parameters else ()

    def value(z: float) -> float:
        return float(rule.value(z, *arguments))

    def slope(z: float) -> float:
        return float(rule.slope(z, value(z), *arguments))

    return picture(rule.name, _ACTIVATION, (Curve(slope, _SLOPE), Curve(value, _VALUE)))


def _of_schedule(rule: Any) -> str:
    drawn = rule.variant(**{name: value for name, value in _DRAWN.items() if name in rule.parameters})
    return picture(rule.name, Window(0.0, _STEPS, -0.05, 1.05, 2 * _STEPS + 1), [_steps(drawn)])


def _steps(rule: Any) -> Curve:
    return Curve(lambda x: rule.at(1.0, max(1.0, x)), _VALUE)


def files() -> dict[str, str]:
    """Every file of the catalogue: its path below docs/ and its text."""
    made = {"catalogue.md": page()}
    made |= {f"pictures/{rule.name}.svg": _of_activation(rule) for rule in rules("activation")}
    made |= {f"pictures/schedule_{rule.name}.svg": _of_schedule(rule) for rule in rules("schedule")}
    return made


def write(folder: pathlib.Path = DOCS) -> int:
    """Write the page and its pictures, and remove pictures of what is gone; how many files changed."""
    made, changed = files(), 0
    for name, content in made.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_text(encoding="utf-8") != content:
            path.write_text(content, encoding="utf-8", newline="\n")
            changed += 1
    for path in sorted((folder / "pictures").glob("*.svg")):
        if f"pictures/{path.name}" not in made:
            path.unlink()
            changed += 1
    return changed


def main() -> int:
    """Write the catalogue and say what changed."""
    changed = write()
    print(f"docs/catalogue.md and docs/pictures: {changed} files changed")
    return 0

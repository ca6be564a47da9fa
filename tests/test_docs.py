"""docs/catalogue.md and its pictures say what is registered."""

import re
import xml.etree.ElementTree as ElementTree

import pytest

from bench import catalogue
from bench.pictures import HEIGHT, WIDTH, Curve, Window, picture
from dlcore import initializers, layers, losses, metrics
from dlcore.kernels.rule import ALIASES, REGISTRY, builtin

STALE = f"docs/{{}} is stale; `{catalogue.COMMAND}` writes it"


def test_the_page_and_its_pictures_are_those_of_what_is_registered():
    made = catalogue.files()
    for name, content in made.items():
        path = catalogue.DOCS / name
        assert path.exists(), STALE.format(name)
        assert path.read_text(encoding="utf-8") == content, STALE.format(name)
    there = {f"pictures/{path.name}" for path in (catalogue.DOCS / "pictures").iterdir()}
    assert there == set(made) - {"catalogue.md"}, STALE.format("pictures")


def test_the_page_names_everything():
    page = catalogue.page()
    for kind, table in REGISTRY.items():
        for rule in table.values():
            if builtin(rule) and not rule.name.startswith("piecewise_constant_"):
                assert f"| `{rule.name}`" in page, f"{kind} {rule.name}"
        for other in ALIASES[kind]:
            assert f"`{other}`" in page, other
    for names in (losses._MAKERS, losses.ALIASES, layers.LAYERS, initializers._OTHER_NAMES, metrics._MAKERS):
        for name in names:
            assert f"`{name}`" in page, name
    methods = page.split("## Methods of the literature")[1].split("## ")[0]
    assert len(re.findall(r"^\| ", methods, re.M)) == 154 + 2
    assert "| ADAHESIAN | Yao et al., 2020 | no: needs second-order information |" in methods


def test_tables_have_one_number_of_cells_throughout():
    columns = 0
    for line in catalogue.page().splitlines():
        if not line.startswith("|"):
            columns = 0
            continue
        cells = len(re.findall(r"(?<!\\)\|", line))
        assert columns in (0, cells), line
        columns = cells


def test_text_of_a_docstring_is_one_line_of_markdown():
    def item():
        """``a | b`` of :class:`~dlcore.layers.Dense`.

        More.

        >>> 1
        1
        """

    assert catalogue.text(item) == "`a | b` of `Dense`. More."
    assert catalogue.table(("x",), [(catalogue.text(item),)]).splitlines()[-1] == r"| `a \| b` of `Dense`. More. |"


# ---------------------------------------------------------------------------------------------------- pictures


def paths(text):
    root = ElementTree.fromstring(text)
    return [element.get("d") for element in root.iter("{http://www.w3.org/2000/svg}path")]


def points(path):
    return [(float(x), float(y)) for x, y in re.findall(r"[ML](\S+?) (-?[\d.]+)", path)]


def test_a_line_goes_from_corner_to_corner():
    text = picture("line", Window(-1.0, 1.0, -1.0, 1.0, 21), [Curve(lambda x: x, "")])
    axes, line = paths(text)
    assert axes == f"M0 {HEIGHT / 2:g}L{WIDTH} {HEIGHT / 2:g}M{WIDTH / 2:g} {HEIGHT}L{WIDTH / 2:g} 0"
    assert points(line)[0] == (0, HEIGHT)
    assert points(line)[-1] == (WIDTH, 0)
    assert line.count("M") == 1


def test_a_jump_and_what_is_out_of_sight_are_not_joined():
    window = Window(-1.0, 1.0, -1.0, 2.0, 21)
    jump = picture("step", window, [Curve(lambda x: 1.0 if x > 0 else 0.0, "")])
    assert paths(jump)[1].count("M") == 2
    pole = picture("pole", window, [Curve(lambda x: 3.0 if abs(x) < 0.25 else 0.0, "")])
    assert paths(pole)[1].count("M") == 2
    assert len(points(paths(pole)[1])) == 16


@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu"])
def test_an_activation_is_drawn_with_its_derivative(name):
    """At z = 0: sigmoid 1/2 with slope 1/4, tanh 0 with slope 1, ReLU 0 with slope 0."""
    slope, value = {"sigmoid": (0.25, 0.5), "tanh": (1.0, 0.0), "relu": (0.0, 0.0)}[name]
    window = catalogue._ACTIVATION
    _, dashed, solid = paths(catalogue.files()[f"pictures/{name}.svg"])
    for path, expected in ((dashed, slope), (solid, value)):
        (y,) = [y for x, y in points(path) if x == WIDTH / 2]
        assert y == pytest.approx((window.high - expected) / (window.high - window.low) * HEIGHT, abs=0.051)

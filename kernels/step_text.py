"""The text of an optimizer's step: what is computed once in it, and the strips that the CPU compiles of a rule."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from .lowering import lower_schedule, lower_uniforms
from .optimizer_rule import Optimizer
from .rewriting import Lowered
from .rule import reads

# gradient scale, L2 coefficient, weight factor of decoupled decay, largest element of a gradient, whether to skip
UNIFORM_HEADER = 5
SUMMED = 512  # elements whose sum is taken in the model's dtype, by vectors; sums of these are in float64

_UPDATE = """
def {name}(w_, g_, s_, stride, u_, n):
    w = view(w_, n)
    g = view(g_, n)
    u = view(u_, {count})
    if u[4] != 0:
        return
{load}
    for i in range(w.size):
        x = w[i]
        {results} = {call}
"""

_SUMMANDS = """
def {name}(w_, g_, s_, stride, u_, all_, out_):
    u = view(u_, {count})
{load}
    {totals} = 0.0
    for first in range(0, all_, {SUMMED}):
        n = min({SUMMED}, all_ - first)
        at = first * u.itemsize
        w = view(w_ + at, n)
        g = view(g_ + at, n)
{views}
        {parts} = number(0)
{loops}
{add}
    out = view_double(out_, {sums})
{store}
"""

# a loop that does not read the weights where decay asks for them and is 0
_LOOPS = """\
if l2 != 0:
{decayed}
else:
{plain}"""

_SUM_LOOP = """\
for i in range(w.size):
    x = w[i]
    {results} = summands(x * keep, {gradient}{given})
{add}"""

_BEGIN = """
def {name}(hyper, step, u):
    step[0] += 1
    t = float(step[0])
    now = hyper
{schedule}
    out = {room}
    uniforms(now, t, out)
    u[0] = {scale}
    u[1] = {l2}
    u[2] = {keep}
    u[3] = {limit}
    u[4] = 0.0
    for i in range({count}):
        u[{header} + i] = out[i]
"""

_SCHEDULE = """\
    now = {room}
    for i in range({count}):
        now[i] = hyper[i]
    now[{rate}] = schedule(hyper, hyper[{rate}], math.ceil(t / hyper[{per}]))"""


def uniform_lines(uniforms: int, sums: int = 0) -> list[str]:
    """Assignments of what lies in ``u``: the header but for the last, what hangs on ``h`` alone, sums over a tensor."""
    lines = [f"{name} = u[{k}]" for k, name in enumerate(("scale", "l2", "keep", "limit"))]
    lines += [f"u{k} = u[{UNIFORM_HEADER + k}]" for k in range(uniforms)]
    lines += [f"q{k} = u[{UNIFORM_HEADER + uniforms + k}]" for k in range(sums)]
    return [f"    {line}" for line in lines]


def gradient_text(rule: Optimizer, g: str, w: str, decayed: bool = True) -> str:
    """The gradient as a rule sees it: scaled, clipped by value (NaN stays), with the L2 term where decay is coupled."""
    scaled = f"{g} * scale"
    if rule.limited:
        scaled = f"select_min(select_max({scaled}, -limit), limit)"
    return f"{scaled} + l2 * {w}" if decayed and not rule.decoupled else scaled


def update_text(
    rule: Optimizer, uniforms: int, w: str, g: str, slots: Sequence[str], factors: Sequence[str] = ()
) -> str:
    """The call of a rule's update on one element."""
    extra = [*(f"q{k}" for k in range(len(rule.sums))), *(f"u{k}" for k in range(uniforms))]
    extra += [w] if rule.wrappers else []
    return f"update({', '.join([f'{w} * keep', gradient_text(rule, g, w), *slots, *factors, *extra])})"


def strip_text(rule: Optimizer, part: str, uniforms: list[str], name: str) -> str:
    """The strip of an optimizer: state read once, written once, clipping and weight decay on the way.

    Sums over the tensor lie behind the uniforms, where there are any.
    """
    slots = rule.own_slots if part == "summands" else rule.slots
    sums = range(len(rule.sums))
    given = [f"s{k}[i]" for k in range(len(slots))]
    load = uniform_lines(len(uniforms), len(sums) if part == "update" else 0)
    count = UNIFORM_HEADER + len(uniforms)
    views = [f"s{k} = view(s_ + at + {k} * stride, n)" for k in range(len(slots))]
    if part == "summands":
        return _SUMMANDS.format(
            name=name, count=count, load="\n".join(load), sums=len(sums), SUMMED=SUMMED,
            totals=" = ".join(f"total{k}" for k in sums), parts=" = ".join(f"part{k}" for k in sums),
            views=textwrap.indent("\n".join(views), "        "), loops=sum_loops(rule, len(uniforms), given, 2),
            add="\n".join(f"        total{k} += float(part{k})" for k in sums),
            store="\n".join(f"    out[{k}] = total{k}" for k in sums),
        )  # fmt: skip
    load += ["    at = 0", *(f"    {line}" for line in views)]
    call = update_text(rule, len(uniforms), "x", "g[i]", given)
    return _UPDATE.format(
        name=name, count=count + len(sums), results=", ".join(["w[i]", *given]), load="\n".join(load), call=call
    )


def loops_text(rule: Optimizer, weights: bool, depth: int, loop: str, **texts: str) -> str:
    """``loop``, and another beside it where the only need for the ``weights`` may be their decay."""
    decayed, plain = (loop.format(gradient=gradient_text(rule, "g[i]", "x", decay), **texts) for decay in (True, False))
    if not weights and decayed != plain:
        inner = (textwrap.indent(text, "    ") for text in (decayed, plain))
        decayed = _LOOPS.format(**dict(zip(("decayed", "plain"), inner, strict=True)))
    return textwrap.indent(decayed, depth * "    ")


def sum_loops(rule: Optimizer, uniforms: int, given: Sequence[str], depth: int) -> str:
    """The loops that add the rule's summands to ``part0`` and so on; ``given`` are an element's slots and factors."""
    assert rule.summands is not None
    sums = range(len(rule.sums))
    return loops_text(
        rule, reads(rule.summands, 0), depth, _SUM_LOOP, results=", ".join(f"q{k}" for k in sums),
        given="".join(f", {s}" for s in (*given, *(f"u{k}" for k in range(uniforms)))),
        add="\n".join(f"    part{k} += q{k}" for k in sums),
    )  # fmt: skip


def begin_text(rule: Optimizer, uniforms: list[str], room: str) -> str:
    """The function that counts the step and computes its uniforms; it runs once, in float64.

    ``room`` makes an array of ``{}`` numbers. Coupled decay adds ``weight_decay * w`` to the gradient; decoupled decay
    takes ``rate * weight_decay * w`` from w.
    """
    place = rule.hyper.index
    rate, decay = place(rule.rate), f"hyper[{place('weight_decay')}]"
    l2, keep = ("0.0", f"1.0 - now[{rate}] * {decay}") if rule.decoupled else (decay, "1.0")
    schedule = ""
    if rule.schedule is not None:
        count = len(rule.parameters)
        schedule = _SCHEDULE.format(room=room.format(count), count=count, rate=rate, per=place("steps_per_epoch"))
    return _BEGIN.format(
        name="optimizer_begin", room=room.format(max(1, len(uniforms))), schedule=schedule, l2=l2, keep=keep,
        scale="-1.0" if rule.maximize else "1.0",
        limit=f"hyper[{place('clip_value')}]" if rule.limited else "0.0",
        count=len(uniforms), header=UNIFORM_HEADER,
    )  # fmt: skip


def begin_functions(rule: Optimizer, uniforms: list[str], backend: Any) -> dict[str, Lowered]:
    """What the text of :func:`begin_text` calls."""
    functions = {"uniforms": lower_uniforms(rule, uniforms, backend)}
    if rule.schedule is not None:
        first = rule.hyper.index("steps_per_epoch") + 1
        functions["schedule"] = lower_schedule(rule.schedule, first, backend)
    return functions

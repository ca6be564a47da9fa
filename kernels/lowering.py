"""From a rule in plain Python to functions of one dtype that a backend can compile.

The source of the rule is rewritten, not interpreted: see rewriting.py. In an optimizer every expression of ``h`` alone
(``1 - h.beta_1 ** h.t``) is taken out and becomes a *uniform*, computed once a step in float64; a schedule is computed
there too.
"""

from __future__ import annotations

import ast
import copy
import types
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import mathfn
from .optimizer_rule import Optimizer
from .rewriting import Backend, Lowered, Rewriter, definition_of, execute, lower_plain, named, scope_of, selection
from .rule import Rule

_STATE = ("t",)  # what ``h`` offers beside the parameters
_H = "h"  # what uniforms call it, whatever the functions do


class _UniformRewriter(Rewriter):
    """Also takes out the expressions of ``h`` alone, and the local names that only hold such expressions."""

    def __init__(
        self,
        function: Any,
        dtype: np.dtype,
        backend: Backend,
        label: str,
        parameters: dict[str, float],
        uniforms: list[str],
    ) -> None:
        super().__init__(function, dtype, backend, label, {})
        self.parameters = parameters
        self.uniforms = uniforms  # grows
        self.uniform_names: dict[str, ast.expr] = {}

    def uniform(self, node: ast.AST) -> ast.expr | None:
        """``node`` with its uniform names replaced by what they hold, or None if it depends on the element."""
        return self._substitute(node) if self._kind(node) == "uniform" else None  # type: ignore[return-value]

    def _kind(self, node: ast.AST) -> str:
        """``uniform`` (of h alone), ``constant`` (neutral), or ``element``."""
        if isinstance(node, ast.Constant):
            return "constant"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == self.h:
            if node.attr not in (*self.parameters, *_STATE):
                known = ", ".join((*self.parameters, *_STATE))
                raise self.fail(node, f"{self.h} has no parameter {node.attr!r}; it has: {known}")
            return "uniform"
        if isinstance(node, ast.Name):
            if node.id in self.uniform_names:
                return "uniform"
            known_value = node.id not in self.locals and isinstance(self.scope.get(node.id), (int, float))
            return "constant" if known_value else "element"
        if isinstance(node, (ast.BinOp, ast.UnaryOp, ast.IfExp, ast.Compare, ast.BoolOp)):
            parts: list[ast.AST] = [c for c in ast.iter_child_nodes(node) if isinstance(c, ast.expr)]
        elif isinstance(node, ast.Call) and self._is_pure(node.func) and not node.keywords:
            parts = list(node.args)
        else:
            return "element"
        kinds = {self._kind(part) for part in parts}
        return "element" if "element" in kinds else "uniform" if "uniform" in kinds else "constant"

    def _is_pure(self, callee: ast.expr) -> bool:
        if isinstance(callee, ast.Name) and callee.id not in self.locals:
            value = self.scope.get(callee.id)
            plain = isinstance(value, types.FunctionType)  # the float64 of a uniform is worth more than the dtype
            return plain or selection(value) is not None or mathfn.name_of(value) is not None
        if isinstance(callee, ast.Attribute) and isinstance(callee.value, ast.Name):
            module = self.scope.get(callee.value.id)
            return mathfn.is_math_module(module) and mathfn.name_of(getattr(module, callee.attr, None)) is not None
        return False

    def _substitute(self, node: ast.AST) -> ast.AST:
        names, h = self.uniform_names, self.h

        class Substitute(ast.NodeTransformer):
            def visit_Name(self, name: ast.Name) -> ast.AST:
                return ast.Name(_H, ast.Load()) if name.id == h else names.get(name.id, name)

        return Substitute().visit(copy.deepcopy(node))

    def visit(self, node: ast.AST) -> Any:
        if isinstance(node, ast.expr) and not isinstance(getattr(node, "ctx", None), (ast.Store, ast.Del)):
            expression = self.uniform(node)
            if expression is not None:
                source = ast.unparse(expression)
                if source not in self.uniforms:
                    self.uniforms.append(source)
                return ast.copy_location(ast.Name(f"_u{self.uniforms.index(source)}", ast.Load()), node)
        return super().visit(node)

    def visit_body(self, definition: ast.FunctionDef) -> None:
        """Drop ``name = <uniform>`` where the name is assigned once, and remember what it holds."""
        stores = [n.id for n in ast.walk(definition) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
        arguments = {a.arg for a in definition.args.args}
        body: list[ast.stmt] = []
        for statement in definition.body:
            if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
                target = statement.targets[0]
                if isinstance(target, ast.Name) and stores.count(target.id) == 1 and target.id not in arguments:
                    expression = self.uniform(statement.value)
                    if expression is not None:
                        self.uniform_names[target.id] = expression
                        continue
            body.append(self.visit(statement))
        definition.body = body


def lower(rule: Rule, part: str, dtype: Any, backend: Backend) -> Lowered:
    """Lower ``rule.value``, ``rule.slope`` (arguments as written, without ``h``), or a function of an optimizer.

    Those are ``update``, ``summands`` and ``terms``: arguments and then ``*uniforms``, the same for all; their sources
    are in ``.uniforms``. The update of a rule with wrappers takes the weight before decay behind them.
    """
    dtype = np.dtype(dtype)
    function = getattr(rule, part)
    if not isinstance(rule, Optimizer):
        return lower_plain(function, dtype, backend, rule.label, rule.parameters)
    uniforms: list[str] = []
    functions = {"update": rule.update, "summands": rule.summands, "terms": rule.terms}
    functions |= {w.name: w.after for w in rule.wrappers}
    parts = {}
    for name, function in functions.items():
        if function is not None:
            definition = definition_of(function, rule.label)
            rewriter = _UniformRewriter(function, dtype, backend, rule.label, rule.parameters, uniforms)
            rewriter.h = definition.args.args.pop().arg
            rewriter.visit_body(definition)
            parts[name] = definition, rewriter

    def made(name: str) -> tuple[str, Any]:
        definition, rewriter = parts[name]
        definition.args.args += [ast.arg(f"_u{k}") for k in range(len(uniforms))]
        return execute(definition, f"{rule.name}_{name}", rewriter)

    text, executable = made(part)
    if part == "update" and rule.wrappers:
        inner = {"update": (text, executable)} | {w.name: made(w.name) for w in rule.wrappers}
        text, executable = _wrapped(rule, len(uniforms), inner, backend)
    return Lowered("\n".join([text, *uniforms]), executable, uniforms)


def _wrapped(rule: Optimizer, uniforms: int, inner: dict[str, tuple[str, Any]], backend: Backend) -> tuple[str, Any]:
    """The update and its wrappers as one function, with the weight before decay as the last argument."""
    count, extra = len(rule.own_slots), "".join(f", u{k}" for k in range(uniforms))
    slots = [f"s{k}" for k in range(len(rule.slots))]
    sums = "".join([*(f", f{k}" for k in range(len(rule.factors))), *(f", q{k}" for k in range(len(rule.sums)))])
    before = "".join(f", {s}" for s in slots)
    results = ", ".join(["new", *slots[:count]])
    lines = [
        f"def {rule.name}_wrapped(w, g{before}{sums}{extra}, raw):",
        f"    {results} = update(w, g{''.join(f', {s}' for s in slots[:count])}{sums}{extra})",
    ]
    for w in rule.wrappers:
        held = ", ".join(["new", *slots[count : count + len(w.slots)]])
        lines.append(f"    {held} = {w.name}(raw, {held}{extra})")
        count += len(w.slots)
    lines.append(f"    return new{before}")
    text = "\n".join(lines)
    scope = {name: backend.inline(function) for name, (_, function) in inner.items()}
    exec(compile(text, f"<dlcore {rule.name} wrapped>", "exec"), scope)
    text = "\n".join([*(source for source, _ in inner.values()), text])
    return text, named(scope[f"{rule.name}_wrapped"], text)


class _HyperRewriter(Rewriter):
    """Reads parameters from an array ``hyper`` when the function runs, in float64, and not from constants."""

    def __init__(
        self, function: Any, backend: Backend, label: str, index: dict[str, int], given: Sequence[str]
    ) -> None:
        super().__init__(function, np.dtype(np.float64), backend, label, {})
        self.index, self.given = index, given

    def parameter(self, node: ast.Attribute) -> ast.expr:
        if node.attr in self.given:
            return ast.copy_location(ast.Name(f"_{node.attr}", ast.Load()), node)
        if node.attr not in self.index:
            known = ", ".join((*self.index, *self.given))
            raise self.fail(node, f"{self.h} has no parameter {node.attr!r}; it has: {known}")
        place = ast.Subscript(ast.Name("_hyper", ast.Load()), ast.Constant(self.index[node.attr]), ast.Load())
        return ast.copy_location(place, node)


def lower_uniforms(rule: Optimizer, uniforms: list[str], backend: Backend) -> Lowered:
    """A function ``(hyper, t, out)`` that writes the uniforms, each computed in float64.

    ``hyper`` holds the parameters in the order of ``rule.parameters``; ``t`` is the step as a float.
    """
    function = rule.update
    rewriter = _HyperRewriter(function, backend, rule.label, {n: k for k, n in enumerate(rule.parameters)}, _STATE)
    rewriter.h = _H
    for other in (rule.summands, rule.terms):
        if other is not None:
            rewriter.scope = {**scope_of(other), **rewriter.scope}
    body: list[ast.stmt] = []
    for k, source in enumerate(uniforms):
        expression = ast.parse(source, mode="eval").body
        target = ast.Subscript(ast.Name("_out", ast.Load()), ast.Constant(k), ast.Store())
        body.append(ast.Assign([target], rewriter.visit(expression), lineno=1))
    arguments = ast.arguments([], [ast.arg(f"_{a}") for a in ("hyper", *_STATE, "out")], None, [], [], None, [])
    definition = ast.FunctionDef("uniforms", arguments, body or [ast.Pass()], [], lineno=1)
    text, executable = execute(definition, "uniforms", rewriter)
    return Lowered(text, executable)


def lower_schedule(schedule: Any, first: int, backend: Backend) -> Lowered:
    """A function ``(hyper, rate, t)``: the rate of a step; its parameters begin at ``hyper[first]``."""
    function = schedule.main
    definition = definition_of(function, schedule.label)
    index = {name: first + k for k, name in enumerate(schedule.parameters)}
    rewriter = _HyperRewriter(function, backend, schedule.label, index, _STATE)
    rewriter.h = definition.args.args.pop().arg
    definition.body = [rewriter.visit(statement) for statement in definition.body]
    definition.args.args = [ast.arg("_hyper"), *definition.args.args, ast.arg("_t")]
    text, executable = execute(definition, f"schedule_{schedule.name}", rewriter)
    return Lowered(text, executable)

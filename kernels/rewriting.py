"""The source of a plain Python function, rewritten for one dtype and one backend.

* Numbers become constants of the dtype (a bare ``0.5`` would promote float32 to float64, on CUDA silently);
* ``exp``, ``math.exp`` and ``numpy.exp`` become the backend's own vectorisable ``exp``;
* small integer powers become products, ``max`` and ``min`` become selections with Python's meaning for NaN;
* other plain functions are lowered in turn.

Line numbers are kept, so that an error points into the user's file.
"""

from __future__ import annotations

import ast
import builtins
import hashlib
import inspect
import textwrap
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from . import mathfn
from .rule import RuleError

_ALLOWED = "numbers, functions of math, and other plain functions"


class Backend(Protocol):
    """What lowering asks of a backend."""

    name: str

    def math(self, name: str, dtype: np.dtype) -> Callable[..., Any]:
        """The backend's function ``name`` for scalars of ``dtype``."""

    def inline(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function`` made callable from the backend's kernels."""


@dataclass
class Lowered:
    """A rewritten function: its text (all that its meaning depends on) and the executable."""

    text: str
    function: Callable[..., Any]
    uniforms: list[str] = field(default_factory=list)  # sources over ``h.<name>`` and ``h.t``


def select_max(a, b):
    return b if b > a else a


def select_min(a, b):
    return b if b < a else a


def _square(x):
    return x * x


def _cube(x):
    return x * x * x


def _fourth(x):
    q = x * x
    return q * q


_POWERS = {2: _square, 3: _cube, 4: _fourth}


def selection(value: Any) -> Callable[..., Any] | None:
    return select_max if value is max else select_min if value is min else None


class Rewriter(ast.NodeTransformer):
    """Rewrites one function; collects the globals of the result and a text of everything they mean."""

    def __init__(self, function: Any, dtype: np.dtype, backend: Backend, label: str, constants: dict[str, float]):
        self.dtype, self.backend, self.label = dtype, backend, label
        self.file = function.__code__.co_filename
        self.locals = set(function.__code__.co_varnames) | set(function.__code__.co_cellvars)
        self.scope = scope_of(function)
        self.constants = constants  # parameters read as h.<name>, baked in
        self.h: str | None = None
        self.globals: dict[str, Any] = {"__builtins__": builtins, "__name__": __name__}
        self.meaning: list[str] = [f"{backend.name} {dtype}"]

    # -- helpers

    def fail(self, node: ast.AST, message: str) -> RuleError:
        return RuleError(f"{self.label}: {self.file}:{getattr(node, 'lineno', 0)}: {message}")

    def bind(self, node: ast.AST, name: str, value: Any, meaning: str) -> ast.expr:
        if name not in self.globals:
            self.globals[name] = value
            self.meaning.append(f"{name} = {meaning}")
        return ast.copy_location(ast.Name(name, ast.Load()), node)

    def number(self, node: ast.AST, value: Any) -> ast.expr:
        typed = self.dtype.type(value)
        name = "_c_" + repr(float(value)).replace(".", "_").replace("-", "m").replace("+", "p")
        return self.bind(node, name, typed, repr(float(value)))

    def math(self, node: ast.AST, name: str) -> ast.expr:
        return self.bind(node, f"_m_{name}", self.backend.math(name, self.dtype), f"mathfn.{name}")

    def helper(self, node: ast.AST, function: Callable[..., Any]) -> ast.expr:
        name = f"_f_{function.__name__}"
        if name not in self.globals:
            lowered = lower_plain(function, self.dtype, self.backend, self.label, {})
            inlined = self.backend.inline(lowered.function)
            return self.bind(node, name, inlined, lowered.text)
        return self.bind(node, name, None, "")

    def resolve(self, node: ast.AST, name: str, value: Any) -> ast.expr:
        """The rewritten form of a global: a number, a function of mathematics, or another plain function."""
        if isinstance(value, (bool, np.bool_)):
            return ast.copy_location(ast.Constant(bool(value)), node)
        if isinstance(value, (int, float, np.integer, np.floating)):
            return self.number(node, value)
        math_name = mathfn.name_of(value)
        if math_name is not None:
            return self.math(node, math_name)
        if value is range or value is bool or value is int:
            return node  # type: ignore[return-value]
        if isinstance(value, types.FunctionType):
            return self.helper(node, value)
        if hasattr(value, "py_func"):  # a function the user had compiled already
            return self.helper(node, value.py_func)
        raise self.fail(
            node,
            f"{name!r} is a {type(value).__name__}; a rule may use {_ALLOWED}",
        )

    # -- nodes

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if isinstance(node.value, bool) or not isinstance(node.value, (int, float)):
            return node
        return self.number(node, node.value)

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        raise self.fail(node, "a rule sees one element; indexing is not possible")

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        raise self.fail(node, "a rule cannot define functions; define the helper beside it")

    visit_FunctionDef = visit_Lambda  # type: ignore[assignment]

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if not isinstance(node.ctx, ast.Load) or node.id in self.locals:
            if self.h is not None and node.id == self.h:
                raise self.fail(node, f"{self.h} is only read as {self.h}.name")
            return node
        if node.id not in self.scope:
            raise self.fail(node, f"name {node.id!r} is not defined")
        return self.resolve(node, node.id, self.scope[node.id])

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if isinstance(node.value, ast.Name):
            owner = node.value.id
            if owner == self.h:
                return self.parameter(node)
            if owner not in self.locals and mathfn.is_math_module(self.scope.get(owner)):
                module = self.scope[owner]
                if not hasattr(module, node.attr):
                    raise self.fail(node, f"{owner}.{node.attr} does not exist")
                return self.resolve(node, f"{owner}.{node.attr}", getattr(module, node.attr))
        raise self.fail(
            node,
            f"{ast.unparse(node)!r}: a rule may use {_ALLOWED}",
        )

    def parameter(self, node: ast.Attribute) -> ast.expr:
        if node.attr not in self.constants:
            known = ", ".join(self.constants) or "none"
            raise self.fail(node, f"{self.h} has no parameter {node.attr!r}; it has: {known}")
        return self.number(node, self.constants[node.attr])

    def visit_BinOp(self, node: ast.BinOp) -> ast.AST:
        exponent = node.right
        if isinstance(node.op, ast.Pow) and isinstance(exponent, ast.Constant) and exponent.value in _POWERS:
            power = _POWERS[exponent.value]  # type: ignore[index]
            callee = self.bind(node, power.__name__, self.backend.inline(power), inspect.getsource(power))
            return ast.copy_location(ast.Call(callee, [self.visit(node.left)], []), node)
        return self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> ast.AST:
        if node.keywords:
            raise self.fail(node, "calls in a rule take positional arguments only")
        callee = node.func
        if isinstance(callee, ast.Name) and callee.id not in self.locals:
            value = self.scope.get(callee.id)
            select = selection(value)
            if select is not None and len(node.args) >= 2:
                name = self.bind(node, select.__name__, self.backend.inline(select), inspect.getsource(select))
                result = self.visit(node.args[0])
                for argument in node.args[1:]:
                    result = ast.copy_location(ast.Call(name, [result, self.visit(argument)], []), node)
                return result
            if value is range:
                return node  # bounds of a loop stay integers
            if value is float:
                return self.visit(node.args[0])  # the dtype is the kernel's
        return self.generic_visit(node)


def scope_of(function: Any) -> dict[str, Any]:
    closure = inspect.getclosurevars(function)
    return {**vars(builtins), **function.__globals__, **closure.globals, **closure.nonlocals}


def definition_of(function: Any, label: str) -> ast.FunctionDef:
    try:
        lines, first = inspect.getsourcelines(function)
    except (OSError, TypeError) as error:
        raise RuleError(
            f"{label}: the source of {function.__name__} cannot be read; define it in a file or a notebook"
        ) from error
    tree = ast.parse(textwrap.dedent("".join(lines)))
    definition = tree.body[0]
    if not isinstance(definition, ast.FunctionDef):
        raise RuleError(f"{label}: a rule is defined with def, not {type(definition).__name__.lower()}")
    ast.increment_lineno(tree, first - 1)
    definition.decorator_list = []
    definition.returns = None
    for argument in definition.args.args:
        argument.annotation = None
    if ast.get_docstring(definition, clean=False) is not None:
        definition.body = definition.body[1:]
    return definition


def execute(definition: ast.FunctionDef, name: str, rewriter: Rewriter) -> tuple[str, Any]:
    definition.name = name
    module = ast.fix_missing_locations(ast.Module([definition], []))
    text = "\n".join([*sorted(rewriter.meaning), ast.unparse(module)])
    exec(compile(module, rewriter.file, "exec"), rewriter.globals)
    return text, named(rewriter.globals[name], text)


def named(function: Any, text: str) -> Any:
    """``function`` with a qualified name of its text: symbols are formed from it."""
    function.__qualname__ = f"{function.__name__}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    return function


def lower_plain(function: Any, dtype: np.dtype, backend: Backend, label: str, constants: dict[str, float]) -> Lowered:
    definition = definition_of(function, label)
    rewriter = Rewriter(function, dtype, backend, label, constants)
    if constants:
        rewriter.h = definition.args.args.pop().arg
    definition.body = [rewriter.visit(statement) for statement in definition.body]
    text, executable = execute(definition, function.__name__, rewriter)
    return Lowered(text, executable)

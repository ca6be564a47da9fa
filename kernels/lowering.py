"""From a rule in plain Python to a function of one dtype that a backend can compile.

The source of the rule is rewritten, not interpreted:

* numbers become constants of the dtype (a bare ``0.5`` would promote float32 to float64, on CUDA silently);
* ``exp``, ``math.exp`` and ``numpy.exp`` become the backend's own vectorisable ``exp``;
* small integer powers become products, ``max`` and ``min`` become selections with Python's meaning for NaN;
* other plain functions are lowered in turn;
* in an optimizer every expression of ``h`` alone (``1 - h.beta_1 ** h.t``) is taken out and becomes a *uniform*,
  computed once a step in float64.

Line numbers are kept, so that an error points into the user's file.
"""

from __future__ import annotations

import ast
import builtins
import copy
import hashlib
import inspect
import textwrap
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from . import mathfn
from .rule import Optimizer, Rule, RuleError

_ALLOWED = "numbers, functions of math, and other plain functions"
_STATE = ("t",)  # what ``h`` offers beside the parameters


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


def _select_max(a, b):
    return b if b > a else a


def _select_min(a, b):
    return b if b < a else a


def _square(x):
    return x * x


def _cube(x):
    return x * x * x


def _fourth(x):
    q = x * x
    return q * q


_POWERS = {2: _square, 3: _cube, 4: _fourth}


def _selection(value: Any) -> Callable[..., Any] | None:
    return _select_max if value is max else _select_min if value is min else None


class _Rewriter(ast.NodeTransformer):
    """Rewrites one function; collects the globals of the result and a text of everything they mean."""

    def __init__(self, function: Any, dtype: np.dtype, backend: Backend, label: str, constants: dict[str, float]):
        self.dtype, self.backend, self.label = dtype, backend, label
        self.file = function.__code__.co_filename
        self.locals = set(function.__code__.co_varnames) | set(function.__code__.co_cellvars)
        self.scope = _scope(function)
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
            lowered = _lower(function, self.dtype, self.backend, self.label, {})
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
            select = _selection(value)
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


class _UniformRewriter(_Rewriter):
    """Also takes out the expressions of ``h`` alone, and the local names that only hold such expressions."""

    def __init__(self, function: Any, dtype: np.dtype, backend: Backend, label: str, parameters: dict[str, float]):
        super().__init__(function, dtype, backend, label, {})
        self.parameters = parameters
        self.uniforms: list[str] = []
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
            return plain or _selection(value) is not None or mathfn.name_of(value) is not None
        if isinstance(callee, ast.Attribute) and isinstance(callee.value, ast.Name):
            module = self.scope.get(callee.value.id)
            return mathfn.is_math_module(module) and mathfn.name_of(getattr(module, callee.attr, None)) is not None
        return False

    def _substitute(self, node: ast.AST) -> ast.AST:
        names = self.uniform_names

        class Substitute(ast.NodeTransformer):
            def visit_Name(self, name: ast.Name) -> ast.AST:
                return names.get(name.id, name)

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


def _scope(function: Any) -> dict[str, Any]:
    closure = inspect.getclosurevars(function)
    return {**vars(builtins), **function.__globals__, **closure.globals, **closure.nonlocals}


def _definition(function: Any, label: str) -> ast.FunctionDef:
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


def _execute(definition: ast.FunctionDef, name: str, rewriter: _Rewriter) -> tuple[str, Any]:
    definition.name = name
    module = ast.fix_missing_locations(ast.Module([definition], []))
    text = "\n".join([*sorted(rewriter.meaning), ast.unparse(module)])
    exec(compile(module, rewriter.file, "exec"), rewriter.globals)
    function = rewriter.globals[name]
    function.__qualname__ = f"{name}_{hashlib.sha256(text.encode()).hexdigest()[:12]}"  # symbols are formed from it
    return text, function


def _lower(function: Any, dtype: np.dtype, backend: Backend, label: str, constants: dict[str, float]) -> Lowered:
    definition = _definition(function, label)
    rewriter = _Rewriter(function, dtype, backend, label, constants)
    if constants:
        rewriter.h = definition.args.args.pop().arg
    definition.body = [rewriter.visit(statement) for statement in definition.body]
    text, executable = _execute(definition, function.__name__, rewriter)
    return Lowered(text, executable)


def lower(rule: Rule, part: str, dtype: Any, backend: Backend) -> Lowered:
    """Lower ``rule.value``, ``rule.slope`` (arguments as written, without ``h``) or ``rule.update``.

    An update takes ``(w, g, *slots, *uniforms)`` afterwards; the sources of the uniforms are in ``.uniforms``.
    """
    dtype = np.dtype(dtype)
    function = getattr(rule, part)
    if not isinstance(rule, Optimizer):
        return _lower(function, dtype, backend, rule.label, rule.parameters)
    definition = _definition(function, rule.label)
    rewriter = _UniformRewriter(function, dtype, backend, rule.label, parameters=rule.parameters)
    rewriter.h = definition.args.args.pop().arg
    rewriter.visit_body(definition)
    definition.args.args += [ast.arg(f"_u{k}") for k in range(len(rewriter.uniforms))]
    text, executable = _execute(definition, rule.name, rewriter)
    return Lowered("\n".join([text, *rewriter.uniforms]), executable, rewriter.uniforms)


def lower_uniforms(rule: Optimizer, uniforms: list[str], backend: Backend) -> Lowered:
    """A function ``(hyper, t, out)`` that writes the uniforms, each computed in float64.

    ``hyper`` holds the parameters in the order of ``rule.parameters``; ``t`` is the step as a float.
    """
    function = rule.update
    h = inspect.getfullargspec(function).args[-1]
    index = {name: k for k, name in enumerate(rule.parameters)}
    rewriter = _Rewriter(function, np.dtype(np.float64), backend, rule.label, {})
    rewriter.locals |= {f"__h_{name}" for name in (*rule.parameters, *_STATE)}

    class Bind(ast.NodeTransformer):
        def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
            if isinstance(node.value, ast.Name) and node.value.id == h:
                return ast.Name("t", ast.Load()) if node.attr == "t" else _item("hyper", index[node.attr])
            return node

    body: list[ast.stmt] = []
    for k, source in enumerate(uniforms):
        expression = ast.parse(source, mode="eval").body
        # The rewriter forbids indexing in what a user wrote, so parameters are bound after it ran.
        marked = _Hidden(h).visit(expression)
        rewritten = Bind().visit(_Hidden(h, back=True).visit(rewriter.visit(marked)))
        target = _item("out", k)
        target.ctx = ast.Store()
        body.append(ast.Assign([target], rewritten, lineno=1))
    arguments = ast.arguments([], [ast.arg(a) for a in ("hyper", "t", "out")], None, [], [], None, [])
    definition = ast.FunctionDef("uniforms", arguments, body or [ast.Pass()], [], lineno=1)
    text, executable = _execute(definition, "uniforms", rewriter)
    return Lowered(text, executable)


def _item(name: str, index: int) -> ast.Subscript:
    return ast.Subscript(ast.Name(name, ast.Load()), ast.Constant(index), ast.Load())


class _Hidden(ast.NodeTransformer):
    """``h.name`` as a plain local name, and back."""

    def __init__(self, h: str, back: bool = False):
        self.h, self.back = h, back

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if not self.back and isinstance(node.value, ast.Name) and node.value.id == self.h:
            return ast.Name(f"__h_{node.attr}", ast.Load())
        return node

    def visit_Name(self, node: ast.Name) -> ast.AST:
        if self.back and node.id.startswith("__h_"):
            return ast.Attribute(ast.Name(self.h, ast.Load()), node.id[4:], ast.Load())
        return node

"""Reads the source of users' functions to find required and returned keys.

A node that always reads a key of `config["configurable"]` fails each run without that key. Code
that first checks for a context runs without one. Unreadable source yields nothing.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

_CONFIGURABLE = "configurable"
_EXITS = (ast.Return, ast.Raise, ast.Break, ast.Continue)
_SIMPLE = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.Return)
# Parts of these expressions may not be evaluated.
_CONDITIONAL = (
    ast.BoolOp, ast.IfExp, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
)  # fmt: skip


def keys(function: Any) -> list[str]:
    """Return the keys that every call reads from `config["configurable"]`."""
    found: dict[str, None] = {}
    holders: set[str] = set()  # variables that hold config["configurable"]
    for statement in _always_executed(_body(function)):
        for node in _always_evaluated(statement):
            key = _key(node, holders)
            if key is not None:
                found[key] = None
        if isinstance(statement, ast.Assign) and _is_configurable(statement.value, holders):
            holders |= {name.id for name in statement.targets if isinstance(name, ast.Name)}
    return list(found)


def keys_with_default(function: Any) -> set[str]:
    """Return the keys that it reads with `.get()`, from any object."""
    return {
        str(call.args[0].value)
        for statement in _body(function)
        for call in ast.walk(statement)
        if isinstance(call, ast.Call) and _name(call.func) == "get"
        if call.args and isinstance(call.args[0], ast.Constant)
    }


def mentions_configurable(function: Any) -> bool:
    """Whether it mentions `configurable`, which graphs used before there was a context."""
    return any(
        isinstance(node, ast.Constant) and node.value == _CONFIGURABLE
        for statement in _body(function)
        for node in ast.walk(statement)
    )


def tests_for_context(function: Any) -> bool:
    """Whether it tests for a context before use, as in `(runtime.context or {})`."""
    tested = [_tested_values(node) for statement in _body(function) for node in ast.walk(statement)]
    return any(
        isinstance(value, ast.Attribute) and value.attr == "context"
        for values in tested
        for value in values
    )


def finish_keys(function: Any) -> set[str]:
    """Return the keys of an AgentFinish that it creates, where it names them."""
    return {
        str(key.value)
        for statement in _body(function)
        for call in ast.walk(statement)
        if isinstance(call, ast.Call) and _name(call.func) == "AgentFinish"
        for value in (*call.args[:1], *(k.value for k in call.keywords if k.arg == "return_values"))
        if isinstance(value, ast.Dict)
        for key in value.keys
        if isinstance(key, ast.Constant)
    }


def _name(called: ast.expr) -> str:
    """Return the last part of a name, as in `agents.AgentFinish`."""
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def _tested_values(node: ast.AST) -> Sequence[ast.AST]:
    """Return the expressions that a node tests or compares."""
    if isinstance(node, ast.BoolOp):
        return node.values
    if isinstance(node, ast.If | ast.IfExp):
        return (node.test,)
    if isinstance(node, ast.UnaryOp):
        return (node.operand,)
    return (node.left,) if isinstance(node, ast.Compare) else ()


def _body(function: Any) -> Sequence[ast.stmt]:
    """Return the statements of a function; empty without readable source."""
    while isinstance(function, partial):
        function = function.func
    try:
        parsed = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError):
        return ()
    first = parsed.body[0] if parsed.body else None
    return first.body if isinstance(first, ast.FunctionDef | ast.AsyncFunctionDef) else ()


def _always_executed(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that every call executes."""
    for statement in body:
        if isinstance(statement, _SIMPLE):
            yield statement
        elif any(isinstance(node, _EXITS) for node in ast.walk(statement)):
            return


def _always_evaluated(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the parts of a statement that are always evaluated."""
    yield node
    for inner in ast.iter_child_nodes(node):
        if not isinstance(inner, _CONDITIONAL):
            yield from _always_evaluated(inner)


def _key(node: ast.AST, holders: set[str]) -> str | None:
    """Return the key, if the node is `config["configurable"][…]`."""
    if (
        isinstance(node, ast.Subscript)
        and isinstance(node.ctx, ast.Load)
        and isinstance(node.slice, ast.Constant)
        and _is_configurable(node.value, holders)
    ):
        return str(node.slice.value)
    return None


def _is_configurable(node: ast.AST, holders: set[str]) -> bool:
    if isinstance(node, ast.Name):
        return node.id in holders
    return (
        isinstance(node, ast.Subscript)
        and isinstance(node.slice, ast.Constant)
        and node.slice.value == _CONFIGURABLE
    )

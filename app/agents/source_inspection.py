"""What the source of a user's function says of what it needs and what it gives.

A node that takes a key out of `config["configurable"]`, with no way round it, fails each run in
which the key is missing. Code that looks first whether there is a context runs without one. What
cannot be read says nothing.
"""

import ast
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

_CONFIGURABLE = "configurable"
_LEAVES = (ast.Return, ast.Raise, ast.Break, ast.Continue)
_SIMPLE = (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Expr, ast.Return)
# Of what stands in these some may never be reached.
_MAYBE = (
    ast.BoolOp, ast.IfExp, ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
)  # fmt: skip


def keys(function: Any) -> list[str]:
    """The keys that it takes out of `config["configurable"]` whenever it is called."""
    found: dict[str, None] = {}
    holders: set[str] = set()  # names under which it keeps config["configurable"]
    for statement in _always(_body(function)):
        for node in _reached(statement):
            key = _key(node, holders)
            if key is not None:
                found[key] = None
        if isinstance(statement, ast.Assign) and _is_configurable(statement.value, holders):
            holders |= {name.id for name in statement.targets if isinstance(name, ast.Name)}
    return list(found)


def keys_with_default(function: Any) -> set[str]:
    """The keys that it reads with `.get()`, from whatever it may be."""
    return {
        str(call.args[0].value)
        for statement in _body(function)
        for call in ast.walk(statement)
        if isinstance(call, ast.Call) and _name(call.func) == "get"
        if call.args and isinstance(call.args[0], ast.Constant)
    }


def mentions_configurable(function: Any) -> bool:
    """Whether it takes its parameters from there, as graphs did before there was a context."""
    return any(
        isinstance(node, ast.Constant) and node.value == _CONFIGURABLE
        for statement in _body(function)
        for node in ast.walk(statement)
    )


def looks_for_context(function: Any) -> bool:
    """Whether it asks if there is a context before it uses one: `(runtime.context or {})`."""
    asked = [_asked(node) for statement in _body(function) for node in ast.walk(statement)]
    return any(
        isinstance(value, ast.Attribute) and value.attr == "context"
        for values in asked
        for value in values
    )


def finishes_with(function: Any) -> set[str]:
    """The keys in which it gives the answer of an AgentExecutor, where it names them."""
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
    """The last part of a name, as of `agents.AgentFinish`."""
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def _asked(node: ast.AST) -> Sequence[ast.AST]:
    """What a node takes for true or false, or compares."""
    if isinstance(node, ast.BoolOp):
        return node.values
    if isinstance(node, ast.If | ast.IfExp):
        return (node.test,)
    if isinstance(node, ast.UnaryOp):
        return (node.operand,)
    return (node.left,) if isinstance(node, ast.Compare) else ()


def _body(function: Any) -> Sequence[ast.stmt]:
    """The statements of a function; of what has no source that can be read, none."""
    while isinstance(function, partial):
        function = function.func
    try:
        parsed = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(function))))
    except (OSError, TypeError, SyntaxError):
        return ()
    first = parsed.body[0] if parsed.body else None
    return first.body if isinstance(first, ast.FunctionDef | ast.AsyncFunctionDef) else ()


def _always(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that are reached in each call."""
    for statement in body:
        if isinstance(statement, _SIMPLE):
            yield statement
        elif any(isinstance(node, _LEAVES) for node in ast.walk(statement)):
            return


def _reached(node: ast.AST) -> Iterator[ast.AST]:
    """The parts of a statement that are evaluated whenever it is."""
    yield node
    for inner in ast.iter_child_nodes(node):
        if not isinstance(inner, _MAYBE):
            yield from _reached(inner)


def _key(node: ast.AST, holders: set[str]) -> str | None:
    """What `config["configurable"][…]` takes out, if the node is that."""
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

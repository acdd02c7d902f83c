"""Loads the served agents by name, once, at start. An agent that cannot be served stops it."""

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from langchain_core.language_models import BaseLanguageModel
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.prompts import BasePromptTemplate
from langchain_core.tools import BaseTool
from langgraph.prebuilt import ToolNode
from langgraph.pregel import Pregel

from app.agents.builder import EARLY_STOPPING, MAX_ITERATIONS
from app.agents.executor import ExecutorAgent, takes_history
from app.agents.factories import Factories, FactoryFailed, is_context
from app.agents.graph.agent import GraphAgent
from app.agents.inspection import introspection
from app.agents.inspection.source_inspection import finish_keys
from app.agents.inspection.unservable import unservable
from app.agents.startup_errors import describe
from app.runs.model import AgentInfo, EarlyStopping
from app.runs.ports import Agent

_DEMO_MODULE = "app.agents.demo.agent"
DEMO = f"demo={_DEMO_MODULE}:build"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")


class AgentLoadError(Exception):
    """An agent cannot be served; the message is one sentence for the operator."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A parsed `[NAME=]MODULE:ATTRIBUTE`."""

    name: str
    module: str
    attribute: str

    @property
    def target(self) -> str:
        """The import string."""
        return f"{self.module}:{self.attribute}"


# Returns, by name, the limits and the optional description of a served agent.
InfoOf = Callable[[str], AgentInfo]


async def load(
    specs: Sequence[str], info_of: InfoOf, factories: Factories | None = None
) -> Mapping[str, Agent]:
    """Build every named agent, in order. The first one is the default.

    What factories open stays open until `factories` is closed. Raises AgentLoadError, which names
    the agent, before any request is served.
    """
    factories = factories or Factories()
    parsed = [parse(text) for text in specs or [DEMO]]
    for number, spec in enumerate(parsed):
        if spec.name in {earlier.name for earlier in parsed[:number]}:
            raise AgentLoadError(
                f"Two agents are named {spec.name!r}; give one another name: OTHER={spec.target}."
            )
    return {spec.name: await _build(spec, info_of, factories) for spec in parsed}


def parse(text: str) -> Spec:
    """Parse an import string. Raises AgentLoadError if it is not one."""
    name, equals, target = text.rpartition("=")
    module, _, attribute = target.partition(":")
    if not module or not attribute or ":" in attribute:
        raise AgentLoadError(f"{text!r} is not of the form [NAME=]MODULE:ATTRIBUTE.")
    name = name if equals else attribute.rpartition(".")[2]
    if not _NAME.fullmatch(name):
        raise AgentLoadError(
            f"{name!r} cannot be the name of an agent: use small letters, digits, '-' and '_' "
            f"(at most 63), as in my-agent={target}."
        )
    return Spec(name, module, attribute)


async def _build(spec: Spec, info_of: InfoOf, factories: Factories) -> Agent:
    built = await _resolve(spec, _attribute(spec), factories)
    return adapt(built, spec.target, info_of(spec.name))


def adapt(built: Any, source: str, base: AgentInfo) -> Agent:
    """Return a user's agent behind the core's port. Raises AgentLoadError with its source."""
    if isinstance(built, Pregel):
        return _graph(built, source, base)
    if _is_executor(built):
        return _executor(built, source, base)
    raise AgentLoadError(
        f"{source} is no agent: it is a {type(built).__name__}; expected is a compiled "
        "LangGraph graph over 'messages' (create_agent returns one), an AgentExecutor, or a "
        "function without arguments that returns one, or yields one as a context manager."
    )


def _attribute(spec: Spec) -> Any:
    collision = "" if spec.module == _DEMO_MODULE else _collision(spec.module)
    if collision:
        raise AgentLoadError(f"{spec.target} cannot be imported: {collision}")
    try:
        found = importlib.import_module(spec.module)
    except ModuleNotFoundError as missing:
        if missing.name and f"{spec.module}.".startswith(f"{missing.name}."):
            raise AgentLoadError(
                f"There is no module {missing.name!r} for {spec.target}; it was looked for in "
                f"{Path.cwd()} and among the installed packages."
            ) from missing
        why = _collision(missing.name or "") or describe(missing)
        raise AgentLoadError(f"Importing {spec.module} failed: {why}") from missing
    except (Exception, SystemExit) as raised:  # foreign code: importing may raise anything
        raise AgentLoadError(f"Importing {spec.module} failed: {describe(raised)}") from raised
    for part in spec.attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as missing:
            raise AgentLoadError(
                f"Module {spec.module} has no attribute {spec.attribute!r}."
            ) from missing
    return found


def _collision(wanted: str) -> str:
    """Return a sentence if our package `app` hides a user's package of the same name."""
    ours = Path(__file__).parents[1]
    candidates = (Path.cwd() / "app", Path.cwd() / "app.py")
    theirs = [path for path in candidates if path.exists() and path != ours]
    if wanted.partition(".")[0] != "app" or not theirs:
        return ""
    return (
        f"the name 'app' is that of Watchkeeper's own package, which hides {theirs[0]}. "
        "Rename yours, and what imports it."
    )


async def _resolve(spec: Spec, found: Any, factories: Factories) -> Any:
    """Return the named agent, or the agent that the named factory builds."""
    if isinstance(found, Pregel) or _is_executor(found):
        return found
    if inspect.isclass(found):
        raise AgentLoadError(f"{spec.target} is a class, not an agent or a function.")
    if not is_context(found):
        if not callable(found):
            return found
        if wanted := _required_arguments(found):
            raise AgentLoadError(
                f"The factory {spec.target} wants {', '.join(map(repr, wanted))}, and Watchkeeper "
                "calls a factory once, at start, without arguments: give it a default, or name a "
                "function without arguments that calls it."
            )
    try:
        return await factories.build(spec.name, found)
    except FactoryFailed as failed:
        raise AgentLoadError(f"The factory {spec.target} failed: {failed}.") from failed


def _required_arguments(factory: Any) -> list[str]:
    """Return the required arguments of a function."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # a callable without a signature
        return []
    empty, any_number = inspect.Parameter.empty, ("VAR_POSITIONAL", "VAR_KEYWORD")
    return [p.name for p in parameters if p.default is empty and p.kind.name not in any_number]


def _is_executor(thing: Any) -> bool:
    """Compare by name, so that langchain-classic need not be installed."""
    return any(
        cls.__name__ == "AgentExecutor" and cls.__module__.startswith("langchain")
        for cls in type(thing).__mro__
    )


def _graph(graph: Pregel[Any, Any, Any, Any], source: str, base: AgentInfo) -> Agent:
    if sentence := unservable(graph):
        raise AgentLoadError(f"{source} {sentence}.")
    tools = (
        tool for node in introspection.find_all(graph, ToolNode) for tool in node.tools_by_name
    )
    metadata = _metadata(graph)
    made_by = metadata.get("ls_integration")
    kind = "create_agent" if made_by == "langchain_create_agent" else "langgraph"
    info = _info(base, kind, graph, tuple(dict.fromkeys(tools)))
    info = _with_limits(info, metadata.get(MAX_ITERATIONS), metadata.get(EARLY_STOPPING))
    return GraphAgent(graph, replace(info, conversations=True, resumes=True))


def _metadata(graph: Pregel[Any, Any, Any, Any]) -> Mapping[str, Any]:
    return (graph.config or {}).get("metadata") or {}


def _executor(executor: Any, source: str, base: AgentInfo) -> Agent:
    if executor.memory is not None:
        raise AgentLoadError(
            f"{source} is an AgentExecutor with memory, which all its callers would share; "
            "remove memory=, put chat_history into its prompt, and callers continue a conversation "
            "by its thread_id."
        )
    inputs = set(executor.input_keys)
    for prompt in introspection.find_all(executor, BasePromptTemplate):  # type: ignore[type-abstract]
        inputs |= set(prompt.input_variables)
    wanted = inputs - {"input", "chat_history", "agent_scratchpad", "intermediate_steps"}
    if wanted or "input" not in inputs:
        raise AgentLoadError(
            f"{source} is an AgentExecutor whose prompt wants {sorted(wanted)}; Watchkeeper "
            "fills in 'input', which it must want, and nothing else."
        )
    if (keys := _answer_keys(executor)) and "output" not in keys:
        raise AgentLoadError(
            f"{source} is an AgentExecutor that answers in {sorted(keys)}; Watchkeeper reads the "
            "answer from 'output': name it so in the return_values of its AgentFinish."
        )
    tools: Sequence[BaseTool] = executor.tools
    info = _info(base, "agent_executor", executor, tuple(tool.name for tool in tools))
    info = replace(info, conversations=takes_history(executor))
    return ExecutorAgent(executor, _with_own_limits(executor, info))


def _answer_keys(executor: Any) -> set[str]:
    """Return the keys of its answer that its agent or its parsers name."""
    keys = set(executor.agent.return_values)
    parsers = introspection.find_all(executor.agent, BaseOutputParser)  # type: ignore[type-abstract]
    functions = [part for part in introspection.parts(executor.agent) if inspect.isfunction(part)]
    return keys.union(*map(finish_keys, (*(parser.parse for parser in parsers), *functions)))


def _with_own_limits(executor: Any, info: AgentInfo) -> AgentInfo:
    """Apply limits that the user set on the executor. Ignore the library's defaults."""
    fields = executor.model_fields_set
    limit = executor.max_iterations if "max_iterations" in fields else None
    stopping = executor.early_stopping_method if "early_stopping_method" in fields else None
    return _with_limits(info, limit, stopping)


def _with_limits(info: AgentInfo, limit: int | None, stopping: str | None) -> AgentInfo:
    if limit and limit > 0:
        info = replace(info, iteration_limit=limit)
    if stopping in set(EarlyStopping):
        info = replace(info, early_stopping=EarlyStopping(str(stopping)))
    return info


def _info(base: AgentInfo, kind: str, agent: Any, tools: tuple[str, ...]) -> AgentInfo:
    model: Any = introspection.find(agent, BaseLanguageModel)
    demo = getattr(model, "_llm_type", None) == "demo"
    return replace(
        base,
        kind=kind,
        tools=tools,
        model=_model_name(model),
        has_model=model is not None,
        demo=demo,
    )


def _model_name(model: Any) -> str | None:
    for attribute in ("model_name", "model"):
        name = getattr(model, attribute, None)
        if isinstance(name, str):
            return name
    return None


def import_from_working_directory() -> None:
    """Put the working directory on the import path, as uvicorn does."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)

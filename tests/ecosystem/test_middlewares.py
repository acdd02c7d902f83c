"""Middlewares of langchain.agents.middleware that no other test here covers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from langchain.agents import create_agent
from langchain.agents import middleware as library
from langchain.agents.middleware import (
    AgentMiddleware,
    FilesystemFileSearchMiddleware,
    HostExecutionPolicy,
    LLMToolSelectorMiddleware,
    ModelCallLimitMiddleware,
    ModelFallbackMiddleware,
    ModelRetryMiddleware,
    PIIMiddleware,
    ProviderToolSearchMiddleware,
    RedactionRule,
    ShellToolMiddleware,
    SummarizationMiddleware,
    TodoListMiddleware,
    ToolCallLimitMiddleware,
    ToolRetryMiddleware,
)
from langchain_core.messages import AIMessage

from tests.ecosystem.conftest import Serve
from tests.ecosystem.expected import completed, limited
from tests.ecosystem.model import Line, Model, call, calls, last_result, loops
from tests.ecosystem.serves import declared, serves
from tests.ecosystem.toolbox import down, stock, weather

LOOK = call("weather", city="Bonn")
READ = "I read: sun in Bonn"
# The library leaves the pipes of its shell to be closed by the collector.
leaves_pipes = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def looks() -> Model:
    """Looks once and answers."""
    return Model(script=[calls(LOOK), last_result()])


@serves("langchain", "`TodoListMiddleware`", "`write_todos` is a tool like any other.")
async def test_plan_is_a_turn_and_a_call(serve: Serve) -> None:
    """A written plan is a turn, and a completed call."""
    plan = [{"content": "look", "status": "in_progress"}]

    def build() -> Any:
        model = Model(script=[calls(call("write_todos", todos=plan)), calls(LOOK), last_result()])
        return create_agent(model, [weather], middleware=[TodoListMiddleware()])

    for run in await serve(build, completed(READ, 2, 2)):
        assert run.outcomes == {"weather": ["completed"], "write_todos": ["completed"]}


async def test_two_plans_at_once_are_errors(serve: Serve) -> None:
    """Plans that the middleware refuses are errors of their calls."""
    plan = call("write_todos", todos=[{"content": "look", "status": "pending"}])

    def build() -> Any:
        model = Model(script=[calls(plan, plan), "I will plan once."])
        return create_agent(model, [weather], middleware=[TodoListMiddleware()])

    await serve(build, completed("I will plan once.", 1, 0))


@serves("langchain", "`ShellToolMiddleware`", "`shell` is a tool; its session ends with the run.")
@leaves_pipes
async def test_shell_commands_share_a_session(serve: Serve, tmp_path: Path) -> None:
    """Commands of one run share a session, redaction of its output included."""
    script = [
        calls(call("shell", command="NAME=bob; echo $NAME@example.com")),
        calls(call("shell", command="echo it is $NAME")),
        lambda asked: " / ".join(text.strip() for text in asked.results),
    ]

    def build() -> Any:
        shell = ShellToolMiddleware(
            workspace_root=tmp_path,
            execution_policy=HostExecutionPolicy(),
            redaction_rules=[RedactionRule(pii_type="email")],
        )
        return create_agent(Model(script=script), [], middleware=[shell])

    await serve(build, completed("[REDACTED_EMAIL] / it is bob", 2, 2))


@leaves_pipes
async def test_shell_session_ends_at_the_limit(serve: Serve, tmp_path: Path) -> None:
    """A shell's session ends with a run that the limit stopped, too."""

    def build() -> Any:
        shell = ShellToolMiddleware(
            workspace_root=tmp_path, execution_policy=HostExecutionPolicy(),
            shutdown_commands=["echo ended >> ended.txt"],
        )  # fmt: skip
        model = Model(script=[loops(call("shell", command="echo hello"))])
        return create_agent(model, [], middleware=[shell])

    runs = await serve(build, limited("concluded", 2, 2), max_iterations=2)
    assert (tmp_path / "ended.txt").read_text().split() == ["ended"] * len(runs)


@serves(
    "langchain", "`FilesystemFileSearchMiddleware`", "`glob_search` and `grep_search` are tools."
)
async def test_file_searches_are_calls(serve: Serve, tmp_path: Path) -> None:
    """Searches in files are completed calls."""
    (tmp_path / "bonn.txt").write_text("the sun shines")
    asks = calls(call("glob_search", pattern="*.txt"), call("grep_search", pattern="sun"))

    def build() -> Any:
        search = FilesystemFileSearchMiddleware(root_path=str(tmp_path), use_ripgrep=False)
        found: Line = lambda asked: str(all("bonn.txt" in r for r in asked.results))  # noqa: E731
        return create_agent(Model(script=[asks, found]), [], middleware=[search])

    await serve(build, completed("True", 1, 2))


class Anthropic(Model):
    """A model that says it is Anthropic's."""

    def _get_ls_params(self, stop: Any = None, **options: Any) -> Any:
        return {"ls_provider": "anthropic", "ls_model_name": "m", "ls_model_type": "chat"}

    @property
    def _llm_type(self) -> str:
        return "anthropic-chat"


@serves(
    "langchain", "`ProviderToolSearchMiddleware`", "A tool that the provider found is not rejected."
)
async def test_tool_found_by_the_provider_is_not_rejected(serve: Serve) -> None:
    """A tool that the provider finds by its own search was bound, so it is not rejected."""

    def build() -> Any:
        model = Anthropic(script=[calls(LOOK), last_result()])
        search = ProviderToolSearchMiddleware(searchable_tools=["weather"])
        return create_agent(model, [weather, stock], middleware=[search])

    await serve(build, completed(READ, 1, 1))


def many() -> Any:
    """A dozen middlewares in one agent."""
    selector = Model(script=[calls(call("ToolSelectionResponse", tools=["weather"]))])
    quiet: Any = {"initial_delay": 0.01, "jitter": False}
    middleware: list[AgentMiddleware[Any, Any, Any]] = [
        PIIMiddleware("email", strategy="mask", apply_to_output=True),
        PIIMiddleware("credit_card", strategy="hash", apply_to_output=True),
        SummarizationMiddleware(model=Model(script=["A SUMMARY"]), trigger=("messages", 50)),
        TodoListMiddleware(),
        LLMToolSelectorMiddleware(model=selector, max_tools=2),
        ModelCallLimitMiddleware(run_limit=20),
        ToolCallLimitMiddleware(run_limit=20),
        ModelRetryMiddleware(max_retries=1, **quiet),
        ModelFallbackMiddleware(looks()),
        ToolRetryMiddleware(max_retries=1, **quiet),
    ]
    return create_agent(down(), [weather, stock], middleware=middleware)


async def test_nested_middlewares_keep_their_counts(serve: Serve) -> None:
    """Middlewares around each other do not change each other's counts."""
    await serve(many, completed(READ, 1, 1))


@pytest.mark.parametrize("limit", [1, 2])
async def test_limit_holds_with_many_middlewares(serve: Serve, limit: int) -> None:
    """The limit holds with a dozen middlewares in between."""
    model = Model(script=[loops(LOOK, answer="Ask bob@example.com.")])

    def build() -> Any:
        quiet: Any = {"initial_delay": 0.01, "jitter": False}
        middleware: list[AgentMiddleware[Any, Any, Any]] = [
            PIIMiddleware("email", strategy="redact", apply_to_output=True),
            TodoListMiddleware(),
            ModelCallLimitMiddleware(run_limit=50),
            ToolCallLimitMiddleware(run_limit=50),
            ModelRetryMiddleware(max_retries=1, **quiet),
            ModelFallbackMiddleware(model),
            ToolRetryMiddleware(max_retries=1, **quiet),
        ]
        return create_agent(down(), [weather], middleware=middleware)

    expected = limited("Ask [REDACTED_EMAIL].", limit, limit)
    for run in await serve(build, expected, max_iterations=limit):
        assert len(run.calls_of(model)) == limit + 1


def of_the_sync_form() -> Any:
    """A hook in the sync form of LangChain's own documentation."""

    @library.before_model
    def count(state: Any, runtime: Any) -> None:
        return None

    @library.after_model
    def note(state: Any, runtime: Any) -> None:
        return None

    return create_agent(looks(), [weather], middleware=[count, note])


def that_returns_a_response() -> Any:
    """A hook around the model that returns a message of its own for some questions."""

    @library.wrap_model_call
    async def known(request: Any, handler: Any) -> Any:
        if request.messages[-1].text == "go":
            return AIMessage("I know that.")
        return await handler(request)

    return create_agent(Model(script=["never"]), [weather], middleware=[known])


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (of_the_sync_form, completed(READ, 1, 1)),
        (that_returns_a_response, completed("I know that.")),
    ],
)
async def test_hooks_of_every_form(serve: Serve, build: Callable[[], Any], expected: Any) -> None:
    """Hooks may have any form that the library allows."""
    await serve(build, expected)


def test_every_middleware_is_served_somewhere() -> None:
    """Each middleware that the locked library has is in a test of this folder."""
    classes = {name for name in library.__all__ if name.endswith(("Middleware", "Emulator"))}
    hooks = {
        "before_agent", "before_model", "after_model", "after_agent", "wrap_model_call",
        "wrap_tool_call", "dynamic_prompt",
    }  # fmt: skip
    shown = " ".join(row.part for row in declared() if row.package == "langchain")
    # Every other middleware is one of these.
    wanted = (classes | hooks) - {"AgentMiddleware"}
    assert {name for name in wanted if name not in shown} <= {"before_model"}

"""Request and response bodies; `runs.model` has the values that they are built from."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    field_validator,
)

from app.runs import ending
from app.runs.errors import InvalidRequest
from app.runs.live import Ended, Run
from app.runs.model import (
    AgentInfo,
    CallOutcome,
    EarlyStopping,
    Limit,
    Mode,
    Outcome,
    RunRequest,
    State,
    Step,
    Timings,
    Usage,
)
from app.runs.tasks import fingerprint

_MAX_METADATA = 16


def _is_text(value: str) -> str:
    """Accept only text that can be stored and sent: no NUL, no lone surrogates."""
    if "\0" in value or any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError("must not contain NUL or lone surrogates")
    return value


Text = Annotated[str, AfterValidator(_is_text)]
ShortText = Annotated[Text, StringConstraints(min_length=1, max_length=256)]


class RunBody(BaseModel):
    """A question to an agent, with its limits."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    question: Annotated[Text, StringConstraints(min_length=1, max_length=100_000)] = Field(
        examples=["Where is order 10023?"], description="In any language; not blank."
    )
    timeout: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="Seconds from arrival to the answer, the queue included.",
    )
    max_iterations: int | None = Field(
        None, ge=1, description="At most the agent's own limit, which is also the default."
    )
    thread_id: ShortText | None = Field(None, description="Continue this conversation.")
    include_steps: bool = Field(False, description="Return the tool calls with the answer.")
    metadata: dict[ShortText, ShortText] = Field(
        default_factory=dict,
        max_length=_MAX_METADATA,
        description="Added to the log and the record of the run.",
    )

    @field_validator("question")
    @classmethod
    def _not_blank(cls, question: str) -> str:
        if not question.strip():
            raise ValueError("must not be blank")
        return question

    def fingerprint(self) -> str:
        """A hash that detects another body without storing this one."""
        return fingerprint(self.model_dump_json())

    def check(self, agent: AgentInfo) -> None:
        """Raises InvalidRequest, naming the field, if the agent does not allow its value."""
        if self.timeout is not None and self.timeout > agent.max_timeout_s:
            raise InvalidRequest("timeout", f"must be at most {agent.max_timeout_s:g} seconds")
        if self.max_iterations is not None and self.max_iterations > agent.iteration_limit:
            raise InvalidRequest("max_iterations", f"must be at most {agent.iteration_limit}")
        if self.thread_id is not None and not agent.conversations:
            raise InvalidRequest("thread_id", "this agent stores no conversations")

    def request(self, agent: AgentInfo, key: str | None) -> RunRequest:
        """The same as a value of the core, with the defaults of the agent."""
        operation = None if key is None else fingerprint(agent.name, key, self.fingerprint())
        return RunRequest(
            question=self.question,
            timeout_s=self.timeout or agent.timeout_s,
            max_iterations=self.max_iterations,
            thread_id=self.thread_id,
            include_steps=self.include_steps,
            metadata=self.metadata,
            operation=operation,
        )


class StepView(BaseModel):
    """One tool call. Only a caller that asked for steps receives `arguments` and `result`."""

    iteration: int
    tool: str
    call_id: str
    arguments: Any
    result: str | None
    outcome: CallOutcome
    started_s: float
    duration_s: float

    @classmethod
    def of(cls, step: Step, content: bool) -> "StepView":
        """Without content, only names, times and outcomes."""
        return cls(
            iteration=step.iteration,
            tool=step.tool,
            call_id=step.call_id,
            arguments=step.arguments if content else None,
            result=step.result if content else None,
            outcome=step.outcome,
            started_s=_rounded(step.started_s),
            duration_s=_rounded(step.duration_s),
        )


class UsageView(BaseModel):
    """Tokens of all model calls of the run, retries and sub-agents included."""

    input_tokens: int
    output_tokens: int
    cost_usd: float | None

    @classmethod
    def of(cls, usage: Usage, cost_usd: float | None) -> "UsageView":
        """The two sums that every provider reports; no cost if a price is not known."""
        return cls(
            input_tokens=usage.input_tokens, output_tokens=usage.output_tokens, cost_usd=cost_usd
        )


class TimingsView(BaseModel):
    """How the wall clock was spent; the four add up to `duration_s`."""

    queue_s: float
    llm_s: float
    tools_s: float
    other_s: float

    @classmethod
    def of(cls, timings: Timings) -> "TimingsView":
        """Rounded to a tenth of a millisecond."""
        return cls(
            queue_s=_rounded(timings.queue_s),
            llm_s=_rounded(timings.llm_s),
            tools_s=_rounded(timings.tools_s),
            other_s=_rounded(timings.other_s),
        )


class FinishedRun(BaseModel):
    """The answer of a run, with its usage and timings."""

    run_id: str
    agent: str
    answer: str
    output: Any = Field(None, description="The agent's structured response, if it has one.")
    outcome: Literal[Outcome.COMPLETED, Outcome.ITERATION_LIMIT]
    limit: Limit | None = Field(None, description="The limit that stopped the run, if one did.")
    refused: bool = Field(False, description="True if the answer declines to answer.")
    iterations: int = Field(description="Turns in which the model asked for tools.")
    iteration_limit: int
    tool_calls: int
    usage: UsageView
    duration_s: float
    timings: TimingsView
    trace_id: str | None = None
    demo: bool = Field(description="True if no language model answered.")
    steps: list[StepView] | None = None

    @classmethod
    def of(cls, run: Run, ended: Ended) -> "FinishedRun":
        """Only for a run that ended with an answer."""
        assert ended.answer is not None
        answer = ended.answer
        return cls(
            run_id=run.id,
            agent=run.agent.name,
            answer=answer.text,
            output=answer.output,
            outcome=ending.outcome(answer, None),
            limit=ended.limit,
            refused=ended.refused,
            iterations=ended.iterations,
            iteration_limit=run.iteration_limit,
            tool_calls=ended.tool_calls,
            usage=UsageView.of(ended.usage, ended.cost_usd),
            duration_s=_rounded(ended.duration_s),
            timings=TimingsView.of(ended.timings),
            trace_id=run.trace_id,
            demo=run.agent.demo,
            steps=steps_with_content(run, ended.steps),
        )


class RunView(BaseModel):
    """One run, in flight or recently finished."""

    run_id: str
    trace_id: str | None
    agent: str
    mode: Mode
    state: State
    outcome: Outcome | None
    code: str | None
    phase: str | None = Field(
        description="queue, llm, tool:NAME or other: what it waits for. Null while another process "
        "executes it, and once it has ended with an answer."
    )
    age_s: float
    created_at: str
    iterations: int
    iteration_limit: int | None = Field(
        description="Null if only the process that will execute it knows."
    )
    limit: Limit | None = Field(None, description="The limit that stopped the run, if one did.")
    refused: bool = Field(False, description="True if the answer declines to answer.")
    tool_calls: int
    timeout_s: float


class RunDetail(RunView):
    """One run with its steps; their content only if its caller asked for steps."""

    timings: TimingsView
    usage: UsageView
    steps: list[StepView]
    metadata: dict[str, str]


class RunList(BaseModel):
    """Runs, newest first."""

    runs: list[RunView]


class StopResult(BaseModel):
    """The result of cancelling a run."""

    run_id: str
    result: Literal["cancelled", "still_stopping", "already_finished"]


class AgentView(BaseModel):
    """One agent that is served."""

    name: str
    description: str
    kind: str
    tools: list[str]
    model: str | None
    has_model: bool = Field(
        description="False if no model was found: the answer at a limit may be a fixed sentence."
    )
    demo: bool
    default: bool
    iteration_limit: int
    early_stopping: EarlyStopping
    timeout_s: float
    max_timeout_s: float
    background_timeout_s: float


class AgentList(BaseModel):
    """The agents served; the default one is first."""

    agents: list[AgentView]


def steps_with_content(run: Run, steps: tuple[Step, ...]) -> list[StepView] | None:
    """The steps with their content, or None when the caller did not ask for them."""
    if not run.request.include_steps:
        return None
    return [StepView.of(step, content=True) for step in steps]


def _rounded(seconds: float) -> float:
    return round(seconds, 4)

"""Facts as Prometheus samples."""

import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import product
from typing import Any, TypeAlias, assert_never

from prometheus_client import CollectorRegistry
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

from app.runs import plain
from app.runs.events import (
    ConversationNotStored,
    Event,
    FirstToken,
    IterationCounted,
    IterationLimitReached,
    ModelCallFinished,
    ModelCallRetried,
    ModelCallStarted,
    RunBeganAnew,
    RunFinished,
    RunHandedOver,
    RunLost,
    RunQueued,
    RunRecovered,
    RunStarted,
    StreamClosed,
    StreamOpened,
    SubAgentFinished,
    SubAgentStarted,
    ToolCallFinished,
    ToolCallRejected,
    ToolCallStarted,
    WorkAbandoned,
)
from app.runs.model import (
    AgentInfo,
    CallOutcome,
    Mode,
    Outcome,
    State,
    Usage,
)
from app.telemetry import catalogue
from app.telemetry.instruments import Instruments, ReadAtScrape

# Returns the labels of an exemplar, or None: at most 128 characters in all.
Exemplar: TypeAlias = Callable[[Event], dict[str, str] | None]

_READ_AT_SCRAPE = (
    catalogue.IN_FLIGHT,
    catalogue.OLDEST_AGE,
    catalogue.THREADS_ABANDONED,
    catalogue.THREADS_BUSY,
    catalogue.THREADS_LIMIT,
    catalogue.TASKS_ABANDONED,
    catalogue.CONCURRENCY_LIMIT,
    catalogue.READY,
    catalogue.TASKS_QUEUED,
    catalogue.TASKS_RUNNING,
    catalogue.TASK_OLDEST_AGE,
    catalogue.TASKS_UNSERVABLE,
    catalogue.JOURNAL_AGE,
    catalogue.STORE_FREE,
    catalogue.STORE_RESERVE,
)


@dataclass(frozen=True, slots=True)
class InFlight:
    """A run that has not ended."""

    agent: str
    mode: Mode
    state: State
    since: float


class Metrics:
    """The sink. It knows the agents from the start, for the values of their labels."""

    def __init__(
        self,
        registry: CollectorRegistry,
        agents: Sequence[AgentInfo],
        routes: Iterable[str] = (),
        exemplar: Exemplar = lambda fact: None,
        commit: str = "unknown",
        *,
        alone: bool = True,
    ) -> None:
        recorded = [m for m in catalogue.METRICS if m not in _READ_AT_SCRAPE]
        edges = {
            "deadline": {agent.timeout_s for agent in agents},
            "iteration_limit": {float(agent.iteration_limit) for agent in agents},
        }
        self.registry = registry
        configured = {
            catalogue.AGENT: {agent.name for agent in agents},
            catalogue.TOOL: {plain.name(tool) for agent in agents for tool in agent.tools},
            catalogue.ROUTE: routes,
        }
        self.instruments = Instruments(recorded, registry, edges, configured)
        self._exemplar = exemplar
        self._agents = agents
        self._in_flight: dict[str, InFlight] = {}
        at_scrape = ReadAtScrape()
        at_scrape.add(catalogue.IN_FLIGHT, self._count_in_flight)
        at_scrape.add(catalogue.OLDEST_AGE, self._oldest)
        registry.register(at_scrape)
        self._alone = alone
        if alone:
            for collector in (ProcessCollector, PlatformCollector, GCCollector):
                collector(registry=registry)
        self.instruments.start_at_zero()
        self._configure(commit)

    def __call__(self, fact: Event) -> None:
        """Record one fact."""
        match fact:
            case RunQueued():
                self._record_state(fact, State.QUEUED, fact.at)
            case RunStarted():
                self._record_state(fact, State.RUNNING, fact.at - fact.queue_wait_s)
            case RunFinished():
                self._run_finished(fact)
            case RunHandedOver():
                self._in_flight.pop(fact.run_id, None)
                self._child(catalogue.TASK_ATTEMPTS, fact.agent, "handed_over").inc()
            case RunRecovered():
                self._child(catalogue.TASK_RECOVERED, fact.agent).inc()
            case RunLost():
                pass  # RunFinished follows
            case FirstToken():
                child = self._child(
                    catalogue.LLM_FIRST_TOKEN, fact.agent, fact.provider, fact.model
                )
                child.observe(fact.at - fact.started_at)
            case ModelCallFinished():
                self._model_call_finished(fact)
            case ModelCallRetried():
                model = (fact.agent, fact.provider, fact.model)
                self._child(catalogue.LLM_RETRIES, *model, fact.reason).inc()
            case ToolCallFinished():
                child = self._child(catalogue.TOOL_DURATION, fact.agent, fact.tool, fact.outcome)
                child.observe(fact.at - fact.started_at, self._exemplar(fact))
            case ToolCallRejected():
                self._child(catalogue.TOOL_REJECTED, fact.agent, fact.reason).inc()
            case IterationLimitReached():
                self._child(catalogue.LIMIT_HITS, fact.agent).inc(1, self._exemplar(fact))
            case ToolCallStarted():
                if not self._alone:  # a foreign process does not announce its tools
                    self.instruments.labels.admit(catalogue.TOOL, fact.tool)
            case StreamOpened():
                self._child(catalogue.STREAMS, fact.agent).inc()
            case StreamClosed():
                self._stream_closed(fact)
            case ModelCallStarted() | IterationCounted() | RunBeganAnew() | ConversationNotStored():
                pass
            case SubAgentStarted() | SubAgentFinished() | WorkAbandoned():
                pass
            case _:
                assert_never(fact)

    def admit(self, agent: str) -> None:
        """Add an agent that was not known at start."""
        self.instruments.labels.admit(catalogue.AGENT, agent)
        self.instruments.start_at_zero()

    def _child(self, metric: catalogue.Metric, *values: str) -> Any:
        return self.instruments[metric].child(*values)

    def _record_state(self, fact: RunQueued | RunStarted, state: State, since: float) -> None:
        self._in_flight[fact.run_id] = InFlight(fact.agent, fact.mode, state, since)

    def _run_finished(self, fact: RunFinished) -> None:
        exemplar = self._exemplar(fact)
        self._in_flight.pop(fact.run_id, None)
        self._child(catalogue.RUNS, fact.agent, fact.mode, fact.outcome).inc(1, exemplar)
        duration = self._child(catalogue.RUN_DURATION, fact.agent, fact.outcome)
        duration.observe(fact.duration_s, exemplar)
        if fact.mode is Mode.BACKGROUND and fact.attempt:
            self._child(catalogue.TASK_ATTEMPTS, fact.agent, fact.outcome).inc()
        if fact.outcome is Outcome.REJECTED:
            self._child(catalogue.REJECTED, fact.code or catalogue.OTHER).inc()
            return
        self._child(catalogue.QUEUE_WAIT, fact.agent).observe(fact.stored_s + fact.timings.queue_s)
        self._child(catalogue.ITERATIONS, fact.agent).observe(fact.iterations)
        self._child(catalogue.RUN_TOOL_CALLS, fact.agent).observe(fact.tool_calls)
        if fact.iteration_limit:
            ratio = fact.iterations / fact.iteration_limit
            self._child(catalogue.ITERATION_RATIO, fact.agent).observe(ratio)
        if fact.refused:
            self._child(catalogue.ANSWERS_REFUSED, fact.agent).inc(1, exemplar)
        if fact.outcome is Outcome.TIMEOUT and fact.phase is not None:
            labels = (fact.agent, fact.mode, fact.phase.kind)
            self._child(catalogue.TIMEOUTS, *labels).inc(1, exemplar)
        if fact.outcome is Outcome.COMPLETED:
            self._child(catalogue.LAST_SUCCESS, fact.agent).set(time.time())
        if fact.outcome in catalogue.WASTED.values:
            self._waste(fact)

    def _stream_closed(self, fact: StreamClosed) -> None:
        self._child(catalogue.STREAMS, fact.agent).dec()
        if fact.reason != "completed":
            self._child(catalogue.STREAM_DISCONNECTS, fact.agent, fact.reason).inc()
        if fact.first_event_s is not None:
            self._child(catalogue.STREAM_FIRST_EVENT, fact.agent).observe(fact.first_event_s)

    def _waste(self, fact: RunFinished) -> None:
        worked_s = max(0.0, fact.duration_s - fact.timings.queue_s)
        tokens = fact.usage.input_tokens + fact.usage.output_tokens
        self._child(catalogue.WASTED_SECONDS, fact.agent, fact.outcome).inc(worked_s)
        self._child(catalogue.WASTED_TOKENS, fact.agent, fact.outcome).inc(tokens)

    def _model_call_finished(self, fact: ModelCallFinished) -> None:
        labels = (fact.agent, fact.provider, fact.model)
        duration = self._child(catalogue.LLM_DURATION, *labels, fact.outcome)
        duration.observe(fact.at - fact.started_at, self._exemplar(fact))
        for kind, tokens in _tokens(fact.usage):
            self._child(catalogue.LLM_TOKENS, *labels, kind).inc(tokens)
        if fact.cost_usd is not None:
            self._child(catalogue.LLM_COST, *labels).inc(fact.cost_usd)
        elif fact.outcome is CallOutcome.COMPLETED:
            self._child(catalogue.LLM_UNPRICED, *labels).inc()

    def _configure(self, commit: str) -> None:
        for agent in self._agents:
            self._child(catalogue.ITERATION_LIMIT, agent.name).set(agent.iteration_limit)
            self._child(catalogue.DEADLINE, agent.name).set(agent.timeout_s)
            self._child(catalogue.LONGEST_DEADLINE, agent.name).set(agent.max_timeout_s)
            self._child(catalogue.LAST_SUCCESS, agent.name).set(0)
            self._child(catalogue.STREAMS, agent.name).set(0)
        libraries = (platform.python_version(), version("langchain"), version("langgraph"))
        self._child(catalogue.BUILD_INFO, version("watchkeeper"), commit, *libraries).set(1)

    def _count_in_flight(self) -> Mapping[tuple[str, ...], float]:
        states = (State.QUEUED, State.RUNNING)
        agents = [agent.name for agent in self._agents]
        counts: dict[tuple[str, ...], float] = dict.fromkeys(
            product(agents, map(str, Mode), map(str, states)), 0.0
        )
        for run in list(self._in_flight.values()):
            key = (run.agent, str(run.mode), str(run.state))
            counts[key] = counts.get(key, 0) + 1
        return counts

    def _oldest(self) -> Mapping[tuple[str, ...], float]:
        now = time.monotonic()
        ages: dict[tuple[str, ...], float] = {
            (agent.name, str(state)): 0.0
            for agent in self._agents
            for state in (State.QUEUED, State.RUNNING)
        }
        for run in list(self._in_flight.values()):
            if run.mode is Mode.BACKGROUND:
                continue  # the gauges of the store have their ages
            key = (run.agent, str(run.state))
            ages[key] = max(ages.get(key, 0.0), now - run.since)
        return ages


def _tokens(usage: Usage) -> list[tuple[str, int]]:
    counts = (
        usage.input_tokens,
        usage.output_tokens,
        usage.cache_read,
        usage.cache_creation,
        usage.reasoning,
    )
    return [(kind, n) for kind, n in zip(catalogue.TOKEN_TYPE.values, counts, strict=True) if n]

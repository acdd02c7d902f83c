"""The fold over a run's facts: timings that add up, and the phase of the run."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.runs.events import (
    Event,
    FirstToken,
    IterationCounted,
    ModelCallFinished,
    ModelCallStarted,
    RunQueued,
    RunStarted,
    ToolCallFinished,
    ToolCallStarted,
)
from app.runs.model import CallOutcome, Mode, Usage
from app.runs.progress import Progress

RUN, AGENT, ARRIVED = "run", "a", 1000.0


def started(at: float) -> RunStarted:
    return RunStarted(
        run_id=RUN,
        agent=AGENT,
        at=at,
        mode=Mode.SYNC,
        iteration_limit=3,
        timeout_s=9,
        queue_wait_s=0,
    )


def model(at: float, call_id: str = "m") -> ModelCallStarted:
    return ModelCallStarted(
        run_id=RUN,
        agent=AGENT,
        at=at,
        call_id=call_id,
        parent_id=None,
        iteration=1,
        attempt=1,
        provider="p",
        model="m",
    )


def model_end(
    at: float,
    call_id: str = "m",
    outcome: CallOutcome = CallOutcome.COMPLETED,
    usage: Usage | None = None,
    cost_usd: float | None = None,
) -> ModelCallFinished:
    spent = usage or Usage()
    return ModelCallFinished(
        run_id=RUN,
        agent=AGENT,
        at=at,
        call_id=call_id,
        provider="p",
        model="m",
        started_at=ARRIVED,
        outcome=outcome,
        usage=spent,
        cost_usd=cost_usd,
    )


def tool(at: float, call_id: str = "t", name: str = "look", own: bool = True) -> ToolCallStarted:
    return ToolCallStarted(
        run_id=RUN,
        agent=AGENT,
        at=at,
        call_id=call_id,
        parent_id=None,
        tool=name,
        iteration=1,
        arguments={"n": 1},
        own=own,
    )


def tool_end(at: float, call_id: str = "t", result: str | None = "ok") -> ToolCallFinished:
    return ToolCallFinished(
        run_id=RUN,
        agent=AGENT,
        at=at,
        call_id=call_id,
        tool="look",
        started_at=ARRIVED,
        outcome=CallOutcome.COMPLETED,
        result=result,
    )


def first_token(at: float, call_id: str = "m") -> FirstToken:
    return FirstToken(
        run_id=RUN,
        agent=AGENT,
        at=at,
        call_id=call_id,
        provider="p",
        model="m",
        started_at=ARRIVED,
    )


def progress_of(*facts: Event) -> Progress:
    """A progress that got these facts."""
    progress = Progress(ARRIVED)
    for fact in facts:
        progress.add(fact)
    return progress


IDS = st.sampled_from(["a", "b", "c"])
TIMES = st.floats(ARRIVED, ARRIVED + 100, allow_nan=False)
FACTS: st.SearchStrategy[Event] = st.one_of(
    st.builds(started, TIMES),
    st.builds(model, TIMES, IDS),
    st.builds(model_end, TIMES, IDS, st.sampled_from(CallOutcome)),
    st.builds(tool, TIMES, IDS, IDS, st.booleans()),
    st.builds(tool_end, TIMES, IDS),
    st.builds(lambda at: RunQueued(run_id=RUN, agent=AGENT, at=at, mode=Mode.SYNC), TIMES),
    st.builds(first_token, TIMES, IDS),
    st.builds(
        lambda at: IterationCounted(run_id=RUN, agent=AGENT, at=at, iteration=1, tool_calls=1),
        TIMES,
    ),
)


@given(facts=st.lists(FACTS, max_size=40), rest=st.floats(0, 10))
def test_timings_add_up_whatever_happens(facts: list[Event], rest: float) -> None:
    """Queue, model, tools and other add up to the duration for any facts in any order."""
    progress = progress_of(*facts)
    now = max([ARRIVED, *(fact.at for fact in facts)]) + rest
    timings = progress.timings(now)
    parts = (timings.queue_s, timings.llm_s, timings.tools_s, timings.other_s)
    assert sum(parts) == pytest.approx(now - ARRIVED, abs=1e-6)
    assert all(part >= 0 for part in parts)


@given(facts=st.lists(FACTS, max_size=40))
def test_reading_timings_changes_nothing(facts: list[Event]) -> None:
    """Timings that were read meanwhile do not change those at the end."""
    facts = sorted(facts, key=lambda fact: fact.at)
    read = Progress(ARRIVED)
    for fact in facts:
        read.add(fact)
        read.timings(fact.at)
    now = ARRIVED + 200
    one, other = read.timings(now), progress_of(*facts).timings(now)
    assert one.queue_s == pytest.approx(other.queue_s)
    assert one.llm_s == pytest.approx(other.llm_s)
    assert one.tools_s == pytest.approx(other.tools_s)


def test_every_moment_belongs_to_one_phase() -> None:
    """A run's time belongs to the queue, the model, the tools or the rest, in its order."""
    progress = progress_of(
        started(ARRIVED + 1), model(ARRIVED + 2), model_end(ARRIVED + 5), tool(ARRIVED + 6)
    )
    timings = progress.timings(ARRIVED + 10)
    assert (timings.queue_s, timings.llm_s, timings.tools_s, timings.other_s) == (1, 3, 4, 2)


def test_parallel_tools_count_once() -> None:
    """Two tools at the same time cost the wall clock once."""
    progress = progress_of(
        started(ARRIVED),
        tool(ARRIVED, "1"),
        tool(ARRIVED, "2"),
        tool_end(ARRIVED + 4, "1"),
        tool_end(ARRIVED + 5, "2"),
    )
    assert progress.timings(ARRIVED + 5).tools_s == 5


def test_model_inside_a_tool_counts_as_the_tool() -> None:
    """A sub-agent's model call is time of the tool around it."""
    progress = progress_of(started(ARRIVED), tool(ARRIVED, name="sub"), model(ARRIVED + 1))
    assert str(progress.phase) == "tool:sub"
    assert progress.timings(ARRIVED + 3).llm_s == 0


def test_phase_before_the_start_is_the_queue() -> None:
    """A run that waits for its slot is in the phase `queue`."""
    assert str(progress_of().phase) == "queue"
    queued = RunQueued(run_id=RUN, agent=AGENT, at=ARRIVED, mode=Mode.SYNC)
    assert str(progress_of(queued).phase) == "queue"


def test_phase_is_the_oldest_open_tool() -> None:
    """Of several open tools the oldest is the phase."""
    facts: list[Event] = [
        started(ARRIVED),
        tool(ARRIVED + 1, "1", "slow"),
        tool(ARRIVED + 2, "2", "other"),
        tool(ARRIVED + 3, "3", "third"),
    ]
    assert str(progress_of(*facts).phase) == "tool:slow"
    assert str(progress_of(*facts, tool_end(ARRIVED + 4, "1")).phase) == "tool:other"
    ends = [tool_end(ARRIVED + 4, "1"), tool_end(ARRIVED + 5, "2")]
    assert str(progress_of(*facts, *ends).phase) == "tool:third"


def test_phase_is_the_model_during_back_off() -> None:
    """Between a failed model call and the next one the phase is still the model."""
    failed = model_end(ARRIVED + 2, outcome=CallOutcome.RATE_LIMITED)
    progress = progress_of(started(ARRIVED), model(ARRIVED + 1), failed)
    assert str(progress.phase) == "llm"
    progress.add(model(ARRIVED + 7, "again"))
    progress.add(model_end(ARRIVED + 8, "again"))
    assert str(progress.phase) == "other"
    assert progress.timings(ARRIVED + 8).llm_s == 7


def test_abandoned_model_call_is_no_phase() -> None:
    """After an agent cancels its model call, the time is the agent's own."""
    given_up = model_end(ARRIVED + 2, outcome=CallOutcome.CANCELLED)
    progress = progress_of(started(ARRIVED), model(ARRIVED + 1), given_up)
    assert str(progress.phase) == "other"
    assert progress.timings(ARRIVED + 9).llm_s == 1


def test_tools_of_sub_agents_are_not_counted() -> None:
    """Tool calls and steps are the asked agent's own; usage is everybody's."""
    progress = progress_of(
        started(ARRIVED),
        tool(ARRIVED, "1", "sub"),
        tool(ARRIVED + 1, "2", "inner", own=False),
        model(ARRIVED + 1, "m"),
        model_end(ARRIVED + 2, "m", usage=Usage(3, 4)),
        tool_end(ARRIVED + 3, "2"),
        tool_end(ARRIVED + 4, "1"),
    )
    assert progress.tool_calls == 1
    assert progress.tools == {"sub": 1}
    assert [step.tool for step in progress.steps] == ["sub"]
    assert progress.usage == Usage(3, 4)


def test_cost_needs_a_price_for_every_call() -> None:
    """Prices add up; one call without a price leaves the run without one, a free one does not."""
    priced = model_end(ARRIVED, usage=Usage(1, 1), cost_usd=0.25)
    silent = model_end(ARRIVED)
    unpriced = model_end(ARRIVED, usage=Usage(1, 1))
    assert progress_of().cost_usd is None
    assert progress_of(priced, silent, priced).cost_usd == 0.5
    assert progress_of(priced, unpriced, priced).cost_usd is None


def test_first_token_counts_once() -> None:
    """The time to the first token counts from the run's arrival, and only once."""
    assert progress_of().ttft_s is None
    assert progress_of(first_token(ARRIVED + 2), first_token(ARRIVED + 3, "n")).ttft_s == 2


def test_step_has_its_start_and_duration() -> None:
    """A step's start counts from the run's arrival."""
    (step,) = progress_of(started(ARRIVED + 1), tool(ARRIVED + 2), tool_end(ARRIVED + 5)).steps
    assert (step.started_s, step.duration_s, step.result) == (2, 3, "ok")


def test_end_without_a_start_is_ignored() -> None:
    """A call that never started makes no step."""
    progress = progress_of(
        started(ARRIVED), tool_end(ARRIVED + 1, "ghost"), model_end(ARRIVED + 1, "x")
    )
    assert progress.steps == []
    assert progress.open == {}


@pytest.mark.parametrize("given", [None, ""])
def test_call_without_an_id_gets_one(given: str | None) -> None:
    """A call without an id, or with an empty one, gets its own."""
    calls = [replace(tool(ARRIVED, call_id), tool_call_id=given) for call_id in ("a", "b")]
    ends = [tool_end(ARRIVED + 1, call_id) for call_id in ("a", "b")]
    assert [step.call_id for step in progress_of(started(ARRIVED), *calls, *ends).steps] == [
        "a",
        "b",
    ]


def test_step_result_is_cut_at_4_kilobytes() -> None:
    """A step's result is at most 4 KB, even in Chinese."""
    (step,) = progress_of(
        started(ARRIVED), tool(ARRIVED), tool_end(ARRIVED, result="订" * 5000)
    ).steps
    assert step.result is not None
    assert 4000 < len(step.result.encode()) <= 4096
    assert set(itertools.islice(step.result, 100)) == {"订"}

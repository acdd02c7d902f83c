"""Compares what was reported of a run with the forecast, and one mode with another."""

from collections.abc import Sequence

from tests.property import oracle
from tests.property.ledger import Ledger
from tests.property.model import TOKENS
from tests.property.oracle import Forecast
from tests.property.plan import Plan
from tests.property.stage import Run
from tests.streams.reading import of, text_of


class Wrong(AssertionError):
    """Something reported is wrong; the message lists all of it."""


def judge(plan: Plan, runs: Sequence[Run]) -> None:
    """Raise Wrong, with everything that is wrong of any of these runs of the plan."""
    right = oracle.forecast(plan)
    wrong: list[str] = []
    for run in runs:
        is_whole = run.body.get("outcome") == "completed" and not right.exact
        holds = oracle.completed(plan) if is_whole else right
        found = [*_as_forecast(holds, run), *_as_seen(plan, right, run), *_signals(run)]
        found += _calls(right, run)
        found += _streamed(plan, run)
        wrong += [f"{run.way}: {text}" for text in found]
    if right.exact and len({run.counts for run in runs}) > 1:
        wrong.append(f"not alike: {[run.counts for run in runs]}")
    if wrong:
        raise Wrong("\n".join([repr(right), *wrong]))


def _as_forecast(right: Forecast, run: Run) -> list[str]:
    body, wrong = run.body, list[str]()
    if run.status != 200 and body["code"] in right.errors:
        return []
    if run.status != 200:
        error, at = run.line["error_type"], run.line["error_at"]
        return [f"status {run.status} {body.get('code')} {error} {at}"]
    if body["outcome"] not in right.outcomes:
        wrong.append(f"outcome {body['outcome']}")
    if not right.fewest <= body["iterations"] <= right.most:
        wrong.append(f"iterations {body['iterations']}")
    if right.tool_calls is not None and body["tool_calls"] != right.tool_calls:
        wrong.append(f"tool_calls {body['tool_calls']}")
    if right.rejected is not None and run.samples["rejected"] != right.rejected:
        wrong.append(f"rejected {run.samples['rejected']}")
    if right.answers is not None and body["answer"] not in right.answers:
        wrong.append(f"answer {body['answer']!r}")
    if not body["answer"]:
        wrong.append("no answer")
    return wrong + _limit(right, run)


def _limit(right: Forecast, run: Run) -> list[str]:
    """A stopped run reports its limit, and did reach it."""
    body, limit = run.body, run.body["limit"]
    most, calls = body["iteration_limit"], run.samples["model_calls"]
    if body["outcome"] == "completed":
        holds = limit is None
    elif limit == "iterations":
        holds = body["iterations"] == most
    else:
        holds = limit == "model_calls" and not right.exact and calls >= oracle.ceiling(most) - 1
    return [] if holds else [f"limit {limit} after {body['iterations']} turns, {calls} calls"]


def _as_seen(plan: Plan, right: Forecast, run: Run) -> list[str]:
    """The report equals what the far side saw, wherever a limit cut it."""
    ledger, body, wrong = run.ledger, run.body, list[str]()
    limit = oracle.limit_of(plan)
    # A turn that a ceiling cut before its tools worked may count or not, and a tool may have been
    # called and not begun. What one function has gathered goes on when the run has ended.
    goes_on = not right.exact and oracle.gathers(plan)
    seen = oracle.as_seen(ledger, worked=not right.exact)
    fewest = 0 if goes_on else oracle.depth(plan.steps, seen)
    most = oracle.depth(plan.steps, oracle.as_seen(ledger), wide=True)
    # A node that asks without a model may have done so, and be stopped before its tools.
    if not min(fewest, limit) <= body["iterations"] <= most:
        wrong.append(f"iterations {body['iterations']}, seen were {fewest} to {most}")
    if body["iterations"] > limit:
        wrong.append(f"iterations {body['iterations']} beyond the limit {limit}")
    own = {worker.whose for worker in oracle.workers(plan.steps)}
    worked = len([tool for tool in ledger.worked if tool.whose in own])
    reported = body["tool_calls"]
    if reported != worked if right.exact else reported < worked and not goes_on:
        wrong.append(f"tool_calls {reported}, seen were {worked}")
    helped = len([asked for asked in ledger.asked if asked.helps])
    for kind, calls in (("helpers", helped), ("agents", len(ledger.asked) - helped)):
        if calls > oracle.ceiling(limit):
            wrong.append(f"{calls} calls of {kind}, above the ceiling of {oracle.ceiling(limit)}")
    return wrong + _turns(plan, ledger, limit)


def _turns(plan: Plan, ledger: Ledger, limit: int) -> list[str]:
    """No agent is asked for more than its turns and one more, but for attempts."""
    wrong = []
    for worker in oracle.workers(plan.steps):
        if worker.agent is None or worker.agent.trouble is not None or worker.runs > 1:
            continue
        calls = [a for a in ledger.asked if a.whose == worker.whose and a.answered]
        if len(calls) > limit + 1:
            wrong.append(f"{worker.whose} was asked {len(calls)} times")
    return wrong


def _calls(right: Forecast, run: Run) -> list[str]:
    """Every model and tool call is reported, with the tokens of each answered one."""
    if run.status != 200 or not right.exact:
        return []
    asked = len(run.ledger.asked)
    tokens = len([a for a in run.ledger.asked if a.answered]) * TOKENS["input_tokens"]
    reported = (run.samples["model_calls"], run.spans["chat"], run.body["usage"]["input_tokens"])
    wrong = list[str]()
    if reported != (asked, asked, tokens):
        wrong.append(
            f"model calls by samples, spans, tokens: {reported}, seen were {asked}, {tokens}"
        )
    if run.spans["execute_tool"] != len(run.ledger.worked):
        wrong.append(f"{run.spans['execute_tool']} spans of tools for {len(run.ledger.worked)}")
    return wrong


def _signals(run: Run) -> list[str]:
    """The line, the span, the record and the samples say the same as the body."""
    body, wrong = run.body, list[str]()
    expected = {name: body[name] for name in ("outcome", "iterations", "tool_calls")}
    sources = {
        "line": {name: run.line[name] for name in expected},
        "span": {name: run.span[f"agent.run.{name}"] for name in expected},
        "record": {name: run.record[name] for name in expected},
    }
    wrong += [
        f"{source} says {reported}" for source, reported in sources.items() if reported != expected
    ]
    counted = {
        "iterations": body["iterations"],
        "tool_calls": body["tool_calls"],
    }
    if run.status == 200:
        counted["limit_hits"] = int(body["outcome"] == "iteration_limit")
    reported = {name: run.samples[name] for name in counted}
    if reported != counted:
        wrong.append(f"samples say {reported}, the answer {counted}")
    if len(run.record["steps"]) != body["tool_calls"]:
        wrong.append(f"{len(run.record['steps'])} steps for {body['tool_calls']} tool calls")
    return wrong


def _streamed(plan: Plan, run: Run) -> list[str]:
    if run.way != "streamed" or run.status != 200:
        return []
    wrong, body = list[str](), run.body
    if text_of(run.events) != body["answer"]:
        wrong.append(f"the stream says {text_of(run.events)!r}, the answer {body['answer']!r}")
    numbers = [data["iteration"] for data in of(run.events, "iteration")]
    if sorted(set(numbers)) != list(range(1, body["iterations"] + 1)):
        wrong.append(f"iteration events {numbers} for {body['iterations']} iterations")
    top = "".join(t["text"] for t in of(run.events, "token") if t["agent"] is None)
    foreign = oracle.silent(plan)
    wrong += [f"{name} speaks as the agent asked" for name in foreign if f"{name} " in top]
    return wrong

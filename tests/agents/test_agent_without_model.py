"""The service says at start, and in `GET /agents`, in which agents it found no model."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.command import serving

MODULE = """
from langchain_core.messages import AIMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from tests import fakes, loops

def answers(state: MessagesState) -> dict:
    return {"messages": [AIMessage("from a client of its own")]}

graph = StateGraph(MessagesState)
graph.add_node("answers", answers)
graph.add_edge(START, "answers")
graph.add_edge("answers", END)
raw = graph.compile()
tools = fakes.ToolDesk().tools()
agent = loops.build("create_agent", loops.asks_times("create_agent", 1), tools)
executor = loops.build("agent_executor", loops.asks_times("agent_executor", 1), tools)
"""


@pytest.mark.waits
def test_agent_without_model_is_named_at_start(tmp_path: Path) -> None:
    """An agent without a model is named in the log and in `GET /agents`; the others are not."""
    (tmp_path / "mine.py").write_text(MODULE)
    names = ("raw", "agent", "executor")
    arguments = (*(f"{name}=mine:{name}" for name in names), "--log-format", "json")
    with serving(tmp_path, *arguments) as service:
        views = httpx.get(f"{service.url}/agents", timeout=30).json()["agents"]
        service.signal()
        assert service.wait(30) == 0
        lines: list[dict[str, Any]] = list(map(json.loads, service.out.read_text().splitlines()))
    found = {view["name"]: view["has_model"] for view in views}
    assert found == {"raw": False, "agent": True, "executor": True}
    warnings = [line for line in lines if line["event"] == "agent_without_model"]
    assert [(line["agent"], line["level"]) for line in warnings] == [("raw", "warning")]

"""A process that lost its run without knowing it: its steps are no longer stored."""

import asyncio
from typing import Any

import psycopg
from langchain_core.messages import AIMessage
from langgraph.graph import END, START, StateGraph

from tests import fakes
from tests.parts.postgres import cluster
from tests.service import served, until
from tests.tasks.background import ended, submit


class Nodes:
    """Two nodes; the first waits until it is released."""

    def __init__(self) -> None:
        self.did: list[str] = []
        self.release = asyncio.Event()

    async def first(self, _: fakes.GraphState) -> dict[str, Any]:
        self.did.append("first")
        await self.release.wait()
        return {"messages": [AIMessage("half")]}

    async def second(self, _: fakes.GraphState) -> dict[str, Any]:
        self.did.append("second")
        return {"messages": [AIMessage("whole")]}

    def graph(self) -> Any:
        drawn: Any = StateGraph(fakes.GraphState)
        drawn.add_node("first", self.first)
        drawn.add_node("second", self.second)
        drawn.add_edge(START, "first")
        drawn.add_edge("first", "second")
        drawn.add_edge("second", END)
        return drawn.compile()


async def test_lost_run_stores_no_step() -> None:
    """Steps of a process whose run another has claimed are not stored, so it goes no further."""
    nodes = Nodes()
    with cluster() as server:
        async with served({"a": nodes.graph()}, store_url=server.url) as desk:
            task_id = await submit(desk)
            await until(lambda: nodes.did, 20)
            _take(server.url, task_id)
            nodes.release.set()
            task = await ended(desk, task_id)
    assert (task["status"], task["result"]["answer"]) == ("completed", "whole")
    assert nodes.did == ["first", "first", "second"]


def _take(url: str, task_id: str) -> None:
    """Be another process, which has claimed the run and died since."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            "update dbos.workflow_status set executor_id = 'gone', owner_xid = 'gone'"
            " where workflow_uuid = %s",
            (task_id,),
        )

"""Conversations that the service keeps for its agents: read one, or drop it."""

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from app.api import problems
from app.api.deps import ServiceDep
from app.runs import rendering
from app.runs.errors import NotFound

_RESPONSES: dict[int | str, dict[str, Any]] = {
    404: {"model": problems.Problem, "description": "`not_found`"},
    503: {"model": problems.Problem, "description": "`store_unavailable`"},
}
Agent = Annotated[str | None, Query(description="Whose conversation; else the default agent's.")]

router = APIRouter(prefix="/threads", tags=["conversations"])


class MessageView(BaseModel):
    """One message: of the `human`, the agent (`ai`), or a `tool`."""

    type: str
    content: Any


class ThreadView(BaseModel):
    """What was said on a thread, the oldest message first."""

    thread_id: str
    agent: str
    messages: list[MessageView]


@router.get("/{thread_id:path}", summary="A conversation", responses=_RESPONSES)
async def get_thread(thread_id: str, service: ServiceDep, agent: Agent = None) -> ThreadView:
    """What was said; an agent with a checkpointer of its own keeps its conversations itself."""
    name = agent or service.agent().info.name  # the store may know one that is no longer served
    said = await service.conversations.read(name, thread_id)
    if said is None:
        raise NotFound
    messages = [
        MessageView(type=message["type"], content=_shown(message["data"]["content"]))
        for message in json.loads(said)
    ]
    return ThreadView(thread_id=thread_id, agent=name, messages=messages)


def _shown(content: Any) -> Any:
    return rendering.preview(content, rendering.MAX_BYTES)


@router.delete(
    "/{thread_id:path}",
    summary="Drop a conversation",
    status_code=204,
    responses={
        **_RESPONSES,
        409: {"model": problems.Problem, "description": "`in_flight`: a run has it"},
    },
)
async def drop_thread(thread_id: str, service: ServiceDep, agent: Agent = None) -> Response:
    """The next run with this thread_id begins a new one."""
    name = agent or service.agent().info.name
    if not await service.conversations.delete(name, thread_id):
        raise NotFound
    return Response(status_code=204)

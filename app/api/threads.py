"""Conversations that the service stores for its agents: read one, or delete it."""

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
Agent = Annotated[
    str | None, Query(description="The agent of the conversation; by default the default agent.")
]

router = APIRouter(prefix="/threads", tags=["conversations"])


class MessageView(BaseModel):
    """One message: of the `human`, the agent (`ai`), or a `tool`."""

    type: str
    content: Any


class ThreadView(BaseModel):
    """The messages of a thread, the oldest first."""

    thread_id: str
    agent: str
    messages: list[MessageView]


@router.get("/{thread_id:path}", summary="A conversation", responses=_RESPONSES)
async def get_thread(thread_id: str, service: ServiceDep, agent: Agent = None) -> ThreadView:
    """The messages, unless the agent has a checkpointer of its own, which stores them."""
    name = agent or service.agent().info.name  # a stored agent may no longer be served
    stored = await service.conversations.read(name, thread_id)
    if stored is None:
        raise NotFound
    messages = [
        MessageView(type=message["type"], content=_shown(message["data"]["content"]))
        for message in json.loads(stored)
    ]
    return ThreadView(thread_id=thread_id, agent=name, messages=messages)


def _shown(content: Any) -> Any:
    return rendering.preview(content, rendering.MAX_BYTES)


@router.delete(
    "/{thread_id:path}",
    summary="Delete a conversation",
    status_code=204,
    responses={
        **_RESPONSES,
        409: {"model": problems.Problem, "description": "`in_flight`: a run owns it"},
    },
)
async def drop_thread(thread_id: str, service: ServiceDep, agent: Agent = None) -> Response:
    """The next run with this thread_id starts a new one."""
    name = agent or service.agent().info.name
    if not await service.conversations.delete(name, thread_id):
        raise NotFound
    return Response(status_code=204)

"""The usual code: the shortest FastAPI app around an agent, without telemetry."""

import json
from collections.abc import AsyncIterator

from fastapi import FastAPI
from fastapi.responses import StreamingResponse
from langchain_core.messages import AIMessageChunk
from pydantic import BaseModel

from bench import agents
from examples.create_agent import orders


class Question(BaseModel):
    question: str


def graph_app() -> FastAPI:
    """An app around `create_agent`."""
    agent = agents.graph()
    app = FastAPI()

    @app.post("/agent")
    async def ask(body: Question) -> dict[str, str]:
        state = await agent.ainvoke({"messages": [("user", body.question)]})
        return {"answer": state["messages"][-1].text}

    return app


def executor_app() -> FastAPI:
    """An app around an `AgentExecutor`."""
    agent = agents.executor()
    app = FastAPI()

    @app.post("/agent")
    async def ask(body: Question) -> dict[str, str]:
        result = await agent.ainvoke({"input": body.question})
        return {"answer": result["output"]}

    return app


def stream_app() -> FastAPI:
    """The usual code to stream: it sends every token of `astream_events`."""
    agent = orders()
    app = FastAPI()

    @app.post("/agent/stream")
    async def ask(body: Question) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            asked = {"messages": [("user", body.question)]}
            async for event in agent.astream_events(asked, version="v2"):
                if event["event"] == "on_chat_model_stream":
                    text = event["data"]["chunk"].text
                    yield f"data: {json.dumps({'text': text})}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app


def bare_stream_app() -> FastAPI:
    """The minimum: `astream`, with only its text on the wire."""
    agent = orders()
    app = FastAPI()

    @app.post("/agent/stream")
    async def ask(body: Question) -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            asked = {"messages": [("user", body.question)]}
            async for chunk, _ in agent.astream(asked, stream_mode="messages"):
                if isinstance(chunk, AIMessageChunk):
                    yield f"data: {json.dumps({'text': chunk.text})}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return app

"""What people write today: the shortest FastAPI app around an agent, with nothing watching it."""

from fastapi import FastAPI
from pydantic import BaseModel

from bench import agents


class Question(BaseModel):
    question: str


def graph_app() -> FastAPI:
    """Around `create_agent`."""
    agent = agents.graph()
    app = FastAPI()

    @app.post("/agent")
    async def ask(body: Question) -> dict[str, str]:
        state = await agent.ainvoke({"messages": [("user", body.question)]})
        return {"answer": state["messages"][-1].text}

    return app


def executor_app() -> FastAPI:
    """Around an `AgentExecutor`."""
    agent = agents.executor()
    app = FastAPI()

    @app.post("/agent")
    async def ask(body: Question) -> dict[str, str]:
        result = await agent.ainvoke({"input": body.question})
        return {"answer": result["output"]}

    return app

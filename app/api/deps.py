"""The parts of a running service that `main` passes to the endpoints."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Annotated

from fastapi import Depends, Request

from app.api.results import render
from app.runs.errors import NotFound, StoreUnavailable
from app.runs.locks import RunLocks
from app.runs.ports import Agent, KeyStore, TaskEngine, ThreadStore
from app.runs.runner import Runner
from app.runs.threads import DaemonThreads


class Role(StrEnum):
    """What a process does: answer callers, execute background runs, or both."""

    BOTH = "both"
    API = "api"
    WORKER = "worker"


@dataclass(slots=True)
class Service:
    """The parts of a running service. `agents` is empty until they are built."""

    runner: Runner
    threads: DaemonThreads
    version: str
    render_metrics: Callable[[str], Awaitable[tuple[bytes, str]]]
    conversations: ThreadStore
    engine: TaskEngine | None = None
    keys: KeyStore | None = None
    write_timeout_s: float = 10.0
    role: Role = Role.BOTH
    # Whether readiness is red without the store; for a worker it always is.
    ready_requires_store: bool = False
    agents: Mapping[str, Agent] = field(default_factory=dict)
    # Returns the span of the present request as a W3C traceparent.
    trace: Callable[[], str | None] = lambda: None
    locks: RunLocks = field(init=False)

    def __post_init__(self) -> None:
        self.locks = RunLocks(self.keys, self.conversations, render)

    def agent(self, name: str | None = None) -> Agent:
        """An agent by its name, or the default one. Raises NotFound."""
        if name is None:
            name = next(iter(self.agents), "")
        agent = self.agents.get(name)
        if agent is None:
            raise NotFound
        return agent

    @property
    def tasks(self) -> TaskEngine:
        """Background runs. Raises StoreUnavailable for a service without a store."""
        if self.engine is None:
            raise StoreUnavailable
        return self.engine

    @property
    def requires_store(self) -> bool:
        """Whether this process is not ready while the store is unavailable."""
        return self.ready_requires_store or self.role is Role.WORKER

    @property
    def demo(self) -> bool:
        """Whether any agent served is a demo."""
        return any(agent.info.demo for agent in self.agents.values())


async def _service(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


ServiceDep = Annotated[Service, Depends(_service)]

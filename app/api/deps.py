"""What the HTTP room is handed by `main`, and how an endpoint gets at it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from app.runs.errors import NotFound
from app.runs.ports import Agent
from app.runs.runner import Runner
from app.runs.threads import DaemonThreads


@dataclass(slots=True)
class Service:
    """The parts of a running service. `agents` is empty until they are built."""

    runner: Runner
    threads: DaemonThreads
    version: str
    render_metrics: Callable[[str], Awaitable[tuple[bytes, str]]]
    write_s: float = 10.0
    agents: Mapping[str, Agent] = field(default_factory=dict)

    def agent(self, name: str | None = None) -> Agent:
        """An agent by its name, or the default one. Raises NotFound."""
        if name is None:
            name = next(iter(self.agents), "")
        agent = self.agents.get(name)
        if agent is None:
            raise NotFound
        return agent

    @property
    def demo(self) -> bool:
        """Whether any agent served is a demo."""
        return any(agent.info.demo for agent in self.agents.values())


async def _service(request: Request) -> Service:
    service = request.app.state.service
    assert isinstance(service, Service)
    return service


ServiceDep = Annotated[Service, Depends(_service)]

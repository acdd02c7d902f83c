"""Where a drill happens: a real service, its monitoring, and callers that keep asking."""

import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import httpx

from tests.command import Serving, serving
from tests.drills.monitoring import Monitoring, until
from tests.otlp import Receiver

_PATIENCE_S = 130.0


class Scene:
    """What a drill may do to a service."""

    def __init__(
        self,
        here: Path,
        monitoring: Monitoring,
        agents: Sequence[str],
        variables: Mapping[str, str],
    ) -> None:
        self.monitoring = monitoring
        self.upstream = ""
        self.collector: Receiver | None = None
        self._here = here
        self._agents = agents
        self.store = here / "store"
        self._variables = {
            **variables,
            "DRILL_SWITCHES": str(here / "switches"),
            "WATCHKEEPER_DATA_DIR": str(self.store),
        }
        self._service: ExitStack = ExitStack()
        self._serving: Serving | None = None
        self._port = "0"
        self._quiet = threading.Event()
        self._callers: list[threading.Thread] = []
        (here / "switches").mkdir()

    @property
    def url(self) -> str:
        """Where the service is."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def instance(self) -> str:
        """The service's label `instance`."""
        return f"127.0.0.1:{self._port}"

    def start(self, *agents: str) -> None:
        """Start the service, with other agents perhaps, where it was before."""
        named = [
            f"{name}=tests.drills.agents:{made}" for name, made in _split(agents or self._agents)
        ]
        own = self._here / f"service-{time.monotonic_ns()}"
        own.mkdir()
        started = serving(
            own, *named, "--port", self._port, "--log-format", "json", variables=self._variables
        )
        self._serving = self._service.enter_context(started)
        self._port = self._serving.url.rpartition(":")[2]

    def kill(self) -> None:
        """Kill the service with SIGKILL; it can be started again."""
        assert self._serving is not None
        self._serving.signal(signal.SIGKILL)
        self._serving.wait(10)
        self._service.close()

    def throw(self, switch: str) -> None:
        """Throw a switch of the agents."""
        (self._here / "switches" / switch).touch()

    def release(self, switch: str) -> None:
        """Set a switch back."""
        (self._here / "switches" / switch).unlink(missing_ok=True)

    def asking(
        self,
        question: str,
        every_s: float = 0.0,
        at_once: int = 1,
        agent: str = "orders",
        way: str = "",
        **body: Any,
    ) -> None:
        """Keep asking until `stop_asking`: so many callers, each with a pause between its runs."""
        self._ask_in_turn([{"question": question, **body}], every_s, at_once, agent + way)

    def asking_one_in(
        self, many: int, question: str, every_s: float = 0.0, at_once: int = 1, **body: Any
    ) -> None:
        """The same, with this question once in so many, however fast the machine is."""
        bodies = [{"question": "fine"}] * (many - 1)
        self._ask_in_turn([*bodies, {"question": question, **body}], every_s, at_once, "orders")

    def _ask_in_turn(
        self, bodies: Sequence[Mapping[str, Any]], every_s: float, at_once: int, whom: str
    ) -> None:
        for _ in range(at_once):
            caller = threading.Thread(
                target=self._ask_on,
                args=(f"/agents/{whom}", bodies, every_s, self._quiet),
                daemon=True,
            )
            caller.start()
            self._callers.append(caller)

    def stop_asking(self) -> None:
        """Let no caller ask again; runs in flight may end."""
        self._quiet.set()
        self._quiet = threading.Event()

    def ask(self, question: str, times: int = 1, agent: str = "orders", **body: Any) -> None:
        """Ask so many times, one after the other."""
        with httpx.Client(base_url=self.url, timeout=_PATIENCE_S) as client:
            for _ in range(times):
                client.post(f"/agents/{agent}", json={"question": question, **body})

    def submit(self, question: str, times: int = 1, agent: str = "orders") -> None:
        """Submit so many background runs."""
        with httpx.Client(base_url=self.url, timeout=30) as client:
            for _ in range(times):
                body = {"question": question}
                client.post(f"/agents/{agent}/async", json=body).raise_for_status()

    def close(self) -> None:
        """End the callers and the service."""
        self._quiet.set()
        if self._serving is not None and self._serving.process.poll() is None:
            self.kill()
        for caller in self._callers:
            caller.join(10)

    def _ask_on(
        self,
        path: str,
        bodies: Sequence[Mapping[str, Any]],
        every_s: float,
        quiet: threading.Event,
    ) -> None:
        with httpx.Client(timeout=_PATIENCE_S) as client:
            for body in cycle(bodies):
                if quiet.is_set():
                    return
                try:
                    client.post(self.url + path, json=body)
                except httpx.TransportError:  # the service is down: that is what is drilled
                    quiet.wait(0.2)
                quiet.wait(every_s)


def _split(agents: Sequence[str]) -> Iterator[tuple[str, str]]:
    for agent in agents:
        name, _, made = agent.partition("=")
        yield name, made or name


@contextmanager
def set_up(
    here: Path, monitoring: Monitoring, agents: Sequence[str], variables: Mapping[str, str]
) -> Iterator[Scene]:
    """A service that is up, scraped and silent but for the watchdog."""
    scene = Scene(here, monitoring, agents, variables)
    try:
        scene.start()
        monitoring.scrape(scene.instance)
        monitoring.prometheus.until("up == 1")
        until(
            lambda: [alert.name for alert in monitoring.alertmanager.alerts()] == ["AgentWatchdog"],
            60,
            "the watchdog alone should be active before the fault",
        )
        yield scene
    finally:
        scene.close()

"""The same agent alone, in the shortest FastAPI app, and in Watchkeeper, taken in turns.

In each round every contender gets the same load, one after the other. So a disturbance of the
machine meets all of them alike.
"""

import statistics
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import uvloop

from bench import agents, table
from bench.load import Ask, Seen, drive
from bench.process import Server, rss_mb, running, uvicorn, watchkeeper
from tests.ports import free_port

# The two contenders of each ratio, and its title with the aim.
RATIOS = (
    ("d", "b", "Watchkeeper's graph / FastAPI around AgentExecutor (aim: at most 0.65)"),
    ("d", "c", "Watchkeeper's graph / FastAPI around create_agent (aim: at most 1.00)"),
    ("e", "b", "Watchkeeper's executor / FastAPI around AgentExecutor"),
)
HEADS = ("requests/s", "p50 ms", "p95 ms", "CPU ms a request", "least", "RSS MB")


@dataclass(frozen=True, slots=True)
class Load:
    """A number of requests by a number of clients, in a number of rounds at most."""

    clients: int
    requests: int
    rounds: int


# By the delay of the model in ms. Each delay needs new servers. With short turns and many rounds, a
# disturbance meets every contender.
LOADS: Mapping[int, Sequence[Load]] = {
    0: (Load(clients=8, requests=100, rounds=12),),
    20: (Load(1, 8, 4), Load(10, 60, 6), Load(100, 200, 4)),
}
# No round starts later than this, so that a slow machine does fewer rounds.
_LONGEST_S = 110.0
_WARM_UP = 60


@dataclass(frozen=True, slots=True)
class Slot:
    """One load on one contender."""

    requests: int
    cpu_s: float
    seen: Seen

    @property
    def cpu_ms(self) -> float:
        """CPU of one request, in ms."""
        return self.cpu_s / self.requests * 1000


class Contender(Protocol):
    """One contender: something that answers questions."""

    def answer(self, clients: int, requests: int) -> Slot:
        """Answer a load. Raises WrongAnswer."""
        ...

    def rss_mb(self) -> float:
        """Return the resident memory."""
        ...


class Alone:
    """The agent in a loop in this process: the lower bound of every server."""

    def __init__(self, answer: Ask) -> None:
        self._answer = answer

    def answer(self, clients: int, requests: int) -> Slot:
        """Execute as many runs at once as there are clients."""

        @asynccontextmanager
        async def connect() -> AsyncIterator[Ask]:
            yield self._answer

        cpu_s = time.process_time()
        seen = uvloop.run(drive(connect, clients, requests))
        return Slot(requests, time.process_time() - cpu_s, seen)

    def rss_mb(self) -> float:
        """Return the resident memory of the whole bench."""
        return rss_mb("self")


class Served:
    """A server in its own process."""

    def __init__(self, server: Server) -> None:
        self._server = server

    def answer(self, clients: int, requests: int) -> Slot:
        """Answer a load that a third process sends."""
        cpu_s = self._server.cpu_s()
        seen = self._server.load(clients, requests)
        return Slot(requests, self._server.cpu_s() - cpu_s, seen)

    def rss_mb(self) -> float:
        """Return the resident memory of the server."""
        return self._server.rss_mb()


Contenders = Mapping[str, Contender]
Command = Callable[[int], list[str]]
SERVERS: Mapping[str, tuple[str, Command, str]] = {
    "b": ("b FastAPI, AgentExecutor", lambda p: uvicorn("bench.plain:executor_app", p), "/docs"),
    "c": ("c FastAPI, create_agent", lambda p: uvicorn("bench.plain:graph_app", p), "/docs"),
    "d": ("d Watchkeeper, create_agent", lambda p: watchkeeper("bench.agents:graph", p), "/health"),
    "e": (
        "e Watchkeeper, AgentExecutor",
        lambda p: watchkeeper("bench.agents:executor", p),
        "/health",
    ),
}
NAMES = {"a": "a create_agent in-process", **{key: title for key, (title, _, _) in SERVERS.items()}}


def run() -> bool:
    """Measure and print. Returns false if an answer was wrong."""
    deadline = time.monotonic() + _LONGEST_S
    weight = sum(load.rounds for loads in LOADS.values() for load in loads)
    try:
        for delay_ms, loads in LOADS.items():
            with ExitStack() as stack:
                contenders = _start(stack, delay_ms)
                for load in loads:
                    remaining_s = deadline - time.monotonic()
                    _measure(contenders, delay_ms, load, remaining_s * load.rounds / weight)
                    weight -= load.rounds
    except (ExceptionGroup, subprocess.SubprocessError) as wrong:
        print(f"\n  an answer was wrong, or never came: {wrong}")
        return False
    return True


def _start(stack: ExitStack, delay_ms: int) -> Contenders:
    """Start and warm up every contender."""
    environment = {"MODEL_MS": str(delay_ms)}
    servers = dict[str, Server]()
    for letter, (_, command, _) in SERVERS.items():
        port = free_port()
        servers[letter] = stack.enter_context(running(command(port), port, environment))
    for letter, (_, _, ready) in SERVERS.items():
        servers[letter].wait_until(ready)
    agent = agents.graph(delay_ms)

    async def ask(question: str) -> str:
        state: Any = await agent.ainvoke({"messages": [("user", question)]})
        return str(state["messages"][-1].text)

    contenders: dict[str, Contender] = {"a": Alone(ask)}
    contenders |= {letter: Served(server) for letter, server in servers.items()}
    for contender in contenders.values():
        contender.answer(8, _WARM_UP)
    return contenders


def _measure(contenders: Contenders, delay_ms: int, load: Load, timeout_s: float) -> None:
    slots: dict[str, list[Slot]] = {letter: [] for letter in contenders}
    rounds = 0
    for rounds in _rounds(load.rounds, timeout_s):  # noqa: B007 - used below
        for letter, contender in contenders.items():
            slots[letter].append(contender.answer(load.clients, load.requests))
    clients = "1 client" if load.clients == 1 else f"{load.clients} clients"
    table.show(
        f"Model of {delay_ms} ms, {clients}: {rounds} rounds of {load.requests} requests each",
        ["", *HEADS],
        [_row(NAMES[letter], contenders[letter], of) for letter, of in slots.items()],
    )
    print(
        "  ratios of CPU a request: median of the rounds (least to most), and of the least figures"
    )
    cpu = {letter: [slot.cpu_ms for slot in of] for letter, of in slots.items()}
    for ours, theirs, meaning in RATIOS:
        print(f"  {ours}/{theirs}  {table.ratio(cpu[ours], cpu[theirs])}  {meaning}", flush=True)


def _rounds(most: int, timeout_s: float) -> Iterator[int]:
    """Count rounds, at least two, up to the number or the time limit."""
    deadline = time.monotonic() + timeout_s
    for number in range(1, most + 1):
        if number > 2 and time.monotonic() > deadline:
            return
        yield number


def _row(name: str, contender: Contender, slots: Sequence[Slot]) -> list[object]:
    latencies_ms = [s * 1000 for slot in slots for s in slot.seen.latencies_s]
    return [
        name,
        statistics.median(slot.requests / slot.seen.wall_s for slot in slots),
        table.percentile(latencies_ms, 50),
        table.percentile(latencies_ms, 95),
        statistics.median(slot.cpu_ms for slot in slots),
        min(slot.cpu_ms for slot in slots),
        contender.rss_mb(),
    ]

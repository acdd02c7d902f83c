"""The command line: a thin shell over `main`."""

import argparse
import asyncio
import gc
import math
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NoReturn

# Tasks that are left over have this long to end before the process exits without them.
_LEFTOVER_S = 1.0


_ASK_EXIT_CODES = """\
exit codes:
  0  completed
  1  cannot connect
  2  wrong usage, or a question that the service refuses (4xx)
  3  iteration_limit: stopped at its limit, with an answer
  4  timeout
  5  failed or interrupted
  6  cancelled or disconnected
  7  rejected: the service is full or shutting down (503)
130  left with Ctrl-C, which cancels the run
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code."""
    options = _parser().parse_args(arguments)
    code = options.command(options)
    assert isinstance(code, int)
    return code


def _ask(options: argparse.Namespace) -> int:
    from app.ask import Question, ask  # nothing else, so that it starts quickly

    question = Question(options.question, options.url, options.agent, options.timeout)
    return ask(question, options.json)


def _with_service(options: argparse.Namespace) -> int:
    """The exit code is 0, 1 (it could not start, or failed) or 2 (wrong settings or agents)."""
    gc.disable()  # imports make many objects that stay and little garbage
    from app import main as _  # noqa: F401 - imports everything while the collector is off
    from app import settings as configuration
    from app.agents.registry import AgentLoadError
    from app.api.server import CannotListen
    from app.durable import CannotOpenStore
    from app.telemetry.logs import Log, frames

    log = Log()
    try:
        settings = configuration.read(
            options.config, host=options.host, port=options.port, log_format=options.log_format
        )
        _run(options.work(settings, options, log), log)
    except (configuration.SettingsError, AgentLoadError) as wrong:
        print(f"watchkeeper: {wrong}", file=sys.stderr)
        return 2
    except (CannotListen, CannotOpenStore) as refused:
        print(f"watchkeeper: {refused}", file=sys.stderr)
        return 1
    except Exception as fault:  # noqa: BLE001 - the edge: Python would print its text
        where = " ".join(frames(fault) or ["nowhere"])
        print(f"watchkeeper: Ended by a fault: {type(fault).__name__} at {where}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="watchkeeper", description="Serve LangChain agents and keep watch over them."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    serve = commands.add_parser("serve", help="serve agents over HTTP")
    serve.set_defaults(command=_with_service, work=_serve)
    worker = commands.add_parser("worker", help="execute background runs, without callers")
    worker.set_defaults(command=_with_service, work=_work)
    for command in (serve, worker):
        command.add_argument("--check", action="store_true", help="print the settings and stop")
    serve.add_argument(
        "--no-background",
        action="store_true",
        help="accept background runs, and leave them to workers",
    )
    listing = commands.add_parser("agents", help="list what would be served")
    listing.set_defaults(command=_with_service, work=_list)
    for command in (serve, worker, listing):
        command.add_argument(
            "agents",
            nargs="*",
            metavar="[NAME=]MODULE:ATTRIBUTE",
            help="an agent, or a function that returns one; the first is the default; "
            "without any, the demo agent is served",
        )
        command.add_argument("--config", type=Path, help="a TOML file with settings")
        command.add_argument("--host", help="address to listen on (127.0.0.1)")
        command.add_argument("--port", help="port to listen on (8000)")
        command.add_argument("--log-format", choices=("auto", "json", "console"))
    _add_ask(commands.add_parser)
    return parser


def _add_ask(add_parser: Callable[..., argparse.ArgumentParser]) -> None:
    asking = add_parser(
        "ask",
        help="ask a running service, and watch the run",
        description="Ask a running service a question.\nThe answer is on standard output, "
        "what happens meanwhile on standard error.",
        epilog=_ASK_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    asking.set_defaults(command=_ask)
    asking.add_argument("question", metavar="QUESTION")
    asking.add_argument("--url", default="http://127.0.0.1:8000", help="the service (%(default)s)")
    asking.add_argument("--agent", metavar="NAME", help="an agent; else the default one")
    asking.add_argument("--timeout", metavar="S", type=_seconds, help="seconds the run may take")
    asking.add_argument("--json", action="store_true", help="print the finished run or the problem")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < math.inf:
        raise ValueError
    return seconds


async def _serve(settings: Any, options: argparse.Namespace, log: Any) -> int:
    from app import main as service
    from app.api.deps import Role

    if options.check:
        print(settings.model_dump_json(indent=2))
        return await _list(settings, options, log)
    role = Role.API if options.no_background else Role.BOTH
    await service.serve(settings, options.agents, role, log)
    return 0


async def _work(settings: Any, options: argparse.Namespace, log: Any) -> int:
    from app import main as service
    from app.api.deps import Role
    from app.settings import SettingsError

    if settings.store is None:
        raise SettingsError("A worker needs a store: set WATCHKEEPER_STORE_URL.")
    if options.check:
        return await _serve(settings, options, log)
    await service.serve(settings, options.agents, Role.WORKER, log)
    return 0


async def _list(settings: Any, options: argparse.Namespace, log: Any) -> int:
    from app import main as service

    parts = service.assemble(settings, log)
    await service.load_agents(parts, options.agents)
    for agent in parts.service.agents.values():
        info = agent.info
        tools = ", ".join(info.tools) or "none"
        model = info.model or ("unknown" if info.has_model else "not found")
        print(f"{info.name}: {info.kind}, model {model}, tools {tools}")
    await parts.factories.close()
    return 0


def _result(loop: asyncio.AbstractEventLoop, task: "asyncio.Task[int]", log: Any) -> int:
    """Run until the task is done, even if foreign code stops the loop.

    Runs and factories may leave timers that exit, or that call `loop.stop()`.
    """
    from app.telemetry import lines

    while True:
        try:
            return loop.run_until_complete(task)
        except (SystemExit, RuntimeError) as raised:
            if task.done() or loop.is_closed():
                raise
            log.failed(lines.UNHANDLED, raised)


def _run(work: Coroutine[Any, Any, int], log: Any) -> NoReturn:
    """Do as `asyncio.run`, then exit, without waiting for tasks and threads that do not end."""
    import uvloop

    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        code = _result(loop, loop.create_task(work), log)
        unfinished = asyncio.all_tasks(loop)
        for task in unfinished:
            task.cancel()
        if unfinished:
            _, unfinished = loop.run_until_complete(asyncio.wait(unfinished, timeout=_LEFTOVER_S))
        if not unfinished:
            loop.run_until_complete(loop.shutdown_asyncgens())
    finally:
        loop.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # A normal exit waits for the threads of libraries, and a tool may hang in one of them.
    os._exit(code)


if __name__ == "__main__":
    sys.exit(main())

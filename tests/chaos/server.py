"""The real command in processes that start fast: one imports everything and forks for each.

It reads ports, one a line, and writes the process id of the server that it started for each.
"""

import os
import signal
import sys

import app.__main__
import app.main
from app.runs.background import Background
from app.runs.ports import Attempt
from tests.chaos import agents
from tests.chaos.planted import BUGS

NAMES = ("graph", "own", "executor")
AGENTS = [f"{name}=tests.chaos.agents:{name}" for name in NAMES]


def tell_attempts() -> None:
    """Let receipts say which attempt at a run they are of."""
    execute = Background.execute

    async def execute_counted(self: Background, attempt: Attempt) -> None:
        agents.ATTEMPTS[attempt.start.task_id] = attempt.start.number
        await execute(self, attempt)

    Background.execute = execute_counted  # type: ignore[method-assign]


def main() -> None:
    """Fork a server for each port that is asked for, until there are no more."""
    tell_attempts()
    bug = os.environ.get("CHAOS_BUG")
    if bug:
        BUGS[bug]()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that are killed
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(2, 1)
            sys.exit(app.__main__.main(["serve", *AGENTS, "--port", line.strip()]))
        print(child, flush=True)


if __name__ == "__main__":
    main()

"""Metrics, spans and log lines for an agent in a program of your own, without the service.

    echo 'Where is order 10023?' | python -m examples.watch_your_own

Each line of standard input is a question. The metrics are on port 9464 (METRICS_PORT) for as long
as the program runs; spans go where the `OTEL_*` variables say. The model is reached with
OPENAI_API_KEY, at OPENAI_BASE_URL where that is set.
"""

import os
import sys

from langchain_core.runnables import RunnableConfig
from prometheus_client import start_http_server

from examples.create_agent import orders
from watchkeeper import watch


def main() -> None:
    """Answer questions until there are no more."""
    server, _ = start_http_server(int(os.environ.get("METRICS_PORT", "9464")), "127.0.0.1")
    print(f"metrics on http://127.0.0.1:{server.server_port}/metrics", file=sys.stderr, flush=True)
    agent = orders()
    # One handler for any number of runs: its name is a label of the metrics.
    config: RunnableConfig = {"callbacks": [watch("orders")]}
    for question in sys.stdin:
        result = agent.invoke({"messages": [("user", question)]}, config)
        # In one piece, since the log lines go to standard output too.
        sys.stdout.write(f"{result['messages'][-1].text}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()

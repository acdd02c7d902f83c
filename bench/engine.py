"""The engine alone: a process that executes one queue, with our settings and none of our code."""

import sys

from dbos import DBOS, DBOSPortableJSONSerializer

from app.tasks.store import Store

QUEUE = "nothing"
AT_ONCE = 50


def main() -> None:
    """Print `ready`, then execute the queue of a store until standard input is closed."""
    store = Store(sys.argv[1])
    store.prepare()
    DBOS(
        config={
            "name": "watchkeeper",
            "system_database_url": store.url.render_as_string(hide_password=False),
            "system_database_engine": store.worker,
            "application_version": "1",
            "serializer": DBOSPortableJSONSerializer(),
            "use_listen_notify": False,
            "log_level": "CRITICAL",
        }
    )
    DBOS.workflow(name=QUEUE)(lambda stored: stored)
    DBOS.listen_queues([QUEUE])
    DBOS.launch()
    DBOS.register_queue(
        QUEUE, worker_concurrency=AT_ONCE, polling_interval_sec=0.1, on_conflict="always_update"
    )
    print("ready", flush=True)
    sys.stdin.read()
    DBOS.destroy()
    store.close()


if __name__ == "__main__":
    main()

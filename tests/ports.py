"""Ports of loopback for servers that tests start."""

import random
import socket
from contextlib import suppress

# Below those that systems hand out to connections by themselves (32768 on Linux, 49152 elsewhere):
# the port of a server that is started again must not become some connection's meanwhile.
_FROM, _TO = 15_000, 32_000
_given: set[int] = set()


def free_port() -> int:
    """A port that nobody uses at this moment, and that was not given before."""
    while True:
        port = random.randrange(_FROM, _TO)
        if port in _given:  # whose server may be still to come, or to come back
            continue
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port

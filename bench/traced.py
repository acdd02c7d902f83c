"""`python -m bench.traced FILE serve …` serves, and writes every SQL statement of SQLite to a file.

Our code, the engine and LangGraph's saver all connect by the driver of the standard library. So
the trace starts there.
"""

import itertools
import json
import os
import sqlite3
import sys
from sqlite3 import dbapi2
from typing import Any

from app.__main__ import main

# A step can be large, and its statement has all of it.
_LONGEST = 500
_numbers = itertools.count(1)


class Trace:
    """Writes the statements of one connection, each with the number of its transaction."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._transaction: int | None = None

    def __call__(self, statement: str) -> None:
        """Write one statement. The driver calls this before it executes the statement."""
        verb = statement.lstrip()[:8].upper()
        if verb.startswith("BEGIN"):
            self._transaction = next(_numbers)
        line = json.dumps([self._transaction, statement[:_LONGEST]])
        os.write(self._file, line.encode() + b"\n")
        if verb in ("COMMIT", "ROLLBACK"):
            self._transaction = None


def trace(path: str) -> None:
    """Trace every connection that this process opens from now on."""
    connect, file = sqlite3.connect, os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def traced(*arguments: Any, **options: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*arguments, **options)
        connection.set_trace_callback(Trace(file))
        return connection

    sqlite3.connect = dbapi2.connect = traced  # type: ignore[assignment]


if __name__ == "__main__":
    trace(sys.argv[1])
    sys.exit(main(sys.argv[2:]))

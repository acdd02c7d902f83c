"""The reason of a failure at start: the cause and the address, in one line."""

import errno
import os

import httpx
import pytest

from app.agents.startup_errors import describe


def refused() -> OSError:
    """The system's message for a refused connection."""
    return ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed")


def unreachable(url: str) -> httpx.ConnectError:
    """What a client of HTTP makes of that."""
    error = httpx.ConnectError("All attempts failed", request=httpx.Request("POST", url))
    error.__cause__ = refused()
    return error


REFUSED = os.strerror(errno.ECONNREFUSED)
DO = "; start what should answer there, or correct the address"


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ValueError("no key"), "ValueError: no key"),
        (ValueError(), "ValueError"),
        (ValueError("one\n  two"), "ValueError: one two"),
        (ExceptionGroup("g", [ExceptionGroup("h", [KeyError("x")])]), "KeyError: 'x'"),
        (ExceptionGroup("g", [OSError("a"), OSError("b"), OSError("a")]), "OSError: a; OSError: b"),
        (BaseExceptionGroup("g", [SystemExit(2)]), "SystemExit: 2"),
        (refused(), f"ConnectionRefusedError: [Errno 111] Connect call failed ({REFUSED}){DO}"),
        (
            unreachable("http://127.0.0.1:9/mcp"),
            f"ConnectError: All attempts failed ({REFUSED}), at http://127.0.0.1:9/mcp{DO}",
        ),
        (
            ExceptionGroup("g", [unreachable("https://me:secret@tools.example/mcp?key=secret")]),
            f"ConnectError: All attempts failed ({REFUSED}), at https://tools.example/mcp{DO}",
        ),
        (httpx.ReadTimeout("slow"), "ReadTimeout: slow"),
        (
            FileNotFoundError(errno.ENOENT, "No such file", "tools-server"),
            "FileNotFoundError: [Errno 2] No such file: 'tools-server'",
        ),
    ],
)
def test_reason_names_causes_and_addresses(raised: BaseException, expected: str) -> None:
    """The leaves of a group are named, and who refused a connection at which address."""
    assert describe(raised) == expected


def test_long_text_is_cut() -> None:
    """A long text is cut."""
    assert len(describe(ValueError("x" * 10_000))) < 600

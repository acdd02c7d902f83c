"""Why code of users failed at start, in one line: for an operator, at their own terminal.

Nothing of it is said once the service runs: messages of exceptions may quote what callers sent.
"""

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

_MOST = 3
_LONGEST = 500


def reason(raised: BaseException) -> str:
    """What an exception says; of a group, what the exceptions in it say."""
    said = dict.fromkeys(_said(leaf) for leaf in leaves(raised))
    return "; ".join(list(said)[:_MOST])


def leaves(raised: BaseException) -> Iterator[BaseException]:
    """The exceptions that a group holds, however deep; another exception itself."""
    if isinstance(raised, BaseExceptionGroup):
        for inner in raised.exceptions:
            yield from leaves(inner)
    else:
        yield raised


def _said(raised: BaseException) -> str:
    text = " ".join(str(raised).split())[:_LONGEST]
    said = f"{type(raised).__name__}: {text}".rstrip(": ")
    refused = _refusal(raised)
    if refused and refused.lower() not in said.lower():
        said += f" ({refused})"
    address = _address(raised)
    if address and address not in said:
        said += f", at {address}"
    return f"{said}; start what should answer there, or correct the address" if refused else said


def _refusal(raised: BaseException) -> str:
    """What the system said of a connection that was never made, deepest among the causes."""
    found = ""
    current: BaseException | None = raised
    for _ in range(10):
        if current is None:
            break
        if isinstance(current, ConnectionError | TimeoutError) and current.errno:
            found = os.strerror(current.errno)
        current = current.__cause__ or current.__context__
    return found


def _address(raised: BaseException) -> str:
    """Where a client of HTTP was going, without what may be a secret in it."""
    try:
        url = urlsplit(str(getattr(raised, "request").url))  # noqa: B009 - of any client
        port = f":{url.port}" if url.port else ""
    except (AttributeError, RuntimeError, ValueError):
        return ""
    return f"{url.scheme}://{url.hostname}{port}{url.path}" if url.hostname else ""

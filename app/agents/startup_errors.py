"""Describes exceptions of users' code at start, in one line, for the operator's terminal.

Never used once the service runs: exception messages may quote callers' input.
"""

import os
from collections.abc import Iterator
from urllib.parse import urlsplit

_MOST = 3
_LONGEST = 500


def describe(raised: BaseException) -> str:
    """Return the message of an exception; of a group, those of its first members."""
    sentences = dict.fromkeys(_sentence(leaf) for leaf in leaves(raised))
    return "; ".join(list(sentences)[:_MOST])


def leaves(raised: BaseException) -> Iterator[BaseException]:
    """Yield the exceptions in a group, at any depth; another exception itself."""
    if isinstance(raised, BaseExceptionGroup):
        for inner in raised.exceptions:
            yield from leaves(inner)
    else:
        yield raised


def _sentence(raised: BaseException) -> str:
    text = " ".join(str(raised).split())[:_LONGEST]
    sentence = f"{type(raised).__name__}: {text}".rstrip(": ")
    connection_error = _connection_error(raised)
    if connection_error and connection_error.lower() not in sentence.lower():
        sentence += f" ({connection_error})"
    address = _address(raised)
    if address and address not in sentence:
        sentence += f", at {address}"
    return (
        f"{sentence}; start what should answer there, or correct the address"
        if connection_error
        else sentence
    )


def _connection_error(raised: BaseException) -> str:
    """Return the system's message for a failed connection, deepest among the causes."""
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
    """Return the URL of an HTTP client's request, without parts that may hold secrets."""
    try:
        url = urlsplit(str(getattr(raised, "request").url))  # noqa: B009 - of any client
        port = f":{url.port}" if url.port else ""
    except (AttributeError, RuntimeError, ValueError):
        return ""
    return f"{url.scheme}://{url.hostname}{port}{url.path}" if url.hostname else ""

"""The connection pool of a service for model providers."""

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import httpx2

# Seconds to connect, between reads, to write, and to wait for a pooled connection. The run's
# deadline bounds the whole call.
TIMEOUT = (5.0, 60.0, 30.0, 5.0)


class Upstream:
    """An HTTP client that opens on first use; the service of its context closes it.

    `outgoing_headers` join requests to a trace.
    """

    def __init__(self) -> None:
        self.outgoing_headers: Callable[[], Mapping[str, str]] = dict
        self._client: httpx2.AsyncClient | None = None

    def client(self) -> "httpx2.AsyncClient":
        """Return the client; the first call creates it."""
        import httpx2  # noqa: PLC0415 - not loaded without model providers

        if self._client is None or self._client.is_closed:
            limits = httpx2.Limits(max_connections=1000, max_keepalive_connections=100)
            timeout = httpx2.Timeout(TIMEOUT)
            hooks = {"request": [self._join_trace]}
            self._client = httpx2.AsyncClient(limits=limits, timeout=timeout, event_hooks=hooks)
        return self._client

    async def _join_trace(self, request: "httpx2.Request") -> None:
        request.headers.update(self.outgoing_headers())

    async def aclose(self) -> None:
        """Close the client. The next use opens a new one."""
        if self._client is not None:
            await self._client.aclose()


# The pool of the models that are built in this context. A service takes it over.
_current: ContextVar[Upstream | None] = ContextVar("watchkeeper_upstream", default=None)


def use(upstream: Upstream) -> None:
    """Let models that are built in this context, and in tasks that it starts, share this pool."""
    _current.set(upstream)


def current() -> Upstream:
    """The pool of this context; without a service, one that ends with the process."""
    upstream = _current.get()
    if upstream is None:
        use(upstream := Upstream())
    return upstream

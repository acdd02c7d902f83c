"""Start now, wait, or refuse: a fixed number of places and a bounded queue in front of them.

A run that could not meet its deadline from the queue, its own work included, is refused at once:
waiting would only cost its caller time and the service a place.
"""

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from app.runs.errors import Overloaded

# How much the newest service time counts in the running mean.
_WEIGHT = 0.1


@dataclass(slots=True, eq=False)
class Ticket:
    """One run's claim on a place; give it to `Admission.leave` exactly when the run ends."""

    start: Callable[[], None]
    placed_at: float | None = None


class Admission:
    """`places` runs work at once, `queue` more may wait, in the order of their arrival."""

    def __init__(self, places: int, queue: int) -> None:
        self.places = places
        self.queue = queue
        self.running = 0
        self.mean_service_s: float | None = None
        self._waiting: OrderedDict[int, Ticket] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many runs wait for a place."""
        return len(self._waiting)

    def enter(self, start: Callable[[], None], budget_s: float) -> Ticket:
        """Call `start` now or when a place is free.

        `budget_s` is the time the caller has left. Raises Overloaded when the queue is full, or
        when the usual wait and the usual run take longer than that.
        """
        ticket = Ticket(start)
        if self.running < self.places:
            self._place(ticket)
            return ticket
        wait_s = self._expected_wait_s()
        needed_s = wait_s + (self.mean_service_s or 0.0)
        if self.waiting >= self.queue or needed_s > budget_s:
            raise Overloaded(retry_after_s=max(1, math.ceil(wait_s)))
        self._waiting[id(ticket)] = ticket
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Give back a place, or a seat in the queue, and let the next run in."""
        if ticket.placed_at is None:
            self._waiting.pop(id(ticket), None)
            return
        self._learn(time.monotonic() - ticket.placed_at)
        self.running -= 1
        if self._waiting and self.running < self.places:
            _, following = self._waiting.popitem(last=False)
            self._place(following)

    def _place(self, ticket: Ticket) -> None:
        ticket.placed_at = time.monotonic()
        self.running += 1
        ticket.start()

    def _learn(self, service_s: float) -> None:
        mean = self.mean_service_s
        self.mean_service_s = service_s if mean is None else mean + _WEIGHT * (service_s - mean)

    def _expected_wait_s(self) -> float:
        return (self.waiting + 1) * (self.mean_service_s or 0.0) / self.places

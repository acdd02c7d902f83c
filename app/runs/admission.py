"""Start now, wait, or refuse: a fixed number of slots and a bounded queue in front of them.

A run that would probably miss its deadline after the queue is refused at once: waiting would only
cost its caller time and the service a slot.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from app.runs.clock import SYSTEM, Clock
from app.runs.errors import Overloaded

# How much the newest service time counts in the running mean.
_WEIGHT = 0.1


@dataclass(slots=True, eq=False)
class Ticket:
    """One run's slot or queue position; pass it to `Admission.leave` when the run ends."""

    start: Callable[[], None]
    admitted_at: float | None = None


class Admission:
    """At most `slots` runs execute at once; `queue` more may wait, in the order of arrival."""

    def __init__(self, slots: int, queue: int, clock: Clock = SYSTEM) -> None:
        self.slots = slots
        self.queue = queue
        self.running = 0
        self.mean_service_s: float | None = None
        self._clock = clock
        self._waiting: OrderedDict[int, Ticket] = OrderedDict()

    @property
    def waiting(self) -> int:
        """How many runs wait for a slot."""
        return len(self._waiting)

    def enter(self, start: Callable[[], None], budget_s: float) -> Ticket:
        """Call `start` now or once a slot is free.

        `budget_s` is the time until the run's deadline. Raises Overloaded if the queue is full,
        or if the expected wait and the mean run time exceed the budget.
        """
        ticket = Ticket(start)
        if self.running < self.slots:
            self._admit(ticket)
            return ticket
        wait_s = self._expected_wait_s()
        needed_s = wait_s + (self.mean_service_s or 0.0)
        if self.waiting >= self.queue or needed_s > budget_s:
            raise Overloaded(retry_after_s=max(1, math.ceil(wait_s)))
        self._waiting[id(ticket)] = ticket
        return ticket

    def leave(self, ticket: Ticket) -> None:
        """Release a slot and start the next run, or release a queue position."""
        if ticket.admitted_at is None:
            self._waiting.pop(id(ticket), None)
            return
        self._learn(self._clock.monotonic() - ticket.admitted_at)
        self.running -= 1
        if self._waiting and self.running < self.slots:
            _, following = self._waiting.popitem(last=False)
            self._admit(following)

    def _admit(self, ticket: Ticket) -> None:
        ticket.admitted_at = self._clock.monotonic()
        self.running += 1
        ticket.start()

    def _learn(self, service_s: float) -> None:
        mean = self.mean_service_s
        self.mean_service_s = service_s if mean is None else mean + _WEIGHT * (service_s - mean)

    def _expected_wait_s(self) -> float:
        return (self.waiting + 1) * (self.mean_service_s or 0.0) / self.slots

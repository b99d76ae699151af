"""The books: every accepted event stands in exactly one column, at every moment.

accepted = delivered + refused + withheld + expired + overflowed + cancelled + failed + kept + open, where
open = parked + queued + sending.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from .edge.breaker import Circuit
from .errors import AlloyClosed, AlloyError, ConsentDeclined, ConsentTimeout, OutboxFull, ParkingFull

__all__ = ["Ledger", "Outcome", "Stage", "Statistics", "outcome_of"]

Stage: TypeAlias = Literal["new", "parked", "queued", "sending"]
"""Where an event is before its end: called, waiting for consent, waiting for the wire, on the wire."""

Outcome: TypeAlias = Literal[
    "delivered", "refused", "withheld", "expired", "overflowed", "cancelled", "failed", "kept"
]
"""How an event ends."""

_OUTCOMES: dict[type[AlloyError], Outcome] = {
    ConsentDeclined: "refused",
    ConsentTimeout: "expired",
    ParkingFull: "overflowed",
    OutboxFull: "overflowed",
}


def outcome_of(error: AlloyError) -> Outcome:
    """Return in which column an event stands that ended with this error."""
    if isinstance(error, AlloyClosed) and error.kept:
        return "kept"
    return _OUTCOMES.get(type(error), "failed")


@dataclass(frozen=True, slots=True)
class Statistics:
    """What became of the events of one instance; ``statistics()`` shows it, ``aclose()`` returns it.

    Attributes:
        accepted: events that were taken: valid, called after ``configure`` and before ``aclose``, or left in a durable
            outbox by an earlier start or a dead worker.
        delivered: taken by the edge.
        refused: ended with ``ConsentDeclined``.
        withheld: stopped by ``on_before_event_send``.
        expired: nobody chose within ``parked_ttl``, or ``visitor_parked_ttl``.
        overflowed: no room to wait in (``ParkingFull``, ``OutboxFull``).
        cancelled: withdrawn by the caller before they were sent.
        failed: refused by the edge, not sent for another reason, or left over when the instance was closed.
        kept: left in a durable outbox: for the next start, or for a relay.
        parked: waiting for consent.
        queued: waiting for the wire.
        sending: on the wire.
        recovered: of those accepted, how many an earlier start or a dead worker had left in a durable outbox.
        retries: requests that were made again after a failure.
        circuit: the way to the endpoint: ``closed``, requests flow; ``open``, it is down and left alone for a while;
            ``half-open``, one request probes it.
    """

    accepted: int = 0
    delivered: int = 0
    refused: int = 0
    withheld: int = 0
    expired: int = 0
    overflowed: int = 0
    cancelled: int = 0
    failed: int = 0
    kept: int = 0
    parked: int = 0
    queued: int = 0
    sending: int = 0
    recovered: int = 0
    retries: int = 0
    circuit: Circuit = "closed"

    @property
    def open(self) -> int:
        """Events that have not ended."""
        return self.parked + self.queued + self.sending

    @property
    def ended(self) -> int:
        """Events that have ended, however."""
        return (
            self.delivered
            + self.refused
            + self.withheld
            + self.expired
            + self.overflowed
            + self.cancelled
            + self.failed
            + self.kept
        )


class Ledger:
    """Counts events as they move; the only writer of ``Statistics``.

    Attributes:
        queued_bytes: bytes of the events that wait for the wire.
        recovered: see ``Statistics``.
        retries: see ``Statistics``.
        abandoned: events that ended because the instance was closed, by the stage they were in; without those that are
            kept on disk.
        stored: events of this instance that are in a durable outbox now, or were left to a relay there.
        circuit: see ``Statistics``.
    """

    def __init__(self) -> None:
        self._accepted = 0
        self._watchers: list[Callable[[], object]] = []
        self._stages: dict[Stage, int] = {"parked": 0, "queued": 0, "sending": 0}
        self._outcomes: dict[str, int] = defaultdict(int)
        self.queued_bytes = 0
        self.recovered = 0
        self.retries = 0
        self.abandoned: Counter[Stage | None] = Counter()
        self.stored = 0
        self.circuit: Circuit = "closed"

    @property
    def queued(self) -> int:
        """Events that wait for the wire."""
        return self._stages["queued"]

    def resize(self, stage: Stage, change: int) -> None:
        """Note that an event became longer by so many bytes."""
        if stage == "queued":
            self.queued_bytes += change

    def move(self, size: int, origin: Stage, goal: Stage | None) -> None:
        """Move an event from one stage to the next; a goal of None: it leaves the stages.

        Args:
            size: bytes of the event.
            origin: where it was.
            goal: where it goes.
        """
        if origin == "new":
            self._accepted += 1
        else:
            self._stages[origin] -= 1
        if goal is not None:
            self._stages[goal] += 1
        if origin == "queued":
            self.queued_bytes -= size
        if goal == "queued":
            self.queued_bytes += size
        if goal == "parked":
            self._tell_watchers()

    def end(self, size: int, stage: Stage, outcome: Outcome) -> None:
        """Move an event from a stage into its final column."""
        self.move(size, stage, None)
        self._outcomes[outcome] += 1
        if self._watchers:
            self._tell_watchers()

    def _tell_watchers(self) -> None:
        for watcher in self._watchers:
            watcher()

    def watch(self, watcher: Callable[[], object]) -> None:
        """Call a function after each end of an event, until ``unwatch``."""
        self._watchers.append(watcher)

    def unwatch(self, watcher: Callable[[], object]) -> None:
        """Stop calling it; harmless when it is not called."""
        if watcher in self._watchers:
            self._watchers.remove(watcher)

    def statistics(self) -> Statistics:
        """Return the books as they are."""
        return Statistics(
            accepted=self._accepted,
            **self._stages,
            **self._outcomes,
            recovered=self.recovered,
            retries=self.retries,
            circuit=self.circuit,
        )

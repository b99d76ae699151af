"""What was received: kept in memory within bounds, and in a file as well when one is given."""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .exchange import Exchange, ReceivedEvent

__all__ = ["Past", "Recorder", "Sink", "Window"]

_log = logging.getLogger(__name__)

MAX_SIZE = 256 * 1024 * 1024
"""Characters kept; the count bounds typical exchanges, this bounds big ones."""


@dataclass(frozen=True, slots=True)
class Past:
    """What a sink holds of earlier runs.

    Attributes:
        exchanges: the newest, oldest first.
        earlier_exchanges: how many came before those.
        earlier_events: how many recorded events came with them.
    """

    exchanges: Sequence[Exchange]
    earlier_exchanges: int = 0
    earlier_events: int = 0


class Sink(Protocol):
    """Where exchanges are kept besides memory."""

    def load(self, limit: int) -> Past:
        """Return the newest exchanges of earlier runs, at most ``limit``."""
        ...

    def write(self, exchange: Exchange) -> None:
        """Keep one."""

    def clear(self) -> None:
        """Forget all of them."""

    def close(self) -> None:
        """Let go of files and connections; a later write opens them again."""


class Window(NamedTuple):
    """Which exchanges are kept, by their numbers.

    Attributes:
        first: the oldest.
        next: the number that the next one gets; equal to ``first`` when none is kept.
        cleared: everything before this was cleared by somebody; what lies between it and ``first`` was dropped.
    """

    first: int
    next: int
    cleared: int


@dataclass
class _Shelf:
    """The newest exchanges, bounded by the number of exchanges and of events, and by size in characters."""

    max_count: int
    max_size: int
    exchanges: deque[Exchange] = field(default_factory=deque)
    events: int = 0
    size: int = 0

    def put(self, exchange: Exchange) -> list[Exchange]:
        """Keep one; return those that had to go for it. The newest stays, however big it is."""
        self.exchanges.append(exchange)
        self._count(exchange, 1)
        gone = []
        while self._is_over() and len(self.exchanges) > 1:
            gone.append(self.exchanges.popleft())
            self._count(gone[-1], -1)
        return gone

    def _count(self, exchange: Exchange, sign: int) -> None:
        self.events += sign * len(exchange.events)
        self.size += sign * exchange.weight

    def _is_over(self) -> bool:
        return max(len(self.exchanges), self.events) > self.max_count or self.size > self.max_size

    def clear(self) -> None:
        self.exchanges.clear()
        self.events = self.size = 0


class Recorder:
    """Keeps exchanges in the order of their arrival.

    Every event is kept. One whose ``_id`` came before is flagged, not dropped: a retry that delivers twice is what
    somebody at a desk wants to see. Methods may be called from any thread: a test reads in its own while the server
    writes in another.

    Args:
        max_events: number of events, and of exchanges, kept in memory; beyond it the oldest exchanges are dropped.
        sink: keeps exchanges as well, all of them; its earlier ones are taken up.
    """

    def __init__(self, max_events: int = 100_000, sink: Sink | None = None) -> None:
        if max_events < 1:
            raise ValueError("max_events must be at least 1")
        self._lock = threading.Lock()
        self._shelf = _Shelf(max_events, MAX_SIZE)
        self._next = self._cleared = 1
        self._dropped_events = self._dropped_exchanges = 0
        self._ids: Counter[str] = Counter()
        self._warned = False
        self._listeners: list[Callable[[], object]] = []
        self._sink = sink
        if sink is not None:
            self._take_up(sink.load(max_events))

    def _take_up(self, past: Past) -> None:
        self._next = past.earlier_exchanges + 1
        for exchange in past.exchanges:
            self._keep(exchange)
        self._dropped_exchanges += past.earlier_exchanges
        self._dropped_events += past.earlier_events

    def add(self, exchange: Exchange) -> Exchange:
        """Keep one exchange, and return it; it gets its number here, and events seen before are flagged."""
        with self._lock:
            exchange.flag_duplicates(self._ids.__contains__)
            self._keep(exchange)
            if self._sink is not None:
                self._write(self._sink, exchange)
        self._tell()
        return exchange

    def exchanges(self) -> tuple[list[Exchange], int]:
        """Return the exchanges kept, and how many were dropped before them."""
        with self._lock:
            return list(self._shelf.exchanges), self._dropped_exchanges

    def events(self) -> tuple[list[tuple[Exchange, ReceivedEvent]], int]:
        """Return the recorded events kept, each with its exchange, and how many were dropped before them."""
        with self._lock:
            exchanges, dropped = list(self._shelf.exchanges), self._dropped_events
        return [(exchange, event) for exchange in exchanges for event in exchange.recorded], dropped

    @property
    def dropped_events(self) -> int:
        """How many recorded events were dropped."""
        return self._dropped_events

    def window(self) -> Window:
        """Return which exchanges are kept."""
        with self._lock:
            return Window(self._next - len(self._shelf.exchanges), self._next, self._cleared)

    def since(self, n: int, limit: int) -> list[Exchange]:
        """Return the oldest exchanges kept whose number is at least ``n``, at most ``limit``."""
        with self._lock:
            kept = self._shelf.exchanges
            start = min(max(0, n - (self._next - len(kept))), len(kept))
            return list(islice(kept, start, start + limit))

    def get(self, n: int) -> Exchange | None:
        """Return the exchange of this number, None when it is not kept."""
        found = self.since(n, 1)
        return found[0] if found and found[0].n == n else None

    def subscribe(self, listener: Callable[[], object]) -> Callable[[], None]:
        """Call a listener after every change; what changed, it asks.

        Args:
            listener: called in the thread that changed something; it must be quick, and must not raise.

        Returns:
            what ends the subscription.
        """
        with self._lock:
            self._listeners.append(listener)
        return lambda: self._unsubscribe(listener)

    def _unsubscribe(self, listener: Callable[[], object]) -> None:
        with self._lock:
            self._listeners.remove(listener)

    def clear(self) -> None:
        """Forget everything, in the sink too: otherwise a restart would bring it back. The numbers go on.

        Raises:
            Exception: the sink could not forget; what is in memory is forgotten all the same.
        """
        try:
            self._clear()
        finally:
            self._tell()

    def _clear(self) -> None:
        with self._lock:
            self._shelf.clear()
            self._ids.clear()
            self._cleared = self._next
            self._dropped_events = self._dropped_exchanges = 0
            if self._sink is not None:
                self._sink.clear()

    def close(self) -> None:
        """Close the sink; what is in memory stays."""
        with self._lock:
            if self._sink is None:
                return
            try:
                self._sink.close()
            except Exception:  # noqa: BLE001 - as when it is written: a full disk is no reason not to stop
                _log.exception("The file could not be closed; its last exchanges may be missing")

    def _keep(self, exchange: Exchange) -> None:
        exchange.n = self._next
        self._next += 1
        self._ids.update(_ids(exchange))
        # Ids are remembered as long as their events: a set of all ids ever seen would have no bound.
        for gone in self._shelf.put(exchange):
            self._forget(gone)

    def _forget(self, exchange: Exchange) -> None:
        self._dropped_exchanges += 1
        self._dropped_events += len(exchange.recorded)
        for event_id in _ids(exchange):
            self._ids[event_id] -= 1
            if not self._ids[event_id]:
                del self._ids[event_id]
        self._warn_once()

    def _write(self, sink: Sink, exchange: Exchange) -> None:
        try:
            sink.write(exchange)
        except Exception:  # noqa: BLE001 - a full disk must not become an answer that the real edge never gives
            _log.exception("An exchange could not be written to the file; it is kept in memory only")

    def _warn_once(self) -> None:
        if not self._warned:
            self._warned = True
            _log.warning(
                "Memory for what is received is full; from now on the oldest is dropped, and counted"
            )

    def _tell(self) -> None:
        with self._lock:
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener()


def _ids(exchange: Exchange) -> list[str]:
    return [event.event_id for event in exchange.recorded if event.event_id is not None]

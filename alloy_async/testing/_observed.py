"""The development edge in a test: what arrived, what waits, and assertions that explain themselves."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from ._sent import SentEvent, as_table, rows
from ._whereabouts import Whereabouts

if TYPE_CHECKING:
    from ..devserver import DevelopmentEdge

__all__ = ["Begun", "ObservedEdge"]

# Assertions are raised by hand: assert would vanish under -O, and pytest explains an assert only in files of the tests.


class Begun:
    """ASGI middleware that counts requests when they begin, before anything of their body is read."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, app: Any) -> Any:
        """Wrap an application. What is read back through ``/_dev`` was not sent by an SDK and does not count."""

        async def counting(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http" and not scope["path"].startswith("/_dev"):
                self.count += 1
            await app(scope, receive, send)

        return counting


class ObservedEdge:
    """The development edge of a test; the fixture ``alloy_edge`` and ``serve()`` make it.

    ::

        async with Alloy() as alloy:
            await alloy.configure(**edge.settings)
            alloy.event(type="commerce.purchases")
            assert edge.events == [] and edge.parked == 1
            await alloy.opt_in(purposes="all")
            [purchase] = await edge.wait_for("commerce.purchases")

    Attributes:
        edge: the development edge itself, for what can be switched while it runs.
    """

    def __init__(
        self,
        edge: DevelopmentEdge,
        begun: Begun,
        settings: Mapping[str, Any],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.edge: DevelopmentEdge = edge
        self._begun = begun
        self._settings = settings
        self._environment = environment
        self._whereabouts = Whereabouts()
        self._is_told = False

    def __repr__(self) -> str:
        place = "in this process" if self._environment is None else f"at {self.url}"
        return f"<ObservedEdge {place}: events {len(self.events)}, requests {len(self.requests)}>"

    # How to reach it

    @property
    def settings(self) -> dict[str, Any]:
        """Options for ``configure`` of ``Alloy`` and ``BlockingAlloy``: this edge, everything in memory, consent asked for.

        For others write ``edge.settings | {"ordered": True}``. ``hooks`` tells this object what waits: to have hooks of
        your own as well, add them to it.
        """
        self._is_told = True
        return {**self._settings, "hooks": (self._whereabouts,)}

    @property
    def environment(self) -> dict[str, str]:
        """``ALLOY_…`` variables for an application that configures itself from them, in another process for example.

        Raises:
            RuntimeError: the edge has no socket.
        """
        if self._environment is None:
            raise RuntimeError(
                "the edge has no address, since it is in this process only; mark the test with "
                "@pytest.mark.alloy(live=True)"
            )
        return dict(self._environment)

    @property
    def url(self) -> str:
        """Scheme, host and port; for ``configure(endpoint=...)``.

        Raises:
            RuntimeError: the edge has no socket.
        """
        return self.environment["ALLOY_ENDPOINT"]

    # What arrived, what waits

    @property
    def events(self) -> list[SentEvent]:
        """Every event that the edge took, in order of arrival; ``SentEvent`` is a dict."""
        return [SentEvent(record["event"]) for record in self.edge.events]

    @property
    def requests(self) -> list[dict[str, Any]]:
        """Every request that arrived whole: ``{"method", "path", "query", "headers", "body", "status", …}``."""
        return self.edge.requests

    @property
    def parked(self) -> int:
        """How many events wait for consent, in the instances that were configured with ``settings``.

        Raises:
            RuntimeError: nobody took ``settings``, so that nobody tells.
        """
        if not self._is_told:
            raise RuntimeError(
                "parked: counts events of instances that are configured with the edge's settings, and none is; "
                "ask your instance: alloy.statistics().parked"
            )
        return self._whereabouts.parked

    def clear(self) -> None:
        """Forget what arrived. What visitors chose stays, what waits goes on waiting."""
        self.edge.recorder.clear()
        self._begun.count = 0

    # Assertions

    async def wait_for(
        self,
        type: str | None = None,  # noqa: A002 - the name Adobe gives it
        *,
        count: int = 1,
        timeout: float = 5.0,  # noqa: ASYNC109 - a caller's own timeout would end without saying what arrived
    ) -> list[SentEvent]:
        """Wait until so many events have arrived, those that are here already included.

        Args:
            type: ``xdm.eventType``; None: any.
            count: how many.
            timeout: seconds.

        Returns:
            All that are here, in order of arrival.

        Raises:
            AssertionError: the time is over; it says what did arrive, and what waits for what.
        """
        __tracebackhide__ = True
        loop = asyncio.get_running_loop()
        arrival = asyncio.Event()

        def wake() -> None:
            with suppress(RuntimeError):  # told while this wait ended, and the loop with it
                loop.call_soon_threadsafe(arrival.set)

        with self._listening(wake):
            try:
                async with asyncio.timeout(timeout):
                    while self._count(type) < count:
                        await arrival.wait()
                        arrival.clear()
            except TimeoutError:
                pass  # raised below, without a cause: it says nothing
        return self._enough(type, count, f"waited {timeout:g} s for")

    def wait_for_blocking(
        self,
        type: str | None = None,  # noqa: A002 - the name Adobe gives it
        *,
        count: int = 1,
        timeout: float = 5.0,
    ) -> list[SentEvent]:
        """Do what ``wait_for`` does, in a thread without an event loop.

        Raises:
            RuntimeError: an event loop runs in this thread: it would stand still.
        """
        __tracebackhide__ = True
        _check_that_no_loop_runs()
        arrival = threading.Event()
        deadline = time.monotonic() + timeout
        with self._listening(arrival.set):
            while self._count(type) < count and arrival.wait(max(0.0, deadline - time.monotonic())):
                arrival.clear()
        return self._enough(type, count, f"waited {timeout:g} s for")

    def assert_sent(
        self,
        type: str | None = None,  # noqa: A002 - the name Adobe gives it
        *,
        count: int | None = None,
    ) -> list[SentEvent]:
        """Fail unless events have arrived.

        Args:
            type: ``xdm.eventType``; None: any.
            count: how many, exactly; None: at least one.

        Returns:
            Them, in order of arrival.

        Raises:
            AssertionError: it says what did arrive, and what waits for what.
        """
        __tracebackhide__ = True
        found = self._enough(type, 1 if count is None else count, "expected")
        if count is not None and len(found) > count:
            raise AssertionError(self._explain(f"expected {_wanted(type, count)}; {len(found)} arrived"))
        return found

    def assert_nothing_sent(self) -> None:
        """Fail if anything was sent: an event, a request without one, even one that began and did not arrive whole.

        What is about to be sent counts as well, in instances that were configured with ``settings``: otherwise a test
        could be too early to notice.

        Raises:
            AssertionError: it says what arrived.
        """
        __tracebackhide__ = True
        if self._begun.count:
            requests = "1 request" if self._begun.count == 1 else f"{self._begun.count} requests"
            raise AssertionError(self._explain(f"expected that nothing is sent; {requests} began"))
        if self._whereabouts.under_way:
            raise AssertionError(self._explain("expected that nothing is sent; something is about to be"))

    def _count(self, kind: str | None) -> int:
        """Count without parsing: who waits for thousands counts as often."""
        received, _ = self.edge.recorder.events()
        return sum(kind is None or event.type == kind for _, event in received)

    def _of(self, kind: str | None) -> list[SentEvent]:
        return [event for event in self.events if kind is None or event.type == kind]

    def _enough(self, kind: str | None, count: int, verb: str) -> list[SentEvent]:
        __tracebackhide__ = True
        found = self._of(kind)
        if len(found) >= count:
            return found
        hint = "" if kind is None or found else self._similar(kind)
        arrived = f"{len(found)} arrived" if found else "none arrived"
        raise AssertionError(self._explain(f"{verb} {_wanted(kind, count)}; {arrived}.{hint}".rstrip(".")))

    def _similar(self, kind: str) -> str:
        from ..settings import nearest  # noqa: PLC0415 - pydantic comes with it, and with the first configure()

        return nearest(kind, {event.type for event in self.events if event.type})

    @contextmanager
    def _listening(self, listener: Callable[[], object]) -> Iterator[None]:
        end = self.edge.recorder.subscribe(listener)
        try:
            yield
        finally:
            end()

    def _explain(self, headline: str) -> str:
        """Say what was expected, what arrived, and where the rest is."""
        exchanges, _ = self.edge.recorder.exchanges()
        arrived = as_table(rows(one.entry() for one in exchanges)) if exchanges else "No request arrived."
        unknown = "What waits is not known: no instance was configured with the edge's settings."
        elsewhere = self._whereabouts.describe() if self._is_told else [unknown]
        return "\n\n".join(filter(None, (headline, arrived, "\n".join(elsewhere))))


def _wanted(kind: str | None, count: int) -> str:
    noun = "1 event" if count == 1 else f"{count} events"
    return noun if kind is None else f"{noun} of type {kind}"


def _check_that_no_loop_runs() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError("wait_for_blocking: an event loop runs here; write `await edge.wait_for(...)`.")

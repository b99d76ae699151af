"""What is received, told as it happens: server-sent events.

A connection keeps only the number of the next exchange that it has to tell, and asks the recorder. So nothing piles up
for a reader that is slow or gone, and what arrives meanwhile is told in one message.

Source: HTML Living Standard, server-sent events.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from .exchange import Exchange
    from .recorder import Recorder, Window

__all__ = ["Feed", "FeedFull"]

_CHUNK = 500
"""Events told in one message, and exchanges without any; an exchange is never cut."""
_PACE = 0.1
"""Seconds between two messages, so that a busy edge is not busier with telling than with taking."""
_SIGN_OF_LIFE = 15.0
"""Seconds after which a reader that hears nothing hears that, so that a broken connection is noticed."""
_MAX_READERS = 32


class FeedFull(Exception):
    """As many readers as are served at once listen already."""


class Feed:
    """Tells readers what a recorder keeps, and what it receives from then on.

    Messages (name: data)::

        hello: {"session": "<hex>", "dropped": 0, "earlier": 123, "before": 18}   "before" as in dropped and cleared
        entries: [entry, …]             id <session>-<n of the last>, shape as `Exchange.entry`
        dropped: {"before": 18}         exchanges of lower numbers are no longer kept
        cleared: {"before": 18}         somebody cleared them
        faults: {"seed": 0, "faults": […]}

    Args:
        recorder: whose exchanges are told.
        faults: returns the fault switches as they are now.
        pause: waits that many seconds; for tests.
    """

    def __init__(
        self,
        recorder: Recorder,
        *,
        faults: Callable[[], dict[str, Any] | None] = lambda: None,
        pause: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._recorder = recorder
        self._faults = faults
        self._pause = pause
        self._session = secrets.token_hex(8)
        self._readers: set[_Reader] = set()
        self._closed = False

    def close(self) -> None:
        """End all messages, so that a server can stop."""
        self._closed = True
        self.wake()

    def wake(self) -> None:
        """Let readers look for news; for changes that do not come from the recorder."""
        for reader in tuple(self._readers):
            reader.wake()

    async def messages(self, last_event_id: str | None = None) -> AsyncIterator[str]:
        """Yield messages until the feed is closed.

        Args:
            last_event_id: what a reader that comes back heard last; of another session it counts as nothing.

        Raises:
            FeedFull: too many listen.
        """
        if len(self._readers) >= _MAX_READERS:
            raise FeedFull
        reader = _Reader()
        self._readers.add(reader)
        unsubscribe = self._recorder.subscribe(reader.wake)
        try:
            async for message in self._tell(reader, self._resumed(last_event_id)):
                yield message
        finally:
            unsubscribe()
            self._readers.discard(reader)

    def _resumed(self, last_event_id: str | None) -> int:
        session, _, number = (last_event_id or "").partition("-")
        return int(number) + 1 if session == self._session and number.isdecimal() and len(number) < 20 else 0

    async def _tell(self, reader: _Reader, following: int) -> AsyncIterator[str]:
        told = _Told(self._recorder.window())
        yield self._hello(told.window)
        while True:
            reader.rest()
            if self._closed:
                return
            window = self._recorder.window()
            for message in told.changes(window, self._faults()):
                yield message
            told_now = _first_chunk(self._recorder.since(following, _CHUNK))
            entries = [exchange.entry() for exchange in told_now]
            following = entries[-1]["n"] + 1 if entries else window.next
            if entries:
                yield _message("entries", entries, f"{self._session}-{entries[-1]['n']}")
            if following < window.next:
                await asyncio.sleep(0)  # a server takes what a socket takes without a pause of its own
                continue
            if not await reader.news():
                yield ": still here\n\n"  # a comment, which readers skip
            await self._pause(_PACE)

    def _hello(self, window: Window) -> str:
        return _message(
            "hello",
            {
                "session": self._session,
                "dropped": window.first - window.cleared,
                "earlier": window.next - window.first,
                "before": window.first,
            },
        )


class _Told:
    """What a reader knows besides the exchanges."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self._faults: dict[str, Any] | None = None

    def changes(self, window: Window, faults: dict[str, Any] | None) -> Iterator[str]:
        """Yield a message for each thing that is no longer as it was told."""
        if faults != self._faults:
            self._faults = faults
            yield _message("faults", faults)
        if window.cleared > self.window.cleared:
            yield _message("cleared", {"before": window.cleared})
        if window.first > max(self.window.first, window.cleared):
            yield _message("dropped", {"before": window.first})
        self.window = window


class _Reader:
    """Sleeps until there is news; may be woken from any thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._is_woken = False

    def rest(self) -> None:
        # Before anything is asked: news that come while it is told are not lost, but wake once more.
        self._is_woken = False
        self._news.clear()

    def wake(self) -> None:
        if self._is_woken:
            return  # crossing threads costs a system call; once is enough
        self._is_woken = True
        with suppress(RuntimeError):  # the loop is closed, and the reader with it
            self._loop.call_soon_threadsafe(self._news.set)

    async def news(self) -> bool:
        """Wait for news; False when there is none for long."""
        try:
            async with asyncio.timeout(_SIGN_OF_LIFE):
                return await self._news.wait()
        except TimeoutError:
            return False


def _first_chunk(exchanges: list[Exchange]) -> list[Exchange]:
    """Cut after the first, or as many as one message holds."""
    events = 0
    for count, exchange in enumerate(exchanges):
        events += max(1, len(exchange.events))
        if events > _CHUNK:
            return exchanges[: max(1, count)]
    return exchanges


def _message(name: str, data: object, number: str | None = None) -> str:
    identity = "" if number is None else f"id: {number}\n"
    # json.dumps escapes line breaks, so that data cannot end its line.
    return f"event: {name}\n{identity}data: {json.dumps(data)}\n\n"

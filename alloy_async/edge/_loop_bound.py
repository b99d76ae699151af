"""What lives in one event loop: made when the loop first needs it, closed at the latest when the loop ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Generic, TypeVar

__all__ = ["LoopBound"]

T = TypeVar("T")

_left_behind: list[AsyncGenerator[None, None]] = []
"""Keepers of what other loops made and have not closed."""


class LoopBound(Generic[T]):
    """Holds a thing with connections, one for the loop that runs.

    Args:
        make: makes the thing; called inside the loop.
        close: closes it; called inside the same loop.
    """

    def __init__(self, make: Callable[[], T], close: Callable[[T], Awaitable[None]]) -> None:
        self._make = make
        self._close = close
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thing: T | None = None
        self._keeper: AsyncGenerator[None, None] | None = None
        self._closed = False

    async def get(self) -> T:
        """Return the thing of the loop that runs.

        Raises:
            RuntimeError: ``aclose`` was called.
        """
        if self._thing is not None and self._loop is asyncio.get_running_loop():
            return self._thing
        if self._closed:
            raise RuntimeError("closed")
        self._leave_behind()
        self._loop = asyncio.get_running_loop()
        self._thing = thing = self._make()
        self._keeper = _keep(thing, self._close)
        await anext(self._keeper)
        return thing

    async def aclose(self) -> None:
        """Close the thing, if this loop made it."""
        self._closed = True
        if self._loop is not asyncio.get_running_loop():
            self._leave_behind()
        keeper, self._keeper, self._thing = self._keeper, None, None
        if keeper is not None:
            await keeper.aclose()

    def _leave_behind(self) -> None:
        """Never touch again what another loop made.

        After a fork that is the parent's: to close a connection here would take it out of the selector that both
        processes share. So it is not even left to the garbage collector.
        """
        if self._keeper is not None and self._loop is not None and not self._loop.is_closed():
            _left_behind.append(self._keeper)
        self._keeper = self._thing = None


async def _keep(thing: T, close: Callable[[T], Awaitable[None]]) -> AsyncGenerator[None, None]:
    """Close a thing at the latest when its loop ends.

    A loop ends its asynchronous generators before it closes (``loop.shutdown_asyncgens``), and those that the garbage
    collector finds; this one closes the thing then. Without it a process that ends without ``aclose`` would be told of
    unclosed sessions and sockets.
    """
    try:
        yield
    finally:
        await close(thing)

"""Where an outbox lies in Redis, and how it is asked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .._clock import Clock
from .._redis import RedisLink, Script, describe, failures
from ..errors import OutboxError
from . import _redis_scripts as scripts

if TYPE_CHECKING:
    import asyncio

    from redis.asyncio import Redis

__all__ = ["Forgotten", "Place"]

T = TypeVar("T")


class Forgotten(Exception):
    """What Redis knows does not allow a step."""


_FORGOTTEN = {
    -1: "refusals were forgotten that it has not heard of; whoever may have declined is asked about soon.",
    -2: "Redis has lost what it knew of this process, and perhaps events; it is entered again soon.",
    -3: "it was written by a newer version of alloy_async; upgrade, or give it another name.",
}
"""What scripts return alone, instead of an epoch."""


class Place:
    """An outbox's keys, and a link to the server that has them.

    Args:
        make_link: makes the link, again after ``aclose``.
        name: of the outbox.
        clock: by which leases run out; None for that of Redis.

    Raises:
        ConfigurationError: no link can be made.
    """

    def __init__(self, make_link: Callable[[], RedisLink], name: str, clock: Clock | None) -> None:
        prefix = f"alloy:{{{name}}}:"  # in braces: in a cluster all of it lies in one slot
        self.keys: Sequence[str] = scripts.key_names(prefix)
        self.channel = f"{prefix}{scripts.CHANNEL}"
        self.link = make_link()
        self.name = f"Redis at {self.link.place}"
        self._make_link = make_link
        self._clock = clock
        self._closed = False

    def open(self) -> None:
        """Make a link, if it was closed."""
        if self._closed:
            self.link, self._closed = self._make_link(), False

    async def aclose(self) -> None:
        """Close the link, and end what runs in the background."""
        self._closed = True
        await self.link.aclose()

    def start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a coroutine in the background."""
        return self.link.start(coroutine, "alloy-redis-outbox")

    async def call(
        self, redis: Redis, script: Script, *arguments: str | bytes | float, worker: str = "", heard: int = 0
    ) -> list[Any]:
        """Run a script, and return its answer.

        Args:
            redis: the client.
            script: which.
            arguments: its own.
            worker: who asks; empty for nobody in particular.
            heard: the latest epoch that is known here.

        Raises:
            Forgotten: what Redis knows does not allow it.
        """
        now = "" if self._clock is None else repr(self._clock.time())
        texts = [one if isinstance(one, bytes) else str(one) for one in arguments]
        answer: list[Any] = await script(redis, self.keys, [worker, now, heard, *texts])
        if answer and answer[0] in _FORGOTTEN:
            raise Forgotten(_FORGOTTEN[answer[0]])
        return answer

    async def ask(
        self, action: str, script: Script, *arguments: str | bytes | float, worker: str = ""
    ) -> list[Any]:
        """Run a script as a step of its own, and return its answer.

        Args:
            action: what is tried, for the error.
            script: which.
            arguments: its own.
            worker: who asks.

        Raises:
            OutboxError: it could not be done.
        """
        return await self.run(action, lambda redis: self.call(redis, script, *arguments, worker=worker))

    async def records(self, action: str, keys: Sequence[int]) -> list[bytes | None]:
        """Return events as they are kept, each for ``read_event``; None for what has gone."""
        names = [str(key) for key in keys]
        found: list[Any] = await self.run(action, lambda redis: redis.hmget(self.keys[scripts.BODIES], names))
        return found

    async def run(self, action: str, work: Callable[[Redis], Awaitable[T]]) -> T:
        """Run a function with the client; a cancelled caller leaves it running to its end.

        Args:
            action: what is tried, for the error.
            work: the function.

        Raises:
            OutboxError: it could not be done.
        """
        try:
            return await self.link.run(work)
        except Forgotten as error:
            problem = str(error)
        except failures() as error:
            problem = describe(error)
        # Raised out here, without a cause: errors of redis-py may quote what was sent, and their frames hold events.
        raise OutboxError(action, self.name, problem)

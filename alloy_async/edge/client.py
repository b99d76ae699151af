"""``EdgeClient``: one exchange with the edge, from what is to be said to what was answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .._clock import Ids
from ..errors import EdgeError
from .protocol import (
    V1,
    Access,
    Dialect,
    Reply,
    authorised,
    build_acquire,
    build_collect,
    build_interact,
    may_need_new_token,
    read_reply,
)
from .token import TokenSource
from .transport import EdgeRequest, Transport, Withdrawn, send_once

__all__ = ["EdgeClient"]

MayStart = Callable[[], bool]
Build = Callable[[], EdgeRequest]


class EdgeClient:
    """Builds, sends and reads requests to one datastream.

    Each method makes one attempt and ends with the edge's reply; see ``Transport.send`` and ``read_reply`` for how it
    fails. Whoever decides about another attempt stands between the courier and this class, and asks for consent again.

    With a source of tokens events bring one, and one that the edge no longer takes is replaced once: the same events go
    a second time, with another token, if ``may_start`` still says yes. See ``TokenSource.access`` for how that fails.

    Args:
        transport: the way to the edge.
        base: what each address starts with.
        config_id: the datastream.
        ids: where request ids come from; a new one for each attempt, as Adobe's mobile SDKs do.
        dialect: the version of the API that events speak.
        tokens: where access tokens come from; None: requests bring none.
        acquire_base: what the address of ``acquire`` starts with, which is v1 and without a token always; default: base.
    """

    def __init__(
        self,
        transport: Transport,
        *,
        base: str,
        config_id: str,
        ids: Ids,
        dialect: Dialect = V1,
        tokens: TokenSource | None = None,
        acquire_base: str | None = None,
    ) -> None:
        self._transport = transport
        self._base = base
        self._config_id = config_id
        self._ids = ids
        self._dialect = dialect
        self._tokens = tokens
        self._acquire_base = base if acquire_base is None else acquire_base

    async def interact(
        self, event: bytes, *, hint: str | None, queue_time: int, state: bytes = b"", may_start: MayStart
    ) -> Reply:
        """Send one event and return its answer; see ``build_interact``."""
        return await self._admitted(
            lambda: build_interact(
                self._base,
                self._config_id,
                hint,
                self._ids(),
                event,
                queue_time,
                state=state,
                dialect=self._dialect,
            ),
            may_start,
        )

    async def collect(self, events: Sequence[bytes], *, hint: str | None, may_start: MayStart) -> Reply:
        """Send a batch of events; see ``build_collect``."""
        return await self._admitted(
            lambda: build_collect(
                self._base, self._config_id, hint, self._ids(), events, dialect=self._dialect
            ),
            may_start,
        )

    async def acquire(self, identity_map: bytes, *, hint: str | None, may_start: MayStart) -> Reply:
        """Ask for the visitor's ECID; see ``build_acquire``.

        Source: Edge Network, which has no v2 of it; Adobe's Server SDK asks without credentials too.
        """
        request = build_acquire(self._acquire_base, self._config_id, hint, self._ids(), identity_map)
        return await self._exchange(request, may_start)

    async def aclose(self) -> None:
        """Close the way to the edge."""
        if self._tokens is not None:
            await self._tokens.aclose()
        await self._transport.aclose()

    async def _admitted(self, build: Build, may_start: MayStart) -> Reply:
        """Make the exchange with whatever lets it in."""
        if self._tokens is None:
            return await self._exchange(build(), may_start)
        access = await self._access(self._tokens, may_start)
        try:
            return await self._exchange(authorised(build(), access), may_start)
        except EdgeError as error:
            if not may_need_new_token(error) or not self._tokens.replace(access):
                raise
        # Once: whatever the next token meets is the outcome.
        access = await self._access(self._tokens, may_start)
        return await self._exchange(authorised(build(), access), may_start)

    async def _access(self, tokens: TokenSource, may_start: MayStart) -> Access:
        """Return what lets a request in; without consent there is nothing that it would be asked for."""
        if not may_start():
            raise Withdrawn
        return await tokens.access()

    async def _exchange(self, request: EdgeRequest, may_start: MayStart) -> Reply:
        return read_reply(await send_once(self._transport, request, may_start))

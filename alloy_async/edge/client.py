"""``EdgeClient``: one exchange with the edge, from what is to be said to what was answered."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .._clock import Ids
from ..errors import AlloyError, NetworkError
from .protocol import Reply, build_acquire, build_collect, build_interact, read_reply
from .transport import EdgeRequest, EdgeResponse, Transport, Withdrawn

__all__ = ["EdgeClient"]

MayStart = Callable[[], bool]


class EdgeClient:
    """Builds, sends and reads requests to one datastream.

    Each method makes one attempt and ends with the edge's reply; see ``Transport.send`` and ``read_reply`` for how it
    fails. Whoever decides about another attempt stands between the courier and this class, and asks for consent again.

    Args:
        transport: the way to the edge.
        base: what each address starts with.
        config_id: the datastream.
        ids: where request ids come from; a new one for each attempt, as Adobe's mobile SDKs do.
    """

    def __init__(self, transport: Transport, *, base: str, config_id: str, ids: Ids) -> None:
        self._transport = transport
        self._base = base
        self._config_id = config_id
        self._ids = ids

    async def interact(
        self, event: bytes, *, hint: str | None, queue_time: int, may_start: MayStart
    ) -> Reply:
        """Send one event and return its answer; see ``build_interact``."""
        request = build_interact(self._base, self._config_id, hint, self._ids(), event, queue_time)
        return await self._exchange(request, may_start)

    async def collect(self, events: Sequence[bytes], *, hint: str | None, may_start: MayStart) -> Reply:
        """Send a batch of events; see ``build_collect``."""
        request = build_collect(self._base, self._config_id, hint, self._ids(), events)
        return await self._exchange(request, may_start)

    async def acquire(self, identity_map: bytes, *, hint: str | None, may_start: MayStart) -> Reply:
        """Ask for the visitor's ECID; see ``build_acquire``."""
        request = build_acquire(self._base, self._config_id, hint, self._ids(), identity_map)
        return await self._exchange(request, may_start)

    async def aclose(self) -> None:
        """Close the way to the edge."""
        await self._transport.aclose()

    async def _exchange(self, request: EdgeRequest, may_start: MayStart) -> Reply:
        return read_reply(await self._send(request, may_start))

    async def _send(self, request: EdgeRequest, may_start: MayStart) -> EdgeResponse:
        try:
            return await self._transport.send(request, may_start)
        except (AlloyError, Withdrawn):
            raise
        except Exception as error:  # noqa: BLE001 - a transport of somebody else's, or a client that was closed
            problem = type(error).__name__
        # Raised out here, without a cause: a foreign error may hold the request, and with it the visitor's events.
        raise NetworkError(self._base, f"the transport failed with {problem}")

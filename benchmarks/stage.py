"""What the benchmarks run on: an instance whose edge is in memory, and events that wait in it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from purchase import PURCHASE

from alloy_async import Alloy, EventResult
from alloy_async.edge.transport import EdgeRequest, EdgeResponse, Withdrawn

IDS = {"config_id": "ebebf826-a01f-4458-8cec-ef61de241c93", "ims_org_id": "ADB3LETTERSANDNUMBERS@AdobeOrg"}
ROOM = 1 << 30  # bytes; the default bound of 64 MB is met before 100 000 of these events are parked


class AnswersAtOnce:
    """A transport that takes everything: what is measured is ours alone."""

    async def send(self, request: EdgeRequest, may_start: Callable[[], bool]) -> EdgeResponse:
        if not may_start():
            raise Withdrawn
        return EdgeResponse(204, {}, b"")

    async def aclose(self) -> None:
        pass


class NeverAnswers(AnswersAtOnce):
    """A transport on which every request hangs."""

    async def send(self, request: EdgeRequest, may_start: Callable[[], bool]) -> EdgeResponse:
        return await asyncio.get_running_loop().create_future()


@asynccontextmanager
async def waiting_for_consent(
    transport: AnswersAtOnce, *, events: int = 0, **options: Any
) -> AsyncIterator[Alloy]:
    """Give an instance that waits for consent, with events parked that nobody awaits.

    Args:
        transport: its way to the edge.
        events: how many events are parked.
        options: more options of ``configure``.
    """
    logging.getLogger("alloy_async").setLevel(
        logging.ERROR
    )  # refused events that nobody awaits are told there
    alloy = Alloy("benchmark")
    await alloy.configure(
        **IDS,
        opt_in_enabled=True,
        transport=transport,
        store="memory",
        max_parked=1_000_000,
        max_parked_bytes=ROOM,
        max_queued=1_000_000,
        max_queued_bytes=ROOM,
        **options,
    )
    for _ in range(events):
        record(alloy)
    if alloy.statistics().parked != events:
        raise RuntimeError(f"{alloy.statistics()}: {events} events should be parked")
    try:
        yield alloy
    finally:
        await alloy.aclose(grace=0.001)


def record(alloy: Alloy) -> asyncio.Future[EventResult]:
    """Call ``event``, and do not wait for it."""
    return alloy.event(xdm=PURCHASE)

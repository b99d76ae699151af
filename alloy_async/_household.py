"""What all visitors of an engine share."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from ._clock import Clock, Ids
from ._consent._room import ParkingRoom
from ._courier import Courier
from ._futures import FailureLog, HomeLoop
from ._ledger import Ledger
from ._patience import Patience
from .edge.protocol import V1, V2, event_room
from .hooks import Hooks
from .stores.base import Store

if TYPE_CHECKING:
    from .settings import Settings

__all__ = ["Household"]


class Household:
    """What all visitors of an engine share.

    Args:
        settings: bounds, times, and ``on_before_event_send``.
        store: where choices and identities are kept.
        courier: takes events to the edge.
        ledger: the books.
        hooks: hear of each moment.
        clock: where time comes from.
        ids: where identifiers come from.
        failures: where a failure is counted that nobody awaited.
        logger: hears of what goes wrong without harm.
        home: the event loop of all of them.

    Attributes:
        event_filter: the application's ``on_before_event_send``; None: it has none.
        one_primary: whether an identity map of the application's must have exactly one primary identity.
        event_room: bytes that an event may have, together with what goes up beside it.
        room: where all of them park.
        patience: how long a parked command may be awaited.
        tasks: what no caller can cancel, while it runs.
        is_open: whether anything may still be read.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        store: Store,
        courier: Courier,
        ledger: Ledger,
        hooks: Hooks,
        clock: Clock,
        ids: Ids,
        failures: FailureLog,
        logger: logging.Logger,
        home: HomeLoop,
    ) -> None:
        self.settings = settings
        self.store = store
        self.courier = courier
        self.ledger = ledger
        # None where there are none: asked several times for each event.
        self.hooks: Hooks | None = hooks or None
        self.clock = clock
        self.ids = ids
        self.failures = failures
        self.logger = logger
        self.home = home
        self.room = ParkingRoom(settings.max_parked, settings.max_parked_bytes)
        self.patience = Patience(settings.parked_wait, clock)
        self.event_filter = settings.on_before_event_send
        self.one_primary = settings.authenticated
        self.event_room = event_room(settings.max_body_bytes, V2 if settings.authenticated else V1)
        self.tasks: set[asyncio.Task[None]] = set()
        self.is_open = True

    def own(self, work: Any, name: str) -> asyncio.Task[None]:
        """Run something that no caller can cancel."""
        task: asyncio.Task[None] = asyncio.Task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

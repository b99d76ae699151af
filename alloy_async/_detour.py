"""The detour over this machine, which events take while the outbox is down.

Theory of operation. Whoever finds that the outbox does not take events says so; from then on groups are stored in the
fallback, until the outbox has told what others did. Then what waits there is written to it, oldest first. What comes after
something that is being taken over on this machine takes the detour too, behind it, also while the outbox is up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from itertools import filterfalse

from ._clock import Clock
from ._commands import EventCommand, fail_all
from ._fallback import Fallback, Heard
from ._unwritten import Unwritten, waited_too_long, waits_here
from .errors import OutboxError
from .outbox._raised import as_outbox_error

__all__ = ["Detour"]


class Detour:
    """Stores on this machine what the outbox does not take now, or must not take yet.

    Args:
        fallback: where; None: there is no detour, and it never is down.
        unwritten: what is to be stored.
        lifetime: seconds that an event may wait for its delivery.
        hands_over: whether what is stored is left to other workers, so that a caller need not wait for more.
        clock: where time comes from.
        logger: hears of what goes wrong without harm.
        on_down: hears that the outbox is down: it should be looked soon whether it is back.
        on_heard: hears what other processes of this machine did.

    Attributes:
        is_down: whether the outbox is.
    """

    def __init__(
        self,
        fallback: Fallback | None,
        unwritten: Unwritten,
        *,
        lifetime: float,
        hands_over: bool,
        clock: Clock,
        logger: logging.Logger,
        on_down: Callable[[], object],
        on_heard: Callable[[Heard], object],
    ) -> None:
        self._fallback = fallback
        self._unwritten = unwritten
        self._lifetime = lifetime
        self._hands_over = hands_over
        self._clock = clock
        self._logger = logger
        self._on_down = on_down
        self._on_heard = on_heard
        self._was_said = False
        self.is_down = False

    @property
    def exists(self) -> bool:
        """Whether there is one."""
        return self._fallback is not None

    def turn_back(self, commands: list[EventCommand], error: OutboxError) -> None:
        """Let events take the detour that the outbox has not taken, and all others after them."""
        self._unwritten.give_back(commands)
        self.go_down(error)

    def go_down(self, error: OutboxError) -> None:
        """Store events on this machine from now on, and look soon whether the outbox is back."""
        if not self._was_said:
            self._logger.warning("%s; events are stored on this machine until it takes them", error)
        self.is_down = self._was_said = True
        self._on_down()

    def come_up(self) -> bool:
        """Take note that the outbox answers; return whether it was down."""
        was_down, self.is_down = self.is_down, False
        return was_down

    def took_events(self) -> None:
        """Take note that the outbox has stored events: when it is down again that is said again."""
        self._was_said = False

    def let_go(self, command: EventCommand) -> None:
        """Erase an event on this machine soon, which has ended, or is in the outbox; harmless for others."""
        if self._fallback is not None:
            self._fallback.let_go(command)

    async def hear(self) -> None:
        """Hear what other processes of this machine did."""
        if self._fallback is None or self._fallback.is_current():
            return
        try:
            heard = await self._fallback.hear()
        except Exception as raised:  # noqa: BLE001 - an outbox of somebody else's may raise what it should not
            self._logger.warning("%s; going on without", as_outbox_error("read", raised))
            return
        self._on_heard(heard)

    async def store(self) -> None:
        """Store group after group, and erase what has ended."""
        if self._fallback is None:
            return
        if self.is_down:
            self._end_too_old(self._fallback)
        while gathered := self._unwritten.gather_here(self._fallback, is_down=self.is_down):
            await self._store_group(self._fallback, gathered)
        try:
            await self._fallback.erase_ended()
        except Exception as raised:  # noqa: BLE001 - as above
            self._logger.warning("%s; tried again later", as_outbox_error("erase", raised))

    def _end_too_old(self, fallback: Fallback) -> None:
        fallback.end_too_old(waited_too_long(), self._clock.monotonic() - self._lifetime)

    async def _store_group(self, fallback: Fallback, gathered: list[EventCommand]) -> None:
        wanted = self._unwritten.wanted(gathered)
        fallback.add(filter(waits_here, wanted))
        group = self._unwritten.begin(filterfalse(waits_here, wanted))
        try:
            stored = await fallback.store(group)
        except asyncio.CancelledError:
            self._unwritten.set_adrift()
            raise
        except Exception as raised:  # noqa: BLE001 - as above
            self._unwritten.end()
            fail_all(group, as_outbox_error("write", raised))
            return
        self._unwritten.end()
        for command, key in zip(group, stored.keys, strict=True):
            if key is None:
                self._unwritten.turn_away(command, stored)
            elif not command.ended and (command.ends_when_stored or self._hands_over):
                command.tell_stored()

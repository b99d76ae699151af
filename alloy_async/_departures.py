"""Events between the gate and the courier that cannot go on at once, and what takes effect between them."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, NamedTuple, Protocol

from ._commands import EventCommand
from ._consent._opt_in import OptInState
from ._consent._rules import Verdict
from ._event_filter import filter_event
from ._futures import is_under_way
from ._household import Household
from ._identity_keeper import IdentityKeeper
from ._slices import SLICE

__all__ = ["Departures"]


class DepartingVisitor(Protocol):
    """A visitor as their departures see it."""

    gate: OptInState

    @property
    def identity_keeper(self) -> IdentityKeeper:
        """What keeps who they are."""
        ...

    def apply_customer_ids(self, customer_ids: dict[str, dict[str, Any]]) -> None:
        """Add customer ids to what later events carry."""

    def end_departures(self) -> None:
        """Let the departures go: nothing waits any more."""


class _CustomerIds(NamedTuple):
    """Customer ids that wait behind events which go without them."""

    order: int
    epoch: int
    customer_ids: dict[str, dict[str, Any]]


class Departures:
    """Brings one visitor's events to the courier, in order, where the identity must be read or the application asked.

    Made when something waits, and gone when nothing does: an empty one takes as much as all the rest of a visitor.

    Args:
        visitor: whose events they are.
        household: what all visitors share.

    Attributes:
        task: what brings them; None while nothing does.
    """

    __slots__ = ("_household", "_leaving", "_visitor", "_waiting", "task")

    def __init__(self, visitor: DepartingVisitor, household: Household) -> None:
        self._visitor = visitor
        self._household = household
        self._waiting: deque[EventCommand | _CustomerIds] = deque()
        self._leaving: EventCommand | _CustomerIds | None = None
        self.task: asyncio.Task[None] | None = None

    def add(self, command: EventCommand) -> None:
        """Take an event."""
        waiting = self._waiting
        waiting.append(command)
        if len(waiting) > 1 and waiting[-2].order > command.order:  # it comes a second time
            self._waiting = deque(sorted(waiting, key=lambda item: item.order))
        self.go_on()

    def add_customer_ids(self, customer_ids: dict[str, dict[str, Any]]) -> None:
        """Take customer ids; what waits already goes without them."""
        last = self._waiting[-1] if self._waiting else self._leaving
        order = 0 if last is None else last.order
        self._waiting.append(_CustomerIds(order, self._visitor.gate.epoch, customer_ids))
        self.go_on()

    def go_on(self) -> None:
        """Go on with what waits, where somebody else has cancelled the task that brings it."""
        if not is_under_way(self.task):
            self.task = self._household.own(self._depart(), "alloy-departure")

    def open_commands(self) -> list[EventCommand]:
        """Return the events that have not ended."""
        commands = [self._leaving, *self._waiting]
        return [command for command in commands if isinstance(command, EventCommand) and not command.ended]

    def drop_customer_ids(self) -> None:
        """Leave out customer ids: they were said before a refusal."""
        self._waiting = deque(item for item in self._waiting if isinstance(item, EventCommand))
        self._end_if_idle()

    def clear(self) -> None:
        """Let everything go that waits."""
        self._waiting.clear()
        self._end_if_idle()

    def _end_if_idle(self) -> None:
        if self.task is None and not self._waiting:
            self._visitor.end_departures()

    async def _depart(self) -> None:
        """Bring waiting events to the courier; runs while there are any."""
        try:
            await self._visitor.identity_keeper.ensure()
            count = 0
            while self._waiting:
                self._leaving = self._waiting.popleft()
                if isinstance(self._leaving, EventCommand):
                    await self._depart_one(self._leaving)
                else:
                    self._apply_if_current(self._leaving)
                self._leaving = None
                count += 1
                if count % SLICE == 0:
                    await asyncio.sleep(0)
        finally:
            self.task = None
            if self._leaving is not None:  # cancelled by somebody else
                self._waiting.appendleft(self._leaving)
                self._leaving = None
            self._end_if_idle()

    async def _depart_one(self, command: EventCommand) -> None:
        if not self._may_go_on(command):
            return
        household, keeper = self._household, self._visitor.identity_keeper
        if household.event_filter is not None and not command.filtered:
            await filter_event(
                household.event_filter,
                command,
                room=household.event_room,
                one_primary=household.one_primary,
            )
            if not self._may_go_on(command):
                return
        if keeper.identity.fpid is None:  # erased while the filter ran, and consented to again
            await keeper.ensure()
        if self._may_go_on(command) and keeper.put_into(command):
            household.courier.accept(command)

    def _may_go_on(self, command: EventCommand) -> bool:
        """Ask for consent again; send the event back to the gate when there is none now."""
        if command.stage is None:
            return False
        if command.verdict() is Verdict.PASS:
            return True
        self._visitor.gate.readmit([command, *self._take_slice()])
        return False

    def _take_slice(self) -> list[EventCommand]:
        """Take a slice of what waits behind an event that has lost its consent; one by one would sort them each time."""
        commands = []
        for _ in range(min(SLICE, len(self._waiting))):
            item = self._waiting.popleft()
            if isinstance(item, _CustomerIds):
                self._apply_if_current(item)
            elif not item.ended:
                commands.append(item)
        return commands

    def _apply_if_current(self, waiting: _CustomerIds) -> None:
        # Those of an older epoch belong to what a refusal has erased.
        if waiting.epoch == self._visitor.gate.epoch:
            self._visitor.apply_customer_ids(waiting.customer_ids)

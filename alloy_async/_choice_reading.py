"""Reading what the store says about a visitor's choice, until it is known."""

from __future__ import annotations

import asyncio
from copy import copy
from typing import Protocol

from ._clock import Cancellable
from ._consent._opt_in import OptInState
from ._consent._rules import Purposes
from ._futures import CommandFuture, is_under_way
from ._household import Household
from ._preference import PreferenceKeeper
from .errors import AlloyError, ConsentStoreError
from .stores.base import Preference

__all__ = ["ChoiceReading"]

READ_AGAIN = 1.0
"""Seconds after which a choice is read again that could not be read."""


class ChoosingVisitor(Protocol):
    """A visitor as the reading sees it."""

    gate: OptInState
    keeper: PreferenceKeeper

    def recall_choice(self) -> None:
        """Begin to read, unless the choice is known by now."""

    def take_choice(self, preference: Preference | None, ticket: int, *, refused: bool | None) -> None:
        """Take what the store has said."""

    def lose_choice(self, *, refused: bool | None) -> None:
        """Take note that the store could not say anything."""

    def end_reading(self) -> None:
        """Let the reading go: it has succeeded, or is not tried again."""

    def hear_yes(self, seen_at: float | None) -> None:
        """Take what the visitor's browser has said meanwhile."""


class ChoiceReading:
    """Reads one visitor's choice; made when it is to be read, and gone once that has succeeded.

    Args:
        visitor: whose choice it is.
        household: what all visitors share.

    Attributes:
        task: what reads; None before it begins, and while it waits to try again.
    """

    __slots__ = ("_curious", "_doubt", "_household", "_retry", "_stale", "_visitor", "_yes", "task")

    def __init__(self, visitor: ChoosingVisitor, household: Household) -> None:
        self._visitor = visitor
        self._household = household
        self._doubt: bool | None = False
        self._stale = False
        self._yes: tuple[float | None] | None = None
        self._curious: tuple[CommandFuture[Purposes], ...] = ()
        self._retry: Cancellable | None = None
        self.task: asyncio.Task[None] | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing is read, now or later: the instance is closed."""
        return self.task is None and self._retry is None

    def start(self) -> None:
        """Begin to read, unless that has begun."""
        if self.task is None:
            self._read()

    def start_again(self, *, refused: bool | None) -> None:
        """Read what the store says now: what is being read may be what was there before.

        Args:
            refused: whether there was a refusal in between; None: nobody knows.
        """
        self._doubt = _stronger(self._doubt, refused)
        self._stale = True
        if not is_under_way(self.task):
            self._read()

    def tell(self, future: CommandFuture[Purposes]) -> None:
        """End a future with the choice, once it has been read."""
        self._curious = (*self._curious, future)

    def keep_yes(self, seen_at: float | None) -> None:
        """Take note of a yes of the browser's; what it may lift is known once the choice has been read."""
        self._yes = (seen_at,)

    def drop_yes(self) -> None:
        """Forget what the browser said: something has been said since."""
        self._yes = None

    def stop(self, error: AlloyError) -> None:
        """Do not try again, and end what waits with an error."""
        if self._retry is not None:
            self._retry.cancel()
        self._reject(error)

    def _read(self) -> None:
        if not self._household.is_open:
            return
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self.task = self._household.own(self._read_until_current(), "alloy-choice")
        self.task.add_done_callback(self._has_read)

    async def _read_until_current(self) -> None:
        """Read and apply; once more, when somebody has changed something meanwhile, here or elsewhere."""
        keeper = self._visitor.keeper
        while True:
            await keeper.written()
            self._stale = False
            ticket = keeper.ticket
            preference = await keeper.load()
            if not self._stale and ticket == keeper.ticket:
                break
        doubt, self._doubt = self._doubt, False
        self._visitor.take_choice(preference, ticket, refused=doubt)

    def _has_read(self, task: asyncio.Task[None]) -> None:
        """Go on with what waited for the choice; a callback, since a task that is cancelled early runs nothing."""
        if self.task is not task:  # it has been asked again in between, and the next answer counts
            if not task.cancelled():
                task.exception()
            return
        self.task = None
        error = (
            ConsentStoreError("load", "the store", "it was given up.")
            if task.cancelled()
            else task.exception()
        )
        if error is None:
            self._conclude()
            return
        problem = (
            error
            if isinstance(error, ConsentStoreError)
            else ConsentStoreError("load", "the store", "internal error; please report it.")
        )
        self._could_not_read(problem)
        if not task.cancelled():
            self._household.logger.warning("%s; the visitor's choice counts as unknown", problem)
        self._try_later()

    def _conclude(self) -> None:
        self._visitor.end_reading()
        if self._yes is not None:
            self._visitor.hear_yes(*self._yes)
        for future in self._curious:
            future.resolve(self._visitor.gate.purposes)
        self._household.courier.wake()  # which may have passed over what waits there of this visitor

    def _could_not_read(self, problem: ConsentStoreError) -> None:
        self._yes = None
        self._visitor.keeper.end_doubt(problem)
        self._reject(problem)

    def _try_later(self) -> None:
        self._visitor.lose_choice(refused=self._doubt)
        if self._doubt is True:
            self._doubt = None  # what came before has been refused; what comes now waits
        if self._household.is_open:
            self._retry = self._household.clock.call_later(READ_AGAIN, self._visitor.recall_choice)
        else:
            self._visitor.end_reading()

    def _reject(self, error: AlloyError) -> None:
        curious, self._curious = self._curious, ()
        for future in curious:
            future.reject(copy(error))


def _stronger(one: bool | None, other: bool | None) -> bool | None:  # noqa: FBT001 - two of a kind
    """Return the graver of two doubts: there was a refusal, nobody knows, there was none."""
    return True if one or other else None if one is None or other is None else False

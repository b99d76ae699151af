"""Events that others left in an outbox: whose may be taken over, by their visitors' choices, and how they go on here."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from ._commands import EventCommand
from ._courier import Courier
from ._taking_over import TakingOver
from ._visitor import VisitorState
from .errors import ConsentStoreError
from .outbox.base import Claimed, VisitorKey

__all__ = ["RecoveredEvents"]


class _Asked:
    """What was asked about the visitors of one outbox.

    Attributes:
        in_vain: those who have chosen nothing; not asked about again, until they come.
        since_when: those of whom was read since when they consent.
    """

    def __init__(self) -> None:
        self.in_vain: set[VisitorKey] = set()
        self.since_when: set[VisitorKey] = set()

    def forget_others(self, visitors: Collection[VisitorKey]) -> None:
        """Forget those of whom nothing is left there any more."""
        self.in_vain.intersection_update(visitors)
        self.since_when.intersection_update(visitors)


class RecoveredEvents:
    """Knows of the visitors whose events were left in outboxes, and makes commands of those events.

    Args:
        find: returns the state of a visitor that is known here.
        meet: returns the state of a visitor, known here until now or not; None for one of another instance.
        courier: takes what goes on at once.
        asks: whether visitors are asked for their consent; if not, as in a relay, the outbox alone says what may be sent.
        logger: hears of a choice that could not be read.
    """

    def __init__(
        self,
        find: Callable[[VisitorKey], VisitorState | None],
        meet: Callable[[VisitorKey], VisitorState | None],
        *,
        courier: Courier,
        asks: bool,
        logger: logging.Logger,
    ) -> None:
        self._find = find
        self._meet = meet
        self._courier = courier
        self._asks = asks
        self._logger = logger

    def of_shared_outbox(self) -> TakingOver:
        """Return what is to be known of visitors to take over from the outbox; the courier gets the events at once."""
        return self._taking_over(self._recover)

    def of_local_outbox(self) -> TakingOver:
        """Return the same for this machine's; the courier gets the events once they are in the shared outbox."""
        return self._taking_over(self._recover_here)

    def consents(self, key: VisitorKey) -> bool:
        """Return whether a visitor is known to consent."""
        state = self._find(key)
        return state is not None and state.gate.is_opted_in

    def _taking_over(self, recover: Callable[..., list[EventCommand]]) -> TakingOver:
        return TakingOver(
            consenting=partial(self._consenting, _Asked()),
            read_again=self._read_again,
            has_declined=self._has_declined,
            holds=self._refusal_holds,
            on_claimed=recover,
        )

    async def _consenting(
        self, asked: _Asked, visitors: Collection[VisitorKey]
    ) -> dict[VisitorKey, tuple[VisitorState, int]]:
        """Return which of these visitors consent, with the epochs of their gates; reads the choices that are not known."""
        asked.forget_others(visitors)
        consenting: dict[VisitorKey, tuple[VisitorState, int]] = {}
        for key in visitors:
            state = self._find(key)
            if (state is None or not state.knows_choice) and key not in asked.in_vain:
                state = await self._read(key, asked)
            if state is not None and state.gate.is_opted_in:
                if await self._knows_refusals(state, asked) and state.gate.is_opted_in:
                    consenting[key] = state, state.gate.epoch
            elif (state is None or state.knows_choice) and not self._has_declined(key):
                asked.in_vain.add(key)  # what was declined is erased
        return consenting

    async def _knows_refusals(self, state: VisitorState, asked: _Asked) -> bool:
        """Return whether it is known since when a visitor consents, also where the choice has been known for long.

        It is read once: to keep a refusal may have been the last thing that the process did which left these events.
        """
        if not self._asks or state.key in asked.since_when:
            return True
        try:
            await state.keeper.learn_of_refusals()
        except ConsentStoreError as error:
            self._logger.warning("%s; what was left of a visitor waits", error)
            return False
        asked.since_when.add(state.key)
        return True

    def _has_declined(self, key: VisitorKey) -> bool:
        """Return whether a visitor is known to have declined."""
        state = self._find(key)
        return state is not None and state.knows_choice and state.gate.purposes == "none"

    def _refusal_holds(self, key: VisitorKey) -> bool:
        """Return whether a refusal, or a forgetting, of which an outbox has told is known to hold still.

        Where nobody is asked the outbox alone says it.
        """
        state = self._find(key)
        is_known = state is not None and state.knows_choice and not state.gate.is_opted_in
        return is_known or not self._asks

    async def _read_again(self, key: VisitorKey) -> None:
        """Read a choice that may be known here already, and wait until that has been tried."""
        known = self._find(key)
        if known is not None:
            known.look_again()
        state = self._meet(key)
        if state is not None:
            await state.read_choice()

    async def _read(self, key: VisitorKey, asked: _Asked) -> VisitorState | None:
        """Return the state of a visitor with the choice that is kept; None for one of another instance."""
        state = self._meet(key)
        if state is not None:
            await state.read_choice()
            if state.knows_choice:  # else it could not be read
                asked.since_when.add(key)
        return state

    def _recover(
        self, claimed: Sequence[Claimed], consenting: Mapping[VisitorKey, tuple[VisitorState, int]]
    ) -> list[EventCommand]:
        commands = self._recover_here(claimed, consenting, local=False)
        self._courier.take_over(commands)
        return commands

    @staticmethod
    def _recover_here(
        claimed: Sequence[Claimed],
        consenting: Mapping[VisitorKey, tuple[VisitorState, int]],
        *,
        local: bool = True,
    ) -> list[EventCommand]:
        commands = []
        for one in claimed:
            state, epoch = consenting[one.event.visitor]
            commands.append(state.recover(one, epoch, local=local))
        return commands

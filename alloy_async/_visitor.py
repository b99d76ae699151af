"""What belongs to one person: a gate, a kept choice, an identity, and the commands that were called for them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

from ._choice_reading import ChoiceReading
from ._commands import EventCommand, GatedCall
from ._consent._opt_in import OptInState, SharedOptInState
from ._consent._rules import Choice, Purposes
from ._departures import Departures
from ._ecid_request import EcidRequest
from ._event import EventParts
from ._futures import CommandFuture, cancel_all
from ._household import Household
from ._identity_keeper import IdentityKeeper
from ._patience import Patience
from ._preference import PreferenceKeeper, Wish
from ._slices import in_slices, slice_by_slice
from .edge.protocol import EventResult, Reply
from .edge.state import ClientState
from .errors import AlloyClosed, ConsentDeclined
from .identity import Identity
from .outbox.base import Claimed
from .stores.base import Preference, Store, VisitorKey

__all__ = ["VisitorState"]


NEVER_SENT = -1
"""An epoch that is never the gate's."""

SAME_MOMENT = 0.001
"""Seconds by which two moments may differ that were computed differently."""


class VisitorState:
    """What belongs to one person; views of one key share it.

    Args:
        key: whose it is.
        household: what all visitors share.
        store: where the choice and the identity are kept; None: the household's.
        is_kept: whether the visitor's events may be stored.
        is_passing: whether nobody finds the visitor again, since there is no key.
        patience: how long a parked command may be awaited; None: as long as it is parked.
        max_parked: commands that may wait at once; None: as many as there is room for.
        parked_ttl: seconds a command waits for consent.

    Attributes:
        is_kept: see above.
        is_passing: see above.
        knows_choice: whether there is nothing to be read in the store.
        newest_in_line: the highest order of its events that came into the courier's line.
        released: how many of its events have begun to wait for the wire and have not ended.
        used_at: monotonic seconds at which somebody last asked for it.
    """

    __slots__ = (
        "__weakref__",
        "_consents_since",
        "_courier",
        "_departures",
        "_ecid_request",
        "_household",
        "_identity_keeper",
        "_last_called",
        "_reading",
        "_store",
        "clock",
        "failures",
        "gate",
        "hooks",
        "is_kept",
        "is_passing",
        "keeper",
        "key",
        "knows_choice",
        "ledger",
        "logger",
        "newest_in_line",
        "patience",
        "released",
        "used_at",
    )

    def __init__(
        self,
        key: VisitorKey,
        household: Household,
        *,
        store: Store | None = None,
        is_kept: bool = True,
        is_passing: bool = False,
        patience: Patience | None = None,
        max_parked: int | None = None,
        parked_ttl: float,
    ) -> None:
        settings = household.settings
        self._household = household
        self.ledger = household.ledger
        self.hooks = household.hooks
        self.clock = household.clock
        self.failures = household.failures
        self.logger = household.logger
        self.patience = patience
        self.gate: OptInState = SharedOptInState(
            room=household.room,
            max_parked=max_parked,
            parked_ttl=parked_ttl,
            clock=household.clock,
            failures=household.failures,
            home=household.home,
        )
        self._store = household.store if store is None else store
        self.keeper = PreferenceKeeper(
            self.gate,
            self._store,
            key,
            max_age=settings.preference_max_age,
            asked=settings.opt_in_enabled,
            clock=household.clock,
            logger=household.logger,
        )
        self.key = key
        self.is_kept = is_kept
        self.is_passing = is_passing
        self.newest_in_line = self.released = 0
        self._last_called = self._consents_since = 0
        self.used_at = 0.0
        self._courier = household.courier
        self.knows_choice = False
        # Made when it is needed: most visitors are silent, and have none to keep.
        self._identity_keeper: IdentityKeeper | None = None
        # Each is made when it is needed, and gone afterwards: together they take more than all the rest.
        self._reading: ChoiceReading | None = None
        self._departures: Departures | None = None
        self._ecid_request: EcidRequest | None = None

    @property
    def asks(self) -> bool:
        """Whether the visitor's consent is asked for at all."""
        return self._household.settings.opt_in_enabled

    @property
    def is_settled(self) -> bool:
        """Whether all that is known here is in the store, and nothing waits."""
        is_reading = self._reading is not None and not self._reading.is_idle
        return not is_reading and not len(self.gate) and not self._tasks() and self.keeper.is_settled

    # What the store says

    def recall_choice(self) -> None:
        """Begin to read the choice that is kept; until it is read, commands are parked. Harmless when called again."""
        if not self.knows_choice:
            self._read().start()

    def look_again(self, *, refused: bool | None = False) -> None:
        """Read what the store says now, because somebody else may have changed it.

        Args:
            refused: whether there was a refusal in between; None: nobody knows.
        """
        if refused is not False:
            self.keeper.in_doubt = True
        if refused:
            self.gate.doubt()  # until it has been read, however long that takes
        self._read().start_again(refused=refused)

    async def read_choice(self) -> None:
        """Read the choice that is kept, unless it is known, and wait until that has been tried."""
        self.recall_choice()
        while self._reading is not None and self._reading.task is not None:
            await asyncio.wait([self._reading.task])

    def tell_purposes(self, future: CommandFuture[Purposes]) -> None:
        """End a future with what the visitor has chosen, once it has been read."""
        if self.knows_choice and (self._reading is None or self._reading.task is None):
            future.resolve(self.gate.purposes)
            return
        self._read().tell(future)
        self.recall_choice()

    def _read(self) -> ChoiceReading:
        if self._reading is None:
            self._reading = ChoiceReading(self, self._household)
        return self._reading

    def end_reading(self) -> None:
        """Let the reading go: it has succeeded, or is not tried again."""
        self._reading = None

    def take_choice(self, preference: Preference | None, ticket: int, *, refused: bool | None) -> None:
        """Take what the store has said.

        Args:
            preference: the choice that is kept.
            ticket: the keeper's of when it was asked for.
            refused: whether there was a refusal in between; None: nobody knows.
        """
        self.keeper.in_doubt = False
        epoch, known = self.gate.epoch, self.knows_choice
        self.knows_choice = True
        if preference is not None and self.keeper.replaced_a_refusal(preference):
            refused = True
        if refused is True and preference is not None:
            self._refuse_what_came_before()
        if preference is not None and not self.keeper.knows(preference):
            self._consents_since = self._last_called
        self.keeper.take(preference, ticket, refused=refused)
        self.keeper.end_doubt()
        if self.gate.epoch != epoch or (known and self.gate.purposes == "none"):
            self._recall()

    def _refuse_what_came_before(self) -> None:
        """Refuse what was called before the yes that held: there was a refusal, before that yes or after it, heard only now."""
        waiting = self._courier.open_commands() if self.released else ()
        for command in (*self.open_commands(), *waiting):
            if command.visitor is self and command.order <= self._consents_since:
                command.epoch = NEVER_SENT
        if self._departures is not None:
            self._departures.drop_customer_ids()
        self.gate.refuse_up_to(self._consents_since)
        self._recall()  # the identity too, with the customer ids that waited, like those that did not have to

    def lose_choice(self, *, refused: bool | None) -> None:
        """Send nothing of which it is not known that it may be sent: the store could not say.

        Args:
            refused: whether there was a refusal in between; None: nobody knows.
        """
        self.knows_choice = False
        if refused is True:
            if self.gate.purposes != "none":
                self.gate.forget()
            self._recall()
        elif refused is None:
            self.gate.doubt()

    def hear(self, purposes: Choice, seen_at: float | None) -> None:
        """Take what the visitor's browser says now.

        A refusal holds at once. A yes counts as said now where none is known. It never lifts a refusal that the browser
        had not seen when it was sent: a request may have been under way while the visitor said no.

        Args:
            purposes: "all" or "none".
            seen_at: seconds since 1970 of the newest choice that the browser had seen; None: of none.
        """
        if purposes == "none":
            if self.gate.purposes != "none":
                self.choose("none", self._unheard())
        elif not self.is_kept:
            self.gate.choose("all")  # there is nothing that would have to be written first
        elif self.knows_choice:
            self.hear_yes(seen_at)
        else:
            self._read().keep_yes(seen_at)
            self.recall_choice()

    def hear_yes(self, seen_at: float | None) -> None:
        """Take a yes of the visitor's browser, where the choice is known; ``seen_at`` as above."""
        known = self.gate.purposes
        seen = seen_at is not None and seen_at >= self.keeper.chosen_at
        if known == "pending" or (known == "none" and seen):
            self.choose("all", self._unheard())

    def _unheard(self) -> CommandFuture[Wish]:
        """Return a future that nobody awaits; when it fails, that is logged."""
        return CommandFuture.make(self.failures)

    # Choices

    def choose(self, wish: Wish, future: CommandFuture[Wish]) -> None:
        """Take the visitor's choice; "pending" forgets everything. What is refused ends at once, everywhere."""
        self.knows_choice = True
        if self._reading is not None:
            self._reading.drop_yes()
        self._consents_since = self._last_called
        self._courier.resume()
        self.keeper.keep(wish, future)
        if wish != "all":
            self._recall()

    def refused_elsewhere(self) -> None:
        """Take note that the visitor declined, or was forgotten, in another process.

        What holds now is read from the store; until then nothing is sent. What was called before is never sent, unless it
        was called after a yes that is known here and still holds: that yes came after the refusal.
        """
        self.knows_choice = False
        self.look_again(refused=True)

    def _recall(self) -> None:
        """Erase the identity, and end what the gate had let through, as far as it is refused now."""
        if self._identity_keeper is not None:
            self._identity_keeper.erase()
        in_slices(self.open_commands(), EventCommand.end_if_refused)
        if self.released:  # mostly none, and whatever all visitors have queued is gone through
            self._courier.recall(self)
        if self._ecid_request is not None:
            self._ecid_request.reject(ConsentDeclined("get_ecid"))

    # From the call to the gate, from the gate to the courier

    def admit(
        self,
        parts: EventParts,
        future: CommandFuture[EventResult],
        *,
        needs_answer: bool,
        ends_when_stored: bool,
        client_state: ClientState | None = None,
    ) -> None:
        """Take a new event to the gate; the future ends with its outcome.

        Args:
            parts: the event.
            future: what the caller holds.
            needs_answer: whether it goes to interact.
            ends_when_stored: whether the future ends once the event is in a durable outbox.
            client_state: what the visitor's browser keeps for the edge.
        """
        command = EventCommand(
            self,
            event_id=parts.event_id,
            body=parts.body,
            names_person=parts.has_identity,
            needs_answer=needs_answer,
            called_at=self.clock.monotonic(),
            future=future,
            ends_when_stored=ends_when_stored,
            client_state=client_state,
        )
        self._courier.resume()
        self.gate.admit(command)
        self._last_called = command.order

    def call(
        self,
        name: str,
        action: Callable[[CommandFuture[Any]], None],
        future: CommandFuture[Any],
        *,
        goes_on: bool = False,
    ) -> None:
        """Take a command to the gate that does something here, without an event.

        Args:
            name: the command.
            action: called with the future once the visitor consents.
            future: what the caller holds.
            goes_on: whether it is done even when nobody awaits it any more.
        """
        gate = self.gate
        command = GatedCall(
            name,
            future,
            action=action,
            leave=gate.leave,
            epoch=gate.epoch,
            patience=self.patience,
            alone=partial(CommandFuture.make, self.failures, loop=future.get_loop()) if goes_on else None,
        )
        gate.admit(command)
        self._last_called = command.order

    def depart(self, command: EventCommand) -> None:
        """Take an event that the gate lets through, and bring it to the courier, in order."""
        full = self._courier.full(command) if command.stage == "new" else None
        if full is not None:
            command.fail(full)
            return
        if command.prepared:  # it has come back from the outbox or the wire
            command.queue()
            self._courier.accept(command)
            return
        keeper = self.identity_keeper
        if self._departures or self._household.event_filter or keeper.identity.fpid is None:
            command.queue()
            self._line_up().add(command)
        elif keeper.put_into(command):
            command.queue()
            self._courier.accept(command)

    def carry(self, command: EventCommand) -> None:
        """Hand an event on that is ready for the wire."""
        self._courier.accept(command)

    def no_longer_stored(self, command: EventCommand) -> None:
        """Erase an event from the durable outbox, where it has ended."""
        self._courier.no_longer_stored(command)

    def recover(self, claimed: Claimed, epoch: int, *, local: bool = False) -> EventCommand:
        """Take over an event that an earlier start, or a dead worker, has left in a durable outbox.

        It goes before everything that this process was called with: it is older. Nobody awaits it; a failure is logged.

        Args:
            claimed: the event.
            epoch: the gate's when it was asked for; a refusal since then is a refusal of it.
            local: whether it lay in the outbox of this machine, which others cannot erase. Then one that is older than
                the present choice is refused, since a refusal may have come between. From an outbox that all share one is
                refused that is older than a refusal that is known: whoever refused was killed before it was erased.
        """
        event = claimed.event
        command = EventCommand(
            self,
            event_id=event.event_id,
            body=event.body,
            names_person=event.names_person,
            needs_answer=event.needs_answer,
            called_at=self.clock.monotonic(),
            future=CommandFuture.make(self.failures),
        )
        oldest = self.keeper.chosen_at if local else self.keeper.consents_since
        superseded = event.accepted_at < oldest - SAME_MOMENT
        command.epoch = NEVER_SENT if superseded else epoch
        command.recover(claimed.key, age=self.clock.time() - event.accepted_at, local=local)
        return command

    def withdraw(self, command: EventCommand) -> None:
        """Let an event go whose caller went away."""
        if command.stage == "parked":
            self.gate.leave(command)
        else:
            self._courier.withdraw(command)

    def open_commands(self) -> list[EventCommand]:
        """Return the events between the gate and the courier."""
        return [] if self._departures is None else self._departures.open_commands()

    def go_on(self) -> None:
        """Go on with what waits to depart, where somebody else has cancelled the task that brings it."""
        if self._departures is not None:
            self._departures.go_on()

    def _line_up(self) -> Departures:
        if self._departures is None:
            self._departures = Departures(self, self._household)
        return self._departures

    def end_departures(self) -> None:
        """Let the departures go: nothing waits any more."""
        self._departures = None

    # Identity

    @property
    def identity_keeper(self) -> IdentityKeeper:
        """What keeps who the visitor is."""
        if self._identity_keeper is None:
            self._identity_keeper = IdentityKeeper(self.key, self._household, self._store, self.gate)
        return self._identity_keeper

    @property
    def identity(self) -> Identity:
        """Who the visitor is, as far as it is known here and now."""
        return self.identity_keeper.identity

    def get_ecid(self, future: CommandFuture[str]) -> None:
        """End a future with the visitor's ECID, once there is consent."""
        self.call("get_ecid", self._want_ecid, future)

    def _want_ecid(self, future: CommandFuture[str]) -> None:
        if self.identity.ecid is not None:
            future.resolve(self.identity.ecid)
            return
        if self._ecid_request is None:
            self._ecid_request = EcidRequest(self, self._household)
        self._ecid_request.add(future)

    def end_ecid_request(self) -> None:
        """Let the request go: nobody waits for the ECID any more."""
        self._ecid_request = None

    def learn(self, reply: Reply) -> None:
        """Take from an answer who the visitor is and which region serves them."""
        if self.identity_keeper.learn(reply):
            self._save_identity_soon()

    def set_customer_ids(self, customer_ids: dict[str, dict[str, Any]]) -> None:
        """Add customer ids to what later events carry, and keep them; events called before go without."""
        is_departing = self._departures is not None and self._departures.task is not None
        if is_departing or self.identity.fpid is None:
            self._line_up().add_customer_ids(customer_ids)
        else:
            self.apply_customer_ids(customer_ids)

    def apply_customer_ids(self, customer_ids: dict[str, dict[str, Any]]) -> None:
        """Add customer ids to what departs from now on, and keep them."""
        self.identity.set_customer_ids(customer_ids)
        self._save_identity_soon()

    def _save_identity_soon(self) -> None:
        self._household.own(self._save_identity(), "alloy-identity")

    async def _save_identity(self) -> None:
        # A method of this class, so that this state lives until it is done: another one would read what was kept before.
        await self.identity_keeper.save()

    # The end

    async def finish(self) -> None:
        """Let the choice that is being read, or written, come to its end."""
        if self._reading is not None and self._reading.task is not None:
            await asyncio.wait([self._reading.task])
        await self.keeper.finish()

    async def stop(self) -> None:
        """End everything between the gate and the courier with ``AlloyClosed``, and stop reading and writing."""
        commands = self.open_commands()
        if self._departures is not None:
            self._departures.clear()  # a filter that swallows the cancellation must not be asked about the next event
        if self._reading is not None:
            self._reading.stop(AlloyClosed("get_purposes"))
        await cancel_all(self._tasks())
        await slice_by_slice(commands, lambda command: command.fail(AlloyClosed(command.name)))
        if self._ecid_request is not None:
            self._ecid_request.reject(AlloyClosed("get_ecid"))
        await self.keeper.stop()

    def _tasks(self) -> list[asyncio.Task[None]]:
        """Return what is under way."""
        owners = (self._departures, self._ecid_request, self._reading)
        return [owner.task for owner in owners if owner is not None and owner.task is not None]

"""What belongs to one person: a gate, an identity, a kept choice, the order of events between the gate and the courier."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from copy import copy
from functools import partial
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, NamedTuple

from ._clock import Cancellable, Clock, Ids
from ._commands import EventCommand, GatedCall
from ._consent._opt_in import OptInState, SharedOptInState
from ._consent._room import ParkingRoom
from ._consent._rules import Choice, Purposes, Verdict
from ._courier import Courier
from ._event import EventParts, rebuild_event, with_identity
from ._futures import CommandFuture, FailureLog, HomeLoop, cancel_all
from ._json import Unfit, decode
from ._ledger import Ledger
from ._options import EventFilter
from ._patience import Patience
from ._preference import PreferenceKeeper, Wish, describe_store_error
from ._slices import SLICE, in_slices, slice_by_slice
from .edge.protocol import V1, V2, EventResult, Reply, event_room
from .edge.state import ClientState
from .edge.transport import Withdrawn
from .errors import (
    AlloyClosed,
    AlloyError,
    ConsentDeclined,
    ConsentStoreError,
    EdgeError,
    EventTooLarge,
    InvalidCommand,
)
from .hooks import Hooks
from .identity import Identity, StoredIdentity
from .outbox.base import Claimed
from .stores.base import Store, VisitorKey

if TYPE_CHECKING:
    from .settings import Settings

__all__ = ["Household", "VisitorState"]


NEVER_SENT = -1
"""An epoch that is never the gate's."""

SAME_MOMENT = 0.001
"""Seconds by which two moments may differ that were computed differently."""

READ_AGAIN = 1.0
"""Seconds after which a choice is read again that could not be read."""

HINT_AGE = 1_800
"""Seconds that a region holds which the browser names. Source: Edge Network, the cookie ``kndctr_…_cluster``."""


class _CustomerIds(NamedTuple):
    """Customer ids that wait behind events which go without them."""

    order: int
    epoch: int
    customer_ids: dict[str, dict[str, Any]]


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
        erases: whether forgetting is told as two changes: a refusal, so that events are erased, and the forgetting.
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
        erases: bool,
    ) -> None:
        self.settings = settings
        self.erases = erases
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
        self.event_room = event_room(settings.max_body_bytes, V2 if settings.authenticated else V1)
        self.tasks: set[asyncio.Task[None]] = set()
        self.is_open = True

    def own(self, work: Any, name: str) -> asyncio.Task[None]:
        """Run something that no caller can cancel."""
        task: asyncio.Task[None] = asyncio.Task(work, name=name)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


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
        used_at: monotonic seconds at which somebody last asked for it.
    """

    __slots__ = (
        "__weakref__",
        "_acquiring",
        "_consents_since",
        "_courier",
        "_curious",
        "_departing",
        "_departure",
        "_doubt",
        "_echoes",
        "_ecid_wanted",
        "_event_room",
        "_filter",
        "_given",
        "_household",
        "_keeps_identity",
        "_last_called",
        "_leaving",
        "_one_primary",
        "_reading",
        "_retry",
        "_stale",
        "_store",
        "_unread_yes",
        "clock",
        "failures",
        "gate",
        "hooks",
        "identity",
        "is_kept",
        "is_passing",
        "keeper",
        "key",
        "knows_choice",
        "ledger",
        "logger",
        "newest_in_line",
        "patience",
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
        self.identity = Identity()
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
        self.newest_in_line = 0
        self._last_called = self._consents_since = self._echoes = 0
        self.used_at = 0.0
        self._courier = household.courier
        self._filter = settings.on_before_event_send
        self._event_room = household.event_room
        self._one_primary = settings.authenticated
        self._keeps_identity = True
        self.knows_choice = False
        self._reading: asyncio.Task[None] | None = None
        self._unread_yes: tuple[float | None] | None = None
        self._curious: tuple[CommandFuture[Purposes], ...] | None = None
        self._doubt: bool | None = False
        self._stale = False
        self._retry: Cancellable | None = None
        self._given: tuple[str | None, str | None] = (None, None)
        # Made when something departs that cannot depart at once: an empty one takes as much as all the rest.
        self._departing: deque[EventCommand | _CustomerIds] | None = None
        self._leaving: EventCommand | _CustomerIds | None = None
        self._departure: asyncio.Task[None] | None = None
        self._acquiring: asyncio.Task[None] | None = None
        self._ecid_wanted: list[CommandFuture[str]] | None = None

    @property
    def asks(self) -> bool:
        """Whether the visitor's consent is asked for at all."""
        return self._household.settings.opt_in_enabled

    @property
    def is_settled(self) -> bool:
        """Whether all that is known here is in the store, and nothing waits."""
        return (
            not len(self.gate)
            and self._departure is None
            and self._acquiring is None
            and self._reading is None
            and self._retry is None
            and self.keeper.is_settled
        )

    def meet(self, fpid: str | None, ecid: str | None) -> None:
        """Take note of who the visitor's browser says they are; believed once there is consent, where nothing is known."""
        if fpid is not None or ecid is not None:
            self._given = (fpid, ecid)

    def meet_hint(self, hint: str | None) -> None:
        """Take note of the region that the visitor's browser names."""
        if hint is not None:
            self.identity.learn_hint(hint, HINT_AGE, self.clock.monotonic())

    # What the store says

    def recall_choice(self) -> None:
        """Begin to read the choice that is kept; until it is read, commands are parked. Harmless when called again."""
        if not self.knows_choice and self._reading is None:
            self._read()

    def look_again(self, *, refused: bool | None = False) -> None:
        """Read what the store says now, because somebody else may have changed it.

        Args:
            refused: whether there was a refusal in between; None: nobody knows.
        """
        self._doubt = _stronger(self._doubt, refused)
        if refused is None:
            self._echoes = 0  # they may be among what was missed
        if refused is not False:
            self.keeper.in_doubt = True
        if refused:
            self.gate.doubt()  # until it has been read, however long that takes
        self._stale = True  # what is being read may be what was there before
        if self._reading is None or self._reading.done():
            self._read()

    def hear_of_change(self, *, refused: bool) -> None:
        """Take note that somebody, perhaps this process, has changed what the store says."""
        own = refused and self._echoes > 0
        self._echoes -= own
        self.look_again(refused=refused and not own)

    async def read_choice(self) -> None:
        """Read the choice that is kept, unless it is known, and wait until that has been tried."""
        self.recall_choice()
        while self._reading is not None:
            await asyncio.wait([self._reading])

    def tell_purposes(self, future: CommandFuture[Purposes]) -> None:
        """End a future with what the visitor has chosen, once it has been read."""
        if self.knows_choice and self._reading is None:
            future.resolve(self.gate.purposes)
            return
        self._curious = (*(self._curious or ()), future)
        self.recall_choice()

    def _read(self) -> None:
        if not self._household.is_open:
            return
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self._reading = self._own(self._read_until_current(), "alloy-choice")
        self._reading.add_done_callback(self._has_read)

    async def _read_until_current(self) -> None:
        """Read and apply; once more, when somebody has changed something meanwhile, here or elsewhere."""
        while True:
            await self.keeper.written()
            self._stale = False
            ticket = self.keeper.ticket
            preference = await self.keeper.load()
            if not self._stale and ticket == self.keeper.ticket:
                break
        doubt, self._doubt = self._doubt, False
        self.keeper.in_doubt = False
        epoch, known = self.gate.epoch, self.knows_choice
        self.knows_choice = True
        if doubt is True and preference is not None and self.keeper.knows(preference):
            self._refuse_what_came_before()
        elif preference is not None and not self.keeper.knows(preference):
            self._consents_since = self._last_called
        self.keeper.take(preference, ticket, refused=doubt)
        self.keeper.end_doubt()
        if self.gate.epoch != epoch or (known and self.gate.purposes == "none"):
            self._forget_identity()
            self._recall()

    def _refuse_what_came_before(self) -> None:
        """Refuse what was called before the yes that holds: there was a refusal before that yes, heard only now."""
        for command in (*self.open_commands(), *self._courier.open_commands()):
            if command.visitor is self and command.order <= self._consents_since:
                command.epoch = NEVER_SENT
        if self._departing:
            self._departing = deque(item for item in self._departing if isinstance(item, EventCommand))
        self.gate.refuse_up_to(self._consents_since)
        self._forget_identity()  # with the customer ids that waited, like those that did not have to
        self._recall()

    def _has_read(self, task: asyncio.Task[None]) -> None:
        """Go on with what waited for the choice; a callback, since a task that is cancelled early runs nothing."""
        if self._reading is not task:  # it has been asked again in between, and the next answer counts
            if not task.cancelled():
                task.exception()
            return
        self._reading = None
        unread, self._unread_yes = self._unread_yes, None
        curious, self._curious = self._curious or (), None
        error = (
            ConsentStoreError("load", "the store", "it was given up.")
            if task.cancelled()
            else task.exception()
        )
        if error is None:
            if unread is not None:
                self._hear_yes(*unread)
            for future in curious:
                future.resolve(self.gate.purposes)
            self._courier.wake()  # which may have passed over what waits there of this visitor
            return
        problem = (
            error
            if isinstance(error, ConsentStoreError)
            else ConsentStoreError("load", "the store", "internal error; please report it.")
        )
        self.keeper.end_doubt(problem)
        for future in curious:
            future.reject(copy(problem))
        if not task.cancelled():
            self.logger.warning("%s; the visitor's choice counts as unknown", problem)
        self._cannot_read()

    def _cannot_read(self) -> None:
        """Send nothing of which it is not known that it may be sent, and try again."""
        self.knows_choice = False
        if self._doubt is True:
            if self.gate.purposes != "none":
                self.gate.forget()
            self._forget_identity()
            self._recall()
            self._doubt = None  # what came before has been refused; what comes now waits
        elif self._doubt is None:
            self.gate.doubt()
        if self._household.is_open:
            self._retry = self.clock.call_later(READ_AGAIN, self.recall_choice)

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
            self._hear_yes(seen_at)
        else:
            self._unread_yes = (seen_at,)
            self.recall_choice()

    def _hear_yes(self, seen_at: float | None) -> None:
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
        self._unread_yes = None
        self._consents_since = self._last_called
        self._courier.resume()
        self.keeper.keep(wish, future)
        if wish != "all":
            self._echoes += 2 if wish == "pending" and self._household.erases else 1
            self._forget_identity()
            self._recall()

    def refused_elsewhere(self) -> None:
        """Take note that the visitor declined, or was forgotten, in another process.

        What holds now is read from the store; until then nothing is sent. What was called before is never sent, unless it
        was called after a yes that is known here and still holds: that yes came after the refusal.
        """
        self.knows_choice = False
        self.look_again(refused=True)

    def _forget_identity(self) -> None:
        self.identity.erase()
        self._given = (None, None)

    def _recall(self) -> None:
        in_slices(self.open_commands(), EventCommand.end_if_refused)
        self._courier.recall()
        for future in self._take_ecid_wanted():
            future.reject(ConsentDeclined("get_ecid"))

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
        elif self._departing or self._departure or self._filter or self.identity.fpid is None:
            command.queue()
            self._line_up(command)
            self._start_departure()
        elif self._complete(command):
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
        oldest = self.keeper.chosen_at if local else self.keeper.refused_at
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
        commands = [self._leaving, *(self._departing or ())]
        return [command for command in commands if isinstance(command, EventCommand) and not command.ended]

    def _line_up(self, command: EventCommand) -> None:
        departing = self._departing = deque() if self._departing is None else self._departing
        departing.append(command)
        if len(departing) > 1 and departing[-2].order > command.order:  # it comes a second time
            self._departing = deque(sorted(departing, key=lambda waiting: waiting.order))

    def go_on(self) -> None:
        """Go on with what waits to depart, where somebody else has cancelled the task that brings it."""
        if self._departing:
            self._start_departure()

    def _start_departure(self) -> None:
        if self._departure is None:
            self._departure = self._own(self._depart(), "alloy-departure")

    async def _depart(self) -> None:
        """Bring waiting events to the courier; runs while there are any."""
        try:
            await self._ensure_identity()
            count = 0
            while self._departing:
                self._leaving = self._departing.popleft()
                if isinstance(self._leaving, EventCommand):
                    await self._depart_one(self._leaving)
                else:
                    self._apply_if_current(self._leaving)
                self._leaving = None
                count += 1
                if count % SLICE == 0:
                    await asyncio.sleep(0)
        finally:
            self._departure = None
            if self._leaving is not None:  # cancelled by somebody else
                self._departing = deque([self._leaving, *(self._departing or ())])
                self._leaving = None
            if not self._departing:
                self._departing = None

    async def _depart_one(self, command: EventCommand) -> None:
        if not self._may_go_on(command):
            return
        if self._filter is not None:
            await self._apply_filter(self._filter, command)
            if not self._may_go_on(command):
                return
        if self.identity.fpid is None:  # erased while the filter ran, and consented to again
            await self._ensure_identity()
        if self._may_go_on(command):
            self._hand_over(command)

    def _may_go_on(self, command: EventCommand) -> bool:
        """Ask for consent again; send the event back to the gate when there is none now."""
        if command.stage is None:
            return False
        if command.verdict() is Verdict.PASS:
            return True
        self.gate.readmit([command, *self._take_departing()])
        return False

    def _take_departing(self) -> list[EventCommand]:
        """Take a slice of what waits behind an event that has lost its consent; one by one would sort them each time."""
        commands = []
        departing = self._departing or deque()
        for _ in range(min(SLICE, len(departing))):
            item = departing.popleft()
            if isinstance(item, _CustomerIds):
                self._apply_if_current(item)
            elif not item.ended:
                commands.append(item)
        return commands

    def _hand_over(self, command: EventCommand) -> None:
        if self._complete(command):
            self._courier.accept(command)

    def _complete(self, command: EventCommand) -> bool:
        """Put the visitor's identity into an event; return False when it has become too large, and has ended."""
        if not command.names_person:
            body = with_identity(command.body, self.identity.identity_map())
            if len(body) > self._room_for(command):
                command.fail(EventTooLarge(command.name, len(body), self._room_for(command)))
                return False
            command.replace_body(body)
        command.prepared = True
        return True

    def _room_for(self, command: EventCommand) -> int:
        """Return how many bytes an event may have, beside what goes up with it."""
        state = command.client_state
        return self._event_room if state is None else self._event_room - len(state.to_json())

    # on_before_event_send

    async def _apply_filter(self, event_filter: EventFilter, command: EventCommand) -> None:
        """Let the application look at an event, change it, or withhold it.

        Source: adobe/alloy, onBeforeEventSend: called with ``{xdm, data}``, False withholds, raising rejects, any
        other value is ignored.
        """
        event = decode(command.body)
        content = {"xdm": event["xdm"], "data": event.get("data", {})}
        had_data = "data" in event
        error: AlloyError | None = None
        keep: bool | None = None
        try:
            keep = await _call(event_filter, content)
        except (
            Exception,
            asyncio.CancelledError,
        ) as raised:  # the application's own; it stops this event and no other
            if _is_being_cancelled():
                raise
            error = InvalidCommand(
                command.name, f"on_before_event_send raised {type(raised).__name__}; nothing was sent."
            )
        if error is not None:
            command.fail(error)
        elif keep is False:
            command.withhold()
        elif command.stage is not None:
            if not had_data and not content.get("data"):
                content.pop("data", None)
            self._rebuild(command, content, event.get("query"))

    def _rebuild(self, command: EventCommand, content: dict[str, Any], query: object) -> None:
        try:
            parts = rebuild_event(content, command.event_id, query, one_primary=self._one_primary)
        except Unfit as unfit:
            problem = f"on_before_event_send left something that cannot be sent: {unfit.problem}"
            command.fail(InvalidCommand(command.name, problem, path=unfit.where()))
            return
        if len(parts.body) > self._room_for(command):
            command.fail(EventTooLarge(command.name, len(parts.body), self._room_for(command)))
            return
        command.names_person = parts.has_identity
        command.replace_body(parts.body)

    # Identity

    def want_ecid(self, future: CommandFuture[str]) -> None:
        """End a future with the visitor's ECID, asking the edge when it is not known."""
        if self.identity.ecid is not None:
            future.resolve(self.identity.ecid)
            return
        self._ecid_wanted = [*(self._ecid_wanted or ()), future]
        if self._acquiring is None:
            self._acquiring = self._own(self._acquire(), "alloy-ecid")

    def set_customer_ids(self, customer_ids: dict[str, dict[str, Any]]) -> None:
        """Add customer ids to what later events carry, and keep them; events called before go without."""
        if self._departure is None and self.identity.fpid is not None:
            self._apply_customer_ids(customer_ids)
            return
        waiting = _CustomerIds(self._last_order(), self.gate.epoch, customer_ids)
        self._departing = deque([*(self._departing or ()), waiting])
        self._start_departure()

    def _last_order(self) -> int:
        last = self._departing[-1] if self._departing else self._leaving
        return 0 if last is None else last.order

    def _apply_if_current(self, waiting: _CustomerIds) -> None:
        # Those of an older epoch belong to what a refusal has erased.
        if waiting.epoch == self.gate.epoch:
            self._apply_customer_ids(waiting.customer_ids)

    def _apply_customer_ids(self, customer_ids: dict[str, dict[str, Any]]) -> None:
        self.identity.set_customer_ids(customer_ids)
        self._own(self._save_identity(), "alloy-identity")

    def learn(self, reply: Reply) -> None:
        """Take from an answer who the visitor is and which region serves them."""
        for item in reply.payload("locationHint:result"):
            if isinstance(item, dict) and item.get("scope") == "EdgeNetwork":
                self.identity.learn_hint(item.get("hint"), item.get("ttlSeconds"), self.clock.monotonic())
        for ecid in _ecids(reply):
            if self.identity.learn_ecid(ecid):
                self._own(self._save_identity(), "alloy-identity")

    async def _ensure_identity(self) -> None:
        """Read the identity that is kept, or make one and keep it before it is used.

        Kept first, because an FPID that was sent and then lost would give the visitor a second identity.
        """
        if self.identity.fpid is not None or not self.gate.is_opted_in:
            return  # consent may have gone since the task was made that asks for it
        epoch = self.gate.epoch
        try:
            stored = await self._store.load_identity(self.key)
        except Exception as error:  # noqa: BLE001 - a store of somebody else's may raise what it should not
            self.logger.warning("%s; going on with an identity for this run", describe_store_error(error))
            self._keeps_identity = False  # what is kept may be fine, and must not be written over
            stored = None
        if self.gate.verdict(epoch) is not Verdict.PASS or self.identity.fpid is not None:
            return  # consent has gone, or somebody else was faster
        fpid, ecid = self._given
        self.identity.adopt(stored or StoredIdentity(fpid or self._household.ids(), ecid, {}))
        self.identity.learn_ecid(ecid)  # the browser's own is news to what was kept
        if stored is None:
            await self._save_identity()

    async def _save_identity(self) -> None:
        if self.identity.fpid is None or not self._keeps_identity or not self.gate.is_opted_in:
            return
        try:
            await self._store.save_identity(self.key, self.identity.snapshot())
        except Exception as error:  # noqa: BLE001 - as above
            self.logger.warning("%s; the identity holds until the process ends", describe_store_error(error))

    async def _acquire(self) -> None:
        """Ask the edge for the ECID, once for everybody who waits for it."""
        try:
            while self._ecid_wanted:
                epoch, wanted = self.gate.epoch, self._ecid_wanted
                error = await self._ask_for_ecid()
                if epoch == self.gate.epoch:  # otherwise those were refused, and others may wait now
                    self._take_ecid_wanted()
                    self._tell_ecid(wanted, error)
        finally:
            self._acquiring = None

    def _tell_ecid(self, wanted: list[CommandFuture[str]], error: AlloyError | None) -> None:
        """End what waits for the ECID; where consent has expired meanwhile, it waits for consent again."""
        for future in wanted:
            if self.identity.ecid is not None:
                future.resolve(self.identity.ecid)
            elif not self.gate.is_opted_in:
                self.call("get_ecid", self.want_ecid, future)
            else:
                future.reject(
                    copy(error) if error is not None else EdgeError(200, title="the answer names no ECID")
                )

    async def _ask_for_ecid(self) -> AlloyError | None:
        """Ask the edge once; return what went wrong, or None, also when consent went away."""
        epoch = self.gate.epoch

        def may_start() -> bool:
            return self.gate.verdict(epoch) is Verdict.PASS

        try:
            await self._ensure_identity()
            if self.identity.ecid is None and may_start():
                hint = self.identity.hint(self.clock.monotonic())
                reply = await self._courier.edge.acquire(
                    self.identity.identity_map(), hint=hint, may_start=may_start
                )
                if may_start():
                    self.learn(reply)
        except Withdrawn:
            return None
        except AlloyError as error:
            return error
        except Exception as error:  # noqa: BLE001 - a mistake of ours must not leave a future pending
            return AlloyError(f"internal error ({type(error).__name__}); please report it")
        return None

    def _take_ecid_wanted(self) -> list[CommandFuture[str]]:
        wanted, self._ecid_wanted = self._ecid_wanted or [], None
        return wanted

    # The end

    async def finish(self) -> None:
        """Let the choice that is being read, or written, come to its end."""
        if self._reading is not None:
            await asyncio.wait([self._reading])
        await self.keeper.finish()

    async def stop(self) -> None:
        """End everything between the gate and the courier with ``AlloyClosed``, and stop reading and writing."""
        commands = self.open_commands()
        if self._departing is not None:
            self._departing.clear()  # a filter that swallows the cancellation must not be asked about the next event
        if self._retry is not None:
            self._retry.cancel()
        for curious in self._curious or ():
            curious.reject(AlloyClosed("get_purposes"))
        self._curious = None
        tasks = (self._departure, self._acquiring, self._reading)
        await cancel_all(task for task in tasks if task is not None)
        await slice_by_slice(commands, lambda command: command.fail(AlloyClosed(command.name)))
        for future in self._take_ecid_wanted():
            future.reject(AlloyClosed("get_ecid"))
        await self.keeper.stop()

    def _own(self, work: Any, name: str) -> asyncio.Task[None]:
        return self._household.own(work, name)


def _stronger(one: bool | None, other: bool | None) -> bool | None:  # noqa: FBT001 - two of a kind
    """Return the graver of two doubts: there was a refusal, nobody knows, there was none."""
    return True if one or other else None if one is None or other is None else False


async def _call(event_filter: EventFilter, content: dict[str, Any]) -> bool | None:
    outcome = event_filter(content)
    return await outcome if isawaitable(outcome) else outcome


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _ecids(reply: Reply) -> list[object]:
    """Source: Edge Network, identity:result: ``{"id", "namespace": {"code"}}``."""
    return [
        item.get("id")
        for item in reply.payload("identity:result")
        if isinstance(item, dict)
        and isinstance(item.get("namespace"), dict)
        and item["namespace"].get("code") == "ECID"
    ]

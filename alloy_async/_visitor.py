"""One person's view: a gate, an identity, a kept choice, and the order of events between the gate and the courier."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from copy import copy
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, NamedTuple

from ._clock import Clock, Ids
from ._commands import EventCommand, GatedCall
from ._consent._opt_in import OptInState
from ._consent._rules import Verdict
from ._courier import Courier
from ._event import EventParts, rebuild_event, with_identity
from ._futures import CommandFuture, FailureLog, cancel_all
from ._json import Unfit, decode
from ._ledger import Ledger
from ._options import EventFilter
from ._preference import PreferenceKeeper, Wish, describe_store_error
from ._slices import SLICE, in_slices, slice_by_slice
from .edge.protocol import V1, V2, EventResult, Reply, event_room
from .edge.transport import Withdrawn
from .errors import (
    AlloyClosed,
    AlloyError,
    ConsentDeclined,
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

__all__ = ["Visitor"]


class _CustomerIds(NamedTuple):
    """Customer ids that wait behind events which go without them."""

    order: int
    epoch: int
    customer_ids: dict[str, dict[str, Any]]


class Visitor:
    """What belongs to one person; the courier is shared.

    Args:
        key: whose it is.
        settings: bounds, times, and ``on_before_event_send``.
        store: where the choice and the identity are kept.
        courier: takes events to the edge.
        ledger: the books.
        hooks: hear of each moment.
        clock: where time comes from.
        ids: where identifiers come from.
        failures: where a failure is counted that nobody awaited.
        logger: hears of what goes wrong without harm.
    """

    def __init__(
        self,
        key: VisitorKey,
        *,
        settings: Settings,
        store: Store,
        courier: Courier,
        ledger: Ledger,
        hooks: Hooks,
        clock: Clock,
        ids: Ids,
        failures: FailureLog,
        logger: logging.Logger,
    ) -> None:
        self.ledger = ledger
        # None where there are none: asked several times for each event.
        self.hooks: Hooks | None = hooks or None
        self.clock = clock
        self.failures = failures
        self.identity = Identity()
        self.gate = OptInState(
            max_parked=settings.max_parked,
            max_parked_bytes=settings.max_parked_bytes,
            parked_ttl=settings.parked_ttl,
            clock=clock,
            failures=failures,
        )
        self.keeper = PreferenceKeeper(
            self.gate,
            store,
            key,
            max_age=settings.preference_max_age,
            asked=settings.opt_in_enabled,
            clock=clock,
            logger=logger,
        )
        self.key = key
        self._store = store
        self._courier = courier
        self._ids = ids
        self.logger = logger
        self._filter = settings.on_before_event_send
        self._event_room = event_room(settings.max_body_bytes, V2 if settings.authenticated else V1)
        self._one_primary = settings.authenticated
        self._keeps_identity = True
        self._departing: deque[EventCommand | _CustomerIds] = deque()
        self._leaving: EventCommand | _CustomerIds | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._departure: asyncio.Task[None] | None = None
        self._acquiring: asyncio.Task[None] | None = None
        self._ecid_wanted: list[CommandFuture[str]] = []

    # Choices

    def choose(self, wish: Wish, future: CommandFuture[Wish]) -> None:
        """Take the visitor's choice; "pending" forgets everything. What is refused ends at once, everywhere."""
        self._courier.resume()
        self.keeper.keep(wish, future)
        if wish != "all":
            self.identity.erase()
            self._recall()

    def refused_elsewhere(self) -> None:
        """Take note that the visitor declined, or was forgotten, in another process: nothing that waits may be sent.

        What the visitor says now is read from the store; until then events wait.
        """
        if self.gate.purposes != "none":  # what is said here holds
            self.gate.forget()
        self.identity.erase()
        self._recall()
        self._own(self.keeper.read_again(), "alloy-preference-again")

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
    ) -> None:
        """Take a new event to the gate; the future ends with its outcome.

        Args:
            parts: the event.
            future: what the caller holds.
            needs_answer: whether it goes to interact.
            ends_when_stored: whether the future ends once the event is in a durable outbox.
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
        )
        self._courier.resume()
        self.gate.admit(command)

    def depart(self, command: EventCommand) -> None:
        """Take an event that the gate lets through, and bring it to the courier, in order."""
        full = self._courier.full(command) if command.stage == "new" else None
        if full is not None:
            command.fail(full)
            return
        if command.prepared:  # it has come back from the outbox or the wire
            command.queue()
            self._courier.accept(command)
        elif self._departure or self._filter or self.identity.fpid is None:
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

    def recover(self, claimed: Claimed, epoch: int) -> EventCommand:
        """Take over an event that an earlier start, or a dead worker, has left in a durable outbox.

        It goes before everything that this process was called with: it is older. Nobody awaits it; a failure is logged.
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
        command.epoch = epoch  # of when it was asked for; a refusal since then is a refusal of it
        command.recover(claimed.key, age=self.clock.time() - event.accepted_at)
        return command

    def withdraw(self, command: EventCommand) -> None:
        """Let an event go whose caller went away."""
        if command.stage == "parked":
            self.gate.leave(command)
        else:
            self._courier.withdraw(command)

    def open_commands(self) -> list[EventCommand]:
        """Return the events between the gate and the courier."""
        commands = [self._leaving, *self._departing]
        return [command for command in commands if isinstance(command, EventCommand) and not command.ended]

    def _line_up(self, command: EventCommand) -> None:
        self._departing.append(command)
        if len(self._departing) > 1 and self._departing[-2].order > command.order:  # it comes a second time
            self._departing = deque(sorted(self._departing, key=lambda waiting: waiting.order))

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
                self._departing.appendleft(self._leaving)
                self._leaving = None

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
        for _ in range(min(SLICE, len(self._departing))):
            item = self._departing.popleft()
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
            if len(body) > self._event_room:
                command.fail(EventTooLarge(command.name, len(body), self._event_room))
                return False
            command.replace_body(body)
        command.prepared = True
        return True

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
        if len(parts.body) > self._event_room:
            command.fail(EventTooLarge(command.name, len(parts.body), self._event_room))
            return
        command.names_person = parts.has_identity
        command.replace_body(parts.body)

    # Identity

    def want_ecid(self, future: CommandFuture[str]) -> None:
        """End a future with the visitor's ECID, asking the edge when it is not known."""
        if self.identity.ecid is not None:
            future.resolve(self.identity.ecid)
            return
        self._ecid_wanted.append(future)
        if self._acquiring is None:
            self._acquiring = self._own(self._acquire(), "alloy-ecid")

    def set_customer_ids(self, customer_ids: dict[str, dict[str, Any]]) -> None:
        """Add customer ids to what later events carry, and keep them; events called before go without."""
        if self._departure is None and self.identity.fpid is not None:
            self._apply_customer_ids(customer_ids)
            return
        self._departing.append(_CustomerIds(self._last_order(), self.gate.epoch, customer_ids))
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
        self.identity.adopt(stored or StoredIdentity(self._ids(), None, {}))
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
                gate = self.gate
                gate.admit(
                    GatedCall("get_ecid", future, action=self.want_ecid, leave=gate.leave, epoch=gate.epoch)
                )
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
        wanted, self._ecid_wanted = self._ecid_wanted, []
        return wanted

    # The end

    async def finish(self) -> None:
        """Let what is being read and written come to its end."""
        while self._tasks:
            await asyncio.wait(self._tasks)
        await self.keeper.finish()

    async def stop(self) -> None:
        """End everything between the gate and the courier with ``AlloyClosed``, and stop reading and writing."""
        commands = self.open_commands()
        self._departing.clear()  # a filter that swallows the cancellation must not be asked about the next event
        await cancel_all(self._tasks)
        await slice_by_slice(commands, lambda command: command.fail(AlloyClosed(command.name)))
        for future in self._take_ecid_wanted():
            future.reject(AlloyClosed("get_ecid"))
        await self.keeper.stop()

    def _own(self, work: Any, name: str) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.Task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


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

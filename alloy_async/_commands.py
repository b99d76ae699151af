"""What a command is while it is under way: a record, from the call to its end."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from math import inf
from typing import TYPE_CHECKING, Any, Literal

from ._consent._rules import Verdict
from ._futures import CommandFuture
from ._ledger import Ledger, Outcome, Stage, outcome_of
from .edge.protocol import EventResult
from .errors import AlloyClosed, AlloyError, ConsentDeclined, EventTooLarge, StillParked
from .hooks import Delivered, Failed, Lost, Parked, Record, Refused, Released, Retrying, Sending
from .outbox.base import OutboxEvent

if TYPE_CHECKING:
    from ._clock import Clock
    from ._patience import Patience
    from ._visitor import VisitorState
    from .edge.state import ClientState

__all__ = ["EventCommand", "GatedCall", "fail_all", "outbox_events"]


GONE = -1
"""Key of an event that somebody else has purged or taken over: it must not be sent from here."""

BEFORE_ALL_CALLS = 1 << 62
"""Subtracted from a place in an outbox, it makes an order that is lower than that of any call."""


class EventCommand:
    """One call of ``event``: the only place where its future ends and the books are written, once.

    Attributes:
        event_id: the event's ``_id``.
        body: the event as JSON; empty once it has ended.
        names_person: whether the event says whose it is (its own ``identityMap``); then it gets no identity of ours,
            and its answer teaches us none.
        needs_answer: whether it goes to interact, alone.
        called_at: monotonic seconds of the call.
        client_state: what the visitor's browser keeps for the edge; goes up with an event that needs an answer.
        epoch: the gate's epoch at the call.
        order: its place among all commands, in the order of the calls.
        parked_at: monotonic seconds at which it was parked; 0 when it never was.
        filtered: whether ``on_before_event_send`` has seen it; it is asked once, also when the event has to wait for
            consent again afterwards.
        prepared: whether its identity is in it, and it is as it goes to the wire.
        released_at: monotonic seconds at which it first began to wait for the wire; infinite before.
        key: its place in a durable outbox; None while it is not there.
        local_key: its place in the outbox of this machine, where it waits until the shared one takes it; None while it
            is not there.
        ends_when_stored: whether its future ends as soon as it is there (``ack="stored"``).
        stage: where it is; None once it has ended.
        future: what the caller holds.
        visitor: whose it is.
    """

    __slots__ = (
        "_ledger",
        "_traced",
        "body",
        "called_at",
        "client_state",
        "ends_when_stored",
        "epoch",
        "event_id",
        "filtered",
        "future",
        "key",
        "local_key",
        "names_person",
        "needs_answer",
        "order",
        "parked_at",
        "prepared",
        "released_at",
        "stage",
        "visitor",
    )

    name = "event"

    def __init__(
        self,
        visitor: VisitorState,
        *,
        event_id: str,
        body: bytes,
        names_person: bool,
        needs_answer: bool,
        called_at: float,
        future: CommandFuture[EventResult],
        ends_when_stored: bool = False,
        client_state: ClientState | None = None,
    ) -> None:
        self.visitor = visitor
        self._ledger: Ledger = visitor.ledger
        # Asked once: whoever follows an event wants to see all of its way.
        self._traced = visitor.logger.isEnabledFor(logging.DEBUG)
        self.event_id = event_id
        self.body = body
        self.names_person = names_person
        self.needs_answer = needs_answer
        self.called_at = called_at
        self.client_state = client_state
        self.epoch = visitor.gate.epoch
        self.order = 0
        self.filtered = self.prepared = False
        self.parked_at = 0.0
        self.released_at = inf
        self.key: int | None = None
        self.local_key: int | None = None
        self.ends_when_stored = ends_when_stored
        self.stage: Stage | None = "new"
        self.future = future
        future.belongs_to(self)

    @property
    def size(self) -> int:
        """Bytes of the event."""
        return len(self.body)

    @property
    def ended(self) -> bool:
        """Whether it stands in its final column."""
        return self.stage is None

    def park(self) -> None:
        """Take note that it waits for consent."""
        self._move("parked")
        if self.visitor.patience is not None:
            self.visitor.patience.hold(self)
        if self.visitor.hooks:
            self._tell(Parked(self.name, self.event_id, self.size))

    def let_go(self, waited: float) -> None:
        """End the future if it is still parked, and go on without it."""
        if self.stage == "parked" and not self.future.done():
            self.future.reject(StillParked(self.name, waited), quiet=True)
            self._go_on_alone()

    def release(self) -> None:
        """Go on: the visitor consents."""
        if self.visitor.hooks:
            waited = self.visitor.clock.monotonic() - self.parked_at if self.stage == "parked" else 0.0
            self._tell(Released(self.name, self.event_id, waited))
        if self.stage is not None:  # a hook may have cancelled it
            self.visitor.depart(self)

    def queue(self) -> None:
        """Take note that it waits for the wire."""
        self._move("queued")
        if self.released_at == inf:
            self.released_at = self.visitor.clock.monotonic()
            self.visitor.released += 1
        if self.future.cancelled():  # while it was on the wire, from where it has come back
            self.left()

    def recover(self, key: int, *, age: float, local: bool = False) -> None:
        """Take note that it was found in a durable outbox.

        Args:
            key: its place there; its order among the events of this process is that order, before all others.
            age: seconds since it was released.
            local: whether that is the outbox of this machine, beside a shared one.
        """
        if local:
            self.local_key = key
        else:
            self.key = key
        self.order = key - BEFORE_ALL_CALLS
        self.prepared = True
        self.released_at = self.visitor.clock.monotonic() - max(age, 0.0)
        self.visitor.released += 1
        self._ledger.recovered += 1
        self._move("queued")

    def retry(self, attempt: int, wait: float, error: AlloyError) -> None:
        """Take note that it waits for another attempt, in ``wait`` seconds."""
        self.queue()
        if self.visitor.hooks and not self.ended:
            self._tell(Retrying(self.name, self.event_id, attempt, wait, error))

    def stored(self) -> None:
        """Go on: it is in a durable outbox."""
        if self.ends_when_stored:
            self.tell_stored()
        self.visitor.carry(self)

    def tell_stored(self) -> None:
        """Tell the caller that it is in a durable outbox, and go on without them."""
        self.ends_when_stored = False
        self.future.resolve(EventResult(self.event_id, stored=True))
        self._go_on_alone()

    def move(self, key: int) -> None:
        """Take note of its place in the durable outbox; what an earlier start has left has its order by that."""
        self.key = key
        if self.order < 0:
            self.order = key - BEFORE_ALL_CALLS

    def hand_over(self) -> None:
        """End: it is in an outbox, and another process sends it."""
        if self._end("kept"):
            self.future.resolve(EventResult(self.event_id, stored=True))
            if self.visitor.hooks:
                self._tell(Lost(self.name, self.event_id, "kept"))

    def _go_on_alone(self) -> None:
        """Take another future: its own end is still to come, and a failure that nobody can await any more is logged."""
        self.future = CommandFuture.make(self.visitor.failures, loop=self.future.get_loop())

    def verdict(self) -> Verdict:
        """Return what becomes of it, asked right now; the answer may change with every turn of the loop."""
        return self.visitor.gate.verdict(self.epoch)

    def send(self, events: int) -> None:
        """Take note that a request starts that carries it, among ``events`` events."""
        self._move("sending")
        if (
            self.visitor.hooks and not self.ended
        ):  # the hook of an event before it may have cancelled this one
            self._tell(Sending(self.name, self.event_id, events))

    def change_body(self, body: bytes, room: int) -> bool:
        """Change what will be sent; its size changes in the books too.

        Args:
            body: the event as JSON.
            room: bytes that an event may have, together with what goes up beside it.

        Returns:
            Whether it fits; otherwise it has ended.
        """
        if self.client_state is not None:
            room -= len(self.client_state.to_json())
        if len(body) > room:
            self.fail(EventTooLarge(self.name, len(body), room))
            return False
        stage = self.stage
        if stage is not None and stage != "new":
            self._ledger.resize(stage, len(body) - len(self.body))
        self.body = body
        return True

    def deliver(self, result: EventResult) -> None:
        """End: the edge took it."""
        if self._end("delivered"):
            self.future.resolve(result)
            if self.visitor.hooks:
                self._tell(Delivered(self.name, self.event_id, result.request_id))

    def withhold(self) -> None:
        """End: ``on_before_event_send`` stopped it."""
        if self._end("withheld"):
            self.future.resolve(EventResult(self.event_id, withheld=True))
            if self.visitor.hooks:
                self._tell(Lost(self.name, self.event_id, "withheld"))

    def fail(self, error: AlloyError) -> None:
        """End with an error, whose kind says in which column it stands."""
        outcome = outcome_of(error)
        closed, stage = isinstance(error, AlloyClosed), self.stage
        if self._end(outcome):
            if closed and outcome != "kept":
                self._ledger.abandoned[stage] += 1
            # The instance says itself, once, how many events it could not send.
            self.future.reject(error, quiet=closed)
            if self.visitor.hooks:
                self._emit_failure(error, outcome)

    def end_if_refused(self) -> None:
        """End, if it waits for the wire and its visitor has declined."""
        if self.stage == "queued" and self.verdict() is Verdict.REFUSE:
            self.visitor.withdraw(self)
            self.fail(ConsentDeclined(self.name))

    def close(self) -> None:
        """End: the instance is closed; what is in a durable outbox stays there."""
        stored = self.key is not None and self.key != GONE
        self.fail(AlloyClosed(self.name, kept=stored or self.local_key is not None))

    def left(self) -> None:
        """Withdraw it, if it has not been sent: the caller cancelled the future."""
        if self.stage is None or self.stage == "sending":
            return
        self.visitor.withdraw(self)
        self._end("cancelled")
        if self.visitor.hooks:
            self._tell(Lost(self.name, self.event_id, "cancelled"))

    def _tell(self, record: Record) -> None:
        """Tell the hooks. Whether there are any is asked before a record is made, in place: it is asked often."""
        if self.visitor.hooks is not None:
            self.visitor.hooks.emit(record)

    def _move(self, stage: Stage) -> None:
        if self.stage is not None:
            self._ledger.move(len(self.body), self.stage, stage)
            self.stage = stage
            if self._traced:
                self._log(stage)

    def _end(self, outcome: Outcome) -> bool:
        """Write the final entry; return False when it was written before."""
        if self.stage is None:
            return False
        self._ledger.end(len(self.body), self.stage, outcome)
        if self.released_at != inf:
            self.visitor.released -= 1
        self.stage = None
        self.body = b""
        if outcome != "kept" and (self.key is not None or self.local_key is not None):
            self.visitor.no_longer_stored(self)
        if self._traced:
            self._log(outcome)
        return True

    def _log(self, step: Stage | Outcome) -> None:
        self.visitor.logger.debug("event %s: %s", self.event_id, step)

    def _emit_failure(self, error: AlloyError, outcome: Outcome) -> None:
        if isinstance(error, ConsentDeclined):
            self._tell(Refused(self.name, self.event_id, error.by))
        elif outcome == "failed" and not isinstance(error, AlloyClosed):
            self._tell(Failed(self.name, self.event_id, error))
        else:
            self._tell(Lost(self.name, self.event_id, _lost_reason(outcome)))


def outbox_events(commands: Sequence[EventCommand], clock: Clock) -> list[OutboxEvent]:
    """Return events as an outbox keeps them; what outlives the process goes by the wall clock."""
    started = clock.time() - clock.monotonic()
    return [
        OutboxEvent(
            command.visitor.key,
            command.event_id,
            command.body,
            command.needs_answer,
            command.names_person,
            started + command.released_at,
        )
        for command in commands
    ]


_LOST: dict[Outcome, Literal["expired", "overflowed", "kept"]] = {
    "expired": "expired",
    "overflowed": "overflowed",
    "kept": "kept",
}


def _lost_reason(outcome: Outcome) -> Literal["expired", "overflowed", "kept", "closed"]:
    return _LOST.get(outcome, "closed")


def fail_all(commands: Iterable[EventCommand], error: AlloyError) -> None:
    """End events with an error, of which each gets its own: one that is raised collects its own traceback."""
    for command in commands:
        command.fail(copy(error))


class GatedCall:
    """A command that waits for consent and then does something here, without an event.

    Args:
        name: the command.
        future: what the caller holds.
        action: called with the future, in order, once the visitor consents.
        leave: called when the caller cancels the future.
        epoch: the gate's epoch at the call.
        patience: how long it may be awaited while it is parked; None: as long as it is parked.
        alone: makes the future with which it goes on when nobody awaits it any more; None: then it leaves.
    """

    size = 0
    order = 0
    parked_at = 0.0

    def __init__(
        self,
        name: str,
        future: CommandFuture[Any],
        *,
        action: Callable[[CommandFuture[Any]], None],
        leave: Callable[[GatedCall], None],
        epoch: int,
        patience: Patience | None = None,
        alone: Callable[[], CommandFuture[Any]] | None = None,
    ) -> None:
        self.name = name
        self.epoch = epoch
        self._patience = patience
        self._alone = alone
        self._parked = False
        self._action = action
        self._leave = leave
        self.future = future
        future.belongs_to(self)

    @property
    def ended(self) -> bool:
        """Whether its future has ended."""
        return self.future.done()

    def park(self) -> None:
        """Wait."""
        self._parked = True
        if self._patience is not None:
            self._patience.hold(self)

    def let_go(self, waited: float) -> None:
        """End the future if it is still parked, and go on without it, or leave."""
        if not self._parked or self.future.done():
            return
        error = StillParked(self.name, waited, is_parked=self._alone is not None)
        self.future.reject(error, quiet=True)
        if self._alone is None:
            self._leave(self)
        else:
            self.future = self._alone()

    def release(self) -> None:
        """Do it: the visitor consents."""
        self._parked = False
        self._action(self.future)

    def fail(self, error: AlloyError) -> None:
        """End with an error."""
        self.future.reject(error)

    def left(self) -> None:
        """Stop waiting: the caller cancelled the future."""
        self._leave(self)

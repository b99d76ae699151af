"""The courier: takes released events to the edge, and settles each with its own outcome.

It has no task of its own. A turn of the loop after something changed it looks at the outbox and starts requests, each
in a task that no caller can cancel. When nothing is under way nothing of it is, and an idle process can exit.
"""

from __future__ import annotations

import asyncio
from copy import copy
from itertools import groupby, islice, takewhile
from typing import TYPE_CHECKING

from ._clock import Cancellable, Clock
from ._commands import EventCommand
from ._consent._rules import Verdict
from ._ledger import Ledger
from ._slices import SLICE, in_slices, slice_by_slice
from .edge.client import EdgeClient
from .edge.protocol import Reply, cut, failing_event, result_for, was_ignored
from .edge.transport import Withdrawn
from .errors import AlloyClosed, AlloyError, ConsentDeclined, EdgeError, OutboxFull
from .outbox.memory import MemoryOutbox

if TYPE_CHECKING:
    from .settings import Settings

__all__ = ["Courier"]


class Courier:
    """Batches, starts and settles requests.

    An idle courier sends at once. While requests are on the wire events gather; another one starts when a full batch
    waits, or when the oldest event has waited ``linger`` seconds.

    Args:
        edge: says it to the edge.
        settings: ``max_body_bytes``, ``max_in_flight``, ``linger``, ``ordered``, and the bounds of the queue.
        ledger: knows how much is queued.
        clock: where time comes from.
    """

    def __init__(self, edge: EdgeClient, *, settings: Settings, ledger: Ledger, clock: Clock) -> None:
        self.edge = edge
        self._ledger = ledger
        self._clock = clock
        self._max_body = settings.max_body_bytes
        self._max_in_flight = 1 if settings.ordered else settings.max_in_flight
        self._max_queued = settings.max_queued
        self._max_queued_bytes = settings.max_queued_bytes
        self._linger = settings.linger
        self._outbox: MemoryOutbox[EventCommand] = MemoryOutbox()
        self._under_way: dict[asyncio.Task[None], list[EventCommand]] = {}
        self._look: asyncio.Handle | None = None
        self._lingering: Cancellable | None = None
        self._in_a_hurry = False
        self._closed = False
        self._loop = asyncio.get_running_loop()  # a future may be cancelled while no loop runs

    def full(self, command: EventCommand) -> OutboxFull | None:
        """Return the error for an event that finds no room in the queue, or None.

        Asked for events that come when the gate is open. What was parked has been accepted before, within the bounds
        of parking, and is never turned away here.
        """
        if self._ledger.queued >= self._max_queued:
            return OutboxFull(command.name, "max_queued", self._max_queued)
        if self._ledger.queued_bytes + command.size > self._max_queued_bytes:
            return OutboxFull(command.name, "max_queued_bytes", self._max_queued_bytes)
        return None

    def accept(self, command: EventCommand) -> None:
        """Take an event, to be sent soon."""
        self._outbox.put(command)
        self._wake()

    def withdraw(self, command: EventCommand) -> None:
        """Let a queued event go, whose caller went away."""
        self._outbox.remove(command)
        self._wake()

    def recall(self) -> None:
        """End what is queued and has been refused; what is on the wire settles with the truth."""
        in_slices(list(self._outbox.waiting()), self._end_if_refused)

    def hurry(self) -> None:
        """Send what is queued without waiting for company."""
        self._in_a_hurry = True
        self._wake()

    def open_commands(self) -> list[EventCommand]:
        """Return the events that are queued or on the wire."""
        return [
            *(command for batch in self._under_way.values() for command in batch),
            *self._outbox.waiting(),
        ]

    async def stop(self) -> None:
        """End everything that is queued or on the wire with ``AlloyClosed``."""
        self._closed = True
        tasks = list(self._under_way)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        await slice_by_slice(list(self._outbox.waiting()), self._close)
        if self._lingering is not None:
            self._lingering.cancel()

    def _wake(self) -> None:
        """Look at the outbox in the next turn of the loop, so that what is called in one turn travels together."""
        if self._look is None and not self._closed:
            self._look = self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._look = None
        while len(self._under_way) < self._max_in_flight and not self._closed:
            if self._clear_front() == SLICE:
                self._wake()
                return
            batch = self._next_batch()
            if not batch:
                self._in_a_hurry = False
                return
            if not self._is_due(batch):
                return
            self._start(batch)

    def _clear_front(self) -> int:
        """Take from the front what may not be sent: refused, or its consent has expired and is asked for again."""
        barred = takewhile(lambda command: command.verdict() is not Verdict.PASS, self._outbox.waiting())
        commands = list(islice(barred, SLICE))
        for command in commands:
            self._outbox.remove(command)
        for visitor, theirs in groupby(commands, key=lambda command: command.visitor):
            visitor.gate.readmit(theirs)
        return len(commands)

    def _next_batch(self) -> list[EventCommand]:
        head = next(iter(self._outbox.waiting()), None)
        if head is None:
            return []
        if head.needs_answer:
            return [head]
        return cut(
            takewhile(lambda command: _travels_with(head, command), self._outbox.waiting()), self._max_body
        )

    def _is_due(self, batch: list[EventCommand]) -> bool:
        """Return whether a batch should start now; when not, make sure that it is looked at again in time."""
        may_grow = len(batch) == len(self._outbox) and not batch[0].needs_answer
        if not self._under_way or self._in_a_hurry or not may_grow:
            return True
        remaining = batch[0].queued_at + self._linger - self._clock.monotonic()
        if remaining <= 0:
            return True
        if self._lingering is None:
            self._lingering = self._clock.call_later(remaining, self._lingered)
        return False

    def _lingered(self) -> None:
        self._lingering = None
        self._wake()

    def _start(self, batch: list[EventCommand]) -> None:
        for command in batch:
            self._outbox.remove(command)
        for command in batch:
            command.send(len(batch))
        batch = [command for command in batch if command.stage is not None]  # a hook may have cancelled some
        if not batch:
            return
        task = asyncio.get_running_loop().create_task(self._carry(batch), name="alloy-request")
        self._under_way[task] = batch
        task.add_done_callback(self._arrived)

    def _arrived(self, task: asyncio.Task[None]) -> None:
        batch = self._under_way.pop(task)
        if task.cancelled():  # not in the task: one that is cancelled before its first step runs nothing
            for command in batch:
                self._close(command)
        self._wake()

    async def _carry(self, batch: list[EventCommand]) -> None:
        """Make the exchange, and settle every event of the batch, whatever happens."""
        try:
            self._deliver(batch, await self._exchange(batch))
        except Withdrawn:
            self._take_back(batch)
        except AlloyError as error:
            self._fail(batch, error)
        except Exception as error:  # noqa: BLE001 - a mistake of ours must not leave a future pending
            self._fail(batch, AlloyError(f"internal error ({type(error).__name__}); please report it"))

    async def _exchange(self, batch: list[EventCommand]) -> Reply:
        """Make one attempt. Further attempts belong here, around the two calls: each asks for consent again.

        Args:
            batch: the events.
        """
        head = batch[0]
        hint = head.visitor.identity.hint(self._clock.monotonic())

        def may_start() -> bool:
            waiting = next(iter(self._outbox.waiting()), None)
            if waiting is not None and waiting.order < head.order:
                return False  # an earlier request turned round before it was written; this one must not overtake it
            return all(command.verdict() is Verdict.PASS for command in batch)

        if head.needs_answer:
            queue_time = int((self._clock.monotonic() - head.called_at) * 1000)
            return await self.edge.interact(head.body, hint=hint, queue_time=queue_time, may_start=may_start)
        return await self.edge.collect([command.body for command in batch], hint=hint, may_start=may_start)

    def _deliver(self, batch: list[EventCommand], reply: Reply) -> None:
        for index, command in enumerate(batch):
            result = result_for(reply, index, command.event_id)
            if was_ignored(result):
                command.fail(ConsentDeclined(command.name, by="edge"))
            else:
                command.deliver(result)
        head = batch[0]
        if head.needs_answer and not head.names_person and head.verdict() is Verdict.PASS:
            head.visitor.learn(reply)

    def _fail(self, batch: list[EventCommand], error: AlloyError) -> None:
        """Fail the event that the edge names and send the others again; without a name fail them all."""
        index = failing_event(error) if isinstance(error, EdgeError) and not error.retryable else None
        if index is not None and index < len(batch):
            batch[index].fail(copy(error))
            self._take_back([*batch[:index], *batch[index + 1 :]])
            return
        for command in batch:
            command.fail(copy(error))  # each future gets its own: a raised error collects its own traceback

    def _take_back(self, batch: list[EventCommand]) -> None:
        """Put events back to the front; those that were refused meanwhile end there."""
        for command in batch:
            command.queue()
        self._outbox.give_back([command for command in batch if command.stage is not None])
        self.recall()
        self._wake()

    def _end_if_refused(self, command: EventCommand) -> None:
        if command.stage == "queued" and command.verdict() is Verdict.REFUSE:
            self._outbox.remove(command)
            command.fail(ConsentDeclined(command.name))

    def _close(self, command: EventCommand) -> None:
        self._outbox.remove(command)
        command.fail(AlloyClosed(command.name))


def _travels_with(head: EventCommand, command: EventCommand) -> bool:
    return (
        not command.needs_answer and command.verdict() is Verdict.PASS and (command.visitor is head.visitor)
    )

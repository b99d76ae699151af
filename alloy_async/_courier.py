"""The courier: takes released events to the edge, and settles each with its own outcome.

It has no task of its own. A turn of the loop after something changed it looks at what waits and starts requests, each
in a task that no caller can cancel; a request is one attempt. A batch that is to be tried again waits beside the line,
without a task and without a place among the requests. When nothing is under way nothing of it is, and an idle process
can exit.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Callable, Collection, Iterable, Iterator
from copy import copy
from itertools import chain, groupby, islice, takewhile
from typing import TYPE_CHECKING, NamedTuple

from ._batch import Batch
from ._clock import Cancellable, Clock
from ._commands import EventCommand, fail_all
from ._consent._rules import Verdict
from ._futures import cancel_all
from ._ledger import Ledger
from ._line import Line
from ._outbox_keeper import OutboxKeeper
from ._slices import SLICE, in_slices, slice_by_slice
from .edge.breaker import Breaker
from .edge.client import EdgeClient
from .edge.protocol import EventResult, Reply, cut, failing_event, result_for, was_ignored
from .edge.retry import RetryPolicy, is_about_input, is_outage, next_wait
from .edge.token import AccessRefused
from .edge.transport import Withdrawn
from .errors import AlloyError, ConsentDeclined, EdgeError, NetworkError, OutboxFull
from .hooks import CircuitChanged, Hooks

if TYPE_CHECKING:
    from ._visitor import VisitorState
    from .settings import Settings

__all__ = ["Courier"]

ATTEMPTS = 5
DELIVERY_TIMEOUT = 300.0
KEPT_TIMEOUT = 604_800.0
"""What holds when the settings leave it open: in memory, the first two; in a durable outbox, a week."""

FORESIGHT = 2_000
"""Events of the line that are looked at for one request."""

SOON = 0.0
"""A moment that has passed: a batch that is due at once."""


class _Waiting(NamedTuple):
    """A batch that waits for its next attempt; ordered by when it is due, then by the calls."""

    due: float
    order: int
    turn: int
    batch: Batch


class Courier:
    """Batches, starts, repeats and settles requests.

    An idle courier sends at once. While requests are on the wire events gather; another one starts when a full batch
    waits, or when the oldest event has waited ``linger`` seconds.

    Args:
        edge: says it to the edge.
        settings: ``max_body_bytes``, ``max_in_flight``, ``linger``, ``ordered``, the bounds of the queue and of retries.
        keeper: keeps events in a durable outbox; None: they are in memory only.
        ledger: knows how much is queued.
        hooks: hear of the endpoint's state.
        clock: where time comes from.
    """

    def __init__(
        self,
        edge: EdgeClient,
        *,
        settings: Settings,
        keeper: OutboxKeeper | None,
        ledger: Ledger,
        hooks: Hooks,
        clock: Clock,
    ) -> None:
        self.edge = edge
        self._keeper = keeper
        self._ledger = ledger
        self._hooks = hooks
        self._clock = clock
        self._endpoint = settings.base_url()
        self._max_body = settings.max_body_bytes
        self._ordered = settings.ordered
        self._max_in_flight = settings.max_in_flight
        self._max_queued = settings.max_queued
        self._max_queued_bytes = settings.max_queued_bytes
        self._linger = settings.linger
        self._policy = _policy(settings, durable=keeper is not None)
        self._lifetime = settings.delivery_timeout or (DELIVERY_TIMEOUT if keeper is None else KEPT_TIMEOUT)
        self._breaker = Breaker()
        self._line: Line[EventCommand] = Line()
        self._again: list[_Waiting] = []
        self._holds = itertools.count()
        self._under_way: dict[asyncio.Task[None], Batch] = {}
        self._look: asyncio.Handle | None = None
        self._alarm: Cancellable | None = None
        self._alarm_at = 0.0
        self._in_a_hurry = False
        self._closed = False
        self._paused = False
        self._all_wait = False
        self._looks_aside = False
        self._loop = asyncio.get_running_loop()  # a future may be cancelled while no loop runs

    def full(self, command: EventCommand) -> OutboxFull | None:
        """Return the error for an event that finds no room in the queue, or None.

        Asked for events that come when the gate is open. What was parked has been accepted before, within the bounds
        of parking, and is never turned away here.
        """
        ledger = self._ledger
        if ledger.queued >= self._max_queued:
            return OutboxFull(command.name, "max_queued", self._max_queued)
        if ledger.queued_bytes + len(command.body) > self._max_queued_bytes:
            return OutboxFull(command.name, "max_queued_bytes", self._max_queued_bytes)
        return None

    def accept(self, command: EventCommand) -> None:
        """Take an event, to be stored where it is to be kept, and to be sent soon."""
        if self._keeper is not None and command.key is None and command.visitor.is_kept:
            self._keeper.put(command)
            return
        line = self._line
        if line.put(command):
            self._looks_aside = True
        joins = line.size < self._max_body and not command.needs_answer and len(line) > 1
        if self._all_wait or not joins:
            self._look_soon()  # otherwise it is looked at with those that it joins: a timer or a request will see to that

    def no_longer_stored(self, command: EventCommand) -> None:
        """Erase an event from the durable outbox, where it has ended."""
        if self._keeper is not None:
            self._keeper.ended(command)

    def withdraw(self, command: EventCommand) -> None:
        """Let a queued event go, whose caller went away."""
        self._line.remove(command)
        self.wake()

    def recall(self, visitor: VisitorState) -> None:
        """End what is queued of a visitor and has been refused; what is on the wire settles with the truth."""
        in_slices([command for command in self._queued() if command.visitor is visitor], self._end_if_barred)

    def take_over(self, commands: list[EventCommand]) -> None:
        """Take events that others left; all at once, for they go before what is in line."""
        self._line.give_back(commands)
        self.wake()

    def resume(self) -> None:
        """Go on after requests were cancelled by somebody else: the application has said something new."""
        if self._paused:
            self._paused = False
            self.wake()

    def hurry(self) -> None:
        """Send what is queued without waiting for company."""
        self._in_a_hurry = True
        self._paused = False
        self.wake()

    def open_commands(self) -> list[EventCommand]:
        """Return the events that are queued or on the wire."""
        return [*chain.from_iterable(batch.commands for batch in self._under_way.values()), *self._queued()]

    async def stop(self) -> None:
        """End everything that is queued or on the wire with ``AlloyClosed``."""
        self._closed = True
        if self._alarm is not None:
            self._alarm.cancel()
        await cancel_all(self._under_way)
        await slice_by_slice(self.open_commands(), self._close)

    def wake(self) -> None:
        """Look at what waits, because something has ended for which it may have waited."""
        self._looks_aside = True
        self._look_soon()

    def _look_soon(self) -> None:
        """Look at what waits in the next turn of the loop, so that what is called in one turn travels together."""
        if self._look is None and not self._closed and not self._paused:
            self._look = self._loop.call_soon(self._pump)

    def _queued(self) -> list[EventCommand]:
        unwritten = self._keeper.unwritten() if self._keeper is not None else []
        again = (command for waiting in self._again for command in waiting.batch.commands)
        return [command for command in (*again, *self._line, *unwritten) if command.stage == "queued"]

    # What starts when

    def _pump(self) -> None:
        self._look = None
        if self._paused or any(task.cancelling() for task in self._under_way):
            return  # the loop is ending, or somebody cancels every task: see _was_cancelled
        while len(self._under_way) < self._max_in_flight and not self._closed:
            now = self._clock.monotonic()
            if self._is_blocked(now):
                self._clear(now)
                return
            batch = self._due_again(now) or self._fresh(now)
            if batch is None:
                return
            self._start(batch)

    def _clear(self, now: float) -> None:
        """Take away what may not be sent while nothing may start: in front of the line, and of each visitor aside."""
        too_old = now - self._lifetime
        self._line.let_pass(lambda _: False)
        self._looks_aside = True
        lines = chain(self._line.aside(), [self._line.waiting()])
        barred = chain.from_iterable(
            takewhile(lambda command: _is_barred(command, too_old), line) for line in lines
        )
        commands = list(islice(barred, SLICE))
        self._take_away(commands, too_old)
        if len(commands) == SLICE:
            self._look_soon()

    def _make_way(self, busy: Collection[VisitorState], now: float) -> bool:
        """Let an event stand in front that may go now, if there is one; return False when that takes more turns.

        What may not be sent is taken away: it is too old, refused, or its consent is asked for again. What has to wait for
        something else of its visitor's is set aside.
        """
        too_old = now - self._lifetime
        if self._looks_aside:
            self._looks_aside = False
            self._line.let_pass(lambda one: one.released_at <= too_old or not self._has_to_wait(one, busy))
        barred: list[EventCommand] = []
        waits: list[EventCommand] = []
        for command in islice(self._line.waiting(), SLICE):
            if _is_barred(command, too_old):
                barred.append(command)
            elif self._line.is_held_up(command) or self._has_to_wait(command, busy):
                waits.append(command)
            else:
                break
        self._line.set_aside(waits)
        self._take_away(barred, too_old)
        if not barred and len(waits) < SLICE:
            return True
        self._look_soon()  # also after a few: whoever hears of them may have cancelled the one that is in front
        return False

    def _has_to_wait(self, command: EventCommand, busy: Collection[VisitorState]) -> bool:
        """Return whether something else of its visitor's has to end first, or to be taken over from the outbox."""
        return command.visitor in busy or not self._is_next(command)

    def _is_next(self, command: EventCommand) -> bool:
        return self._keeper is None or command.order < 0 or self._keeper.has_recovered(command.visitor.key)

    def _take_away(self, barred: list[EventCommand], too_old: float) -> None:
        self._line.remove(*barred)
        for command in barred:
            if command.released_at <= too_old and command.verdict() is not Verdict.REFUSE:
                command.fail(self._too_late())
        for visitor, theirs in groupby(barred, key=lambda command: command.visitor):
            visitor.gate.readmit(theirs)  # which passes over those that have ended

    def _is_blocked(self, now: float) -> bool:
        """Return whether nothing may start; when so, make sure that it is looked at again in time."""
        if self._keeper is not None and not self._keeper.is_current():
            return True  # it wakes us
        if self._breaker.lets_start(now):
            return False
        if not self._again and not self._line:
            return False
        for waiting in self._again:
            self._end_if_too_late(waiting.batch, now)
        if self._breaker.circuit == "open":
            heads = [waiting.batch.head for waiting in self._again if waiting.batch.commands]
            heads += [*self._line.oldest_aside(), *islice(self._line.waiting(), 1)]
            self._wake_at(min([self._breaker.until, *(self._deadline(head) for head in heads)]), now)
        return True

    def _deadline(self, command: EventCommand) -> float:
        return command.released_at + self._lifetime

    def _due_again(self, now: float) -> Batch | None:
        """Return a batch that is to be tried again now; the oldest first, they were called before what is in line."""
        passed_over: list[_Waiting] = []
        found: Batch | None = None
        while found is None and self._again:
            if self._again[0].due > now:
                self._wake_at(self._again[0].due, now)
                break
            waiting = heapq.heappop(self._again)
            self._looks_aside = True
            self._end_if_too_late(waiting.batch, now)
            self._bar(waiting.batch)
            if self._ordered and self._comes_after(waiting.batch, chain(self._again, passed_over)):
                passed_over.append(waiting)
            elif waiting.batch.commands:
                found = waiting.batch
        for waiting in passed_over:
            heapq.heappush(self._again, waiting)
        return found

    def _comes_after(self, batch: Batch, others: Iterable[_Waiting]) -> bool:
        """Return whether a request of one of its visitors is on the wire, or an older one waits: of halves the first."""
        oldest: dict[VisitorState, int] = {}
        for command in batch.commands:
            oldest.setdefault(command.visitor, command.order)
        return any(
            command.visitor in oldest for one in self._under_way.values() for command in one.commands
        ) or any(
            command.order < oldest.get(command.visitor, command.order) and not command.ended
            for waiting in others
            for command in waiting.batch.commands
        )

    def _fresh(self, now: float) -> Batch | None:
        """Return the next batch of the line, if it is time for it."""
        if not self._line:
            self._in_a_hurry = False
            return None
        if not self._looks_aside and self._line.first() is None:
            self._all_wait = True
            return None
        busy = self._busy()
        if not self._make_way(busy, now):
            return None
        head = self._line.first()
        self._all_wait = head is None
        if head is None or not self._is_due(head, now):
            return None
        commands = [head] if head.needs_answer else cut(self._companions(head, busy, now), self._max_body)
        self._line.remove(*commands)
        return Batch(commands)

    def _busy(self) -> Collection[VisitorState]:
        """Return the visitors whose next request waits for the end of another one of theirs."""
        if not self._ordered:
            return ()
        on_the_wire = chain.from_iterable(batch.commands for batch in self._under_way.values())
        again = chain.from_iterable(waiting.batch.commands for waiting in self._again)
        busy = {
            command.visitor for command in on_the_wire
        }  # until it has arrived: then what stands aside is looked at
        busy.update(command.visitor for command in again if not command.ended)
        return busy

    def _is_due(self, head: EventCommand, now: float) -> bool:
        """Return whether a batch should start now; when not, make sure that it is looked at again in time."""
        if not self._under_way or self._in_a_hurry or head.needs_answer or self._line.size >= self._max_body:
            return True
        due = head.released_at + self._linger
        if due <= now:
            return True
        self._wake_at(due, now)
        return False

    def _companions(
        self, head: EventCommand, busy: Collection[VisitorState], now: float
    ) -> Iterator[EventCommand]:
        """Yield what travels with the head: events of whatever visitor, for the same region of the edge.

        Of a visitor that has to be passed over nothing else is taken either, so that none of its events overtakes another.
        """
        region = head.visitor.identity.hint(now)
        taken_over = head.order < 0  # it goes ahead by itself, as long as more of it may come
        passed_over: set[VisitorState] = set(busy)
        visitor, epoch, fits = head.visitor, head.epoch, True
        for command in islice(self._line.waiting(), FORESIGHT):
            if (
                command.visitor is not visitor or command.epoch != epoch
            ):  # neighbours share what is asked here
                visitor, epoch = command.visitor, command.epoch
                fits = (
                    visitor not in passed_over
                    and not self._line.is_held_up(command)
                    and visitor.identity.hint(now) == region
                    and command.verdict() is Verdict.PASS
                    and self._is_next(command)
                )
            if fits and not command.needs_answer and (command.order < 0) == taken_over:
                yield command
            else:
                fits = False
                passed_over.add(visitor)

    def _bar(self, batch: Batch) -> None:
        """Take out of a batch what has ended or lost its consent while it waited."""
        batch.drop_ended()
        if batch.consents():
            return
        barred: list[EventCommand] = []
        commands, batch.commands = batch.commands, []
        for command in commands:
            (batch.commands if command.verdict() is Verdict.PASS else barred).append(command)
        for visitor, theirs in groupby(barred, key=lambda command: command.visitor):
            visitor.gate.readmit(theirs)

    def _end_if_too_late(self, batch: Batch, now: float) -> None:
        for command in batch.commands:
            if self._deadline(command) > now:
                break
            command.fail(self._too_late())
        batch.drop_ended()

    def _too_late(self) -> NetworkError:
        problem = f"not delivered within delivery_timeout={self._lifetime:g} s; the circuit is {self._breaker.circuit}"
        return NetworkError(self._endpoint, problem)

    def _wake_at(self, moment: float, now: float) -> None:
        if self._alarm is not None:
            if self._alarm_at <= moment:
                return
            self._alarm.cancel()
        self._alarm_at = moment
        self._alarm = self._clock.call_later(max(moment - now, 0.0), self._rang)

    def _rang(self) -> None:
        self._alarm = None
        self.wake()

    # One attempt

    def _start(self, batch: Batch) -> None:
        for command in batch.commands:
            command.send(len(batch.commands))
        batch.drop_ended()  # a hook may have cancelled some
        if not batch.commands:
            return
        batch.attempts += 1
        self._ledger.retries += batch.attempts > 1
        self._note_circuit(self._breaker.started)
        task = asyncio.get_running_loop().create_task(self._carry(batch), name="alloy-request")
        self._under_way[task] = batch
        task.add_done_callback(self._arrived)

    def _arrived(self, task: asyncio.Task[None]) -> None:
        batch = self._under_way.pop(task)
        if task.cancelled():  # not in the task: one that is cancelled before its first step runs nothing
            self._was_cancelled(batch)
        elif (error := task.exception()) is not None:
            self._note_circuit(self._breaker.gave_up)
            fail_all(batch.commands, AlloyError(f"internal error ({type(error).__name__}); please report it"))
        self.wake()

    def _was_cancelled(self, batch: Batch) -> None:
        """End what closing has cancelled; what somebody else has cancelled waits for what comes next.

        That is the end of the event loop, where a new task would never run, or an application that cancels every task
        before it closes us. So nothing starts by itself; the next command, and closing, go on with what waits.
        """
        if self._closed:
            for command in batch.commands:
                self._close(command)
            return
        self._paused = True
        self._note_circuit(self._breaker.gave_up)
        self._send_again(batch)

    async def _carry(self, batch: Batch) -> None:
        """Make the exchange, and settle every event of the batch, whatever happens."""
        try:
            reply = await self._exchange(batch)
            self._note_circuit(self._breaker.answered)
            self._deliver(batch, reply)
        except Withdrawn:
            self._note_circuit(self._breaker.gave_up)
            self._take_back(batch)
        except AlloyError as error:
            self._note_outage(error)
            self._fail(batch, error)
        except Exception as error:  # noqa: BLE001 - a mistake of ours must not leave a future pending
            self._note_circuit(self._breaker.gave_up)
            fail_all(batch.commands, AlloyError(f"internal error ({type(error).__name__}); please report it"))

    async def _exchange(self, batch: Batch) -> Reply:
        if not batch.consents():
            raise Withdrawn  # without connecting; whether it may be written is asked when it is to be written
        head = batch.head
        now = self._clock.monotonic()
        hint = head.visitor.identity.hint(now)

        def may_start() -> bool:
            return self._may_start(batch)

        if head.needs_answer:
            queue_time = int((now - head.called_at) * 1000)
            state = b"" if head.client_state is None else head.client_state.to_json()
            return await self.edge.interact(
                head.body, hint=hint, queue_time=queue_time, state=state, may_start=may_start
            )
        bodies = [command.body for command in batch.commands]
        return await self.edge.collect(bodies, hint=hint, may_start=may_start)

    def _may_start(self, batch: Batch) -> bool:
        """Return whether a request may be written, asked right before its first byte."""
        if batch.attempts == 1 and self._overtakes(batch):
            return False
        if self._keeper is None:
            return batch.consents()
        return batch.consents() and self._keeper.may_send() and not batch.has_gone()

    def _overtakes(self, batch: Batch) -> bool:
        """Return whether an earlier event of one of its visitors has come back, whose request was not written."""
        oldest: dict[VisitorState, int] = {}
        for command in self._line.returned({command.visitor for command in batch.commands}):
            oldest.setdefault(command.visitor, command.order)
        return bool(oldest) and any(
            oldest.get(command.visitor, command.order) < command.order for command in batch.commands
        )

    def _deliver(self, batch: Batch, reply: Reply) -> None:
        if reply.is_plain:
            for command in batch.commands:
                command.deliver(EventResult.plain(command.event_id, reply.request_id))
            return
        for index, command in enumerate(batch.commands):
            result = result_for(reply, index, command.event_id)
            if was_ignored(result):
                command.fail(ConsentDeclined(command.name, by="edge"))
            else:
                command.deliver(result)
        head = batch.head
        if head.needs_answer and not head.names_person and head.verdict() is Verdict.PASS:
            head.visitor.learn(reply)
            if head.client_state is not None:
                head.client_state.learn(reply)

    # What follows a failure

    def _fail(self, batch: Batch, error: AlloyError) -> None:
        """Try again, look for the event at fault, or end them all."""
        wait = self._wait_after(batch, error)
        if wait is not None:
            self._try_again(batch, wait, error)
            return
        index = failing_event(error) if isinstance(error, EdgeError) and not error.retryable else None
        if index is not None and index < len(batch.commands):
            batch.commands[index].fail(copy(error))
            self._send_again(Batch([*batch.commands[:index], *batch.commands[index + 1 :]]))
        elif is_about_input(error) and len(batch.commands) > 1:
            for half in batch.halves():
                self._send_again(half)
        else:
            fail_all(batch.commands, error)

    def _wait_after(self, batch: Batch, error: AlloyError) -> float | None:
        return next_wait(
            self._policy,
            error,
            attempt=batch.attempts,
            consents=any(command.verdict() is not Verdict.REFUSE for command in batch.commands),
            remaining=self._deadline(batch.commands[-1]) - self._clock.monotonic(),
            now=self._clock.time(),
            chance=random.random(),  # noqa: S311 - spreads clients, hides nothing
        )

    def _try_again(self, batch: Batch, wait: float, error: AlloyError) -> None:
        """Let a batch wait for its next attempt; it stays together."""
        for command in batch.commands:
            command.retry(batch.attempts, wait, error)
        self._hold(batch, self._clock.monotonic() + wait)

    def _send_again(self, batch: Batch) -> None:
        """Send at once what the edge has refused together with something else."""
        for command in batch.commands:
            command.queue()
        self._hold(batch, SOON)

    def _hold(self, batch: Batch, due: float) -> None:
        batch.drop_ended()
        for command in batch.commands:
            self._end_if_barred(command)
        batch.drop_ended()
        if batch.commands:
            heapq.heappush(self._again, _Waiting(due, batch.head.order, next(self._holds), batch))
        self.wake()

    def _take_back(self, batch: Batch) -> None:
        """Put back what was not written: a first attempt to its place in line, another one beside it."""
        self._ledger.retries -= batch.attempts > 1
        batch.attempts -= 1
        if batch.attempts:
            self._send_again(batch)
            return
        for command in batch.commands:
            command.queue()
        batch.drop_ended()
        self._line.give_back(batch.commands)
        in_slices(batch.commands, self._end_if_barred)
        self.wake()

    def _end_if_barred(self, command: EventCommand) -> None:
        command.end_if_refused()
        if self._keeper is not None:
            self._keeper.end_if_gone(command)

    def _close(self, command: EventCommand) -> None:
        self._line.remove(command)
        command.close()

    # The endpoint's state

    def _note_outage(self, error: AlloyError) -> None:
        if not isinstance(error, (EdgeError, NetworkError)) or isinstance(error, AccessRefused):
            self._note_circuit(self._breaker.gave_up)  # the endpoint itself was not asked
        elif is_outage(error):
            chance = random.random()  # noqa: S311 - as above
            self._note_circuit(lambda: self._breaker.failed(self._clock.monotonic(), chance))
        else:
            self._note_circuit(self._breaker.answered)

    def _note_circuit(self, happen: Callable[[], None]) -> None:
        happen()
        circuit = self._breaker.circuit
        if circuit != self._ledger.circuit:
            self._ledger.circuit = circuit
            if self._hooks:
                self._hooks.emit(CircuitChanged(self._endpoint, circuit))


def _is_barred(command: EventCommand, too_old: float) -> bool:
    """Return whether an event may not be sent: it is too old, refused, or its consent is asked for again."""
    return command.released_at <= too_old or command.verdict() is not Verdict.PASS


def _policy(settings: Settings, *, durable: bool) -> RetryPolicy:
    attempts = settings.max_attempts or (None if durable else ATTEMPTS)
    return RetryPolicy(attempts, settings.max_retry_after)

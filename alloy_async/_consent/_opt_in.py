"""``OptInState``: the condition variable on which commands wait for the visitor's choice."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from .._clock import Cancellable, Clock, SystemClock
from .._futures import CommandFuture, FailureLog, HomeLoop
from .._slices import SLICE
from ..errors import AlloyClosed, AlloyError, ConsentDeclined, ConsentTimeout, InvalidCommand, ParkingFull
from ._room import ParkingRoom
from ._rules import PURPOSES, Consent, Occurrence, Purposes, Verdict, follow, parse_choice, verdict

__all__ = ["OptInState", "OptInStatistics", "Parkable", "SharedOptInState"]

_NEVER = float("inf")

_NEVER_CURRENT = -1
"""An epoch of commands that are refused, whatever is chosen later."""

# One for all gates, so that commands of several visitors have an order among themselves.
_CALLS = itertools.count(1)


class Parkable(Protocol):
    """A command as the gate sees it: a record that can wait."""

    name: str
    epoch: int
    order: int
    parked_at: float

    @property
    def size(self) -> int:
        """Bytes that it holds."""
        ...

    @property
    def ended(self) -> bool:
        """Whether its future has ended."""
        ...

    def park(self) -> None:
        """Take note that it waits now."""

    def release(self) -> None:
        """Go on: the visitor consents."""

    def fail(self, error: AlloyError) -> None:
        """End: refused, expired, no room, or closed."""


@dataclass(frozen=True, slots=True)
class OptInStatistics:
    """How things stand at one moment.

    Attributes:
        purposes: what is known of the visitor's choice.
        parked: commands that wait now.
        parked_bytes: bytes of what they hold.
        released: commands that were let through so far, at once or after waiting.
        refused: commands that were turned away so far.
        expired: commands that waited too long.
        overflowed: commands that found no room.
        left: commands whose caller went away while they waited.
    """

    purposes: Purposes
    parked: int
    parked_bytes: int
    released: int
    refused: int
    expired: int
    overflowed: int
    left: int


_NOBODY: OrderedDict[Parkable, None] = OrderedDict()
"""What waits at a gate where nothing does, never changed: an empty one for each takes as much as the rest of a gate."""


class OptInState:
    """A condition variable for consent, safe for any number of coroutines of one event loop.

    Waiters are released in the order in which they came, any of them may leave at any time, and a release is for
    everyone: one that is cancelled in the same breath takes nothing from the others.

    Usable alone::

        consent = OptInState()
        waiter = consent.when_opted_in()      # an asyncio.Future
        consent.choose("all")
        await waiter

    It belongs to the event loop that it meets first; a call from another loop or thread is refused with
    ``InvalidCommand``, a call where no loop runs with Python's own ``RuntimeError``.

    Args:
        max_parked: commands that may wait at once.
        max_parked_bytes: bytes of what they hold, together.
        parked_ttl: seconds a command waits before it ends with ``ConsentTimeout``.
        clock: where time comes from.
        failures: where a failure is counted that nobody awaited.
    """

    __slots__ = (
        "_bytes",
        "_clock",
        "_closed_with",
        "_consent",
        "_epoch",
        "_expired",
        "_expiry",
        "_failures",
        "_home",
        "_left",
        "_max_parked",
        "_overflowed",
        "_parked",
        "_parked_ttl",
        "_refused",
        "_released",
        "_rest",
        "_room",
        "_settling",
        "_until",
    )

    def __init__(
        self,
        *,
        max_parked: int = 100_000,
        max_parked_bytes: int = 134_217_728,
        parked_ttl: float = 86_400.0,
        clock: Clock | None = None,
        failures: FailureLog | None = None,
    ) -> None:
        self._max_parked: int | None = None
        self._room = ParkingRoom(max_parked, max_parked_bytes)
        self._parked_ttl = parked_ttl
        self._clock = clock or SystemClock()
        self._failures = failures or FailureLog(logging.getLogger("alloy_async"), self._clock)
        self._home = HomeLoop()
        self._start()

    def _start(self) -> None:
        self._consent = Consent.PENDING
        self._epoch = 0
        self._until = _NEVER
        self._closed_with: Callable[[str], AlloyError] | None = None
        self._parked = _NOBODY
        self._bytes = 0
        self._settling = False
        self._rest: asyncio.Handle | None = None
        self._expiry: Cancellable | None = None
        self._released = self._refused = self._expired = self._overflowed = self._left = 0

    @property
    def purposes(self) -> Purposes:
        """What is known of the visitor's choice: ``"all"``, ``"none"`` or ``"pending"``."""
        return PURPOSES[self._current()]

    @property
    def is_opted_in(self) -> bool:
        """Whether the visitor consents now."""
        return self._current() is Consent.IN

    @property
    def epoch(self) -> int:
        """How many refusals there were; what was called before the last one is never sent."""
        return self._epoch

    @property
    def waited(self) -> float:
        """For how many seconds the oldest parked command has waited; 0 where none is."""
        oldest = next(iter(self._parked), None)
        return 0.0 if oldest is None else self._clock.monotonic() - oldest.parked_at

    def when_opted_in(self) -> asyncio.Future[None]:
        """Wait until the visitor consents.

        Returns:
            A future that ends with None once purposes are "all"; with ``ConsentDeclined`` once they are "none", with
            ``ConsentTimeout`` after ``parked_ttl`` seconds, with ``ParkingFull`` when too many wait already. Cancelling
            it leaves the queue.

        Source: adobe/alloy (2019), whenOptedIn.
        """
        return self._wait(_WhenOptedIn)  # type: ignore[return-value]  # this kind of waiter ends with None

    def wait(self) -> asyncio.Future[Purposes]:
        """Wait until the visitor has chosen, whatever the choice is.

        Returns:
            A future that ends with "all" or "none"; with ``ConsentTimeout`` after ``parked_ttl`` seconds, with
            ``ParkingFull`` when too many wait already. Cancelling it leaves the queue.
        """
        return self._wait(_WhenChosen)

    def choose(self, purposes: str, *, until: float = _NEVER) -> None:
        """Set the visitor's choice; it holds when this returns.

        Up to 500 waiting commands are settled before it returns, the rest in slices of that size, in between the
        loop's other work, oldest first.

        Args:
            purposes: "all" or "none", in any letter case.
            until: seconds since 1970 at which the choice expires and is pending again.

        Raises:
            InvalidCommand: at the call; another word, or a call from another event loop.
        """
        choice = parse_choice(purposes)
        if choice is None:
            raise InvalidCommand("choose", 'must be "all" or "none".', path="purposes")
        self._happen(Occurrence.SAID_ALL if choice == "all" else Occurrence.SAID_NONE, until)

    def expect_all(self) -> None:
        """Note that "all" was said and is being written: a refusal no longer stands, commands wait for the writing."""
        self._happen(Occurrence.WRITING_ALL, self._until)

    def forget(self) -> None:
        """Refuse what waits, and be pending again."""
        self._happen(Occurrence.FORGOTTEN, _NEVER)

    def doubt(self) -> None:
        """Note that it cannot be told what the visitor has chosen: what is not sent waits, unless it is refused."""
        if self._current() is Consent.IN:
            self._happen(Occurrence.EXPIRED, _NEVER)

    def statistics(self) -> OptInStatistics:
        """Return how things stand at this moment."""
        return OptInStatistics(
            purposes=self.purposes,
            parked=len(self._parked),
            parked_bytes=self._bytes,
            released=self._released,
            refused=self._refused,
            expired=self._expired,
            overflowed=self._overflowed,
            left=self._left,
        )

    def verdict(self, epoch: int) -> Verdict:
        """Return what becomes of a command that was called in the given epoch, asked right now."""
        return verdict(self._current(), current=epoch == self._epoch)

    def admit(self, command: Parkable) -> None:
        """Let a new command through, refuse it, or park it behind those that came before."""
        command.order = next(_CALLS)
        if self._closed_with is not None:
            command.fail(self._closed_with(command.name))
            return
        decision = self.verdict(command.epoch)
        if decision is Verdict.REFUSE:
            self._settle(command, decision)
        elif decision is Verdict.PARK or self._parked or self._settling:
            self._park(command)  # so that it does not overtake those that wait
        else:
            self._released += 1
            command.release()

    def readmit(self, commands: Iterable[Parkable]) -> None:
        """Take back commands that were let through and not sent, because consent has expired in between.

        They keep their place before those that were called later, and their epoch: after a refusal they are refused.
        They have been accepted, so no bound turns them away.
        """
        oldest, newest = next(iter(self._parked), None), next(reversed(self._parked), None)
        last, in_order = (-_NEVER if newest is None else newest.order), True
        for command in commands:
            if command.ended:
                continue  # a hook that heard of another one's parking has cancelled it
            in_order = in_order and last < command.order
            last = command.order
            command.parked_at = self._clock.monotonic() if oldest is None else oldest.parked_at
            self._hold(command)
        if not in_order:  # sorting for each slice of very many that come back in order would take seconds
            self._parked = OrderedDict(sorted(self._parked.items(), key=lambda item: item[0].order))
        self._settle_parked()

    def refuse_up_to(self, order: int) -> None:
        """Refuse what waits and was called no later than a place in the order of calls."""
        for command in self._parked:
            if command.order <= order:
                command.epoch = _NEVER_CURRENT
        self._settle_parked()

    def leave(self, command: Parkable) -> None:
        """Forget a parked command whose caller went away."""
        if command in self._parked:
            self._left += 1
            self._remove(command)

    def close(self, error: Callable[[str], AlloyError] = AlloyClosed) -> None:
        """End what waits, and everything that comes later, with an error.

        Args:
            error: makes the error from a command's name.
        """
        self._closed_with = error
        self._settle_parked()

    def __len__(self) -> int:
        """Return how many commands wait now."""
        return len(self._parked)

    def __bool__(self) -> bool:
        """Be true even when nothing waits: it is an object, not a container."""
        return True

    def _wait(self, kind: type[_Waiter]) -> CommandFuture[Purposes]:
        command = kind.name
        try:
            loop = self._home.check(command)
        except InvalidCommand as error:
            future: CommandFuture[Purposes] = CommandFuture.make(self._failures)
            future.reject(error)
            return future
        waiter = kind(self, self._failures, loop)
        self.admit(waiter)
        return waiter.future

    def _current(self) -> Consent:
        if self._until <= self._clock.time():
            self._until = _NEVER
            self._consent, self._epoch = follow(self._consent, self._epoch, Occurrence.EXPIRED)
        return self._consent

    def _happen(self, occurrence: Occurrence, until: float) -> None:
        self._home.check("choose")
        self._current()
        self._consent, self._epoch = follow(self._consent, self._epoch, occurrence)
        self._until = until
        self._settle_parked()

    def _settle_parked(self) -> None:
        """Settle one slice of what waits, oldest first, and arrange for the rest."""
        if self._settling:
            return  # a hook of the command being settled chose again; the loop below looks at the new state
        self._settling = True
        try:
            more = self._settle_slice()
        finally:
            self._settling = False
        if more and self._rest is None:
            self._rest = asyncio.get_running_loop().call_soon(self._settle_rest)

    def _settle_rest(self) -> None:
        self._rest = None
        self._settle_parked()

    def _settle_slice(self) -> bool:
        for _ in range(SLICE):
            command = next(iter(self._parked), None)
            if command is None:
                return False
            decision = self.verdict(command.epoch)
            if decision is Verdict.PARK and self._closed_with is None:
                return False
            self._remove(command)
            self._settle(command, decision)
        return bool(self._parked)

    def _settle(self, command: Parkable, decision: Verdict) -> None:
        if self._closed_with is not None and decision is not Verdict.REFUSE:
            command.fail(self._closed_with(command.name))
        elif decision is Verdict.PASS:
            self._released += 1
            command.release()
        else:
            self._refused += 1
            command.fail(ConsentDeclined(command.name))

    def _park(self, command: Parkable) -> None:
        full = self._full(command)
        if full is not None:
            self._overflowed += 1
            command.fail(full)
            return
        command.parked_at = self._clock.monotonic()
        self._hold(command)

    def _hold(self, command: Parkable) -> None:
        if not self._parked:
            self._parked = OrderedDict()
        self._parked[command] = None
        self._bytes += command.size
        self._room.take(command.size)
        if self._expiry is None:
            self._arrange_expiry(self._parked_ttl)
        command.park()

    def _full(self, command: Parkable) -> ParkingFull | None:
        if self._max_parked is not None and len(self._parked) >= self._max_parked:
            return ParkingFull(command.name, "visitor_max_parked", self._max_parked)
        return self._room.full(command.name, command.size)

    def _remove(self, command: Parkable) -> None:
        del self._parked[command]
        self._bytes -= command.size
        self._room.give_back(command.size)
        if not self._parked:
            self._parked = _NOBODY
            self._call_off_expiry()

    def _call_off_expiry(self) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None

    def _arrange_expiry(self, delay: float) -> None:
        # One timer for the oldest is enough: all wait equally long, so the oldest is always the next to expire.
        self._expiry = self._clock.call_later(delay, self._expire)

    def _expire(self) -> None:
        self._expiry = None
        now, remaining = self._clock.monotonic(), 0.0
        for _ in range(SLICE):
            command = next(iter(self._parked), None)
            if command is None:
                return
            remaining = command.parked_at + self._parked_ttl - now
            if remaining > 0:
                break
            self._remove(command)
            self._expired += 1
            command.fail(ConsentTimeout(command.name, now - command.parked_at))
        if self._parked and self._expiry is None:  # a hook that parked something may have arranged it
            self._arrange_expiry(max(remaining, 0.0))


class SharedOptInState(OptInState):
    """One of very many, which share what can be shared.

    Args:
        room: how much all of them may park together.
        max_parked: commands that may wait at this one, an option named ``visitor_max_parked``; None: as many as there is
            room for.
        parked_ttl: seconds a command waits before it ends with ``ConsentTimeout``.
        clock: where time comes from.
        failures: where a failure is counted that nobody awaited.
        home: the event loop of all of them.
    """

    __slots__ = ()

    def __init__(
        self,
        *,
        room: ParkingRoom,
        max_parked: int | None,
        parked_ttl: float,
        clock: Clock,
        failures: FailureLog,
        home: HomeLoop,
    ) -> None:
        self._max_parked = max_parked
        self._room = room
        self._parked_ttl = parked_ttl
        self._clock = clock
        self._failures = failures
        self._home = home
        self._start()


class _Waiter:
    """Someone who waits for the choice itself, with nothing to send."""

    name = "wait"
    size = 0
    order = 0
    parked_at = 0.0

    def __init__(self, state: OptInState, failures: FailureLog, loop: asyncio.AbstractEventLoop) -> None:
        self._state = state
        self.epoch = state.epoch
        self.future: CommandFuture[Purposes] = CommandFuture.make(failures, loop=loop)
        self.future.belongs_to(self)

    @property
    def ended(self) -> bool:
        return self.future.done()

    def park(self) -> None:
        """Wait."""

    def release(self) -> None:
        self.future.resolve("all")

    def fail(self, error: AlloyError) -> None:
        self.future.reject(error)

    def left(self) -> None:
        self._state.leave(self)


class _WhenOptedIn(_Waiter):
    name = "when_opted_in"

    def release(self) -> None:
        self.future.resolve(None)  # type: ignore[arg-type]  # a future of None, as its public signature says


class _WhenChosen(_Waiter):
    name = "wait"

    def fail(self, error: AlloyError) -> None:
        if isinstance(error, ConsentDeclined):
            self.future.resolve("none")
        else:
            super().fail(error)

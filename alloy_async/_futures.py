"""The futures that commands return, and what happens to failures that nobody looks at."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
from collections import Counter, deque
from collections.abc import Iterable
from typing import Any, Protocol, Self, TypeVar

from ._clock import Clock
from .errors import AlloyError, InvalidCommand

__all__ = ["CommandFuture", "FailureLog", "HomeLoop", "Owner", "cancel_all", "is_under_way"]

T = TypeVar("T")

CANCEL_TIME = 0.1
"""Seconds that closing waits for tasks it has cancelled."""

LOG_DELAY = 0.2
"""Seconds that failures are gathered before they are logged as one line."""


class Owner(Protocol):
    """Whatever stands behind a future, and wants to know that the caller left."""

    def left(self) -> None:
        """Take note that the caller cancelled the future."""


class _Tally:
    """What failed unheard, counted for one logger until it is said."""

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger
        self._noted: deque[str] = deque()
        self._examples: dict[str, str] = {}

    def count(self, error: AlloyError) -> None:
        """Count a failure; once the interpreter is exiting say the first of each kind, there is no later moment."""
        kind = type(error).__name__
        first = kind not in self._examples
        if first:  # a sentence for each of 100 000 would take its time
            self._examples[kind] = str(error)
        if not _exiting:
            self._noted.append(kind)
        elif first:
            self._logger.warning("%s that nobody awaited, at exit; the first: %s", kind, error)

    def say(self) -> None:
        """Log what was counted so far, a line for each kind."""
        kinds = Counter(self._noted.popleft() for _ in range(len(self._noted)))
        for kind, count in kinds.items():
            example = self._examples.pop(kind, "?")
            self._logger.warning("%d %s that nobody awaited; the first: %s", count, kind, example)


# Not held by the instances: a future that dies together with its instance still has somewhere to be counted.
_tallies: dict[str, _Tally] = {}
_exiting = False


@atexit.register
def _say_everything() -> None:
    global _exiting  # noqa: PLW0603 - there is one interpreter, and it exits once
    for tally in _tallies.values():
        tally.say()
    _exiting = True


def _forget_the_parents() -> None:
    """Leave it to the parent process to say what has failed there."""
    _tallies.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_the_parents)


class FailureLog:
    """Says once, with a count, what failed without anybody awaiting it.

    asyncio would log a traceback for each such future. A refused event that nobody awaits is no programming error,
    and ten thousand of them are one fact. It is said a moment later, when the instance is closed, or at exit.

    Args:
        logger: where the lines go.
        clock: when they go.
        errors_enabled: False turns every failure into the result None, and into a count here.
    """

    def __init__(self, logger: logging.Logger, clock: Clock, *, errors_enabled: bool = True) -> None:
        self.errors_enabled = errors_enabled
        self._clock = clock
        self._arranged = False
        self._tally = _tallies.setdefault(logger.name, _Tally(logger))

    def note(self, error: AlloyError, loop: asyncio.AbstractEventLoop) -> None:
        """Count a failure. May be called from a finaliser, hence from any thread."""
        self._tally.count(error)
        if not self._arranged:
            self._arranged = True
            with contextlib.suppress(RuntimeError):  # a closed loop: it is said at exit
                loop.call_soon_threadsafe(self._arrange)

    def flush(self) -> None:
        """Log what was counted so far."""
        self._arranged = False
        self._tally.say()

    def _arrange(self) -> None:
        self._clock.call_later(LOG_DELAY, self.flush)


class CommandFuture(asyncio.Future[T]):
    """What a command returns: an ordinary future that tells its owner when the caller cancels it.

    Cancelling reaches the owner before ``cancel()`` returns. A done-callback would come one turn of the loop later, in
    which the command could still be sent, and would cost a scheduled call for every command that simply ends.
    """

    __slots__ = ("_failures", "_owner")

    _failures: FailureLog
    _owner: Owner | None

    @classmethod
    def make(cls, failures: FailureLog, *, loop: asyncio.AbstractEventLoop | None = None) -> Self:
        """Make a future that has not ended.

        Not a constructor, which would be a call in Python around asyncio's own: half of the cost of the whole.

        Args:
            failures: where its failure is counted that nobody looked at.
            loop: its event loop; default: the one that runs.

        Raises:
            RuntimeError: none runs. A bare Future would take another one, where Python still makes one.
        """
        future = cls(loop=loop or asyncio.get_running_loop())
        future._failures = failures
        future._owner = None
        return future

    def cancel(self, msg: Any | None = None) -> bool:
        """Withdraw the command while it has not left; after that, only stop waiting for it."""
        cancelled = super().cancel(msg)
        owner, self._owner = self._owner, None
        if cancelled and owner is not None:
            owner.left()
        return cancelled

    def belongs_to(self, owner: Owner) -> None:
        """Name who is told when the caller cancels."""
        self._owner = owner

    def resolve(self, value: T) -> None:
        """End with a result, unless it has ended."""
        self._owner = None
        if not self.done():
            self.set_result(value)

    def reject(self, error: AlloyError, *, quiet: bool = False) -> None:
        """End with an error, unless it has ended; with None and a log line where errors are switched off.

        Args:
            error: what it ends with.
            quiet: whether nothing is logged when nobody looks at it, because it is said in another way.
        """
        self._owner = None
        if self.done():
            return
        if self._failures.errors_enabled:
            self.set_exception(error)
            self.__class__ = _FailedFuture  # pyright: ignore[reportAttributeAccessIssue]  # of the same shape
            if quiet:
                self.exception()
            return
        self.set_result(None)  # type: ignore[arg-type]  # what errors_enabled=False documents
        if not quiet:
            self._failures.note(error, self.get_loop())


class _FailedFuture(CommandFuture[T]):
    """One that ended with an error, and says so when nobody looked at it. The others need no finaliser, and die faster."""

    __slots__ = ()

    def __del__(self) -> None:
        # asyncio keeps in this flag whether a failure was looked at; it is what its own finaliser reads.
        if not self._log_traceback:
            return
        error = self.exception()  # looking at it clears the flag
        if isinstance(error, AlloyError):
            self._failures.note(error, self.get_loop())


def is_under_way(task: asyncio.Task[Any] | None) -> bool:
    """Return whether a task goes on: one that is cancelled before it begins runs nothing that could take note of its end."""
    return task is not None and not task.done()


async def cancel_all(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait for them, a moment at most: code of somebody else's may swallow a cancellation."""
    waiting = list(tasks)
    for task in waiting:
        task.cancel()
    if waiting:
        await asyncio.wait(waiting, timeout=CANCEL_TIME)


class HomeLoop:
    """Remembers the event loop that an object met first, and says plainly when another one comes."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None

    def check(self, command: str) -> asyncio.AbstractEventLoop:
        """Return the running loop.

        Raises:
            RuntimeError: no event loop runs in this thread.
            InvalidCommand: another loop runs than the one met first.
        """
        loop = asyncio.get_running_loop()
        if self._loop is None:
            self._loop = loop
        elif self._loop is not loop:
            raise InvalidCommand(command, OTHER_LOOP)
        return loop


OTHER_LOOP = (
    "called from another event loop or thread than the first command; create one Alloy for each loop, "
    "or hand the call over with loop.call_soon_threadsafe."
)

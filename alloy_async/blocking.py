"""The commands of ``Alloy`` for programs without an event loop: views of Flask and Django, tasks of Celery, threads.

One event loop on one daemon thread serves every ``BlockingAlloy`` of a process. It starts with the first command. A
forked child starts its own with its own first command, and never touches its parent's.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures
import contextlib
import contextvars
import logging
import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, TypeVar, Unpack, cast

from . import (
    Alloy,
    AlloyClosed,
    AlloyError,
    EventResult,
    InvalidCommand,
    Statistics,
    Visitor,
    _database,  # noqa: F401 - so that the loop stands still before files are closed for a fork, see below
)
from ._consent._rules import Choice, Purposes
from ._options import ConfigureOptions
from ._threads import start_thread
from .edge.state import ClientState, StateUpdate
from .outbox.base import Shelf

__all__ = ["DEFAULT_GRACE", "DEFAULT_TIMEOUT", "BlockingAlloy", "BlockingVisitor", "Outcome"]

T = TypeVar("T")

_Ended: TypeAlias = "asyncio.Future[T] | concurrent.futures.Future[T]"

DEFAULT_TIMEOUT = 10.0
"""Seconds that a call waits at most; ``timeout=None`` waits for ever."""

DEFAULT_GRACE = 5.0
"""Seconds that ``close`` waits for what is under way."""

EXIT_GRACE = 2.0
"""Seconds that the interpreter's exit waits for what is under way in instances that nobody has closed."""

RELEASE_TIME = 5.0
"""Seconds that closing may take beyond its grace, while connections and files are closed."""

STOP_TIME = 1.0
"""Seconds that the interpreter's exit waits for the thread to end."""

FORK_TIME = 2.0
"""Seconds that a fork waits at most for the loop to stand still."""

CANCEL_TIME = 0.1
"""Seconds that the loop waits, at its end, for tasks that it has cancelled."""

FORKED_UNHEARD = (
    "the process was forked without Python hearing of it, and has no thread of its own. In uWSGI set lazy-apps = true, or "
    "py-call-uwsgi-fork-hooks = true."
)
"""A new thread alone would not do: others of Python's and of ours that hear of a fork would not have been told either."""


class Outcome(concurrent.futures.Future[T]):
    """How a command ends that may have to wait for the visitor; returned at once.

    It is a ``concurrent.futures.Future``, for ``concurrent.futures.wait``, ``as_completed`` and
    ``asyncio.wrap_future``. Nobody has to look at it: a failure that nobody looked at is logged once, with a count.
    ``cancel()`` withdraws an event that has not been sent; after that it only stops the waiting, which then ends with
    ``concurrent.futures.CancelledError``. What is added with ``add_done_callback`` runs in the loop's thread and must not
    block.

    Attributes:
        command: the command, for example ``event``.
    """

    def __init__(self, command: str) -> None:
        super().__init__()
        self.command: str = command

    def result(self, timeout: float | None = DEFAULT_TIMEOUT) -> T:
        """Wait for the result.

        Args:
            timeout: seconds to wait at most; None waits for ever.

        Returns:
            What the future of the same command of ``Alloy`` ends with.

        Raises:
            AlloyError: what the command ended with.
            TimeoutError: it has not ended in time. It goes on, and may be waited for again.
            RuntimeError: an event loop runs in this thread, and waiting would stop it.
        """
        return self._wait(timeout).result()

    def exception(self, timeout: float | None = DEFAULT_TIMEOUT) -> BaseException | None:
        """Wait for the end.

        Args:
            timeout: seconds to wait at most; None waits for ever.

        Returns:
            What ``result`` would raise, or None.

        Raises:
            TimeoutError: it has not ended in time.
            RuntimeError: an event loop runs in this thread.
        """
        return self._wait(timeout).exception()

    def _wait(self, timeout: float | None) -> _Ended[T]:
        """Return the future that has ended.

        It is the result of the base class. Only reading its failure counts as having looked at that, and this is left
        to whoever asks for it.
        """
        if not self.done():
            _refuse_to_stop_a_loop(self.command)
        try:
            return cast("_Ended[T]", super().result(timeout))
        except TimeoutError:
            raise TimeoutError(
                f"{self.command}: not ended within {timeout} s; it goes on, and may be waited for again."
            ) from None


class _Call(Outcome[T]):
    """An outcome together with what it takes to carry the command out in the loop's thread.

    Args:
        command: the command.
        thread: where it is carried out.
    """

    def __init__(self, command: str, thread: _LoopThread) -> None:
        super().__init__(command)
        self._thread = thread
        self._source: asyncio.Future[T] | None = None

    def cancel(self) -> bool:
        """Withdraw the command while it has not left; after that, only stop waiting for it."""
        cancelled = super().cancel()
        if cancelled:
            with contextlib.suppress(AlloyError):  # the loop has ended, and the command with it
                self._thread.call_soon(self.command, self._leave)
        return cancelled

    def begin(self, carry_out: Callable[[], asyncio.Future[T]]) -> None:
        """Carry the command out, and end as it ends; call it in the loop's thread."""
        if self.cancelled():
            self.set_running_or_notify_cancel()
            return
        try:
            source = self._source = carry_out()
        except Exception as error:  # noqa: BLE001 - it is raised where the outcome is looked at
            self.fail(error)
            return
        if source.done():
            self._end(source)
        else:
            source.add_done_callback(self._end)

    def fail(self, error: Exception) -> None:
        """End with an error, without having been carried out."""
        failed: concurrent.futures.Future[T] = concurrent.futures.Future()
        failed.set_exception(error)
        self._end(failed)

    def _end(self, ended: _Ended[T]) -> None:
        if ended.cancelled():
            super().cancel()
        if self.set_running_or_notify_cancel():
            self.set_result(cast("T", ended))

    def _leave(self) -> None:
        if self._source is not None:
            self._source.cancel()


class _LoopThread:
    """One event loop on one daemon thread, for all instances of a process."""

    def __init__(self) -> None:
        # Reentrant: a signal handler, or a finaliser that the garbage collector runs, may come in between.
        self._lock = threading.RLock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._process = 0
        self._ended = False
        self._open: set[Alloy] = set()
        self._pauses: dict[int, _Pause] = {}

    def call_soon(self, command: str, callback: Callable[[], object]) -> None:
        """Have a function called in the loop's thread, which is started if it does not run.

        Not in the caller's context: whatever remembers that, a timer for one, would keep a web framework's request in
        memory for as long.

        Raises:
            AlloyClosed: the interpreter exits, or the thread is a parent process's.
            InvalidCommand: no thread could be started, or the process was forked without Python hearing of it.
        """
        with self._lock:
            if self._ended:
                raise AlloyClosed(command)
            if self._loop is not None and not self._is_ours():
                raise InvalidCommand(command, FORKED_UNHEARD)
            loop = self._loop or self._start(command)
            loop.call_soon_threadsafe(callback, context=contextvars.Context())

    def opened(self, alloy: Alloy) -> None:
        """Remember an instance that has to be closed at exit; call it in the loop's thread."""
        self._open.add(alloy)

    async def close(self, alloy: Alloy, grace: float) -> Statistics:
        """Close an instance, and forget it."""
        books = await alloy.aclose(grace)
        self._open.discard(alloy)
        return books

    def stand_still(self) -> None:
        """Let the loop stand still between two of its turns; call it in a thread that is about to fork.

        In the middle of a turn it may hold a lock, of a module that it imports for one, that nobody would ever release in
        the child.
        """
        loop = self._loop
        if loop is None or self._ended or threading.current_thread() is self._thread:
            return
        pause = self._pauses[threading.get_ident()] = _Pause()
        with contextlib.suppress(RuntimeError):  # the loop has just ended
            loop.call_soon_threadsafe(pause.stand)
            pause.standing.wait(FORK_TIME)

    def go_on(self) -> None:
        """Let the loop go on in the parent; call it in the thread that has forked."""
        pause = self._pauses.pop(threading.get_ident(), None)
        if pause is not None:
            pause.over.set()

    def leave_to_the_parent(self) -> None:
        """Never touch again, in a forked child, what belongs to the parent process."""
        _of_the_parent.append((self._loop, self._thread, self._open))
        self._lock = threading.RLock()  # a thread that does not exist here may hold the other one
        self._ended, self._loop, self._thread, self._open = True, None, None, set()

    def end(self) -> None:
        """Close what is open and end the thread; whatever hangs there is left to hang."""
        with self._lock:
            self._ended, loop, thread = True, self._loop, self._thread
        if loop is None or thread is None or not self._is_ours():
            return
        closed: _Call[Any] = _Call("close", self)
        loop.call_soon_threadsafe(closed.begin, self._close_all)
        with contextlib.suppress(TimeoutError):
            closed.result(EXIT_GRACE + RELEASE_TIME)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(STOP_TIME)

    def _is_ours(self) -> bool:
        """Return whether the thread runs in this process."""
        return self._process == os.getpid()

    def _close_all(self) -> asyncio.Future[Any]:
        return asyncio.gather(
            *(self.close(alloy, EXIT_GRACE) for alloy in self._open), return_exceptions=True
        )

    def _start(self, command: str) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        loop.set_default_executor(_DaemonThreads())
        try:
            thread = start_thread(_run, loop, name="alloy-blocking")
        except RuntimeError as error:
            loop.close()
            raise InvalidCommand(command, f"no thread could be started ({error}).") from None
        self._loop, self._thread, self._process = loop, thread, os.getpid()
        return loop


class _Pause:
    """A turn of the loop in which nothing happens until a fork is over."""

    def __init__(self) -> None:
        self.standing = threading.Event()
        self.over = threading.Event()

    def stand(self) -> None:
        self.standing.set()
        self.over.wait(DEFAULT_TIMEOUT)


class _DaemonThreads(concurrent.futures.ThreadPoolExecutor):
    """Runs each job on a daemon thread of its own; asyncio looks up host names here.

    The usual executor takes nothing more once the interpreter exits, so that the last events would fail for want of an
    address; and Python waits for its threads, so that a look-up that hangs would hold the exit.
    """

    def submit(self, work: Callable[..., T], /, *args: Any, **options: Any) -> concurrent.futures.Future[T]:
        """Run a function; the future ends with what it returns or raises."""
        future: concurrent.futures.Future[T] = concurrent.futures.Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work(*args, **options))
            except BaseException as error:  # noqa: BLE001 - it is raised where the future is looked at
                future.set_exception(error)

        try:
            start_thread(run, name="alloy-lookup")
        except RuntimeError:  # Python 3.12 starts no thread at exit
            run()
        return future


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(_wind_up(loop))
        loop.close()


async def _wind_up(loop: asyncio.AbstractEventLoop) -> None:
    """Leave nothing behind that asyncio would complain of; only what could not be closed in time is still there."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=CANCEL_TIME)
    await loop.shutdown_asyncgens()


class _Commands(ABC):
    """The commands that a whole instance and one visitor's view have in common.

    Args:
        alloy: whose commands they are.
        commands: what carries them out.
    """

    def __init__(self, alloy: Alloy, commands: Alloy | Visitor) -> None:
        self._alloy = alloy
        self._commands = commands

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def close(self) -> object:
        """End what these commands belong to; the end of a ``with`` block does so."""

    def event(
        self,
        *,
        xdm: object = None,
        data: object = None,
        type: str | None = None,  # noqa: A002 - the name Adobe gives it
        merge_id: str | None = None,
        view_start: bool = False,
        decision_scopes: Sequence[str] = (),
        ack: Literal["delivered", "stored"] = "delivered",
    ) -> Outcome[EventResult]:
        """Record that something happened; returns at once, whether or not the visitor has chosen.

        The moment, the event's ``_id`` and a snapshot of the arguments are taken before it returns; later changes to
        them change nothing.

        Args:
            xdm: as in ``Alloy.event``, like the others.
            data: anything else that JSON can hold.
            type: sets ``xdm.eventType``.
            merge_id: sets ``xdm.eventMergeId``.
            view_start: whether the answer is wanted, because a page begins.
            decision_scopes: scopes to ask decisions for.
            ack: when the outcome ends, "delivered" or "stored".

        Returns:
            The event's outcome. Wrong arguments end it with ``InvalidCommand``; nothing is raised here because of them.

        Raises:
            RuntimeError: an event loop runs in this thread.
        """
        # Its arguments are named once more: an unknown one raises at the call, and not in the loop's thread.
        return self._hand_over(
            "event",
            lambda: self._commands.event(
                xdm=xdm,
                data=data,
                type=type,
                merge_id=merge_id,
                view_start=view_start,
                decision_scopes=decision_scopes,
                ack=ack,
            ),
        )

    def get_ecid(self) -> Outcome[str]:
        """Ask for the visitor's id at the edge (ECID); waits for consent, so it returns at once.

        Returns:
            The outcome: 38 digits, or the errors of ``event``.

        Raises:
            RuntimeError: an event loop runs in this thread.
        """
        return self._hand_over("get_ecid", self._commands.get_ecid)

    def set_customer_ids(self, customer_ids: Mapping[str, Mapping[str, Any]]) -> Outcome[None]:
        """Tell who the visitor is in systems of yours; waits for consent, so it returns at once.

        Args:
            customer_ids: as in ``Alloy.set_customer_ids``.

        Returns:
            The outcome: None, or the errors of ``event``.

        Raises:
            RuntimeError: an event loop runs in this thread.
        """
        return self._hand_over("set_customer_ids", lambda: self._commands.set_customer_ids(customer_ids))

    def opt_in(self, *, purposes: str | None = None, timeout: float | None = DEFAULT_TIMEOUT) -> Purposes:
        """Tell what the visitor chose, and wait until the choice survives ``kill -9``.

        Args:
            purposes: "all" or "none", in any letter case.
            timeout: seconds to wait at most; None waits for ever.

        Returns:
            The choice that holds: of two calls that overlap the later one.

        Raises:
            AlloyError: as the future of ``Alloy.opt_in``.
            TimeoutError: it is not written in time; that is never withdrawn, and "none" holds all the same.
            RuntimeError: an event loop runs in this thread.
        """
        return self._wait_for("opt_in", lambda: self._commands.opt_in(purposes=purposes), timeout)

    def forget(self, *, timeout: float | None = DEFAULT_TIMEOUT) -> Purposes:
        """Erase the visitor's choice, identity and waiting events, and wait until that is done.

        Args:
            timeout: seconds to wait at most; None waits for ever.

        Returns:
            "pending", or a later choice that has overtaken it.

        Raises:
            AlloyError: as the future of ``Alloy.forget``.
            TimeoutError: it is not erased in time; that goes on.
            RuntimeError: an event loop runs in this thread.
        """
        return self._wait_for("forget", self._commands.forget, timeout)

    def _hand_over(self, command: str, carry_out: Callable[[], asyncio.Future[T]]) -> Outcome[T]:
        """Have a command carried out in the loop's thread, and wait until it was taken, not until it has ended.

        Waiting costs a change of threads, about a tenth of a millisecond. Without it the arguments could change before
        they are read, and whoever is faster than the loop would fill its memory.
        """
        outcome, taken = _carry_out_soon(self._alloy, command, carry_out)
        try:
            if taken.wait(DEFAULT_TIMEOUT) or not outcome.cancel():
                return outcome
        except BaseException:  # whoever is interrupted may change the arguments
            outcome.cancel()
            raise
        return _not_taken(self._alloy, command)

    def _wait_for(self, command: str, carry_out: Callable[[], asyncio.Future[T]], timeout: float | None) -> T:
        """Have a command carried out in the loop's thread, and return its result."""
        outcome, _ = _carry_out_soon(self._alloy, command, carry_out)
        try:
            return outcome.result(timeout)
        finally:
            outcome.cancel()  # where nobody waits any more

    def _ask(self, command: str, question: Callable[[], T]) -> T:
        """Return what a function returns in the loop's thread, where alone the state may be read."""

        def answer() -> asyncio.Future[T]:
            future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
            future.set_result(question())
            return future

        return self._wait_for(command, answer, DEFAULT_TIMEOUT)


class BlockingAlloy(_Commands):
    """``Alloy`` for programs without an event loop; every thread may call it.

    What may have to wait for the visitor, ``event``, ``get_ecid`` and ``set_customer_ids``, returns an ``Outcome`` at
    once: no view waits for a visitor who has not chosen. Everything else waits, ``timeout`` seconds at most, and
    returns its result or raises its error.

    ::

        alloy = BlockingAlloy("shop")
        alloy.configure(config_id="…", ims_org_id="…@AdobeOrg", opt_in_enabled=True)
        order = alloy.event(type="commerce.purchases", xdm={...})
        alloy.opt_in(purposes="all")
        result = order.result()

    It may be made when a module is imported: its thread starts with the first command. In a forked child it begins anew
    as ``Alloy`` does, on a thread of that child. Hooks and ``on_before_event_send`` run in the loop's thread and hold
    up everybody while they block. An instance that nobody has closed is closed at exit, within 2 seconds of grace.

    Args:
        name: tells several instances apart in logs; letters, digits, ``_`` and ``-``.

    Raises:
        ConfigurationError: at once; the name cannot be used.
    """

    def __init__(self, name: str = "alloy") -> None:
        alloy = Alloy(name)
        super().__init__(alloy, alloy)
        self.name: str = alloy.name

    def __call__(self, command: str, options: Mapping[str, Any] | None = None) -> Outcome[Any]:
        """Call a command as the JavaScript SDK spells it; each returns an ``Outcome`` at once.

        Args:
            command: for example ``"optIn"``; our own names are taken too.
            options: with the keys of the JavaScript SDK, or ours.

        Returns:
            What the command ends with; ``InvalidCommand`` for an unknown command or option, with the nearest match.

        Raises:
            RuntimeError: an event loop runs in this thread.
        """
        return self._hand_over(str(command), lambda: self._alloy(command, options))

    def configure(
        self, /, *, timeout: float | None = DEFAULT_TIMEOUT, **options: Unpack[ConfigureOptions]
    ) -> None:
        """Say where events go, and whether commands wait for consent.

        Args:
            timeout: seconds to wait at most; None waits for ever.
            options: see ``Settings``; arguments win over ``ALLOY_…`` environment variables, these over defaults.

        Raises:
            AlloyError: as the future of ``Alloy.configure``; it may be called again then.
            TimeoutError: it has not ended in time. It goes on; commands wait for it, in order.
            RuntimeError: an event loop runs in this thread.
        """
        self._wait_for("configure", lambda: self._alloy.configure(**options), timeout)

    def visitor(
        self,
        key: str | None = None,
        *,
        purposes: Choice | None = None,
        seen_at: float | None = None,
        fpid: str | None = None,
        ecid: str | None = None,
        context: Mapping[str, Any] | None = None,
        state: ClientState | None = None,
    ) -> BlockingVisitor:
        """Return a view of one visitor among many, with a consent, an identity and an order of its own.

        Args:
            key: the application's own name for the visitor (session, account); never something that the visitor's
                browser can choose.
            purposes: as in ``Alloy.visitor``, like the others.
            seen_at: seconds since 1970 of the newest choice that the browser has seen.
            fpid: the first-party id that the browser has.
            ecid: the ECID that the browser has.
            context: XDM that is merged under each event; read before this returns.
            state: what the browser keeps for the edge.

        Raises:
            NotConfigured: ``configure`` was not called, or has failed.
            AlloyClosed: the instance is closed.
            InvalidCommand: an argument cannot be used.
            RuntimeError: an event loop runs in this thread.
        """
        visitor = self._ask(
            "visitor",
            lambda: self._alloy.visitor(
                key, purposes=purposes, seen_at=seen_at, fpid=fpid, ecid=ecid, context=context, state=state
            ),
        )
        return BlockingVisitor(self._alloy, visitor)

    def create_event_merge_id(self, *, timeout: float | None = DEFAULT_TIMEOUT) -> str:
        """Make an id with which several events are merged into one; see ``merge_id`` of ``event``.

        Args:
            timeout: seconds to wait at most; None waits for ever.
        """
        return self._wait_for("create_event_merge_id", self._alloy.create_event_merge_id, timeout)

    def get_library_info(self, *, timeout: float | None = DEFAULT_TIMEOUT) -> dict[str, Any]:
        """Describe this instance; see ``Alloy.get_library_info``.

        Args:
            timeout: seconds to wait at most; None waits for ever.
        """
        return self._wait_for("get_library_info", self._alloy.get_library_info, timeout)

    def debug(self, *, enabled: bool, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """Switch this instance's debug log on or off (logger ``alloy_async.NAME``).

        Args:
            enabled: whether each step is logged.
            timeout: seconds to wait at most; None waits for ever.
        """
        self._wait_for("debug", lambda: self._alloy.debug(enabled=enabled), timeout)

    def get_outbox_info(self, *, timeout: float | None = DEFAULT_TIMEOUT) -> Shelf:
        """Tell how the outbox stands; see ``Alloy.get_outbox_info``.

        Args:
            timeout: seconds to wait at most; None waits for ever.

        Raises:
            OutboxError: it cannot be read.
        """
        return self._wait_for("get_outbox_info", self._alloy.get_outbox_info, timeout)

    def flush(self, *, timeout: float | None = DEFAULT_TIMEOUT) -> None:
        """Wait until every event that was released so far has an outcome; parked events are not waited for.

        Args:
            timeout: seconds to wait at most; None waits for ever.

        Raises:
            TimeoutError: some are still under way.
            RuntimeError: an event loop runs in this thread.
        """
        self._wait_for("flush", self._alloy.flush, timeout)

    def statistics(self) -> Statistics:
        """Return what became of this instance's events so far."""
        return self._ask("statistics", self._alloy.statistics)

    def close(self, grace: float = DEFAULT_GRACE) -> Statistics:
        """Stop accepting, send what is released, and end everything else with ``AlloyClosed``.

        A second call waits for the first. The thread goes on for other instances.

        Args:
            grace: seconds to wait for what is under way.

        Returns:
            The final books; nothing is open in them.

        Raises:
            TimeoutError: closing hangs, for example because a hook blocks; it took 5 seconds more than its grace.
            RuntimeError: an event loop runs in this thread.
        """
        return self._wait_for(
            "close", lambda: asyncio.ensure_future(_thread.close(self._alloy, grace)), grace + RELEASE_TIME
        )


class BlockingVisitor(_Commands):
    """``Visitor`` for programs without an event loop; made by ``BlockingAlloy.visitor``.

    A view without a key ends with ``close()`` or with its ``with`` block. Views with a key need no end.

    Args:
        alloy: the instance.
        visitor: the view.
    """

    def __init__(self, alloy: Alloy, visitor: Visitor) -> None:
        super().__init__(alloy, visitor)
        self._visitor = visitor

    @property
    def key(self) -> str | None:
        """The application's own name for the visitor; None for one of whom nothing is kept."""
        return self._visitor.key

    @property
    def purposes(self) -> Purposes:
        """What is known of the visitor's choice here and now: "all", "none" or "pending"."""
        return self._ask("purposes", lambda: self._visitor.purposes)

    def get_purposes(self, *, timeout: float | None = DEFAULT_TIMEOUT) -> Purposes:
        """Return the visitor's choice, once the one that is kept has been read; ``purposes`` does not wait for that.

        Args:
            timeout: seconds to wait at most; None waits for ever.
        """
        return self._wait_for("get_purposes", self._visitor.get_purposes, timeout)

    @property
    def chosen_at(self) -> float | None:
        """When the visitor chose, in seconds since 1970; None while no choice is known."""
        return self._ask("chosen_at", lambda: self._visitor.chosen_at)

    @property
    def fpid(self) -> str | None:
        """The visitor's first-party id; None without consent, and before anything needed one."""
        return self._ask("fpid", lambda: self._visitor.fpid)

    @property
    def ecid(self) -> str | None:
        """The visitor's id at the edge, where it is known; None without consent."""
        return self._ask("ecid", lambda: self._visitor.ecid)

    @property
    def state_updates(self) -> tuple[StateUpdate, ...]:
        """What the edge has handed back to be kept by the visitor's browser, since this view was made."""
        return self._ask("state_updates", lambda: self._visitor.state_updates)

    def browser_payload(self) -> dict[str, Any]:
        """Return what the page hands to ``applyResponse`` of the browser SDK: the newest answer of the edge."""
        return self._ask("browser_payload", self._visitor.browser_payload)

    def close(self) -> None:
        """End the view: of one without a key, what still waits for consent ends with it."""
        self._ask("close", self._visitor.close)


def _carry_out_soon(
    alloy: Alloy, command: str, carry_out: Callable[[], asyncio.Future[T]]
) -> tuple[Outcome[T], threading.Event]:
    """Have a command carried out in the loop's thread; return its outcome, and what tells that it was taken.

    Raises:
        RuntimeError: an event loop runs in this thread.
    """
    _refuse_to_stop_a_loop(command)
    thread, taken = _thread, threading.Event()
    outcome: _Call[T] = _Call(command, thread)

    def take() -> None:
        thread.opened(alloy)
        outcome.begin(carry_out)
        taken.set()

    try:
        thread.call_soon(command, take)
    except AlloyError as error:
        outcome.fail(error)
        taken.set()
    return outcome, taken


def _refuse_to_stop_a_loop(command: str) -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise RuntimeError(
        f"{command}: an event loop runs in this thread, and waiting would stop it; "
        f"use alloy_async.Alloy here, whose {command}() is awaited."
    )


def _not_taken(alloy: Alloy, command: str) -> Outcome[Any]:
    """Return the outcome of a command for which the loop had no time; it was withdrawn."""
    problem = (
        f"the loop did not take it within {DEFAULT_TIMEOUT:g} s; a hook or filter that blocks holds it up."
    )
    error = InvalidCommand(command, problem)
    logging.getLogger(f"alloy_async.{alloy.name}").warning("%s", error)
    outcome: _Call[Any] = _Call(command, _thread)
    outcome.fail(error)
    return outcome


_thread = _LoopThread()

_of_the_parent: list[object] = []
"""What a forked child has inherited. To collect it would close what the parent uses."""


def _about_to_fork() -> None:
    _thread.stand_still()


def _forked_in_parent() -> None:
    _thread.go_on()


def _forked() -> None:
    global _thread  # noqa: PLW0603 - there is one for each process
    _thread.leave_to_the_parent()
    _thread = _LoopThread()


if hasattr(os, "register_at_fork"):
    # What is registered later prepares earlier: a loop that waits for a file which is closed for the fork cannot stand still.
    os.register_at_fork(before=_about_to_fork, after_in_parent=_forked_in_parent, after_in_child=_forked)

# An instance says what it could not send in a weakref.finalize, whose functions are called at exit by one that joins
# atexit with the first of them. What joins later is called earlier: instances are closed first.
weakref.finalize(BlockingAlloy, lambda: None).detach()


@atexit.register
def _end_at_exit() -> None:
    _thread.end()

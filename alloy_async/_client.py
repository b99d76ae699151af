"""``Alloy``: the face. Each command checks what it is given and hands it down; answers come back through futures."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import re
import weakref
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from ._clock import SystemClock
from ._consent._rules import Choice
from ._engine import Engine, make_clock
from ._futures import CommandFuture, FailureLog, HomeLoop, cancel_all
from ._ledger import Ledger, Statistics
from ._options import BROWSER_ONLY, ConfigureOptions
from ._personal import PersonalCommands, carry_out
from ._spellings import COMMANDS, translate
from ._version import __version__
from .errors import (
    AlloyClosed,
    AlloyError,
    ConfigurationError,
    InvalidCommand,
    NotConfigured,
)
from .outbox.base import Shelf
from .visitor import Access, ClientState, Visitor

if TYPE_CHECKING:
    from ._visitor import VisitorState
    from .settings import Settings

__all__ = ["Alloy"]

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,63}")

_instances: weakref.WeakSet[Alloy] = weakref.WeakSet()

_of_the_parent: list[object] = []


def _forked() -> None:
    for instance in list(_instances):
        instance._begin_anew()  # noqa: SLF001 - of this module's own class


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)

RELAY_EVERY = 0.1
"""Seconds between two looks for what others have stored."""

DEFAULT_GRACE = 5.0
"""Seconds that closing waits for what is under way."""


class Alloy(PersonalCommands):
    """Collects events, and only with the person's consent.

    Every command is a plain call that returns an ``asyncio.Future`` at once. The future ends exactly once: with a
    result, with an ``AlloyError``, or by the caller's own ``cancel()``. Wrong arguments travel in the future too; only
    an unknown keyword and a missing event loop raise at the call.

    ::

        async with Alloy() as alloy:
            await alloy.configure(config_id="…", ims_org_id="…@AdobeOrg", opt_in_enabled=True)
            order = alloy.event(type="commerce.purchases", xdm={...})
            await alloy.opt_in(purposes="all")
            result = await order

    The spelling of the JavaScript SDK works as well: ``await alloy("optIn", {"purposes": "all"})``.

    An instance belongs to the event loop of its first command; in another loop its futures end with
    ``InvalidCommand``. It may be made before any loop runs. Its own commands speak for one person; ``visitor`` returns a
    view of one among many. In a forked child it begins anew: it has no events, and its
    first command configures it as the parent was, unless the application brought the client or transport.

    Args:
        name: tells several instances apart in logs; letters, digits, ``_`` and ``-``.

    Raises:
        ConfigurationError: at once; the name cannot be used.
    """

    def __init__(self, name: str = "alloy") -> None:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ConfigurationError(
                "name: must be 1 to 64 letters, digits, _ or -, and begin with a letter.", option="name"
            )
        self.name = name
        self._logger = logging.getLogger(f"alloy_async.{name}")
        self._home = HomeLoop()
        self._ledger = Ledger()
        self._failures = FailureLog(self._logger, SystemClock())
        self._engine: Engine | None = None
        self._closing: asyncio.Task[None] | None = None
        self._starting: CommandFuture[None] | None = None
        self._asking: set[asyncio.Task[Shelf]] = set()
        self._inherited: Settings | None = None
        self._access = Access(self._ready, lambda: self._failures)
        _instances.add(self)

    def __call__(self, command: str, options: Mapping[str, Any] | None = None) -> asyncio.Future[Any]:
        """Call a command as the JavaScript SDK spells it.

        Args:
            command: for example ``"optIn"``; our own names are taken too.
            options: with the keys of the JavaScript SDK, or ours.

        Returns:
            What the command returns; ``InvalidCommand`` for an unknown command or option, with the nearest match.
        """
        try:
            method, keywords = translate(command, options)
        except AlloyError as error:
            failed: CommandFuture[Any] = CommandFuture.make(self._failures)
            failed.reject(error)
            return failed
        future: asyncio.Future[Any] = getattr(self, method)(**keywords)
        return future

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    def configure(self, /, **options: Unpack[ConfigureOptions]) -> asyncio.Future[None]:
        """Say where events go, and whether commands wait for consent.

        Commands that are called before the future has ended wait for it, in order.

        Args:
            options: see ``Settings``; arguments win over ``ALLOY_…`` environment variables, these over defaults.

        Returns:
            A future that ends with None; with ``ConfigurationError`` when an option cannot be used, when the instance
            is configured already, or when consent is switched off although a refusal is kept; with
            ``ConsentStoreError`` when consent is switched off and the store cannot say whether a refusal is kept; with
            ``OutboxError`` when the durable outbox cannot be used.
            After a failure ``configure`` may be called again.

        Source: adobe/alloy, configure.
        """
        future: CommandFuture[None] = CommandFuture.make(
            self._failures
        )  # raises RuntimeError where no loop runs
        try:
            self._check_open("configure")
        except AlloyError as error:
            future.reject(error.with_traceback(None))
            return future
        carry_out("configure", lambda: self._configure(future, options), future)
        return future

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
    ) -> Visitor:
        """Return a view of one visitor among many: the same commands, with a consent, an identity and an order of its own.

        Views of one key share everything. What one of them parks another one releases, in whichever request the visitor
        says yes. Without a key nothing is kept, and what is parked ends with the view: ``close``.

        Args:
            key: the application's own name for the visitor (session, account), at most 200 characters; never something
                that the visitor's browser can choose.
            purposes: what the visitor's browser says now, "all" or "none"; None: nothing. A yes never lifts a refusal
                that the browser had not seen.
            seen_at: seconds since 1970 of the newest choice that the browser has seen.
            fpid: the first-party id that the browser has, a UUIDv4; used once there is consent.
            ecid: the ECID that the browser has, 38 digits; likewise.
            context: XDM that is merged under each event: the page, the browser. It names no person.
            state: what the browser keeps for the edge; goes up with events that need an answer.

        Raises:
            NotConfigured: at the call; ``configure`` was not called, or has failed.
            AlloyClosed: at the call; the instance is closed.
            InvalidCommand: at the call; an argument cannot be used, or another event loop runs.
            RuntimeError: at the call; no event loop runs in this thread.
        """
        return Visitor(
            self._access,
            key,
            purposes=purposes,
            seen_at=seen_at,
            fpid=fpid,
            ecid=ecid,
            context=context,
            state=state,
        )

    def create_event_merge_id(self) -> asyncio.Future[str]:
        """Make an id with which several events are merged into one; see ``merge_id`` of ``event``.

        Returns:
            A future that ends with a UUID.

        Source: adobe/alloy, createEventMergeId. There the result is an object since 2020; here it is the text.
        """
        return self._command(
            "create_event_merge_id", lambda engine, future: future.resolve(engine.ids()), after=True
        )

    def get_library_info(self) -> asyncio.Future[dict[str, Any]]:
        """Describe this instance.

        Returns:
            A future that ends with ``{"name", "version", "commands", "settings"}``; settings hold no secrets.

        Source: adobe/alloy, getLibraryInfo.
        """
        return self._command(
            "get_library_info", lambda engine, future: future.resolve(self._library_info(engine)), after=True
        )

    def debug(self, *, enabled: bool) -> asyncio.Future[None]:
        """Switch this instance's debug log on or off (logger ``alloy_async.NAME``).

        Args:
            enabled: whether each step is logged.

        Source: adobe/alloy, setDebug; log (2019).
        """
        return self._command("debug", lambda _, future: self._debug(future, enabled=enabled), after=True)

    def get_outbox_info(self) -> asyncio.Future[Shelf]:
        """Tell how the outbox stands: what waits in it, and whether erased data may still be readable in its file.

        Returns:
            A future that ends with a ``Shelf``; with ``OutboxError`` when the outbox cannot be read.
        """
        return self._command("get_outbox_info", self._get_outbox_info, after=True)

    def flush(self) -> asyncio.Future[None]:
        """Wait until every event that was released so far has an outcome; parked events are not waited for.

        With a durable outbox also what an earlier start has left.

        Returns:
            A future that ends with None.
        """
        return self._command("flush", lambda engine, future: engine.flush(future), after=True)

    async def relay(self, every: float = RELAY_EVERY) -> None:
        """Send what other processes store in the outbox (``relay=True``), until it is cancelled.

        Whoever stored an event had the consent; a refusal erases it. So a relay itself asks for none
        (``opt_in_enabled=False``).

        Args:
            every: seconds between two looks.
        """
        while True:
            self._ready("relay").take_over()
            await asyncio.sleep(every)

    def statistics(self) -> Statistics:
        """Return what became of this instance's events so far."""
        return self._ledger.statistics()

    async def aclose(self, grace: float = DEFAULT_GRACE) -> Statistics:
        """Stop accepting, send what is released, and end everything else with ``AlloyClosed``.

        Cancelling the caller does not stop it. A second call waits for the first.

        Args:
            grace: seconds to wait for what is under way; 0 or less: nothing is waited for.

        Returns:
            The final books; nothing is open in them.

        Raises:
            InvalidCommand: the grace is no number, or another event loop runs; the instance stays open.
        """
        if self._closing is None:
            self._home.check("aclose")
            _check_grace(grace)
            self._closing = asyncio.get_running_loop().create_task(self._close(grace), name="alloy-close")
        await asyncio.shield(self._closing)
        return self.statistics()

    # How a command is carried out

    def _check_open(self, name: str) -> None:
        self._home.check(name)
        if self._closing is not None:
            raise AlloyClosed(name)

    def _ready(self, name: str) -> Engine:
        """Return the engine that carries out a command, here and now.

        Raises:
            InvalidCommand: another event loop runs than the one met first.
            AlloyClosed: the instance is closed, or being closed.
            NotConfigured: there is none.
        """
        self._check_open(name)
        return self._engine or self._configure_again(name)

    @property
    def _failures_here(self) -> FailureLog:
        return self._failures

    def _state(self, engine: Engine) -> VisitorState:
        return engine.visitor

    def _configure(self, future: CommandFuture[None], options: Mapping[str, Any]) -> None:
        if self._engine is not None:
            raise ConfigurationError(
                "the instance is configured already; make another Alloy for other options."
            )
        from .settings import Settings  # noqa: PLC0415 - pydantic takes most of the import time; see _options

        settings = Settings.resolve(options)
        ignored = sorted(BROWSER_ONLY & options.keys())
        if ignored:
            self._logger.warning("ignored, they mean something in a browser only: %s", ", ".join(ignored))
        self._inherited = None
        self._start(settings, future)

    def _start(self, settings: Settings, future: CommandFuture[None]) -> Engine:
        if settings.debug_enabled:
            self._logger.setLevel(logging.DEBUG)
        failures = FailureLog(self._logger, make_clock(settings), errors_enabled=settings.errors_enabled)
        engine = Engine(settings, self._ledger, failures, self._logger, self._home)
        self._failures, self._engine = failures, engine
        task = asyncio.get_running_loop().create_task(engine.start(), name="alloy-configure")
        task.add_done_callback(lambda task: self._configure_ended(task, engine, future))
        engine.starting = task
        self._starting = future
        return engine

    def _configure_ended(self, task: asyncio.Task[None], engine: Engine, future: CommandFuture[None]) -> None:
        error = AlloyClosed("configure") if task.cancelled() else task.exception()
        if error is None:
            future.resolve(None)
            return
        engine.refuse_all()  # one that is cancelled before its first step does not do so itself
        if self._engine is engine:
            self._engine = None
        known = isinstance(error, AlloyError)
        future.reject(error if known else ConfigurationError(f"internal error ({type(error).__name__})."))  # type: ignore[arg-type]  # known says so

    # After a fork

    def _begin_anew(self) -> None:
        """Be a new instance in a forked child: what is under way belongs to the parent, its sockets and files too.

        The parent's things are kept and never touched. Collecting them would close what the parent uses, and asyncio
        would warn of tasks that never end.
        """
        if self._engine is not None:
            self._inherited = self._engine.settings
        _of_the_parent.append(
            (self._engine, self._closing, self._starting, self._asking, self._home, self._ledger)
        )
        self._home = HomeLoop()
        self._ledger = Ledger()
        self._failures = FailureLog(self._logger, SystemClock())
        self._engine = self._closing = self._starting = None
        self._asking = set()

    def _configure_again(self, command: str) -> Engine:
        """Configure as the parent process was; anything but that is for the application to say.

        Raises:
            NotConfigured: there was no parent, or its connections were the application's own.
        """
        settings, self._inherited = self._inherited, None
        if settings is None or settings.client is not None or not isinstance(settings.transport, str):
            raise NotConfigured(command)
        return self._start(settings, CommandFuture.make(self._failures))

    def _debug(self, future: CommandFuture[None], *, enabled: bool) -> None:
        if not isinstance(enabled, bool):
            raise InvalidCommand("debug", "must be True or False.", path="enabled")
        self._logger.setLevel(logging.DEBUG if enabled else logging.NOTSET)
        future.resolve(None)

    def _library_info(self, engine: Engine) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": __version__,
            "commands": sorted(set(COMMANDS.values())),
            "settings": engine.settings.describe(),
        }

    def _get_outbox_info(self, engine: Engine, future: CommandFuture[Shelf]) -> None:
        task = asyncio.get_running_loop().create_task(engine.shelf(), name="alloy-outbox-info")
        self._asking.add(task)
        task.add_done_callback(lambda task: self._told_outbox_info(task, future))

    def _told_outbox_info(self, task: asyncio.Task[Shelf], future: CommandFuture[Shelf]) -> None:
        self._asking.discard(task)
        error = AlloyClosed("get_outbox_info") if task.cancelled() else task.exception()
        if error is None:
            future.resolve(task.result())
        else:
            future.reject(error if isinstance(error, AlloyError) else AlloyError(type(error).__name__))

    async def _close(self, grace: float) -> None:
        if self._engine is not None:
            await self._engine.stop(grace)
        if self._starting is not None:
            self._starting.reject(AlloyClosed("configure"))
        await cancel_all(self._asking)
        self._failures.flush()


def _check_grace(grace: object) -> None:
    """Refuse what no timer can count: not a number would also keep every other timer of the loop from ringing."""
    if isinstance(grace, bool) or not isinstance(grace, (int, float)) or math.isnan(grace):
        raise InvalidCommand("aclose", "must be a number of seconds.", path="grace")

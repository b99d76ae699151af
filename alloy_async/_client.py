"""``Alloy``: the face. Each command checks what it is given and hands it down; answers come back through futures."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, Unpack

from ._clock import SystemClock
from ._commands import GatedCall
from ._consent._rules import Purposes, parse_choice
from ._engine import Engine, make_clock
from ._event import build_event
from ._futures import CommandFuture, FailureLog, HomeLoop, cancel_all
from ._json import Unfit
from ._ledger import Ledger, Statistics
from ._options import BROWSER_ONLY, ConfigureOptions
from ._spellings import COMMANDS, translate
from ._version import __version__
from .edge.protocol import EventResult
from .errors import (
    AlloyClosed,
    AlloyError,
    ConfigurationError,
    InvalidCommand,
    NotConfigured,
)
from .identity import parse_customer_ids
from .outbox.base import Shelf

if TYPE_CHECKING:
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

DEFAULT_GRACE = 5.0
"""Seconds that closing waits for what is under way."""


class Alloy:
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

    An instance belongs to the event loop of its first command; in another loop or thread its futures end with
    ``InvalidCommand``. It may be made before any loop runs. In a forked child it begins anew: it has no events, and its
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
            return self._failed(error)
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
        return self._command("configure", lambda future: self._configure(future, options), needs_engine=False)

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
    ) -> asyncio.Future[EventResult]:
        """Record that something happened.

        The moment, the event's ``_id`` and a snapshot of the arguments are taken now; later changes to them change
        nothing. What ``xdm`` says wins over everything that is added.

        Args:
            xdm: an object in XDM: a mapping, a dataclass or a pydantic model.
            data: anything else that JSON can hold.
            type: sets ``xdm.eventType``.
            merge_id: sets ``xdm.eventMergeId``.
            view_start: whether the answer is wanted, because a page begins.
            decision_scopes: scopes to ask decisions for, at most 30; the answer's ``propositions`` hold them.
            ack: when the future ends: "delivered", the edge has taken the event, or "stored", the event is safe in a
                durable outbox and will be sent, by a later start if need be.

        Returns:
            A future that ends with this event's own ``EventResult``. With ``InvalidCommand`` or ``EventTooLarge`` when
            it cannot be sent at all; with ``ConsentDeclined``, ``ConsentTimeout``, ``ParkingFull`` or ``OutboxFull``
            when it was not sent; with ``OutboxError`` when it could not be stored; with ``EdgeError`` or
            ``NetworkError`` when the last of its attempts has failed; with ``NotConfigured`` or
            ``AlloyClosed`` out of time. Cancelling it withdraws the event while it has not been sent; after that it
            only stops the waiting.

        Source: adobe/alloy, event (2019) and sendEvent.
        """
        # Written out and not through _command: of all commands only this one is called thousands of times a second.
        future: CommandFuture[EventResult] = CommandFuture.make(self._failures)
        try:
            engine = self._ready("event")
            needs_answer = _needs_answer(view_start, decision_scopes)
            if ack != "delivered":
                _check_ack(ack, durable=engine.is_durable)
            parts = build_event(
                xdm=xdm,
                data=data,
                event_type=type,
                merge_id=merge_id,
                decision_scopes=decision_scopes,
                now=engine.clock.time(),
                new_id=engine.ids(),
                local_time=engine.local_time,
                one_primary=engine.one_primary,
            )
            engine.check_size(parts)
            engine.visitor.admit(parts, future, needs_answer=needs_answer, ends_when_stored=ack == "stored")
        except Exception as raised:  # noqa: BLE001 - it travels in the future
            future.reject(_as_alloy_error("event", raised))
        return future

    def opt_in(self, *, purposes: str | None = None) -> asyncio.Future[Purposes]:
        """Tell what the visitor chose.

        "none" holds from this call on: everything that has not been sent ends with ``ConsentDeclined``, and the
        visitor's identity is erased. "all" releases what is parked, in order, once the choice is written.

        Args:
            purposes: "all" or "none", in any letter case.

        Returns:
            A future that ends when the choice survives ``kill -9``, with the choice that holds: of two calls that
            overlap the later one. With ``InvalidCommand`` for another word; with ``ConfigurationError`` when consent is
            switched off; with ``ConsentStoreError`` when it could not be written: "all" then changes nothing, "none"
            holds all the same and writing it is tried again. Cancelling the future never withdraws the choice.

        Source: adobe/alloy (2019), optIn.
        """
        return self._command("opt_in", lambda future: self._opt_in(purposes, future))

    def forget(self) -> asyncio.Future[Purposes]:
        """Erase the visitor's choice, identity and waiting events; the choice is asked for again.

        Returns:
            A future that ends with "pending" when everything is erased from the store, or with a later choice that has
            overtaken it; with ``ConsentStoreError`` when it could not be. Waiting events end with ``ConsentDeclined``
            at once.
        """
        return self._command("forget", lambda future: self._configured.visitor.choose("pending", future))

    def get_ecid(self) -> asyncio.Future[str]:
        """Ask for the visitor's id at the edge (ECID); waits for consent.

        Returns:
            A future that ends with 38 digits; with the errors of ``event``.

        Source: adobe/alloy, getEcid (2019) and getIdentity.
        """
        return self._command(
            "get_ecid", lambda future: self._gated("get_ecid", self._configured.visitor.want_ecid, future)
        )

    def set_customer_ids(self, customer_ids: Mapping[str, Mapping[str, Any]]) -> asyncio.Future[None]:
        """Tell who the visitor is in systems of yours; later events carry it. Waits for consent.

        Args:
            customer_ids: namespace to ``{"id": text, "authenticatedState": "ambiguous" | "authenticated" |
                "loggedOut", "primary": bool, "hash": bool}``; only ``id`` is required, ``hash`` sends its SHA-256.

        Returns:
            A future that ends with None; with ``InvalidCommand``, or with the consent errors of ``event``.

        Source: adobe/alloy (2019), setCustomerIds.
        """
        return self._command("set_customer_ids", lambda future: self._set_customer_ids(customer_ids, future))

    def create_event_merge_id(self) -> asyncio.Future[str]:
        """Make an id with which several events are merged into one; see ``merge_id`` of ``event``.

        Returns:
            A future that ends with a UUID.

        Source: adobe/alloy, createEventMergeId. There the result is an object since 2020; here it is the text.
        """
        return self._command(
            "create_event_merge_id", lambda future: future.resolve(self._configured.ids()), after=True
        )

    def get_library_info(self) -> asyncio.Future[dict[str, Any]]:
        """Describe this instance.

        Returns:
            A future that ends with ``{"name", "version", "commands", "settings"}``; settings hold no secrets.

        Source: adobe/alloy, getLibraryInfo.
        """
        return self._command(
            "get_library_info", lambda future: future.resolve(self._library_info()), after=True
        )

    def debug(self, *, enabled: bool) -> asyncio.Future[None]:
        """Switch this instance's debug log on or off (logger ``alloy_async.NAME``).

        Args:
            enabled: whether each step is logged.

        Source: adobe/alloy, setDebug; log (2019).
        """
        return self._command("debug", lambda future: self._debug(future, enabled=enabled), after=True)

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
        return self._command("flush", self._flush, after=True)

    def statistics(self) -> Statistics:
        """Return what became of this instance's events so far."""
        return self._ledger.statistics()

    async def aclose(self, grace: float = DEFAULT_GRACE) -> Statistics:
        """Stop accepting, send what is released, and end everything else with ``AlloyClosed``.

        Cancelling the caller does not stop it. A second call waits for the first.

        Args:
            grace: seconds to wait for what is under way.

        Returns:
            The final books; nothing is open in them.
        """
        if self._closing is None:
            self._home.check("aclose")
            self._closing = asyncio.get_running_loop().create_task(self._close(grace), name="alloy-close")
        await asyncio.shield(self._closing)
        return self.statistics()

    # How a command is carried out

    def _command(
        self,
        name: str,
        carry_out: Callable[[CommandFuture[Any]], None],
        *,
        needs_engine: bool = True,
        after: bool = False,
    ) -> asyncio.Future[Any]:
        """Run a command; whatever goes wrong travels in the future it returns.

        Args:
            name: the command.
            carry_out: ends the future it is given, now or later.
            needs_engine: whether it is refused before ``configure``.
            after: whether it waits until ``configure`` has ended; the gate lets the others wait by itself.
        """
        future: CommandFuture[Any] = CommandFuture.make(
            self._failures
        )  # raises RuntimeError where no loop runs
        try:
            self._ready(name) if needs_engine else self._check_open(name)
        except AlloyError as error:
            future.reject(error.with_traceback(None))
            return future
        if after and self._engine is not None and not self._engine.ready:
            self._engine.when_ready(
                lambda: _try(name, carry_out, future), lambda: future.reject(NotConfigured(name))
            )
        else:
            _try(name, carry_out, future)
        return future

    def _failed(self, error: AlloyError) -> asyncio.Future[Any]:
        future: CommandFuture[Any] = CommandFuture.make(self._failures)
        future.reject(error)
        return future

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
    def _configured(self) -> Engine:
        if self._engine is None:
            raise NotConfigured("command")
        return self._engine

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
        engine = Engine(settings, self._ledger, failures, self._logger)
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

    def _opt_in(self, purposes: object, future: CommandFuture[Purposes]) -> None:
        choice = parse_choice(purposes)
        if choice is None:
            kind = (
                "another text" if isinstance(purposes, str) else f"a value of type {type(purposes).__name__}"
            )
            raise InvalidCommand("opt_in", f'must be "all" or "none"; received {kind}.', path="purposes")
        engine = self._configured
        if not engine.settings.opt_in_enabled:
            raise ConfigurationError(
                "opt_in: consent is switched off, so a choice would change nothing; configure opt_in_enabled=True.",
                option="opt_in_enabled",
            )
        engine.visitor.choose(choice, future)

    def _set_customer_ids(self, given: object, future: CommandFuture[None]) -> None:
        visitor = self._configured.visitor
        customer_ids = parse_customer_ids(given)

        def action(future: CommandFuture[None]) -> None:
            visitor.set_customer_ids(customer_ids)
            future.resolve(None)

        self._gated("set_customer_ids", action, future)

    def _gated(
        self, name: str, action: Callable[[CommandFuture[Any]], None], future: CommandFuture[Any]
    ) -> None:
        gate = self._configured.visitor.gate
        gate.admit(GatedCall(name, future, action=action, leave=gate.leave, epoch=gate.epoch))

    def _debug(self, future: CommandFuture[None], *, enabled: bool) -> None:
        if not isinstance(enabled, bool):
            raise InvalidCommand("debug", "must be True or False.", path="enabled")
        self._logger.setLevel(logging.DEBUG if enabled else logging.NOTSET)
        future.resolve(None)

    def _library_info(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "version": __version__,
            "commands": sorted(set(COMMANDS.values())),
            "settings": self._configured.settings.describe(),
        }

    def _flush(self, future: CommandFuture[None]) -> None:
        self._configured.flush(future)

    def _get_outbox_info(self, future: CommandFuture[Shelf]) -> None:
        task = asyncio.get_running_loop().create_task(self._configured.shelf(), name="alloy-outbox-info")
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


def _check_ack(ack: object, *, durable: bool) -> None:
    if ack != "stored":
        raise InvalidCommand("event", 'must be "delivered" or "stored".', path="ack")
    if not durable:
        problem = 'nothing is stored in memory alone; configure outbox="sqlite", or leave ack at "delivered".'
        raise InvalidCommand("event", problem, path="ack")


def _needs_answer(view_start: object, decision_scopes: Sequence[str]) -> bool:
    if view_start is True or view_start is False:
        return view_start or bool(decision_scopes)
    raise InvalidCommand("event", "must be True or False.", path="view_start")


def _try(name: str, carry_out: Callable[[CommandFuture[Any]], None], future: CommandFuture[Any]) -> None:
    """Carry a command out; an analytics call must never throw into a checkout, whatever it was given."""
    try:
        carry_out(future)
    except Exception as raised:  # noqa: BLE001 - for example an object that another thread changes meanwhile
        future.reject(_as_alloy_error(name, raised))


def _as_alloy_error(name: str, raised: Exception) -> AlloyError:
    """Return what a command ends with, without the traceback: its frames hold what the command was given."""
    if isinstance(raised, Unfit):
        return InvalidCommand(name, raised.problem, path=raised.where())
    if isinstance(raised, AlloyError):
        return raised.with_traceback(None)
    # A broken installation is not a secret.
    detail = f": {raised}" if isinstance(raised, ImportError) else ""
    return InvalidCommand(name, f"it could not be carried out ({type(raised).__name__}{detail}).")

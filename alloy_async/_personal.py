"""The commands that concern one person: those of ``Alloy`` itself, and of each visitor's view."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from ._consent._rules import Purposes, parse_choice
from ._event import EventContext, build_event
from ._futures import CommandFuture, FailureLog
from ._json import Unfit
from .edge.protocol import EventResult
from .errors import AlloyError, ConfigurationError, InvalidCommand, NotConfigured
from .identity import parse_customer_ids

if TYPE_CHECKING:
    from ._engine import Engine
    from ._preference import Wish
    from ._visitor import VisitorState
    from .edge.state import ClientState

__all__ = ["PersonalCommands", "as_alloy_error", "carry_out"]


class PersonalCommands(ABC):
    """What one person's commands have in common.

    Every command is a plain call that returns an ``asyncio.Future`` at once. The future ends exactly once: with a
    result, with an ``AlloyError``, or by the caller's own ``cancel()``. Wrong arguments travel in the future too; only
    an unknown keyword and a missing event loop raise at the call.
    """

    __slots__ = ()

    _context: EventContext | None = None
    """XDM that is merged under each event."""

    _client_state: ClientState | None = None
    """What the person's browser keeps for the edge."""

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
            ``AlloyClosed`` out of time. Of a view, with ``StillParked`` while the event goes on waiting. Cancelling it withdraws the event while it has not been sent; after that it
            only stops the waiting.

        Source: adobe/alloy, event (2019) and sendEvent.
        """
        # Written out and not through _command: of all commands only this one is called thousands of times a second.
        future: CommandFuture[EventResult] = CommandFuture.make(self._failures_here)
        try:
            engine = self._ready("event")
            state = self._state(engine)
            needs_answer = _needs_answer(view_start, decision_scopes)
            if ack != "delivered":
                _check_ack(ack, durable=engine.is_durable and state.is_kept)
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
                context=self._context,
            )
            client_state = self._client_state if needs_answer else None
            engine.check_size(parts, 0 if client_state is None else len(client_state.to_json()))
            state.admit(
                parts,
                future,
                needs_answer=needs_answer,
                ends_when_stored=ack == "stored",
                client_state=client_state,
            )
        except Exception as raised:  # noqa: BLE001 - it travels in the future
            future.reject(as_alloy_error("event", raised))
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
        return self._command("opt_in", lambda engine, future: self._opt_in(engine, purposes, future))

    def forget(self) -> asyncio.Future[Purposes]:
        """Erase the visitor's choice, identity and waiting events; the choice is asked for again.

        Returns:
            A future that ends with "pending" when everything is erased from the store, or with a later choice that has
            overtaken it; with ``ConsentStoreError`` when it could not be. Waiting events end with ``ConsentDeclined``
            at once.
        """
        return self._command("forget", lambda engine, future: self._choose(engine, "pending", future))

    def get_ecid(self) -> asyncio.Future[str]:
        """Ask for the visitor's id at the edge (ECID); waits for consent.

        Returns:
            A future that ends with 38 digits; with the errors of ``event``.

        Source: adobe/alloy, getEcid (2019) and getIdentity.
        """
        return self._command("get_ecid", self._want_ecid)

    def set_customer_ids(self, customer_ids: Mapping[str, Mapping[str, Any]]) -> asyncio.Future[None]:
        """Tell who the visitor is in systems of yours; later events carry it. Waits for consent.

        Args:
            customer_ids: namespace to ``{"id": text, "authenticatedState": "ambiguous" | "authenticated" |
                "loggedOut", "primary": bool, "hash": bool}``; only ``id`` is required, ``hash`` sends its SHA-256.

        Returns:
            A future that ends with None; with ``InvalidCommand``, or with the consent errors of ``event``.

        Source: adobe/alloy (2019), setCustomerIds.
        """
        return self._command(
            "set_customer_ids", lambda engine, future: self._set_customer_ids(engine, customer_ids, future)
        )

    # Whose they are

    @property
    @abstractmethod
    def _failures_here(self) -> FailureLog:
        """Return where a failure is counted that nobody awaited."""

    @abstractmethod
    def _ready(self, name: str) -> Engine:
        """Return the engine that carries out a command, here and now."""

    @abstractmethod
    def _state(self, engine: Engine) -> VisitorState:
        """Return what belongs to the person."""

    # How a command is carried out

    def _command(
        self,
        name: str,
        work: Callable[[Engine, CommandFuture[Any]], None],
        *,
        after: bool = False,
    ) -> asyncio.Future[Any]:
        """Run a command; whatever goes wrong travels in the future it returns.

        Args:
            name: the command.
            work: ends the future it is given, now or later.
            after: whether it waits until ``configure`` has ended; the gate lets the others wait by itself.
        """
        future: CommandFuture[Any] = CommandFuture.make(self._failures_here)
        try:
            engine = self._ready(name)
        except AlloyError as error:
            future.reject(error.with_traceback(None))
            return future
        if after and not engine.ready:
            engine.when_ready(
                lambda: carry_out(name, lambda: work(engine, future), future),
                lambda: future.reject(NotConfigured(name)),
            )
        else:
            carry_out(name, lambda: work(engine, future), future)
        return future

    def _opt_in(self, engine: Engine, purposes: object, future: CommandFuture[Purposes]) -> None:
        choice = parse_choice(purposes)
        if choice is None:
            kind = (
                "another text" if isinstance(purposes, str) else f"a value of type {type(purposes).__name__}"
            )
            raise InvalidCommand("opt_in", f'must be "all" or "none"; received {kind}.', path="purposes")
        if not engine.settings.opt_in_enabled:
            raise ConfigurationError(
                "opt_in: consent is switched off, so a choice would change nothing; configure opt_in_enabled=True.",
                option="opt_in_enabled",
            )
        self._choose(engine, choice, future)

    def _choose(self, engine: Engine, wish: Wish, future: CommandFuture[Any]) -> None:
        self._state(engine).choose(wish, future)

    def _want_ecid(self, engine: Engine, future: CommandFuture[str]) -> None:
        self._state(engine).get_ecid(future)

    def _set_customer_ids(self, engine: Engine, given: object, future: CommandFuture[None]) -> None:
        state = self._state(engine)
        customer_ids = parse_customer_ids(given)

        def action(future: CommandFuture[None]) -> None:
            state.set_customer_ids(customer_ids)
            future.resolve(None)

        state.call("set_customer_ids", action, future, goes_on=True)


def _check_ack(ack: object, *, durable: bool) -> None:
    if ack != "stored":
        raise InvalidCommand("event", 'must be "delivered" or "stored".', path="ack")
    if not durable:
        problem = (
            'nothing is stored in memory alone, nor of a visitor without a key; configure outbox="sqlite" and give a key, '
            'or leave ack at "delivered".'
        )
        raise InvalidCommand("event", problem, path="ack")


def _needs_answer(view_start: object, decision_scopes: Sequence[str]) -> bool:
    if view_start is True or view_start is False:
        return view_start or bool(decision_scopes)
    raise InvalidCommand("event", "must be True or False.", path="view_start")


def carry_out(name: str, work: Callable[[], None], future: CommandFuture[Any]) -> None:
    """Carry a command out; an analytics call must never throw into a checkout, whatever it was given."""
    try:
        work()
    except Exception as raised:  # noqa: BLE001 - for example an object that another thread changes meanwhile
        future.reject(as_alloy_error(name, raised))


def as_alloy_error(name: str, raised: Exception) -> AlloyError:
    """Return what a command ends with, without the traceback: its frames hold what the command was given."""
    if isinstance(raised, Unfit):
        return InvalidCommand(name, raised.problem, path=raised.where())
    if isinstance(raised, AlloyError):
        return raised.with_traceback(None)
    # A broken installation is not a secret.
    detail = f": {raised}" if isinstance(raised, ImportError) else ""
    return InvalidCommand(name, f"it could not be carried out ({type(raised).__name__}{detail}).")

"""``Visitor``: a view of one person among many."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from ._consent._rules import Choice, Purposes, parse_choice
from ._event import EventContext
from ._futures import CommandFuture, FailureLog
from ._json import Unfit, normalise
from ._personal import PersonalCommands, as_alloy_error
from ._preference import Wish
from .edge.state import ClientState, StateUpdate
from .errors import ConsentTimeout, InvalidCommand

if TYPE_CHECKING:
    from ._engine import Engine
    from ._visitor import VisitorState

__all__ = ["Access", "ClientState", "StateUpdate", "Visitor"]

MAX_KEY = 200
"""Characters of a key; what is longer is rarely meant to be one."""

_FPID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", re.IGNORECASE)
_ECID = re.compile(r"[0-9]{38}")


class Access(NamedTuple):
    """How a view reaches the instance that made it.

    Attributes:
        ready: returns the engine that carries out a command, or raises why there is none.
        failures: returns where a failure is counted that nobody awaited.
    """

    ready: Callable[[str], Engine]
    failures: Callable[[], FailureLog]


class Visitor(PersonalCommands):
    """One person among many: the commands of ``Alloy`` that concern a person, with a consent and an identity of its own.

    Made by ``Alloy.visitor``, in microseconds; made anew for each request. A command that has to wait for the choice may
    be awaited: after ``parked_wait`` seconds its future ends with ``StillParked``. An event, and customer ids, stay
    parked; ``get_ecid`` does not, since nobody is left to be answered. ::

        visitor = alloy.visitor(session_id)
        visitor.event(type="web.webpagedetails.pageViews")    # waits for the choice, the request does not
        visitor.opt_in(purposes="all")                        # releases it, in this request or another one
    """

    __slots__ = (
        "_access",
        "_client_state",
        "_context",
        "_ecid",
        "_engine",
        "_fpid",
        "_key",
        "_person",
        "_said",
    )

    def __init__(
        self,
        access: Access,
        key: str | None,
        *,
        purposes: Choice | None = None,
        seen_at: float | None = None,
        fpid: str | None = None,
        ecid: str | None = None,
        context: Mapping[str, Any] | None = None,
        state: ClientState | None = None,
    ) -> None:
        self._access = access
        self._key = None if key is None else _check_key(key)
        self._said = None if purposes is None else (_check_purposes(purposes), seen_at)
        self._fpid = _check_id(fpid, _FPID, "fpid", "a UUIDv4")
        self._ecid = _check_id(ecid, _ECID, "ecid", "38 digits")
        self._context = None if context is None else _check_context(context)
        self._client_state = state
        self._engine = access.ready("visitor")
        self._person = self._meet(self._engine)

    @property
    def key(self) -> str | None:
        """The application's own name for the visitor; None for one of whom nothing is kept."""
        return self._key

    @property
    def purposes(self) -> Purposes:
        """What is known here and now of the visitor's choice: "all", "none" or "pending".

        What is kept of a visitor is read when something needs it; ``get_purposes`` waits for it.
        """
        return self._person.gate.purposes

    def get_purposes(self) -> asyncio.Future[Purposes]:
        """Tell what the visitor has chosen, as far as it is kept or known.

        Returns:
            A future that ends with "all", "none" or "pending"; with ``ConsentStoreError`` when it cannot be read.
        """
        return self._command(
            "get_purposes", lambda engine, future: self._state(engine).tell_purposes(future), after=True
        )

    @property
    def chosen_at(self) -> float | None:
        """When the visitor chose, in seconds since 1970; None while no choice is known."""
        return self._person.keeper.chosen_at or None

    @property
    def fpid(self) -> str | None:
        """The visitor's first-party id; None without consent, and before anything needed one."""
        return self._person.identity.fpid if self._person.gate.is_opted_in else None

    @property
    def ecid(self) -> str | None:
        """The visitor's id at the edge, where it is known; None without consent."""
        return self._person.identity.ecid if self._person.gate.is_opted_in else None

    @property
    def state_updates(self) -> tuple[StateUpdate, ...]:
        """What the edge has handed back to be kept by the visitor's browser, since this view was made."""
        return () if self._client_state is None else tuple(self._client_state.updates.values())

    def browser_payload(self) -> dict[str, Any]:
        """Return what the page hands to ``applyResponse`` of the browser SDK: the newest answer of the edge.

        Returns:
            ``{"responseHeaders": {…}, "responseBody": {"requestId", "handle": […]}}``.

        Source: adobe/alloy, applyResponse.
        """
        state = self._client_state or ClientState("")
        return state.browser_payload()

    def close(self) -> None:
        """End the view. Of a visitor without a key what is still parked ends with ``ConsentTimeout``: nobody can say yes."""
        if self._key is None:
            self._person.gate.close(lambda command: ConsentTimeout(command, None))

    def __repr__(self) -> str:  # the key is the application's own secret
        return f"<Visitor {'with' if self._key else 'without'} key, {self.purposes}>"

    # Whose commands they are

    @property
    def _failures_here(self) -> FailureLog:
        return self._access.failures()

    def _ready(self, name: str) -> Engine:
        return self._access.ready(name)

    def _state(self, engine: Engine) -> VisitorState:
        if engine is not self._engine:  # after a fork, or when configure was called again
            self._engine, self._person = engine, self._meet(engine)
        if not self._person.knows_choice:
            engine.recall_choice(self._person)
        return self._person

    def _meet(self, engine: Engine) -> VisitorState:
        """Return what belongs to the visitor, who has said what is said now."""
        person = engine.passing_visitor() if self._key is None else engine.visitors.get(self._key)
        if self._client_state is not None and self._client_state.entries:
            person.identity_keeper.meet_hint(_hint(self._client_state))
        if self._said is not None and engine.settings.opt_in_enabled:
            self._tell(engine, person, *self._said)
        if self._fpid is not None or self._ecid is not None:
            person.identity_keeper.meet(
                self._fpid, self._ecid
            )  # after that: a refusal forgets whom it concerns
        return person

    def _choose(self, engine: Engine, wish: Wish, future: CommandFuture[Any]) -> None:
        super()._choose(engine, wish, future)
        # After a fork the view begins anew: with what was said last, not with what the browser said at first.
        self._said = None if wish == "pending" else (wish, None)
        if wish != "all" and self._client_state is not None:
            self._client_state.forget()

    @staticmethod
    def _tell(engine: Engine, person: VisitorState, purposes: Choice, seen_at: float | None) -> None:
        """Tell what the browser says: a refusal at once, a yes when it is known what it may lift."""
        if purposes == "none" or engine.ready:
            person.hear(purposes, seen_at)
        else:
            engine.when_ready(lambda: person.hear(purposes, seen_at), lambda: None)


def _hint(state: ClientState) -> str | None:
    return next((value for name, value in state.entries if name.endswith("_cluster")), None)


def _check_key(key: object) -> str:
    if not isinstance(key, str) or not key or len(key) > MAX_KEY or not key.isprintable():
        raise InvalidCommand("visitor", f"must be a text of 1 to {MAX_KEY} printable characters.", path="key")
    return key


def _check_purposes(purposes: object) -> Choice:
    choice = parse_choice(purposes)
    if choice is None:
        raise InvalidCommand("visitor", 'must be "all", "none" or None.', path="purposes")
    return choice


def _check_id(value: object, pattern: re.Pattern[str], name: str, what: str) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise InvalidCommand("visitor", f"must be {what}.", path=name)
    return value


def _check_context(context: object) -> EventContext:
    if isinstance(context, EventContext):
        return context
    try:
        snapshot = normalise(context, "context")
    except Unfit as unfit:
        problem = as_alloy_error("visitor", unfit)
    else:
        if isinstance(snapshot, dict) and "identityMap" not in snapshot:
            return EventContext(snapshot)
        problem = _unfit_context(snapshot)
    raise problem


def _unfit_context(snapshot: object) -> InvalidCommand:
    if not isinstance(snapshot, dict):
        return InvalidCommand("visitor", "must be an object in XDM.", path="context")
    reason = "a person is named by set_customer_ids, or by an event's own xdm."
    return InvalidCommand("visitor", reason, path="context.identityMap")

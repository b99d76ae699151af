"""Everything a command can end with instead of a result.

::

    AlloyError
    ├── NotConfigured          a command came before configure
    ├── ConfigurationError     configure was called with something it cannot use
    ├── InvalidCommand         a command was called with something it cannot use
    │   └── EventTooLarge      the event can never fit into one request
    ├── ConsentDeclined        the visitor said no; nothing was sent, or the edge ignored it
    ├── ConsentTimeout         the visitor never answered in time; nothing was sent
    ├── StillParked            nobody has chosen yet, and whoever awaits a visitor's command was not kept waiting
    ├── ParkingFull            too many commands already wait for consent
    ├── OutboxFull             too many events already wait for the wire
    ├── OutboxError            the outbox could not keep the event, or no longer has it
    ├── ConsentStoreError      the choice could not be read, saved or erased
    ├── EdgeError              the edge answered, and the answer is a refusal or unreadable
    ├── NetworkError           the edge could not be reached, or stopped answering
    └── AlloyClosed            aclose() came first

Each error takes facts and writes its own sentence: what happened, to which command, what to do next.
No message, cause or context holds an event's body, a secret, or the value that was refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

__all__ = [
    "AlloyClosed",
    "AlloyError",
    "ConfigurationError",
    "ConsentDeclined",
    "ConsentStoreError",
    "ConsentTimeout",
    "EdgeError",
    "EventTooLarge",
    "InvalidCommand",
    "NetworkError",
    "NotConfigured",
    "OutboxError",
    "OutboxFull",
    "ParkingFull",
    "StillParked",
]

DeclinedBy = Literal["visitor", "edge"]
"""Who stopped an event: the visitor's own choice, or the edge (code EXEG-0301)."""


class AlloyError(Exception):
    """Anything this library ends a command with, other than its result."""

    def __reduce__(self) -> tuple[Callable[..., AlloyError], tuple[object, ...]]:
        # Copies and pickles carry the facts and nothing of the place where the error was raised.
        return _rebuild, (type(self), self.args, dict(self.__dict__))


def _rebuild(kind: type[AlloyError], args: tuple[object, ...], facts: dict[str, Any]) -> AlloyError:
    error = kind.__new__(kind)
    error.args = args
    error.__dict__.update(facts)
    return error


class NotConfigured(AlloyError):
    """A command was called before ``configure``, or the ``configure`` it waited for failed."""

    def __init__(self, command: str) -> None:
        super().__init__(command)
        self.command = command

    def __str__(self) -> str:
        return f"{self.command}: the library must be configured first; call configure() and let it succeed."


class ConfigurationError(AlloyError):
    """An option, or a combination of options, cannot be used.

    Attributes:
        option: the option at fault, spelled as the caller spelled it, or None when no single one is.
    """

    def __init__(self, problem: str, *, option: str | None = None) -> None:
        super().__init__(problem)
        self.option = option


class InvalidCommand(AlloyError):
    """A command got something it cannot use; nothing was sent and the instance stays usable.

    Attributes:
        command: the command's name, for example ``event``.
        path: where the trouble is, for example ``xdm.commerce.order.priceTotal``; empty for the command itself.
    """

    def __init__(self, command: str, problem: str, *, path: str = "") -> None:
        super().__init__(command, problem, path)
        self.command = command
        self.problem = problem
        self.path = path

    def __str__(self) -> str:
        where = f"{self.path}: " if self.path else ""
        return f"{self.command}: {where}{self.problem}"


class EventTooLarge(InvalidCommand):
    """The event can never fit into one request.

    Attributes:
        size: bytes of the event as JSON.
        limit: bytes that one event may have.
    """

    def __init__(self, command: str, size: int, limit: int) -> None:
        super().__init__(
            command, f"the event is {size} bytes as JSON, the edge takes at most {limit}; split it."
        )
        self.size = size
        self.limit = limit


class ConsentDeclined(AlloyError):
    """The visitor declined: nothing was sent, or the edge has ignored what was.

    Attributes:
        command: the command that was refused.
        by: ``visitor`` for the local choice: nothing was sent; ``edge`` when the edge ignored the event for lack of
            consent.
    """

    def __init__(self, command: str, by: DeclinedBy = "visitor") -> None:
        super().__init__(command, by)
        self.command = command
        self.by: DeclinedBy = by

    def __str__(self) -> str:
        if self.by == "edge":
            return f"{self.command}: the edge ignored the event for lack of consent (EXEG-0301)."
        return f"{self.command}: the visitor opted into no purposes; nothing was sent."


class ConsentTimeout(AlloyError):
    """The command waited for consent as long as it may; nothing was sent.

    Attributes:
        command: the command that waited.
        waited: seconds it was parked; None for a command of a view without a key that was closed before.
    """

    def __init__(self, command: str, waited: float | None) -> None:
        super().__init__(command, waited)
        self.command = command
        self.waited = waited

    def __str__(self) -> str:
        if self.waited is None:
            return (
                f"{self.command}: no consent before the view was closed; nothing was sent. "
                "Give the view a key, and its commands stay parked."
            )
        return (
            f"{self.command}: no consent within {self.waited:g} s; nothing was sent. "
            "Ask earlier, or raise parked_ttl (for views visitor_parked_ttl)."
        )


class StillParked(AlloyError):
    """A visitor has not chosen, and whoever awaited one of their commands was not kept waiting.

    No event is lost by it: it stays parked, is sent if the visitor says yes in time, and stands in the statistics. So do
    customer ids stay parked. ``get_ecid`` does not: it ends with this, and may be called again.

    Attributes:
        command: the command that waits.
        waited: seconds that it was awaited.
        is_parked: whether it stays parked.
    """

    def __init__(self, command: str, waited: float, *, is_parked: bool = True) -> None:
        super().__init__(command, waited)
        self.command = command
        self.waited = waited
        self.is_parked = is_parked

    def __str__(self) -> str:
        awaited = f"It was awaited for {self.waited:g} s (parked_wait)"
        if not self.is_parked:
            return f"{self.command}: the visitor has not chosen yet. {awaited}; call it again once they have."
        return (
            f"{self.command}: the visitor has not chosen yet; it stays parked, and goes on if they say yes. "
            f"{awaited}; call it without await to go on at once."
        )


class ParkingFull(AlloyError):
    """Too many commands already wait for consent; this one was not accepted.

    Attributes:
        command: the command that found no room.
        bound: the option that set the bound: ``max_parked``, ``max_parked_bytes`` or ``visitor_max_parked``.
        limit: its value, a count or bytes.
    """

    def __init__(self, command: str, bound: str, limit: int) -> None:
        super().__init__(command, bound, limit)
        self.command = command
        self.bound = bound
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"{self.command}: the room for commands that wait for consent is full "
            f"({self.bound}={self.limit}). Ask for consent earlier, or raise {self.bound}."
        )


class OutboxFull(AlloyError):
    """Too many events already wait for the wire; this one was not accepted.

    Attributes:
        command: the command that found no room.
        bound: the option that set the bound, ``max_queued`` or ``max_queued_bytes``.
        limit: its value, a count or bytes.
    """

    def __init__(self, command: str, bound: str, limit: int) -> None:
        super().__init__(command, bound, limit)
        self.command = command
        self.bound = bound
        self.limit = limit

    def __str__(self) -> str:
        return (
            f"{self.command}: too many events wait for the edge ({self.bound}={self.limit}). "
            f"Await earlier events before calling more, or raise {self.bound}."
        )


class OutboxError(AlloyError):
    """The outbox could not be used, or an event is no longer in it.

    Attributes:
        action: what was tried: ``open``, ``write``, ``read`` or ``erase``; ``keep`` when somebody else took or purged
            the event.
        place: the file, or the kind of outbox.
    """

    def __init__(self, action: str, place: str, problem: str) -> None:
        super().__init__(action, place, problem)
        self.action = action
        self.place = place
        self.problem = problem

    def __str__(self) -> str:
        return f"could not {self.action} events in the outbox {self.place}: {self.problem}"


class ConsentStoreError(AlloyError):
    """The visitor's choice could not be read, saved or erased.

    A refusal holds in memory all the same, and saving it is tried again until the instance is closed.

    Attributes:
        action: what was tried: ``load``, ``save`` or ``forget``.
        place: the file, or the kind of store, that failed.
    """

    def __init__(self, action: str, place: str, problem: str) -> None:
        super().__init__(action, place, problem)
        self.action = action
        self.place = place
        self.problem = problem

    def __str__(self) -> str:
        return f"could not {self.action} the visitor's choice in {self.place}: {self.problem}"


class EdgeError(AlloyError):
    """The edge answered, and the answer is a refusal or cannot be read.

    Attributes:
        status: HTTP status of the answer.
        type: the problem's identifier, for example ``https://ns.adobe.com/aep/errors/EXEG-0003-400``.
        title: one line for people.
        detail: more for people, may be empty.
        report: what the edge added, for example ``{"eventIndex": 2, "errors": ["…"]}``.
        request_id: the request's id as the edge knows it, for a support case.
        retryable: whether the same request may succeed later.
        retry_after: when, as the edge wrote it: seconds or an HTTP date; None when it said nothing.

    Source: RFC 9457, problem details; Experience Platform Edge Network error codes.
    """

    def __init__(
        self,
        status: int,
        *,
        title: str,
        type: str = "about:blank",  # noqa: A002 - the name RFC 9457 gives it
        detail: str = "",
        report: Mapping[str, Any] | None = None,
        request_id: str | None = None,
        retryable: bool = False,
        retry_after: str | None = None,
    ) -> None:
        super().__init__(status, title)
        self.status = status
        self.type = type
        self.title = title
        self.detail = detail
        self.report: dict[str, Any] = dict(report or {})
        self.request_id = request_id
        self.retryable = retryable
        self.retry_after = retry_after

    @property
    def code(self) -> str:
        """The four digits of an EXEG code, or an empty string."""
        _, found, rest = self.type.rpartition("EXEG-")
        return rest[:4] if found else ""

    def __str__(self) -> str:
        code = f" {self.type}" if self.type != "about:blank" else ""
        detail = f": {self.detail}" if self.detail else ""
        request = f" (request {self.request_id})" if self.request_id else ""
        return f"the edge answered {self.status}{code}, {self.title}{detail}{request}"


class NetworkError(AlloyError):
    """The edge could not be reached, or stopped answering.

    Attributes:
        endpoint: scheme, host and port that was called.
        retryable: always true: an event keeps its ``_id``, so sending it again is safe.
    """

    retryable = True

    def __init__(self, endpoint: str, problem: str) -> None:
        super().__init__(endpoint, problem)
        self.endpoint = endpoint
        self.problem = problem

    def __str__(self) -> str:
        return f"{self.endpoint}: {self.problem}"


class AlloyClosed(AlloyError):
    """The instance was closed before, or while, the command could be carried out.

    Attributes:
        command: the command.
        kept: whether the event is in a durable outbox, to be sent by the next start.
    """

    def __init__(self, command: str, *, kept: bool = False) -> None:
        super().__init__(command)
        self.command = command
        self.kept = kept

    def __str__(self) -> str:
        if self.kept:
            return (
                f"{self.command}: the instance is closed; the event is kept in the outbox for the next start."
            )
        return f"{self.command}: the instance is closed; create a new Alloy to go on."

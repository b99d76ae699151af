"""What happens to each command, as it happens, for metrics, logs and tests.

A hook is any callable that takes one of the records below. Give it to ``configure(hooks=[...])``. It is called on the
event loop and should return soon; one that raises is logged, and the event goes on. No record holds an event's body.
"""

from __future__ import annotations

import logging
from asyncio import CancelledError
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import iscoroutinefunction
from typing import Literal, TypeAlias

from .edge.breaker import Circuit
from .errors import AlloyError, ConfigurationError

__all__ = [
    "CircuitChanged",
    "Delivered",
    "Failed",
    "Hook",
    "Hooks",
    "Lost",
    "Moment",
    "Parked",
    "Record",
    "Refused",
    "Released",
    "Retrying",
    "Sending",
]


@dataclass(frozen=True, slots=True)
class Moment:
    """What every record tells.

    Attributes:
        command: name of the command, for example ``event``.
        event_id: the event's ``_id``.
    """

    command: str
    event_id: str


@dataclass(frozen=True, slots=True)
class Parked(Moment):
    """An event waits for the visitor's choice.

    Attributes:
        size: bytes it holds.
    """

    size: int


@dataclass(frozen=True, slots=True)
class Released(Moment):
    """The visitor consents: an event goes on to the edge.

    Attributes:
        waited: seconds it was parked; 0 when it never had to wait.
    """

    waited: float


@dataclass(frozen=True, slots=True)
class Refused(Moment):
    """The visitor declined, or the edge says so; the event is gone.

    Attributes:
        by: ``visitor`` or ``edge``.
    """

    by: Literal["visitor", "edge"]


@dataclass(frozen=True, slots=True)
class Sending(Moment):
    """A request that carries the event starts.

    Attributes:
        events: how many events the request carries.
    """

    events: int


@dataclass(frozen=True, slots=True)
class Retrying(Moment):
    """An attempt failed, and another one will follow.

    Attributes:
        attempt: how many attempts were made.
        wait: seconds until the next one.
        error: what the attempt ended with.
    """

    attempt: int
    wait: float
    error: AlloyError


@dataclass(frozen=True, slots=True)
class CircuitChanged:
    """The endpoint went down, is being probed, or is back.

    Attributes:
        endpoint: its address.
        circuit: ``closed``: requests flow; ``open``: none starts; ``half-open``: one probes it.
    """

    endpoint: str
    circuit: Circuit


@dataclass(frozen=True, slots=True)
class Delivered(Moment):
    """The edge took the event.

    Attributes:
        request_id: the request's id as the edge knows it; None when it named none.
    """

    request_id: str | None


@dataclass(frozen=True, slots=True)
class Failed(Moment):
    """The event failed: the edge refused it or could not be reached, or what was to be sent could not be.

    Attributes:
        error: what its future ended with.
    """

    error: AlloyError


@dataclass(frozen=True, slots=True)
class Lost(Moment):
    """The event ended without an answer of the edge.

    Attributes:
        reason: ``expired``, ``overflowed``, ``cancelled``, ``withheld``, ``closed``, or ``kept`` for one that is left in
            the durable outbox: when the instance is closed for the next start, with ``relay=True`` for a relay.
    """

    reason: Literal["expired", "overflowed", "cancelled", "withheld", "closed", "kept"]


Record: TypeAlias = (
    Parked | Released | Refused | Sending | Retrying | CircuitChanged | Delivered | Failed | Lost
)
"""Whatever a hook is told."""

Hook: TypeAlias = Callable[[Record], object]
"""Takes a record; what it returns is ignored."""


class Hooks:
    """Calls every hook; survives each of them.

    Args:
        hooks: called in this order.
        logger: hears of a hook that raises.

    Raises:
        ConfigurationError: a hook is a coroutine function.
    """

    def __init__(self, hooks: Sequence[Hook], logger: logging.Logger) -> None:
        if any(iscoroutinefunction(hook) for hook in hooks):
            raise ConfigurationError(
                "hooks: must be plain functions; a coroutine would never run.", option="hooks"
            )
        self._hooks = tuple(hooks)
        self._logger = logger

    def __bool__(self) -> bool:
        """Whether there is any hook, so that no record is made for nobody."""
        return bool(self._hooks)

    def emit(self, record: Record) -> None:
        """Tell every hook."""
        for hook in self._hooks:
            try:
                hook(record)
            except (Exception, CancelledError) as error:  # noqa: BLE001 - whatever it is, it must not stop an event
                # Without its traceback and text: both may hold what the hook was looking at.
                name = getattr(hook, "__name__", type(hook).__name__)
                self._logger.error("hook %s raised %s; the event goes on", name, type(error).__name__)

"""The application's last look at an event, ``on_before_event_send``."""

from __future__ import annotations

import asyncio
from inspect import isawaitable
from typing import Any

from ._commands import EventCommand
from ._event import rebuild_event
from ._json import Unfit, decode
from ._options import EventFilter
from .errors import AlloyError, InvalidCommand

__all__ = ["filter_event"]


async def filter_event(
    event_filter: EventFilter, command: EventCommand, *, room: int, one_primary: bool
) -> None:
    """Let the application look at an event, change it, or withhold it.

    Args:
        event_filter: the application's own.
        command: the event; it may have ended afterwards.
        room: bytes that an event may have, together with what goes up beside it.
        one_primary: whether an identity map that is put in must have exactly one primary identity.

    Source: adobe/alloy, onBeforeEventSend: called with ``{xdm, data}``, False withholds, raising rejects, any
    other value is ignored.
    """
    event = decode(command.body)
    content = {"xdm": event["xdm"], "data": event.get("data", {})}
    had_data = "data" in event
    error: AlloyError | None = None
    keep: bool | None = None
    try:
        keep = await _call(event_filter, content)
    except (
        Exception,
        asyncio.CancelledError,
    ) as raised:  # the application's own; it stops this event and no other
        if _is_being_cancelled():
            raise
        error = InvalidCommand(
            command.name, f"on_before_event_send raised {type(raised).__name__}; nothing was sent."
        )
    if error is not None:
        command.fail(error)
    elif keep is False:
        command.withhold()
    elif command.stage is not None:
        command.filtered = True
        if not had_data and not content.get("data"):
            content.pop("data", None)
        _rebuild(command, content, event.get("query"), room=room, one_primary=one_primary)


def _rebuild(
    command: EventCommand, content: dict[str, Any], query: object, *, room: int, one_primary: bool
) -> None:
    try:
        parts = rebuild_event(content, command.event_id, query, one_primary=one_primary)
    except Unfit as unfit:
        problem = f"on_before_event_send left something that cannot be sent: {unfit.problem}"
        command.fail(InvalidCommand(command.name, problem, path=unfit.where()))
        return
    if command.change_body(parts.body, room):
        command.names_person = parts.has_identity


async def _call(event_filter: EventFilter, content: dict[str, Any]) -> bool | None:
    outcome = event_filter(content)
    return await outcome if isawaitable(outcome) else outcome


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

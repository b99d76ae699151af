"""The commands as the JavaScript SDK spells them: ``alloy("optIn", {"purposes": "all"})``.

Source: adobe/alloy, commands and their options, 2019 and today.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .errors import InvalidCommand
from .settings import nearest

__all__ = ["COMMANDS", "translate"]

COMMANDS = {
    "configure": "configure",
    "event": "event",
    "sendEvent": "event",
    "optIn": "opt_in",
    "getEcid": "get_ecid",
    "setCustomerIds": "set_customer_ids",
    "createEventMergeId": "create_event_merge_id",
    "getLibraryInfo": "get_library_info",
    "log": "debug",
    "setDebug": "debug",
    "debug": "debug",
    "forget": "forget",
    "flush": "flush",
}
"""JavaScript's name of a command to ours. Our own names are taken too."""

_OPTIONS: dict[str, dict[str, str]] = {
    "event": {
        "xdm": "xdm",
        "data": "data",
        "type": "type",
        "mergeId": "merge_id",
        "viewStart": "view_start",
        "decisionScopes": "decision_scopes",
    },
    "opt_in": {"purposes": "purposes"},
    "debug": {"enabled": "enabled"},
}

_IGNORED = {"event": {"documentUnloading", "renderDecisions"}}
"""Options that only a page can honour."""


def translate(name: object, options: object) -> tuple[str, dict[str, Any]]:
    """Return the method and the keywords that a JavaScript-like call means.

    Raises:
        InvalidCommand: no such command, or no such option; names the nearest one.
    """
    names = COMMANDS | {method: method for method in COMMANDS.values()}
    command = names.get(name) if isinstance(name, str) else None
    if command is None:
        text = str(name)[:100] if isinstance(name, str) else type(name).__name__
        raise InvalidCommand(text, f"the command does not exist.{nearest(text, names)}")
    if options is None:
        options = {}
    if not isinstance(options, Mapping):
        raise InvalidCommand(command, "options must be an object with the names of the options as keys.")
    if command == "configure":
        return command, dict(options)
    if command == "set_customer_ids":
        return command, {"customer_ids": options}
    return command, _keywords(command, options)


def _keywords(command: str, options: Mapping[Any, Any]) -> dict[str, Any]:
    known = _OPTIONS.get(command, {})
    keywords = {}
    for option, value in options.items():
        if option in _IGNORED.get(command, ()):
            continue
        keyword = known.get(option, option if option in known.values() else None)
        if keyword is None:
            hint = nearest(option, known) if isinstance(option, str) else ""
            raise InvalidCommand(command, f"unknown option.{hint}", path=str(option)[:100])
        keywords[keyword] = value
    return keywords

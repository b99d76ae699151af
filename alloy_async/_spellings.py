"""The commands as the JavaScript SDK spells them: ``alloy("optIn", {"purposes": "all"})``.

Source: adobe/alloy, commands and their options, 2019 and today.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ._options import nearest
from .errors import ConfigurationError, InvalidCommand

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
    "getOutboxInfo": "get_outbox_info",
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
        "ack": "ack",
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
        ConfigurationError: an option of configure without a name.
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
        return command, _text_keys(options)
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
            raise _unknown(command, option, known)
        keywords[keyword] = value
    if command == "debug" and "enabled" not in keywords:
        raise InvalidCommand(command, "is required: True or False.", path="enabled")
    return keywords


def _unknown(command: str, option: object, known: Iterable[str]) -> InvalidCommand:
    if not isinstance(option, str):
        return InvalidCommand(
            command, f"must have names; one is of type {type(option).__name__}.", path="options"
        )
    return InvalidCommand(command, f"unknown option.{nearest(option, known)}", path=option[:100])


def _text_keys(options: Mapping[Any, Any]) -> dict[str, Any]:
    for option in options:
        if not isinstance(option, str):
            raise ConfigurationError(f"options must have names; one is of type {type(option).__name__}.")
    return dict(options)

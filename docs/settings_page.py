"""Writes the settings page from the model, so that it lists what there is."""

from __future__ import annotations

from types import NoneType, UnionType
from typing import Annotated, Literal, Union, get_args, get_origin

from alloy_async.settings import Settings

__all__ = ["settings_table"]


def settings_table() -> str:
    """Return one Markdown section for each setting: name, environment variable, type, default, description."""
    return "\n".join(_section(name) for name in Settings.model_fields)


def _section(name: str) -> str:
    field = Settings.model_fields[name]
    facts = [f"Type: {_type(name)}", f"Default: {_default(name)}", f"Environment: {_variable(name)}"]
    return f"({_label(name)})=\n## `{name}`\n\n{field.description}\n\n" + "".join(
        f"- {fact}\n" for fact in facts
    )


def _label(name: str) -> str:
    return f"setting-{name.replace('_', '-')}"


def _type(name: str) -> str:
    return {
        "store": '`"sqlite"`, `"memory"`, `"redis"` or a {py:class}`~alloy_async.stores.Store`',
        "outbox": '`"memory"`, `"sqlite"`, `"redis"`, a path or an {py:class}`~alloy_async.outbox.Outbox`',
        "transport": '`"httpx"`, `"aiohttp"` or a {py:class}`~alloy_async.edge.Transport`',
        "client_id": "text",
        "client_secret": "text or pydantic's `SecretStr`",
        "redis_url": "text or pydantic's `SecretStr`",
        "scopes": "a text, comma separated, or a sequence of texts",
        "client": "`httpx.AsyncClient`",
        "clock": "an object with the methods of {py:class}`~alloy_async.testing.ManualClock`",
        "ids": "a callable without arguments that returns text",
        "on_before_event_send": "a function of one `dict`, sync or async",
        "hooks": "a sequence of functions of one record",
        "context": "a sequence of texts",
    }.get(name) or f"`{_plain(Settings.model_fields[name].annotation)}`"


def _plain(annotation: object) -> str:
    """Write a type as a person would, without what pydantic is told besides."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _plain(arguments[0])
    if origin in {Union, UnionType}:
        return " | ".join(_plain(argument) for argument in arguments)
    if origin is Literal:
        return " | ".join(f'"{word}"' for word in arguments)
    if annotation is NoneType:
        return "None"
    return annotation.__name__ if isinstance(annotation, type) else str(annotation)


def _default(name: str) -> str:
    field = Settings.model_fields[name]
    if field.is_required():
        return "none, it is required"
    if isinstance(field.default, (int, float)) and not isinstance(field.default, bool):
        return f"`{field.default:_}`"
    return f"`{field.default!r}`"


def _variable(name: str) -> str:
    from alloy_async.settings import _OBJECTS  # which settings no text can stand for, is known there alone

    extra = {"config_id": " (or `ALLOY_DATASTREAM_ID`)", "ims_org_id": " (or `ALLOY_ORG_ID`)"}
    return "no, only as an argument" if name in _OBJECTS else f"`ALLOY_{name.upper()}`{extra.get(name, '')}"

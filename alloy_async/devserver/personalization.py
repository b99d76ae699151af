"""Decisions out of a file: what the edge answers to a client that asks for decision scopes or surfaces."""

from __future__ import annotations

import base64
import difflib
import json
import logging
import os
import uuid
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .problems import Problem

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from .handles import Handle

__all__ = ["Asked", "Decisions", "DecisionsError", "read_asked", "read_decisions"]

_log = logging.getLogger(__name__)

_MAX_SCOPES = 30
"""Decision scopes of one request. Source: Adobe Experience Platform Edge Network API, guardrails."""

_SCHEMAS = "https://ns.adobe.com/personalization/"
_FORMATS = {
    f"{_SCHEMAS}html-content-item": "text/html",
    f"{_SCHEMAS}json-content-item": "application/json",
}
_WITHOUT_CONTENT = f"{_SCHEMAS}default-content-item"

_ITEM_FIELDS = ("schema", "content", "format", "meta", "type", "selector")


class DecisionsError(ValueError):
    """A file of decisions that cannot be used; it says which, where in the JSON, and what would be right."""


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asks decisions for.

    Attributes:
        event_index: the event that asks, counted from 0.
        scopes: names of decision scopes.
        surfaces: URIs of surfaces.
        schemas: of items that the client understands; empty when it does not say.
    """

    event_index: int
    scopes: tuple[str, ...]
    surfaces: tuple[str, ...]
    schemas: frozenset[str]


def read_asked(query: object, event_index: int) -> Asked | None:
    """Read ``query.personalization``; None when it asks for nothing.

    Raises:
        Problem: 0102-400, a list that holds no texts, or more than 30 decision scopes. The latter's code is presumed.

    Source: Adobe Experience Platform Edge Network API, personalization: ``decisionScopes``, ``surfaces``, ``schemas``.
    """
    personalization = query.get("personalization") if isinstance(query, dict) else None
    if not isinstance(personalization, dict):
        return None
    names = ("decisionScopes", "surfaces", "schemas")
    scopes, surfaces, schemas = (_texts(personalization, name, event_index) for name in names)
    if len(scopes) > _MAX_SCOPES:
        detail = f"At most {_MAX_SCOPES} decision scopes may be asked for at once."
        raise Problem("0102-400", detail, event_index=event_index)
    return Asked(event_index, scopes, surfaces, frozenset(schemas)) if scopes or surfaces else None


def _texts(personalization: Mapping[str, Any], name: str, event_index: int) -> tuple[str, ...]:
    value = personalization.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        detail = f"'query.personalization.{name}' must be an array of texts."
        raise Problem("0102-400", detail, event_index=event_index)
    return tuple(dict.fromkeys(value))


class Decisions:
    """Answers from a file, which is read again when it has changed.

    Once it has been read, a file that breaks is logged and the last good one goes on answering.

    Args:
        path: the file: ``{"scopes": {"hero": [item, …]}, "surfaces": {"web://…": [item, …]}}``, an item being
            ``{"schema", "content", "format"?, "meta"?, "type"?, "selector"?}``. None answers that nothing qualifies.

    Raises:
        DecisionsError: the file holds something else, or cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str] | None = None) -> None:
        self._path = None if path is None else Path(path)
        self._seen: object = None
        self._complaint: str | None = None
        self._items: dict[str, dict[str, Any]] = {"scopes": {}, "surfaces": {}}
        if self._path is not None:
            try:
                self._seen = _version(self._path)
                self._items = read_decisions(self._path.read_bytes())
            except (OSError, DecisionsError) as error:
                raise DecisionsError(f"{self._path}: {_reason(error)}") from None

    def handles(self, asked: Iterable[Asked]) -> list[Handle]:
        """Answer each event that asks; with an empty payload where nothing qualifies."""
        wanted = list(asked)
        if wanted:
            self._read_again()
        return [self._handle(one) for one in wanted]

    def _handle(self, asked: Asked) -> Handle:
        chosen = [
            _proposition(provider, scope, items)
            for provider, scopes, kind in (
                ("TGT", asked.scopes, "scopes"),
                ("AJO", asked.surfaces, "surfaces"),
            )
            for scope in scopes
            if (items := _understood(self._items[kind].get(scope, ()), asked.schemas))
        ]
        return {"type": "personalization:decisions", "eventIndex": asked.event_index, "payload": chosen}

    def _read_again(self) -> None:
        """Look whether the file has changed. A look costs microseconds, and comes with a request that asks only."""
        if self._path is None:
            return
        try:
            seen = _version(self._path)
            if seen == self._seen:
                return
            self._seen = seen
            self._items = read_decisions(self._path.read_bytes())
        except (OSError, DecisionsError) as error:
            if isinstance(error, OSError):
                self._seen = None
            self._complain(_reason(error))
        else:
            self._complaint = None
            _log.info("%s: decisions read again", self._path)

    def _complain(self, complaint: str) -> None:
        # Once, not for each request that comes meanwhile.
        if complaint != self._complaint:
            _log.warning("%s: %s. The decisions read before go on answering", self._path, complaint)
        self._complaint = complaint


def _reason(error: Exception) -> str:
    return f"cannot be read: {error.strerror or error}" if isinstance(error, OSError) else str(error)


def _version(path: Path) -> object:
    found = path.stat()
    return found.st_mtime_ns, found.st_size, found.st_ino


def _understood(items: Sequence[Mapping[str, Any]], schemas: frozenset[str]) -> list[Mapping[str, Any]]:
    return [item for item in items if not schemas or item["schema"] in schemas]


# From the file's words to the edge's.


def _proposition(provider: str, scope: str, items: Sequence[Mapping[str, Any]]) -> Handle:
    """Write a proposition. Everything that identifies it is made from the scope, so that it stays the same.

    Source: Adobe Experience Platform Edge Network API and adobe/alloy: ``personalization:decisions``.
    """
    activity = str(zlib.crc32(scope.encode(errors="backslashreplace")))
    experience = {"experience": {"id": "0"}} if provider == "TGT" else {}
    details = {
        "decisionProvider": provider,
        "correlationID": f"{activity}:0:0",
        "activity": {"id": activity},
        **experience,
        "characteristics": {"eventToken": _base64(f"development edge {activity}")},
    }
    return {
        "id": _proposition_id(provider, scope, activity),
        "scope": scope,
        "scopeDetails": details,
        "items": [_item(scope, index, item) for index, item in enumerate(items)],
    }


def _proposition_id(provider: str, scope: str, activity: str) -> str:
    if provider == "TGT":
        return "AT:" + _base64(json.dumps({"activityId": activity, "experienceId": "0"}))
    return _stable_id(scope)


def _item(scope: str, index: int, item: Mapping[str, Any]) -> Handle:
    about = {"id": _stable_id(f"{scope} {index}"), "schema": item["schema"], "meta": item.get("meta", {})}
    if "content" not in item:
        return about
    form = item.get("format", _FORMATS.get(item["schema"]))
    data = {"id": about["id"], "content": item["content"]}
    if form is not None:
        data["format"] = form
    return {**about, "data": data | {name: item[name] for name in ("type", "selector") if name in item}}


def _stable_id(text: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, text.encode(errors="backslashreplace").decode()))


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


# The file.


def read_decisions(content: bytes) -> dict[str, dict[str, Any]]:
    """Read and check a file of decisions.

    Returns:
        ``{"scopes": {name: [item, …]}, "surfaces": {uri: [item, …]}}``.

    Raises:
        DecisionsError: it names the place, such as ``scopes.hero[0].schema``.
    """
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DecisionsError(f"it is not JSON: {error}") from None
    _check_object(document, "the file", ("scopes", "surfaces"))
    return {kind: _read_group(document.get(kind, {}), kind) for kind in ("scopes", "surfaces")}


def _read_group(group: object, place: str) -> dict[str, Any]:
    if not isinstance(group, dict):
        raise DecisionsError(f"{place} must be an object of lists, by name")
    for name, items in group.items():
        if not isinstance(items, list):
            raise DecisionsError(f"{_below(place, name)} must be a list of items")
        for index, item in enumerate(items):
            _check_item(item, f"{_below(place, name)}[{index}]")
    return group


def _check_item(item: object, place: str) -> None:
    fields = _check_object(item, place, _ITEM_FIELDS)
    schema = fields.get("schema")
    if not isinstance(schema, str) or not schema:
        raise DecisionsError(f"{place}.schema must be a text such as {_SCHEMAS}json-content-item")
    if "content" not in fields and schema != _WITHOUT_CONTENT:
        raise DecisionsError(f"{place}.content is missing; only {_WITHOUT_CONTENT} has none")
    for name in ("format", "type", "selector"):
        if not isinstance(fields.get(name, ""), str):
            raise DecisionsError(f"{place}.{name} must be a text")
    if not isinstance(fields.get("meta", {}), dict):
        raise DecisionsError(f"{place}.meta must be an object")


def _check_object(value: object, place: str, known: Sequence[str]) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise DecisionsError(f"{place} must be an object")
    for name in value:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(known)}"
            where = name if place == "the file" else f"{place}.{name}"
            raise DecisionsError(f"{where} is unknown; {hint}")
    return value


def _below(place: str, name: str) -> str:
    return f"{place}.{name}" if name.isidentifier() else f"{place}[{json.dumps(name)}]"

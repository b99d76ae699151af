"""Exchanges of earlier runs, as a file holds them; somebody may have edited it."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, get_args

from .body import read_text
from .consent import Choice
from .exchange import Exchange, Outcome, ReceivedEvent
from .findings import Finding
from .messages import EdgeAnswer
from .paths import Action
from .problems import Problem

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Collection, Mapping

__all__ = ["read_exchange", "read_exchanges"]

_log = logging.getLogger(__name__)


def read_exchanges(texts: deque[str], source: object) -> list[Exchange]:
    """Read what `Exchange.as_json` wrote; what it did not write is skipped, with a line in the log.

    Args:
        texts: one for each exchange; taken out one by one, so that memory never holds all of it twice.
        source: where they come from, for the log.
    """
    exchanges, broken = [], 0
    while texts:
        try:
            exchanges.append(read_exchange(texts.popleft()))
        except ValueError:
            broken += 1
    if broken:
        _log.warning("%s: %d exchanges that no development edge wrote were skipped", source, broken)
    return exchanges


def read_exchange(text: str) -> Exchange:
    """Read what `Exchange.as_json` wrote.

    Raises:
        ValueError: it is something else.
    """
    try:
        exchange = _read(text)
        _ = exchange.problem  # a refusal that cannot be shown
    except (KeyError, TypeError, AttributeError, IndexError, RecursionError, Problem) as error:
        raise ValueError(f"not an exchange of a development edge: {error!r}") from None
    return exchange


def _read(text: str) -> Exchange:
    whole = json.loads(text)
    request, answer, entry = whole["request"], whole["answer"], whole["entry"]
    body = _body_text(text, request["body"])
    spans = {} if body is None else read_text(body).event_spans
    found = spans.get("events") or spans.get("event") or ()
    return Exchange(
        received_at=_text(entry["receivedAt"]),
        request_id=_text(entry["requestId"]),
        method=_text(request["method"]),
        path=_text(request["path"]),
        query=_texts(request["query"]),
        headers=_texts(request["headers"]),
        body=body,
        text=_text_or_none(request["text"]),
        size=int(entry["size"]),
        answer=EdgeAnswer(int(answer["status"]), _texts(answer["headers"]), _answer_body(answer)),
        action=_one_of(get_args(Action), entry["action"]),
        datastream_id=_text_or_none(entry["datastreamId"]),
        visitor=_text_or_none(entry["visitor"]),
        consent=_one_of(get_args(Choice), entry["consent"]),
        fault=_text_or_none(entry["fault"]),
        events=tuple(_read_event(event, *found[event["index"]]) for event in entry["events"]),
        n=int(entry["n"]),
    )


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no text")
    return value


def _text_or_none(value: Any) -> str | None:
    return None if value is None else _text(value)


def _texts(value: Any) -> dict[str, str]:
    return {name: _text(content) for name, content in value.items()}


def _one_of(known: Collection[Any], value: Any) -> Any:
    if value is not None and value not in known:
        raise TypeError(f"{value!r:.80} is unknown")
    return value


def _body_text(text: str, body: object) -> str | None:
    """Cut the body's own text out; where the line was written by another tool, write the value anew."""
    if body is None:
        return None
    start = text.find('"body": ') + len('"body": ')
    if text.startswith('{"recorded": '):
        _, end = json.JSONDecoder().raw_decode(text, start)
        return text[start:end]
    return json.dumps(body)


def _answer_body(answer: Mapping[str, Any]) -> bytes:
    if answer["body"] is not None:
        return json.dumps(answer["body"]).encode()
    return (answer["text"] or "").encode(errors="backslashreplace")


def _read_event(entry: Mapping[str, Any], start: int, end: int) -> ReceivedEvent:
    return ReceivedEvent(
        index=entry["index"],
        start=start,
        end=end,
        event_id=_text_or_none(entry["id"]),
        type=_text_or_none(entry["type"]),
        visitor=_text_or_none(entry["visitor"]),
        outcome=_one_of(get_args(Outcome), _text(entry["outcome"])),
        timestamp=_text_or_none(entry["timestamp"]),
        findings=tuple(Finding(**_texts(finding)) for finding in entry["findings"]),  # type: ignore[arg-type]
    )

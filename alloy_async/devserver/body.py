"""Request bodies: JSON that nobody has to trust, with each event's own text kept.

Parsing an event and writing it again would change it: ``1.10`` becomes ``1.1``, a Decimal with thirty digits loses
half of them, a key that stands twice stands once. So the envelope is read by hand, one member at a time, each value by
the standard library's scanner; the scanner says where an event ends, and its text is cut out unchanged. Everything is
parsed exactly once, and text takes a fifth of the memory of dictionaries.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NoReturn

from .problems import Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["MAX_DEPTH", "Body", "read_body", "read_media_type", "read_text"]

MAX_DEPTH = 512
"""Levels of nesting that are read in one event, or in another member of the body.

About half of Python's recursion limit, so that whoever reads back can parse it."""

# application/x-jackson-smile is legal on the wire too, but binary; a stand-in for desks does not read it.
# Source: Adobe Experience Platform Edge Network API, request headers.
_JSON_MEDIA_TYPES = frozenset({"application/json", "text/plain", "text/javascript"})

_BLANKS = re.compile(r"[ \t\n\r]*")
# A string as a whole, so that brackets within do not count, or one bracket; of text that is known to be JSON.
_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"|[\[{]|[\]}]')


@dataclass(frozen=True, slots=True)
class Body:
    """A request's JSON object.

    Attributes:
        text: the whole body as received.
        fields: the parsed members.
        event_spans: where each element of ``events``, or ``event``, begins and ends in the text.
    """

    text: str
    fields: Mapping[str, Any]
    event_spans: Mapping[str, tuple[tuple[int, int], ...]]

    def events(self) -> list[tuple[object, tuple[int, int]]]:
        """Return each event, parsed, with the place of its text; those of ``events``, or the one of ``event``."""
        name = "events" if "events" in self.event_spans else "event"
        spans = self.event_spans.get(name, ())
        values = self.fields[name] if name == "events" else [self.fields.get(name)]
        return list(zip(values, spans, strict=False))


def read_media_type(content_type: str | None) -> None:
    """Refuse what is not JSON under one of its accepted names.

    Raises:
        Problem: 0111-415.
    """
    media_type = (content_type or "").partition(";")[0].strip().lower()
    if media_type not in _JSON_MEDIA_TYPES:
        raise Problem("0111-415", f"Send JSON as one of {', '.join(sorted(_JSON_MEDIA_TYPES))}.")


def read_body(content: bytes) -> Body:
    """Read a request body.

    Raises:
        Problem: 0109-408 (empty), 0101-400 (not JSON, or more than a JSON reader should take), 0102-400 (no object).
    """
    if not content:
        raise Problem("0109-408", "The request has no body.")
    try:
        return read_text(content.decode())
    except (ValueError, RecursionError):
        # Of one kind for us: bad syntax, bad UTF-8, NaN, an integer of more than 4300 digits. 0100 would fit the
        # last, but its status is 500, and a client that sends nonsense should not hear that the server broke.
        raise Problem("0101-400", "The body cannot be read as JSON.") from None


def read_text(text: str) -> Body:
    """Read a request body that is text already.

    Raises:
        ValueError, RecursionError: it is not JSON, or more than a JSON reader should take.
        Problem: as `read_body`.
    """
    return _Envelope(text).read()


def _refuse_deep(text: str) -> None:
    # Most values have fewer brackets than they may have levels; counting those takes a microsecond.
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise Problem("0101-400", f"The body is nested too deep; at most {MAX_DEPTH} levels are read.")


def _depth(text: str) -> int:
    depth = deepest = 0
    for bracket in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(bracket[0], 0)
        deepest = max(deepest, depth)
    return deepest


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_scan = json.JSONDecoder(parse_constant=_refuse_constant).raw_decode


class _Envelope:
    """Reads the outermost object, member by member."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = self._after_blanks(0)
        self._fields: dict[str, Any] = {}
        self._events: dict[str, tuple[tuple[int, int], ...]] = {}

    def read(self) -> Body:
        if not self._takes("{"):
            self._value()
            self._end()
            raise Problem("0102-400", "The body must be a JSON object.")
        self._sequence("}", self._member)
        self._end()
        return Body(self._text, self._fields, self._events)

    def _member(self) -> None:
        key, _ = self._value()
        if not isinstance(key, str) or not self._takes(":"):
            raise ValueError("a member needs a name")
        # Of a name that stands twice the later one counts, as in every JSON reader in use.
        self._events.pop(key, None)
        if key == "events" and self._takes("["):
            self._fields[key], self._events[key] = self._elements()
        else:
            self._fields[key], span = self._value()
            if key == "event":
                self._events[key] = (span,)

    def _elements(self) -> tuple[list[Any], tuple[tuple[int, int], ...]]:
        pairs: list[tuple[Any, tuple[int, int]]] = []
        self._sequence("]", lambda: pairs.append(self._value()))
        return [value for value, _ in pairs], tuple(span for _, span in pairs)

    def _sequence(self, closing: str, item: Callable[[], None]) -> None:
        if self._takes(closing):
            return
        item()
        while not self._takes(closing):
            if not self._takes(","):
                raise ValueError("items are separated by commas")
            item()

    def _value(self) -> tuple[Any, tuple[int, int]]:
        start = self._at
        value, end = _scan(self._text, start)
        self._at = self._after_blanks(end)
        _refuse_deep(self._text[start:end])
        return value, (start, end)

    def _takes(self, mark: str) -> bool:
        if not self._text.startswith(mark, self._at):
            return False
        self._at = self._after_blanks(self._at + 1)
        return True

    def _end(self) -> None:
        if self._at != len(self._text):
            raise ValueError("something follows the body")

    def _after_blanks(self, at: int) -> int:
        blanks = _BLANKS.match(self._text, at)
        return blanks.end() if blanks else at

"""The names that schemas know at each level of an event, and the walk that finds those they do not know."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .bundle import Schema

__all__ = ["Fields", "UnknownField"]


class UnknownField(NamedTuple):
    """A name in an event that no schema has at its level.

    Attributes:
        path: where it stands, names and indexes, the unknown name last.
        siblings: the names that are known there.
    """

    path: tuple[str | int, ...]
    siblings: frozenset[str]


@dataclass(slots=True)
class _Level:
    """What may stand at one place, by all schemas that speak of it.

    Attributes:
        names: the schemas of each known name.
        patterns: the schemas of names that match.
        rest: the schemas of any other name: the values of a map.
        items: the schemas of an array's items.
        open: whether any other name is welcome, without a schema.
        known: the names, as a set.
    """

    names: dict[str, list[Schema]] = field(default_factory=dict)
    patterns: list[tuple[re.Pattern[str], Schema]] = field(default_factory=list)
    rest: list[Schema] = field(default_factory=list)
    items: list[Schema] = field(default_factory=list)
    open: bool = False
    known: frozenset[str] = frozenset()

    def schemas_of(self, name: str) -> list[Schema]:
        return (
            self.names.get(name)
            or [schema for form, schema in self.patterns if form.search(name)]
            or self.rest
        )


class Fields:
    """The tree of known names, made level by level when an event first reaches there: schemas may contain themselves.

    A level is shared by all paths that lead to the same schemas, so that there are never more than the schemas allow.

    Args:
        schema: a bundle: every ``$ref`` in it names one of its ``definitions``.
    """

    def __init__(self, schema: Schema) -> None:
        self._definitions: Mapping[str, Schema] = schema["definitions"]
        self._levels: dict[tuple[int, ...], _Level] = {}
        self._top = [schema]

    def unknown(self, event: Mapping[str, Any]) -> Iterator[UnknownField]:
        """Yield the names that no schema has, the outermost first.

        Names with a leading underscore are an organisation's own unless a schema has them, and are not yielded. A place
        of which no schema says what is in it may hold anything.
        """
        # A queue, not recursion: events are nested up to 512 levels deep.
        waiting: deque[tuple[list[Schema], Any, tuple[str | int, ...]]] = deque([(self._top, event, ())])
        while waiting:
            schemas, value, path = waiting.popleft()
            level = self._level(schemas)
            if isinstance(value, list):
                if level.items:
                    waiting.extend(
                        (level.items, item, (*path, at)) for at, item in enumerate(value) if _holds(item)
                    )
                continue
            for name, member in value.items():
                inner = level.schemas_of(name)
                if inner:
                    if _holds(member):
                        waiting.append((inner, member, (*path, name)))
                elif level.known and not level.open and not name.startswith("_"):
                    yield UnknownField((*path, name), level.known)

    def _level(self, schemas: list[Schema]) -> _Level:
        key = tuple(sorted({id(schema) for schema in schemas}))
        level = self._levels.get(key)
        if level is None:
            level = self._levels[key] = self._read(schemas)
        return level

    def _read(self, schemas: list[Schema]) -> _Level:
        level = _Level()
        seen: set[int] = set()
        waiting = list(schemas)
        while waiting:
            schema = waiting.pop()
            if id(schema) in seen:
                continue
            seen.add(id(schema))
            waiting += self._same_place(schema)
            _take_names(level, schema)
            _take_items(level, schema)
        level.known = frozenset(level.names)
        return level

    def _same_place(self, schema: Schema) -> list[Schema]:
        """Return the schemas that speak of the same value; what ``not`` and ``if`` name is not promised."""
        if "$ref" in schema:
            return [self._definitions[schema["$ref"].rpartition("/")[2]]]
        branches = [branch for keyword in ("allOf", "anyOf", "oneOf") for branch in schema.get(keyword, ())]
        return branches + [schema[keyword] for keyword in ("then", "else") if keyword in schema]


def _take_names(level: _Level, schema: Schema) -> None:
    for name, inner in schema.get("properties", {}).items():
        level.names.setdefault(name, []).append(inner)
    for form, inner in schema.get("patternProperties", {}).items():
        try:
            level.patterns.append((re.compile(form), inner))
        except re.error:  # of JavaScript, and not of Python; whether a name matches is then not known
            level.open = True
    rest = schema.get("additionalProperties")
    if isinstance(rest, dict):
        level.rest.append(rest)
    elif rest is True:
        level.open = True


def _take_items(level: _Level, schema: Schema) -> None:
    items = schema.get("items", [])
    level.items += items if isinstance(items, list) else [items]


def _holds(value: object) -> bool:
    return isinstance(value, dict | list)

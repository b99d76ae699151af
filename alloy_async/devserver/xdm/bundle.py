"""One JSON Schema out of many files: every ``$ref`` resolved within it, every name as on the wire.

A validator that is given this schema has nothing left to fetch, and the walk over field names has nothing left to
resolve. Of each schema only what says something about events is taken over; titles and descriptions are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .catalogue import Catalogue, Place
from .names import wire_path

__all__ = ["Bundle", "Schema", "bundle"]

Schema = dict[str, Any]
"""A JSON Schema that is an object."""

_DIALECT = "http://json-schema.org/draft-07/schema#"
"""XDM is written in draft 6; draft 7 reads it alike, and knows the formats date and time."""

_VALUES = (
    "type", "enum", "const", "format", "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum",
    "multipleOf", "minLength", "maxLength", "minItems", "maxItems", "uniqueItems",
)  # fmt: skip
_BRANCHES = ("allOf", "anyOf", "oneOf")
_ALTERNATIVES = ("not", "if", "then", "else")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A schema that needs no other.

    Attributes:
        schema: the schema; its ``definitions`` are the pieces of the files, and its ``$ref`` name them.
        files: in which file each definition stands.
    """

    schema: Schema
    files: dict[str, str]


def bundle(catalogue: Catalogue, roots: list[str]) -> Bundle:
    """Write one schema that asks of an event what all the roots ask.

    References that lead nowhere are noted in the catalogue's ``problems``, and ask nothing.
    """
    return _Writer(catalogue).write(roots)


class _Writer:
    def __init__(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self._labels: dict[Place, str] = {}
        self._waiting: list[tuple[str, Any, str]] = []
        self._files: dict[str, str] = {}
        self._lost: set[tuple[str, str]] = set()

    def write(self, roots: list[str]) -> Bundle:
        all_of = [self._reference(root, root) for root in roots]
        definitions: dict[str, Schema] = {}
        # A loop, not recursion: schemas refer to one another in circles, and in long chains.
        while self._waiting:
            label, piece, document = self._waiting.pop()
            self._files[label] = self._catalogue.file(document)
            definitions[label] = self._definition(piece, document)
        return Bundle({"$schema": _DIALECT, "definitions": definitions, "allOf": all_of}, self._files)

    def _definition(self, piece: Any, document: str) -> Schema:
        try:
            return self._schema(piece, document)
        except RecursionError:
            self._catalogue.problems.append(
                f"{self._catalogue.file(document)}: nested too deep; it is not checked"
            )
            return {}

    def _reference(self, reference: str, document: str) -> Schema:
        if reference.endswith("/definitions/@context"):
            return {}  # it allows names with known prefixes only; on the wire they have none
        found = self._catalogue.find(reference, document)
        if found is None:
            self._lose(reference, document)
            return {}
        place, piece = found
        if place not in self._labels:
            self._labels[place] = str(len(self._labels))
            self._waiting.append((self._labels[place], piece, place.document))
        return {"$ref": f"#/definitions/{self._labels[place]}"}

    def _lose(self, reference: str, document: str) -> None:
        if (reference, document) not in self._lost:
            self._lost.add((reference, document))
            file = self._catalogue.file(document)
            self._catalogue.problems.append(
                f"{file}: no file has what '$ref': '{reference}' names; it is not checked"
            )

    def _schema(self, piece: Any, document: str) -> Schema:
        if not isinstance(piece, dict):
            return {}
        if isinstance(piece.get("$ref"), str):
            return self._reference(
                piece["$ref"], document
            )  # what stands beside it counts for nothing in drafts 6 and 7
        schema: Schema = {keyword: piece[keyword] for keyword in _VALUES if keyword in piece}
        schema |= self._nested(piece, document)
        schema |= self._properties(piece, document)
        return schema

    def _nested(self, piece: Schema, document: str) -> Schema:
        nested: Schema = {}
        for keyword in _BRANCHES:
            if isinstance(piece.get(keyword), list) and piece[keyword]:
                nested[keyword] = [self._schema(branch, document) for branch in piece[keyword]]
        for keyword in (*_ALTERNATIVES, "contains"):
            if isinstance(piece.get(keyword), dict):
                nested[keyword] = self._schema(piece[keyword], document)
        items = piece.get("items")
        if isinstance(items, list):
            nested["items"] = [self._schema(item, document) for item in items]
        elif isinstance(items, dict):
            nested["items"] = self._schema(items, document)
        return nested

    def _properties(self, piece: Schema, document: str) -> Schema:
        fields: Schema = {}
        if isinstance(piece.get("properties"), dict):
            named = [
                (wire_path(name), self._schema(field, document))
                for name, field in piece["properties"].items()
            ]
            fields["properties"] = _grouped(named)
        if isinstance(piece.get("patternProperties"), dict):
            patterns = piece["patternProperties"].items()
            fields["patternProperties"] = {name: self._schema(field, document) for name, field in patterns}
        # Maps have a schema here. "false" is left out: unknown names are found otherwise, all of them and with advice.
        if isinstance(piece.get("additionalProperties"), dict):
            fields["additionalProperties"] = self._schema(piece["additionalProperties"], document)
        elif piece.get("additionalProperties") is True:
            fields["additionalProperties"] = True
        if isinstance(piece.get("required"), list):
            paths = [wire_path(name) for name in piece["required"] if isinstance(name, str)]
            # A name of several levels would ask for objects that nobody else asks for.
            fields["required"] = sorted({path[0] for path in paths if len(path) == 1})
        return fields


def _grouped(named: list[tuple[tuple[str, ...], Schema]]) -> dict[str, Schema]:
    """Nest fields whose names have several levels on the wire."""
    groups: dict[str, list[tuple[tuple[str, ...], Schema]]] = {}
    for (first, *rest), schema in named:
        groups.setdefault(first, []).append((tuple(rest), schema))
    return {first: _united(members) for first, members in groups.items()}


def _united(members: list[tuple[tuple[str, ...], Schema]]) -> Schema:
    schemas = [schema for rest, schema in members if not rest]
    deeper = [(rest, schema) for rest, schema in members if rest]
    if deeper:
        schemas.append({"type": "object", "properties": _grouped(deeper)})
    return schemas[0] if len(schemas) == 1 else {"allOf": schemas}

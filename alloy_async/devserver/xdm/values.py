"""Values against schemas: types, enumerations, formats and patterns, by the library `jsonschema-rs`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from ..findings import Finding, excerpt, place
from ..well_known import nearest
from .bundle import Bundle, Schema
from .library import UnusableSchemas

__all__ = ["Values"]

_MAX_TEXT = 200
"""Characters of what a schema says: an enumeration may have hundreds of members."""

_TYPES = {"string": "text", "number": "a number", "integer": "a whole number", "boolean": "true or false",
          "object": "an object", "array": "an array", "null": "null"}  # fmt: skip


class _Error(Protocol):
    """What we use of an error of the library."""

    @property
    def message(self) -> str: ...
    @property
    def instance_path(self) -> list[str | int]: ...
    @property
    def instance(self) -> Any: ...
    @property
    def kind(self) -> Any: ...


class Values:
    """Compares the values of events with a schema.

    Args:
        bundle: the schema. What is no JSON Schema in it is taken out.
        problems: takes one line for each piece that had to be taken out.

    Raises:
        UnusableSchemas: jsonschema-rs is missing.
    """

    def __init__(self, bundle: Bundle, problems: list[str]) -> None:
        try:
            import jsonschema_rs  # noqa: PLC0415 - an extra: without schemas nobody needs it
        except ImportError as error:
            raise UnusableSchemas(
                'Checks against XDM schemas need jsonschema-rs: pip install "alloy-async[xdm]".'
            ) from error
        while True:
            try:
                # The mask keeps values out of messages; the few that help are put in by hand, cut.
                self._validator = jsonschema_rs.Draft7Validator(
                    bundle.schema, validate_formats=True, mask="the value", offline=True
                )
            except jsonschema_rs.ValidationError as error:
                problems.append(_take_out(bundle, error.instance_path))
            else:
                return

    def check(self, xdm: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield one finding for each value that a schema contradicts.

        The same fields stand in several field groups, so that one wrong value has several errors; one is yielded.
        """
        seen: set[tuple[str, str]] = set()
        try:
            errors: Iterator[_Error] = iter(self._validator.iter_errors(xdm))
        except ValueError:  # lone surrogates; more levels than the library reads
            message = "The event holds text that is not Unicode, or is nested too deep, and was not compared."
            yield Finding("warning", "xdm-not-checked", "xdm", message, "Send text and levels that every reader takes.")
            return
        for error in errors:
            finding = _finding(error)
            if finding is not None and (finding.code, finding.path) not in seen:
                seen.add((finding.code, finding.path))
                yield finding


def _take_out(bundle: Bundle, path: list[str | int]) -> str:
    """Take the keyword that is no JSON Schema out of the bundle, and say so."""
    *parents, last = path
    holder: Any = bundle.schema
    for step in parents:
        holder = holder[step]
    if isinstance(holder, list):
        holder[int(last)] = {}
    else:
        del holder[last]
    file = bundle.files.get(str(path[1]) if len(path) > 1 else "", "?")
    return f"{file}: '{place(path[2:])}' is no JSON Schema; it is not checked"


def _finding(error: _Error) -> Finding | None:
    kind = error.kind
    path = place(["xdm", *error.instance_path])
    shown = excerpt(error.instance)
    match kind.name:
        case "required":
            # Which field groups a datastream has is not known here, so what they require of the whole event is not
            # either; '_id' and 'timestamp' are looked at by the structural checks.
            if not error.instance_path:
                return None
            message = f"The field {excerpt(kind.value)} is missing."
            return _error("xdm-missing-field", path, message, f"Add it, or leave out '{path}'.")
        case "type":
            wanted = " or ".join(_TYPES.get(name, name) for name in kind.types)
            return _error("xdm-type", path, f"The value is {shown}.", f"Send {wanted}.")
        case "enum":
            return _error("xdm-enum", path, f"The value {shown} is not one of the known ones.", _choice(error))
        case "format":
            return _error("xdm-format", path, f"The value {shown} has another form.", _form(kind.value))
        case "pattern":
            message = f"The value {shown} has another form."
            return _error("xdm-pattern", path, message, _cut(f"Send what matches {kind.value}."))
        case keyword:
            return _error(f"xdm-{keyword}", path, f"The value is {shown}.", _cut(f"The schema says: {error.message}."))


def _error(code: str, path: str, message: str, advice: str) -> Finding:
    return Finding("error", code, path, message, advice)


def _choice(error: _Error) -> str:
    options = [option for option in error.kind.options if isinstance(option, str)]
    if isinstance(error.instance, str) and (meant := nearest(error.instance, frozenset(options), 0.7)):
        return f"Did you mean '{meant}'?"
    return _cut(f"Send one of {', '.join(options)}.")


_EXAMPLES = {
    "date-time": "2026-11-23T15:20:48.830Z",
    "date": "2026-11-23",
    "time": "15:20:48Z",
    "ipv4": "192.0.2.1",
    "ipv6": "2001:db8::1",
    "uri": "https://www.example.com/",
    "email": "someone@example.com",
}


def _form(name: str) -> str:
    example = f", {_EXAMPLES[name]} for example" if name in _EXAMPLES else ""
    return f"Send a {name}{example}."


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else f"{text[: _MAX_TEXT - 1]}…"

"""Values against schemas: types, enumerations, formats and patterns, by the library `jsonschema-rs`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

from ..findings import Finding, excerpt, place
from ..well_known import nearest
from .bundle import Bundle
from .catalogue import UnusableSchemas

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
            errors: list[_Error] = list(self._validator.iter_errors(xdm))
        except ValueError:  # lone surrogates; more levels than the library reads
            message = "The event holds text that is not Unicode, or is nested too deep, and was not compared."
            yield Finding(
                "warning", "xdm-not-checked", "xdm", message, "Send text and levels that every reader takes."
            )
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
        holder = holder[_key(holder, step)]
    if isinstance(holder, list):
        holder[int(last)] = {}
    else:
        del holder[_key(holder, last)]
    file = bundle.files[str(path[1])]  # what is not below "definitions" is our own, and right
    return f"{file}: '{place(path[2:])}' is no JSON Schema; it is not checked"


def _key(holder: Any, step: str | int) -> str | int:
    """Undo that the library writes names of digits as numbers."""
    return str(step) if isinstance(holder, dict) else step


def _finding(error: _Error) -> Finding | None:
    keyword = error.kind.name
    # Which field groups a datastream has is not known here, so what they require of the whole event is not either;
    # '_id' and 'timestamp' are looked at by the structural checks.
    if keyword == "required" and not error.instance_path:
        return None
    code = "xdm-missing-field" if keyword == "required" else f"xdm-{keyword.lower()}"
    path = place(["xdm", *error.instance_path])
    message, advice = _words(error, path)
    return Finding("error", code, path, message, _cut(advice))


def _words(error: _Error, path: str) -> tuple[str, str]:
    kind = error.kind
    shown = excerpt(error.instance)
    match kind.name:
        case "required":
            return f"The field {excerpt(kind.value)} is missing.", f"Add it, or leave out '{path}'."
        case "type":
            wanted = " or ".join(_TYPES.get(str(name), str(name)) for name in kind.types)
            return f"The value is {shown}.", f"Send {wanted}."
        case "enum":
            return f"The value {shown} is not one of the known ones.", _choice(error)
        case "format":
            return f"The value {shown} has another form.", _form(kind.value)
        case "pattern":
            return f"The value {shown} has another form.", f"Send what matches {kind.value}."
        case _:
            return f"The value is {shown}.", f"The schema says: {error.message}."


def _choice(error: _Error) -> str:
    options = [option for option in error.kind.options if isinstance(option, str)]
    if isinstance(error.instance, str) and (meant := nearest(error.instance, frozenset(options), 0.7)):
        return f"Did you mean '{meant}'?"
    return f"Send one of {', '.join(options)}."


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

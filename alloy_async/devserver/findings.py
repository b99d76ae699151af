"""What a check found in an event, in words for a person and bounded for a page."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["MAX_EXCERPT", "MAX_FINDINGS", "MAX_MADE", "Finding", "bounded", "excerpt", "place"]

MAX_FINDINGS = 20
"""Findings kept of one event; those beyond are counted in one more."""

MAX_MADE = 200
"""Findings that one check makes of one event: 64 KB of nonsense would have tens of thousands, and take seconds."""

MAX_EXCERPT = 80
"""Characters that a message shows of a value or a name out of an event."""

_MAX_PLACE = 300


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about an event that somebody at a desk wants to know.

    Attributes:
        level: ``error`` for what a schema or the edge contradicts, ``warning`` for what is legal and hardly meant.
        code: what kind of thing, stable and in lower case, for example ``xdm-unknown-field``.
        path: where, for example ``xdm.commerce.order.priceTotal``; empty for the event as a whole.
        message: what is the case; of the event's values it shows at most a short, escaped excerpt.
        advice: what to do.
    """

    level: Literal["error", "warning"]
    code: str
    path: str
    message: str
    advice: str

    def as_dict(self) -> dict[str, str]:
        """Return it as JSON knows it: ``{"level", "code", "path", "message", "advice"}``."""
        return asdict(self)


def bounded(findings: Sequence[Finding], limit: int = MAX_FINDINGS) -> list[Finding]:
    """Keep the first findings, errors before warnings, and say in one more how many there are beside them."""
    ordered = sorted(findings, key=lambda finding: finding.level != "error")
    if len(ordered) <= limit:
        return ordered
    rest = ordered[limit:]
    count = f"at least {len(rest)}" if len(ordered) >= MAX_MADE else str(len(rest))
    more = Finding(
        rest[0].level, "more-findings", "", f"and {count} more", "Mend these first, then send again."
    )
    return [*ordered[:limit], more]


def excerpt(value: object) -> str:
    """Show a value out of an event: text and numbers escaped and cut, containers by their kind alone."""
    match value:
        case dict():
            return "an object"
        case list():
            return "an array"
        case None | bool():
            return {None: "null", True: "true", False: "false"}[value]
        case str():
            return _cut(repr(value[:MAX_EXCERPT]))
        case int() if value.bit_length() > 256:
            return "a very large integer"  # the interpreter refuses to write the largest
        case _:
            return _cut(repr(value))


def place(parts: Sequence[str | int]) -> str:
    """Write where something stands, for example ``xdm.productListItems[0].SKU``, names escaped and cut."""
    written = "".join(f"[{part}]" if isinstance(part, int) else f".{_name(part)}" for part in parts)
    written = written.removeprefix(".")
    half = _MAX_PLACE // 2
    return written if len(written) <= _MAX_PLACE else f"{written[: half - 1]}…{written[-half:]}"


def _name(part: str) -> str:
    return part if part.isidentifier() and len(part) <= MAX_EXCERPT else _cut(repr(part[:MAX_EXCERPT])[1:-1])


def _cut(text: str) -> str:
    return text if len(text) <= MAX_EXCERPT else f"{text[: MAX_EXCERPT - 1]}…"

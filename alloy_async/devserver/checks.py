"""All checks of an event behind one call: those of its structure, and those against XDM schemas where there are any."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from itertools import islice
from typing import TYPE_CHECKING

from .findings import MAX_MADE, Finding, bounded
from .structure import check_structure

if TYPE_CHECKING:
    from .xdm import XdmSchemas

__all__ = ["Checks"]


class Checks:
    """What the development edge says about the events it receives.

    Args:
        schemas: XDM schemas to check against; None checks the structure alone.
        clock: returns the time, timezone-aware.
    """

    def __init__(
        self, schemas: XdmSchemas | None = None, *, clock: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._schemas = schemas
        self._clock = clock

    @property
    def summary(self) -> str:
        """Say in one line what is checked, for the start of a server."""
        if self._schemas is None:
            return "Events are checked for their structure alone: no XDM schemas were given."
        return f"Events are checked against {self._schemas.summary}."

    def events(self, event: object, text: str, version: str) -> list[Finding]:
        """Check one event; it may be any JSON value.

        Args:
            event: the parsed event: an object with ``xdm``, and perhaps ``data``, ``query`` and ``meta``.
            text: its JSON, as it was received.
            version: of the API it was sent to, ``v1`` or ``v2``.

        Returns:
            At most `MAX_FINDINGS` findings, errors first, and one more that counts the others.
        """
        findings = list(islice(check_structure(event, text, version, self._clock()), MAX_MADE))
        if self._schemas is not None and isinstance(event, Mapping):
            findings += self._schemas.check(event)
        return bounded(findings)

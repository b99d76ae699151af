"""What goes wrong with a request, as problem details (RFC 9457) with the edge's own codes."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["Problem", "consent_warning"]

_ERRORS = "https://ns.adobe.com/aep/errors/EXEG-"

# Codes as documented; the titles are ours. The last three digits are the HTTP status.
# Source: Adobe Experience Platform Edge Network API, list of error codes.
_TITLES = {
    "0001-500": "Unexpected error",
    "0002-400": "Datastream id missing",
    "0003-400": "Unknown datastream",
    "0101-400": "Invalid JSON",
    "0102-400": "Invalid field value",
    "0103-400": "Field missing",
    "0104-422": "Unprocessable request",
    "0105-400": "Invalid request",
    "0109-408": "Empty request",
    "0110-400": "Value needed when cookies are enabled",
    "0111-415": "Unsupported media type",
    "0112-413": "Request too large",
    "0200-504": "Upstream timed out",
    "0201-503": "Upstream unavailable",
    "0202-502": "Upstream failed",
    "0302-409": "Consent cannot be changed",
    "0305-400": "Invalid identity",
    "0306-400": "No primary identity",
    "0308-400": "Invalid identity format",
    "0400-403": "Country not allowed",
    "0500-401": "Token missing or malformed",
    "0503-401": "Token expired",
    # No code of the edge is known for these; they are plain HTTP.
    "403": "Forbidden",
    "404": "Not found",
    "405": "Method not allowed",
    "503": "Busy",
}


class Problem(Exception):
    """A request that is refused as a whole.

    Args:
        code: four digits and the HTTP status, for example ``0103-400``; a bare status where the edge has no code.
        detail: what is wrong, for a person; never holds values from the request.
        event_index: which event is to blame, counted from 0.
        errors: one line for each finding of a validation.
    """

    def __init__(
        self, code: str, detail: str, *, event_index: int | None = None, errors: Sequence[str] = ()
    ) -> None:
        super().__init__(f"{code}: {detail}")
        self.status: int = int(code[-3:])
        self.type: str = _ERRORS + code if "-" in code else "about:blank"
        self.title: str = _TITLES.get(code) or _phrase(self.status)
        self.detail = detail
        self.event_index = event_index
        self.errors: tuple[str, ...] = tuple(errors)

    def details(self, request_id: str) -> dict[str, Any]:
        """Write the problem as the edge writes it, ``report`` included."""
        report: dict[str, Any] = {"requestId": request_id}
        if self.event_index is not None:
            report["eventIndex"] = self.event_index
        if self.errors:
            report["errors"] = list(self.errors)
        return {
            "type": self.type,
            "status": self.status,
            "title": self.title,
            "detail": self.detail,
            "report": report,
        }


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


def consent_warning(event_index: int) -> dict[str, Any]:
    """Say that one event was ignored for lack of consent.

    Source: Adobe Experience Platform Edge Network API, EXEG-0301-200 (a warning, the status stays 200).
    """
    return {
        "type": _ERRORS + "0301-200",
        "status": 200,
        "title": "The event was ignored because the visitor gave no consent",
        "report": {"eventIndex": event_index},
    }
